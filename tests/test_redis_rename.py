"""A host that gets another name or address while its Redis runs: the next run follows, and no client notices."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from databackup.errors import Failed
from databackup.redis import server as redis_server
from databackup.redis.proof import Proof
from test_certificates import LOOPBACK, issue
from test_redis_peer import OLD, PASSWORD, Listener, Unit, peer, redis_config, redis_users, resp, run, started, users

from databackup import settings, status

from conftest import load

redis_service = load("plugins/modules/redis_service.py")
redis_unit = load("plugins/module_utils/redis_unit.py")
redis_command = load("plugins/modules/redis_command.py")
redis_probe = load("plugins/module_utils/redis_probe.py")

pytestmark = pytest.mark.slow

OLD_NAME = "redis1"
# All that Ansible takes for a name: short, long with and without dots, addresses, underscores and capitals.
NAMES = [
    "redis-of-another-name",
    "redis-cache-primary-node-of-the-trading-desk-in-frankfurt-rack-17.example.com",
    "redis-cache-primary-node-of-the-trading-desk-in-frankfurt-rack-17-example-com",
    "203.0.113.5",
    "2001:DB8::5",
    "Redis_One",
]
# What systemctl tells of a unit whose server runs: the stand-in of test_redis_peer knows its process alone.
SYSTEMCTL = """#!/bin/sh
cd "{folder}" || exit 1
case $1 in
show)
  case "$*" in
  *redis.slice*) cat slice 2>/dev/null ;;
  *--value*) cat pid ;;
  *)
    printf '%s\\n' LoadState=loaded ActiveState=active UnitFileState=enabled NeedDaemonReload=no "MainPID=$(cat pid)" \\
      Slice=redis.slice ;;
  esac ;;
is-active) echo active ;;
daemon-reload) rm slice ;;
restart)
  kill "$(cat pid)"
  while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.05; done
  {command} >/dev/null 2>&1 &
  echo $! >pid ;;
esac
"""


@pytest.fixture(autouse=True)
def systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine runs systemd, as the modules see it."""
    for look in (os.path.isdir, os.path.exists):
        monkeypatch.setattr(os.path, look.__name__, lambda path, look=look: path == "/run/systemd/system" or look(path))


def binary_of(unit: Unit) -> str:
    """Return the program of the server, by the name under which it is one."""
    return shutil.which("redis-server") or str(unit.folder / "redis-server")


def general(name: str) -> x509.GeneralName:
    """Return a name as the role certificates has it in a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.lower())


def named(name: str, *, loopback: bool = True) -> Sequence[x509.GeneralName]:
    """Return what a host's certificate is for."""
    return [general(name), *(LOOPBACK if loopback else ())]


@contextmanager
def host(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bind: str = "127.0.0.1",
    mutual: str = "no",
) -> Iterator[Unit]:
    """Yield a host whose Redis was started, and last looked after, under its old name and at its old address."""
    with started(folder, monkeypatch, mutual, bind, named(OLD_NAME, loopback=False)) as made:
        command = f"{binary_of(made)} {folder}/redis.conf"
        (folder / "bin/systemctl").write_text(SYSTEMCTL.format(folder=folder, command=command))
        modules(made, capsys, way(made, OLD_NAME, bind))
        yield made


class Working(threading.Thread):
    """A client that is connected, and runs a command every few milliseconds on that one connection."""

    def __init__(self, client: Any) -> None:
        super().__init__(daemon=True)
        self.client, self.done, self.failed, self.ended = client, 0, "", False

    def run(self) -> None:
        """Count what went well, until something does not."""
        with self.client:
            try:
                while not self.ended:
                    assert self.client.call("INCR", "count") == self.done + 1
                    self.done += 1
                    time.sleep(0.005)
            except (OSError, AssertionError, resp.ProtocolError, resp.ErrorReply) as error:
                self.failed = f"{type(error).__name__}: {error}"


@contextmanager
def working(client: Any) -> Iterator[Working]:
    """Yield a client that works all the while, and must not have met an error at the end."""
    client_ = Working(client)
    client_.start()
    try:
        yield client_
        before = client_.done
        deadline = time.monotonic() + 20
        while client_.done < before + 3 and not client_.failed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client_.failed == ""
        assert client_.done >= before + 3
    finally:
        client_.ended = True
        client_.join(10)


