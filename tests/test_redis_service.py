"""The module redis_service: what it reads of a unit, what it decides, and how it waits; systemd is not at hand here."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from conftest import Server, load, server_command, start

for library in ("resp", "redis_files", "redis_server"):
    load(f"plugins/module_utils/{library}.py")
resp = load("plugins/module_utils/resp.py")
service = load("plugins/module_utils/redis_unit.py")

SHOWN = """LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
MainPID={pid}
FragmentPath={file}
"""


def state(**changes: Any) -> Any:
    """Return the state of a unit that runs what is installed."""
    usual: dict[str, Any] = {
        "loaded": True,
        "active": True,
        "enabled": True,
        "stale": False,
        "pid": 1,
        "started": 100.0,
    }
    return service.State(**{**usual, "files": {"/unit": 50.0}, **changes})


def test_a_unit_that_runs_what_is_installed_needs_no_restart() -> None:
    assert state().reasons() == []


def test_a_file_that_is_newer_than_the_process_is_a_reason() -> None:
    assert state(files={"/unit": 50.0, "/own": 101.0}).reasons() == ["/own is newer than the process"]


def test_a_replaced_program_is_a_reason() -> None:
    assert state(replaced=True).reasons() == ["the program was replaced"]


def test_a_unit_that_does_not_run_is_started_and_not_restarted() -> None:
    assert state(active=False, replaced=True, files={"/unit": 101.0}).reasons() == []


def test_what_systemd_says_is_read(tmp_path: Path) -> None:
    file = tmp_path / "redis.service"
    file.write_text("")
    os.utime(file, (1000, 1000))
    shown = SHOWN.format(pid=os.getpid(), file=file)
    read = service.parse_state(shown, str(tmp_path / "none.service"))
    assert (read.loaded, read.active, read.enabled, read.stale) == (True, True, True, False)
    assert read.files == {str(file): 1000.0}
    assert read.reasons() == []
    os.utime(file, (read.started + 60, read.started + 60))
    read = service.parse_state(shown, str(tmp_path / "none.service"))
    assert read.reasons() == [f"{file} is newer than the process"]


def test_an_own_unit_file_that_systemd_has_not_seen_is_stale(tmp_path: Path) -> None:
    package, own = tmp_path / "package.service", tmp_path / "own.service"
    package.write_text("")
    own.write_text("")
    read = service.parse_state(SHOWN.format(pid=os.getpid(), file=package), str(own))
    assert read.stale is True
    assert list(read.files) == [str(own)]


def test_a_unit_that_is_not_there_is_not_loaded() -> None:
    read = service.parse_state("LoadState=not-found\nActiveState=inactive\nMainPID=0\n", "/nowhere/x.service")
    assert (read.loaded, read.active, read.enabled) == (False, False, False)


def parameters(port: int, password: str) -> dict[str, Any]:
    """Return the module's parameters for a server on loopback."""
    way = dict.fromkeys(("ca_file", "server_name", "cert_file", "key_file"))
    return {
        "unit": "redis.service",
        "server": {"host": "127.0.0.1", "port": port, **way},
        "logins": [{"username": "default", "password": password}],
        "credentials_file": None,
        "timeout": 5.0,
        "loading_timeout": 5.0,
    }


def test_waiting_ends_with_the_answer(redis_server: Server) -> None:
    assert service.wait(parameters(redis_server.port, redis_server.password), 5) == ""


def test_waiting_ends_when_the_unit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "unit_alive", lambda unit: False)
    port = free_port()
    assert service.wait(parameters(port, "x"), 5) == f"no process listens on 127.0.0.1:{port}"


def test_the_old_configuration_is_named_where_there_is_one(tmp_path: Path) -> None:
    config = tmp_path / "redis.conf"
    assert "repair the fault" in service.advice({"config_file": str(config)})
    Path(f"{config}.previous").write_text("")
    assert f"{config}.previous" in service.advice({"config_file": str(config)})


def start_by_hand(folder: Path, port: int) -> int:
    """Start a server with an append-only file, have it write and end, unless it ends itself; return its exit code."""
    config = folder / "redis.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder}/log\nappendonly yes\nsave ''\n")
    process = subprocess.Popen([server_command(folder), str(config)])
    try:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as client:
                client.sendall(b"SET a 1\r\n")
                # While it loads its files it would end, too, if it were told to.
                if client.recv(99).startswith(b"+OK"):
                    client.sendall(b"SHUTDOWN NOSAVE\r\n")
                    process.wait(10)
        return process.returncode
    finally:
        process.kill()


def test_data_that_redis_refuses_have_two_ways_out(tmp_path: Path) -> None:
    folder, port = tmp_path / "redis", free_port()
    folder.mkdir()
    params = {"config_file": str(folder / "redis.conf"), "log_file": str(folder / "log"), "unit": "none"}
    assert start_by_hand(folder, port) == 0
    assert "repair the fault" in service.advice(params)
    Path(f"{params['config_file']}.previous").write_text("")
    # In the middle.
    file = next(folder.glob("appendonlydir/*.incr.aof"))
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"*3", b"?3", 1))
    (folder / "redis-server").unlink(missing_ok=True)
    assert start_by_hand(folder, port) == 1
    said = service.advice(params)
    assert f"Bad file format reading the append only file {file.name}" in said
    for words in ("playbooks/repair.yml", "re-sync from a replica", "playbooks/restore.yml", "not changed"):
        assert words in said
    # What an earlier start said is not true for ever.
    file.write_bytes(whole)
    (folder / "redis-server").unlink(missing_ok=True)
    assert start_by_hand(folder, port) == 0
    assert "repair.yml" not in service.advice(params)


