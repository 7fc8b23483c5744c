"""A new Redis server takes an old one's place: its data, faults in the middle, and runs interrupted anywhere."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adoption_host import ADMIN, OLD, Host
from databackup.errors import Failed
from databackup.redis import adoption, rdb
from databackup.redis.adoption import Adoption
from databackup.redis.adoption_plan import REPLACE
from host import wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed lets clients wait for as long."""
    monkeypatch.setattr(adoption, "PAUSE", 1.5)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def build(**options: Any) -> Host:
        made.append(Host(tmp_path, **options))
        return made[-1]

    yield build
    for host in made:
        host.reap()


KINDS: dict[str, dict[str, Any]] = {
    "a dump, elsewhere": {"old_settings": {"dbfilename": "legacy.rdb"}},
    "a dump, same place": {"together": True},
    "no snapshots at all": {"old_settings": {"save": '""'}, "together": True},
    "append-only file, same place": {"old_settings": {"appendonly": "yes"}, "together": True},
    "append-only file to dump": {"old_settings": {"appendonly": "yes"}, "together": True, "appendonly": "no"},
    "CONFIG switched off": {"old_settings": {"rename-command": 'CONFIG ""', "save": "3600 1"}, "together": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_keys_are_in_the_new_server_and_after_its_restart(make: Callable[..., Host], kind: str) -> None:
    host = make(**KINDS[kind])
    host.fill()
    before = host.digest(host.old())
    done = host.adoption().run()
    assert (done["before"]["keys"], done["before"]["digest"]) == before
    assert done["after"] == done["before"]
    assert host.digest(host.new()) == before
    assert not host.asks(host.old_port, OLD)
    host.new_service.stop()
    host.new_service.start(10)
    wait_for(lambda: host.asks(host.new_port, ADMIN, "admin"), "the new server answers")
    assert host.digest(host.new()) == before
    kept = Path(done["kept"])
    if host.together:
        assert (kept / "files" / str(host.old_conf).strip("/").replace("/", "%")).read_text() == host.old_conf_text
        assert any(item.name != "files" for item in kept.iterdir())
    else:
        assert host.old_conf.read_text() == host.old_conf_text
        assert not host.old_service.boots.exists()
    assert host.new_service.boots.exists()


def test_set_aside_whole_the_new_server_is_empty(make: Callable[..., Host]) -> None:
    host = make(mode=REPLACE, together=True, old_settings={"save": '""'})
    host.fill(50)
    before = host.digest(host.old())
    done = host.adoption().run()
    with host.new() as client:
        assert client.call("DBSIZE") == 0
    with (Path(done["kept"]) / adoption.ALL).open("rb") as file:
        kept = rdb.summarize(iter([file.read()]))
    assert (kept.keys, kept.digest) == before


def test_no_acknowledged_write_is_lost_while_a_client_writes_until_the_last_moment(make: Callable[..., Host]) -> None:
    host = make(old_settings={"appendonly": "no"})
    acknowledged: list[int] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            try:
                with host.old() as client:
                    while not stop.is_set():
                        client.call("SET", f"write-{number}", str(number))
                        acknowledged.append(number)
                        number += 1
            except Exception:
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    wait_for(lambda: len(acknowledged) > 200, "writes are acknowledged")
    host.adoption().run()
    stop.set()
    writer.join()
    with host.new() as client:
        found = client.pipeline([["GET", f"write-{number}"] for number in acknowledged])
    assert [number for number, value in zip(acknowledged, found, strict=True) if value is None] == []


STEPS = ["fetch", "_leave_with_data", "begin", "put_data", "put_files", "tidy"]
FAULTS = [
    *[(step, when) for step in STEPS for when in ("before", "after")],
    *[(step, "after") for step in ("stop", "load", "compare", "enable")],
]


def arm(host: Host, made: Adoption, step: str, when: str, what: Callable[[], None]) -> None:
    """Have something happen before or after a step."""
    named: dict[str, Any] = {"stop": host.old_service, "enable": host.new_service}
    owner: Any = named.get(step) or next(owner for owner in (made, made.target) if hasattr(type(owner), step))
    inner = getattr(owner, step)

    def outer(*rest: Any) -> Any:
        if when == "before":
            what()
        result = inner(*rest)
        if when == "after":
            what()
        return result

    setattr(owner, step, outer)


def run_until_killed(host: Host, step: str, when: str) -> None:
    """Adopt in a process of its own, which ends at a step as if it were killed."""
    child = os.fork()
    if child == 0:
        made = host.adoption()
        arm(host, made, step, when, lambda: os._exit(9))
        made.run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


KINDS_OF_FAULTS: dict[str, dict[str, Any]] = {
    "dump": {"together": True},
    "append-only": {"together": True, "old_settings": {"appendonly": "yes"}},
    "elsewhere": {},
}


def each(first: int) -> list[tuple[str, str, str]]:
    """Return each place with one of the kinds, which take turns: all of both are more tests than minutes."""
    kinds = list(KINDS_OF_FAULTS)
    return [(kinds[(first + number) % 3], *fault) for number, fault in enumerate(FAULTS)]


@pytest.mark.parametrize(("kind", "step", "when"), each(0))
def test_a_run_that_was_killed_is_undone_and_the_next_one_completes_it(
    make: Callable[..., Host], kind: str, step: str, when: str
) -> None:
    host = make(**KINDS_OF_FAULTS[kind])
    host.fill(60)
    before = host.digest(host.old())
    run_until_killed(host, step, when)
    host.adoption().recover()
    wait_for(lambda: host.asks(host.old_port, OLD), "the old server answers")
    assert host.digest(host.old()) == before
    assert host.old_conf.read_text() == host.old_conf_text
    with host.old() as client:
        client.call("SET", "later", "1")
    # CLIENT PAUSE of the run that was killed has ended by now: the write above waited for it.
    done = host.adoption().run()
    assert done["after"]["keys"] == before[0] + 1
    with host.new() as client:
        assert client.call("GET", "later") == "1"


@pytest.mark.parametrize(("kind", "step", "when"), each(1))
def test_a_host_that_goes_down_comes_back_with_all_data_and_keeps_what_is_written_then(
    make: Callable[..., Host], monkeypatch: pytest.MonkeyPatch, kind: str, step: str, when: str
) -> None:
    host = make(**KINDS_OF_FAULTS[kind])
    host.fill(60)
    with host.old() as client:
        # What it has not saved is lost with the host whatever we do, until its dump is replaced.
        client.call("SAVE")
    before = host.digest(host.old())
    run_until_killed(host, step, when)
    for service in (host.old_service, host.new_service):
        service.kill(signal.SIGKILL)
    monkeypatch.setattr(adoption, "boot_id", lambda: "another boot")
    # As at a boot: what is enabled starts, with the configuration that is there.
    for service in {id(s): s for s in (host.old_service, host.new_service)}.values():
        if service.boots.exists():
            service.start(10)
    wait_for(lambda: host.asks(host.old_port, OLD) or host.asks(host.new_port, ADMIN, "admin"), "one of them answers")
    which = host.old if host.asks(host.old_port, OLD) else host.new
    assert host.digest(which()) == before
    with which() as client:
        client.call("SET", "since", "1")
    host.adoption().recover()
    wait_for(lambda: host.asks(host.old_port, OLD) or host.asks(host.new_port, ADMIN, "admin"), "one of them answers")
    which = host.old if host.asks(host.old_port, OLD) else host.new
    with which() as client:
        assert client.call("GET", "since") == "1"
    if which == host.old:
        done = host.adoption().run()
        assert done["after"]["keys"] == before[0] + 1
    assert host.digest(host.new())[0] == before[0] + 1


@pytest.mark.parametrize("step", ["put_data", "put_files", "load", "compare"])
def test_a_fault_in_the_middle_brings_the_old_server_back(make: Callable[..., Host], step: str) -> None:
    host = make(together=True)
    host.fill(60)
    before = host.digest(host.old())
    made = host.adoption()

    def full() -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    arm(host, made, step, "after", full)
    with pytest.raises(Failed, match=r"No space left on device\. The old server runs as before"):
        made.run()
    wait_for(lambda: host.asks(host.old_port, OLD), "the old server answers")
    assert host.digest(host.old()) == before
    with host.old() as client:
        assert client.call("CONFIG", "GET", "save") == ["save", "3600 1 300 100 60 10000"]
    assert host.adoption().run()["after"]["keys"] == before[0]


def test_a_disk_that_is_too_full_is_refused_before_anybody_waits(
    make: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make()
    host.fill(10)
    made = host.adoption()
    made.plan.old["used_memory"] = 1 << 60
    made.target.configuration.values["maxmemory"] = "0"
    monkeypatch.setattr(made, "paused", lambda: pytest.fail("clients were made to wait"))
    with pytest.raises(Failed, match="expected room for a second copy of the data"):
        made.run()
    assert host.asks(host.old_port, OLD)


def test_more_data_than_maxmemory_are_refused(make: Callable[..., Host]) -> None:
    host = make()
    made = host.adoption()
    made.plan.old["used_memory"] = 100 << 20
    with pytest.raises(Failed, match="raise redis_maxmemory"):
        made.run()
    assert host.asks(host.old_port, OLD)


def test_a_wrong_password_is_said_and_nothing_changes(make: Callable[..., Host]) -> None:
    host = make(old_settings={"requirepass": OLD})
    host.old_conf.write_text(host.old_conf_text.replace(OLD, "changed-since"))
    made = host.adoption()
    made.plan.logins = [{"username": "default", "password": "a-wrong-one-of-old"}]
    with pytest.raises(Failed, match="redis_adopt_username and redis_adopt_password"):
        made.run()
    assert host.asks(host.old_port, OLD)
    assert not made.journal.path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_an_old_server_has_its_folder_back_that_systemd_gave_to_the_new_one(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "appendonlydir").mkdir(parents=True)
    (data / "appendonlydir/file").touch()
    for place in (data, data / "appendonlydir", data / "appendonlydir/file"):
        os.chown(place, 65534, 65534)
    # Put there by the new server: neither leads to another file.
    elsewhere.touch()
    (data / "link").symlink_to(elsewhere)
    os.link(elsewhere, data / "hard")
    Adoption._give_back(SimpleNamespace(_together=True, data=data), {"owner": [1, 1]})  # type: ignore[arg-type]
    assert {place.lstat().st_uid for place in (data, *data.rglob("*")) if place.name != "hard"} == {1}
    assert elsewhere.stat().st_uid == 0