def way(unit: Unit, name: str | None, address: str = "127.0.0.1") -> dict[str, Any]:
    """Return how the inventory says that the server is reached."""
    return {**unit.server, "host": address, "server_name": name}


def modules(
    unit: Unit,
    capsys: pytest.CaptureFixture[str],
    reached: dict[str, Any],
    directives: dict[str, Any] | None = None,
    check: bool = False,
) -> list[dict[str, Any]]:
    """Run the three modules as the role does, and return their results."""
    common = {
        "server": reached,
        "logins": [{"username": "admin", "password": PASSWORD}],
        "_ansible_check_mode": check,
        "loading_timeout": 30.0,
    }
    trusted = {**common, "trusted_unit": "redis.service"}
    wanted = {"tls-cert-file": str(unit.folder / "host.crt"), **(directives or {})}
    binary = {"server_binary": binary_of(unit)}
    results = [
        run(redis_users, {**users(unit), **trusted}, capsys),
        run(redis_config, {"path": str(unit.folder / "redis.conf"), "directives": wanted, **binary, **trusted}, capsys),
        run(redis_service, {"unit": "redis.service", "start_timeout": 10.0, **common}, capsys),
    ]
    assert [result.get("msg") for result in results if result.get("failed")] == []
    return results


def pid_of(unit: Unit) -> str:
    """Return the process of the server."""
    return (unit.folder / "pid").read_text().strip()


def shown(unit: Unit, name: str, capsys: pytest.CaptureFixture[str], address: str = "127.0.0.1") -> dict[str, Any]:
    """Return what verify.yml sees: it knows the server by a certificate of its name, and by nothing else."""
    probe = {"name": "p", **way(unit, name, address), "username": "admin", "password": PASSWORD, "commands": [["PING"]]}
    answer: dict[str, Any] = run(redis_command, {"probes": [probe]}, capsys)["probes"]["p"]
    return answer


@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_host_s_server_takes_its_new_certificate_and_no_client_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with host(tmp_path, monkeypatch, capsys) as unit:
        before, reached = pid_of(unit), way(unit, name)
        with working(unit.client()):
            # In check mode the files are not there yet; and then the server still shows the old ones.
            for put in (False, True):
                if put:
                    unit.put(OLD, named(name))
                results = modules(unit, capsys, reached, check=True)
                assert [result["changed"] for result in results] == [False, put, False]
                assert "mismatch, certificate is not valid for" in shown(unit, name, capsys)["error"]
            results = modules(unit, capsys, reached)
            assert results[1]["tls_reloaded"]
            assert [result["changed"] for result in results] == [False, True, False]
            again = modules(unit, capsys, reached)
            assert [result["changed"] for result in again] == [False, False, False]
        assert pid_of(unit) == before
        seen = shown(unit, name, capsys)
        assert seen["replies"] == ["PONG"], seen
        assert redis_probe.spelled(name) in seen["certificate"]["names"]


def test_a_certificate_of_the_user_s_own_need_not_name_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with host(tmp_path, monkeypatch, capsys, mutual="yes") as unit, working(unit.client()):
        before = pid_of(unit)
        unit.put(OLD, named("brought", loopback=False))
        modules(unit, capsys, way(unit, "brought"))
        assert [result["changed"] for result in modules(unit, capsys, way(unit, "brought"))] == [False, False, False]
        assert pid_of(unit) == before


def test_without_its_process_the_server_is_known_by_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As verify.yml checks, and as another instance could answer: it has the key of the host's certificate.
    with host(tmp_path, monkeypatch, capsys) as unit:
        arguments = {**users(unit), "server": way(unit, "another"), "_ansible_check_mode": True}
        refused = run(redis_users, arguments, capsys)
        assert "Hostname mismatch" in refused["msg"]
        assert "Nothing was changed" in refused["msg"]


def test_an_impostor_with_a_certificate_of_the_new_name_gets_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with host(tmp_path, monkeypatch, capsys, bind="127.0.0.2") as unit:
        pair = issue("impostor", OLD, names=[*named("renamed"), general("127.0.0.3")])
        impostor = Listener(tmp_path, pair, ("127.0.0.3", unit.port))
        impostor.start()
        reached = way(unit, "renamed", "127.0.0.3")
        done = run(redis_users, {**users(unit), "server": reached, "trusted_unit": "redis.service"}, capsys)
        impostor.socket.close()
        assert b"".join(impostor.heard) == b""
        # As if nobody listened there.
        assert done["server"] == "down"