def test_data_of_a_newer_redis_are_not_called_damaged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Redis is starting\n1:M 1 Jan 2026 00:00:00.000 # Can't handle RDB format version 12\n")
    said = service.advice({"config_file": str(tmp_path / "redis.conf"), "log_file": str(log), "unit": "none"})
    assert "Can't handle RDB format version 12. They are not damaged and were not changed: a newer Redis" in said
    assert "fix" not in said


def test_nothing_to_do_is_no_change() -> None:
    assert service.plan(state(), True, []).changes is False


@pytest.mark.parametrize(
    ("changes", "enabled", "restart_for", "reload", "boot", "run"),
    [
        ({}, True, ["io-threads: running 1, wanted 4"], False, "", "restart"),
        ({"active": False, "pid": 0}, True, ["io-threads"], False, "", "start"),
        ({"active": False, "loaded": False, "enabled": False, "pid": 0}, True, [], True, "enable", "start"),
        ({"enabled": False}, True, [], False, "enable", ""),
        ({}, False, [], False, "disable", ""),
        ({"enabled": False}, False, [], False, "", ""),
        ({"enabled": False, "fixed": True}, True, [], False, "", ""),
        ({"replaced": True}, True, ["one", "two"], False, "", "restart"),
        ({"stale": True, "files": {"/unit": 101.0}}, True, [], True, "", "restart"),
    ],
)
def test_what_is_decided(
    changes: dict[str, Any], enabled: bool, restart_for: list[str], reload: bool, boot: str, run: str
) -> None:
    plan = service.plan(state(**changes), enabled, restart_for)
    assert (plan.reload, plan.boot, plan.run) == (reload, boot, run)
    assert plan.changes is True or (reload, boot, run) == (False, "", "")


def test_a_unit_between_two_starts_is_restarted_for_that_alone() -> None:
    # Restart=always, after a crash: systemd calls it activating, and there is no process to be older than a file.
    assert service.plan(state(pid=0, started=0.0), True, []).reasons == ["it has no process"]


def test_waiting_does_not_try_a_wrong_login_again_and_again(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "unit_alive", lambda unit: True)
    pauses: list[float] = []
    monkeypatch.setattr(service.time, "sleep", pauses.append)
    assert "refuses every login" in service.wait(parameters(redis_server.port, "wrong"), 60)
    assert pauses == [1, 1]


def test_without_a_server_nobody_is_asked() -> None:
    assert service.wait({"server": None}, 5) == ""


def moved(folder: Path, port: int) -> dict[str, Any]:
    """Move a server that keeps nothing as redis_service does, cut off after the restart; return its parameters."""
    process = start(folder, "--port", str(port), port=port)
    try:
        with resp.Client("127.0.0.1", port) as client:
            client.call("SET", "before", "1")
            service.save(client, str(folder), 60)
            # What comes after the snapshot is there, too.
            client.call("SET", "after", "1")
    finally:
        process.terminate()
        process.wait(60)
    (folder / "redis-server").unlink(missing_ok=True)
    return parameters(port, "") | {"data": str(folder), "logins": []}


@pytest.mark.parametrize("keeps", [False, True], ids=["keeps none", "keeps snapshots by now"])
def test_a_server_that_keeps_nothing_loses_nothing_in_the_restart_that_changes_its_user(
    tmp_path: Path, keeps: bool
) -> None:
    port = free_port()
    params = moved(tmp_path, port)
    process = start(tmp_path, "--port", str(port), *(["--save", "3600 1"] if keeps else []), port=port)
    try:
        with resp.Client("127.0.0.1", port) as client:
            assert client.call("EXISTS", "before", "after") == 2
        # All that the next run knows of one that was interrupted is on the disk.
        assert service.forget(params)
        assert (tmp_path / "dump.rdb").exists() is keeps
        assert not service.forget(params)
        assert not (tmp_path / service.FORCED).exists()
    finally:
        process.kill()
        process.wait()


def test_a_snapshot_that_was_there_before_is_kept(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, "--port", str(port), port=port)
    try:
        with resp.Client("127.0.0.1", port) as client:
            client.call("SAVE")
            service.save(client, str(tmp_path), 60)
        assert not service.forget(parameters(port, "") | {"data": str(tmp_path), "logins": []})
        assert (tmp_path / "dump.rdb").exists()
    finally:
        process.kill()
        process.wait()


def test_a_server_whose_data_do_not_get_to_the_disk_is_not_stopped(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    data.mkdir()
    process = start(data, "--port", str(port), port=port)
    try:
        with resp.Client("127.0.0.1", port) as client:
            client.call("SET", "kept", "1")
            # Stands for a full disk: a name that no file can take.
            (data / "dump.rdb").mkdir()
            with pytest.raises(service.Unsaved, match="rdb_last_bgsave_status is err"):
                service.save(client, str(data), 60)
            assert client.call("CONFIG", "GET", "save") == ["save", ""]
            assert client.call("GET", "kept") == "1"
    finally:
        process.kill()
        process.wait()


def test_the_user_of_a_process_is_told() -> None:
    process = subprocess.Popen(["sleep", "60"], user="nobody") if os.geteuid() == 0 else None
    try:
        if process:
            assert service.user_of(process.pid) == "nobody"
        assert service.user_of(1) == "root"
    finally:
        if process:
            process.kill()
            process.wait()
    assert service.user_of(2**22 + 1) == ""