def test_a_server_is_found_at_the_address_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Bound to the host's own address alone, without loopback.
    with host(tmp_path, monkeypatch, capsys, bind="127.0.0.2") as unit, working(unit.client("127.0.0.2")):
        before, reached = pid_of(unit), way(unit, OLD_NAME, "127.0.0.3")
        unit.put(OLD, [*named(OLD_NAME), general("127.0.0.3")])
        checked = modules(unit, capsys, reached, {"bind": ["127.0.0.3"]}, check=True)
        assert [result["changed"] for result in checked] == [False, True, False]
        results = modules(unit, capsys, reached, {"bind": ["127.0.0.3"]})
        assert sorted(results[1]["applied"]) == ["bind", "tls-ca-cert-file", "tls-cert-file", "tls-key-file"]
        assert results[1]["restart"] == []
        again = modules(unit, capsys, reached, {"bind": ["127.0.0.3"]})
        assert [result["changed"] for result in again] == [False, False, False]
        assert pid_of(unit) == before
        assert peer.listening(int(before), unit.port) == ["127.0.0.3"]
        assert shown(unit, "127.0.0.3", capsys, "127.0.0.3")["replies"] == ["PONG"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("127.0.0.2", ["127.0.0.2", "127.0.0.3"]),
        ("127.0.0.2", ["127.0.0.3", "127.0.0.2"]),
        ("127.0.0.2 127.0.0.3", ["127.0.0.3"]),
    ],
    ids=["behind", "before", "one less"],
)
def test_a_server_without_loopback_gets_another_address_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], old: str, new: list[str]
) -> None:
    with host(tmp_path, monkeypatch, capsys, bind=old) as unit:
        before, reached = pid_of(unit), way(unit, OLD_NAME, new[0])
        checked = modules(unit, capsys, reached, {"bind": new}, check=True)
        assert [result["changed"] for result in checked] == [False, True, False]
        results = modules(unit, capsys, reached, {"bind": new})
        assert results[1]["applied"] == ["bind"]
        assert results[1]["restart"] == []
        again = modules(unit, capsys, reached, {"bind": new})
        assert [result["changed"] for result in again] == [False, False, False]
        assert pid_of(unit) == before
        assert sorted(peer.listening(int(before), unit.port)) == sorted(new)


def test_a_run_that_was_cut_off_before_systemd_knew_the_new_address_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The server is at the new address already; the unit lets in loopback, and the slice the old address only.
    with host(tmp_path, monkeypatch, capsys, bind="127.0.0.3") as unit:
        before, reached = pid_of(unit), way(unit, OLD_NAME, "127.0.0.3")
        connect = socket.create_connection

        def filtered(address: tuple[str, int], *words: Any, **more: Any) -> socket.socket:
            if more.get("source_address", ("", 0))[0] not in ("127.0.0.1", "::1"):
                raise TimeoutError(f"{address[0]} timed out")
            return connect(address, *words, **more)

        monkeypatch.setattr(socket, "create_connection", filtered)
        assert [result["changed"] for result in modules(unit, capsys, reached, {"bind": ["127.0.0.3"]})] == [False] * 3
        assert pid_of(unit) == before


def test_an_address_that_the_host_does_not_have_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # 192.0.2.0/24 is for documentation: no host has it.
    with host(tmp_path, monkeypatch, capsys) as unit, working(unit.client()):
        file = unit.folder / "redis.conf"
        before = file.read_text()
        arguments = {
            "path": str(file),
            "directives": {"bind": ["127.0.0.1", "192.0.2.17"]},
            "server_binary": binary_of(unit),
            **unit.arguments(trusted_unit="redis.service"),
        }
        refused = run(redis_config, arguments, capsys)
        assert "bind" in refused["msg"]
        assert refused["msg"].endswith("Nothing was changed.")
        assert file.read_text() == before


def test_a_server_whose_address_has_left_the_host_is_restarted_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with host(tmp_path, monkeypatch, capsys, bind="127.0.0.2") as unit:
        before, reached = pid_of(unit), way(unit, OLD_NAME, "127.0.0.3")
        connect = socket.create_connection

        def gone(address: tuple[str, int], *words: Any, **more: Any) -> socket.socket:
            if address[0] == "127.0.0.2":
                raise OSError(113, "No route to host")
            return connect(address, *words, **more)

        monkeypatch.setattr(socket, "create_connection", gone)
        monkeypatch.setattr(redis_unit, "absent", lambda address: address == "127.0.0.2")
        checked = modules(unit, capsys, reached, {"bind": ["127.0.0.3"]}, check=True)
        assert checked[2]["reasons"] == ["it listens on 127.0.0.2, which this host has no more"]
        results = modules(unit, capsys, reached, {"bind": ["127.0.0.3"]})
        assert [result.get("server") for result in results[:2]] == ["down", "down"]
        assert results[2]["reasons"] == ["it listens on 127.0.0.2, which this host has no more"]
        assert pid_of(unit) != before
        again = modules(unit, capsys, reached, {"bind": ["127.0.0.3"]})
        assert [result["changed"] for result in again] == [False, False, False]


def test_systemd_is_told_of_a_slice_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # It lets in the addresses of the clients, which may have got others.
    with host(tmp_path, monkeypatch, capsys) as unit:
        (tmp_path / "slice").write_text("yes\n")
        before, reached = pid_of(unit), way(unit, OLD_NAME)
        assert [result["changed"] for result in modules(unit, capsys, reached, check=True)] == [False, False, True]
        assert (tmp_path / "slice").exists()
        assert [result["changed"] for result in modules(unit, capsys, reached)] == [False, False, True]
        assert not (tmp_path / "slice").exists()
        assert [result["changed"] for result in modules(unit, capsys, reached)] == [False, False, False]
        assert pid_of(unit) == before


def test_an_address_of_another_host_is_absent_here() -> None:
    assert redis_unit.absent("192.0.2.17")
    assert redis_unit.absent("2001:db8::17")
    assert [redis_unit.absent(address) for address in ("127.0.0.1", "127.0.0.2", "0.0.0.0")] == [False] * 3


class Judged(Proof):
    """Stands for a unit's process, which has the other end of each connection, or has none."""

    def __init__(self, ours: bool) -> None:
        self.ours = ours

    def __call__(self, connection: socket.socket) -> None:
        if not self.ours:
            raise Failed("held by another process")


def test_a_backup_between_two_runs_logs_in_to_the_process_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What /etc/databackup says is of backup.yml, which comes after redis.yml.
    with host(tmp_path, monkeypatch, capsys) as unit:
        login = ("admin", PASSWORD)
        described = way(unit, "before")
        with redis_server.connect(described, login, prove=Judged(True)) as client:
            assert client.call("PING") == "PONG"
        with pytest.raises(Failed, match="Hostname mismatch"):
            redis_server.connect(described, login)
        with pytest.raises(Failed, match="another process"):
            redis_server.connect(described, login, prove=Judged(False))
        (tmp_path / "ca.crt").write_text(issue("Another").crt)
        with pytest.raises(Failed, match="certificate verify failed"):
            redis_server.connect(described, login, prove=Judged(True))


def test_names_are_compared_as_they_are_written_in_certificates() -> None:
    assert redis_probe.spelled("2001:DB8:0:0:0:0:0:5") == "2001:db8::5"
    assert redis_probe.spelled("Redis_One") == "redis_one"


def test_a_backup_of_the_old_name_is_none_of_the_new_one(tmp_path: Path) -> None:
    # It is in another repository than the one that is asked for from now on.
    def source(name: str) -> settings.Source:
        return settings.Source("redis", "redis", "lab", name, {}, state=str(tmp_path))

    now = datetime.now(UTC).isoformat()
    made = {"time": now, "id": "0123456789", "items": 1, "bytes": 1, "digest": "", "seconds": 1}
    status.record_success(source("redis1"), made)
    assert status.tell(source("redis1"))["ok"]
    told = status.tell(source("renamed"))
    assert not told["ok"]
    assert told["text"] == "there is no backup yet under the name renamed; those until now are of redis1"
    status.record_success(source("renamed"), made)
    assert status.tell(source("renamed"))["ok"]
