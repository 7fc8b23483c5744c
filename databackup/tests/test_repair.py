"""Damage in the files of a real Redis: what is said of it, and each way out of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from databackup import cli as program
from databackup import kinds
from databackup.errors import Failed
from databackup.redis import kind as redis_kind
from databackup.redis.diagnose import Diagnosis
from databackup.redis.replica import Replica
from host import REDIS_7_2, REDIS_8, REDIS_PASSWORD, VALKEY_8, Host, Process, make_repository, wait_for

from conftest import load

redis_cut = load("plugins/module_utils/redis_cut.py")

pytestmark = pytest.mark.slow

LATER = 300


class Broken(Host):
    """A host whose backup is older than its data: LATER keys were written since, one by one."""

    @property
    def log(self) -> Path:
        """The append-only file."""
        return self.data / "appendonlydir/appendonly.aof.2.incr.aof"

    @property
    def base(self) -> Path:
        """What it begins with."""
        return self.data / "appendonlydir/appendonly.aof.2.base.rdb"

    def rewrite_log(self) -> None:
        """Have all data in the base, and an empty file for what comes."""
        self.call("BGREWRITEAOF")
        wait_for(lambda: "aof_rewrite_in_progress:0" in self.call("INFO", "persistence"), "the rewrite ends")
        wait_for(self.log.exists, "its files are there")

    def write_later(self) -> None:
        """Write keys of which the damage takes a part."""
        for number in range(LATER):
            self.call("SET", f"later{number}", "x" * 50 + str(number))

    def state(self) -> Diagnosis:
        """What is found."""
        return kinds.repair(self.source, lambda text: None).diagnose()

    def repair(self, *words: str) -> dict[str, Any]:
        """Run the command, and return what it told."""
        # Not by `command`: a server that it starts has its output, too, and never ends.
        arguments = program.parser().parse_args(["--config", str(self.etc), "repair", "redis", *words])
        try:
            told: dict[str, Any] = arguments.run(arguments)
        except Failed as failure:
            return {"msg": str(failure)}
        json.dumps(told)
        return told

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """All of the data's files, by name: size and content."""
        found = {}
        for path in sorted(self.data.rglob("*")):
            if path.is_file():
                found[str(path.relative_to(self.data))] = (path.stat().st_size, path.read_bytes())
        return found

    def damage(self, change: Callable[[bytes], bytes], path: Path | None = None) -> None:
        """Stop it, and change a file."""
        # Not asked to end: as a crash leaves them.
        self.service.end(signal.SIGKILL)
        file = path or self.log
        file.write_bytes(change(file.read_bytes()))

    def refuses(self) -> str:
        """Start it, expect that it ends by itself, and return its last words."""
        self.service.start_apart([])
        wait_for(self.service.failed, "it refuses its files")
        return self.service.last_words()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data with a backup, made once."""
    folder = tmp_path_factory.mktemp("pristine")
    host = Broken(folder)
    try:
        host.fill()
        host.rewrite_log()
        make_repository(host.restic)
        host.backup()
        host.write_later()
    finally:
        host.service.stop()
    return folder


@contextmanager
def copied(pristine: Path, folder: Path, **directives: str) -> Iterator[Broken]:
    shutil.copytree(pristine / "data", folder / "data")
    shutil.copytree(pristine / "repository", folder / "repository")
    host = Broken(folder, None, **directives)
    try:
        yield host
    finally:
        host.service.stop()


@pytest.fixture
def host(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    monkeypatch.setattr(redis_kind, "Unit", Process)
    with copied(pristine, tmp_path) as made:
        yield made


def in_the_middle(data: bytes) -> bytes:
    """Make about half of the commands unreadable."""
    at = data.index(b"\r\n*3", len(data) // 2)
    return data[:at] + b"XXXX" + data[at + 4 :]


# --- What is found ---


def test_a_sound_server_needs_no_repair(host: Broken) -> None:
    found = host.state()
    assert (found.state, found.server) == ("sound", "serving")
    before = host.tree()
    told = host.repair("--confirm")
    assert "nothing that a repair could better" in told["msg"]
    assert "sound" in told["msg"]
    assert host.tree() == before
    # Stopped, its files are as sound; why it does not run is not in them.
    host.service.stop()
    assert host.state().server == "stopped"
    assert "nothing to repair" in host.repair()["msg"]


def test_a_cut_tail_starts_by_itself_and_says_what_it_drops(host: Broken) -> None:
    host.damage(lambda data: data[:-13])
    found = host.state()
    last = len(f"*3\r\n$3\r\nSET\r\n$8\r\nlater{LATER - 1}\r\n$53\r\n{'x' * 50}{LATER - 1}\r\n")
    assert (found.state, found.starts, found.fixable) == ("cut tail", True, True)
    assert (found.file, found.dropped) == (host.log.name, last - 13)
    assert found.whole + found.dropped == found.size == host.log.stat().st_size
    assert f"drops these {last - 13} bytes" in found.text
    # As a host does that comes up: it notes the sizes, then Redis starts.
    assert host.command("recover", "redis")[0] == 0
    host.service.start(60)
    assert host.call("EXISTS", f"later{LATER - 1}") == 0
    assert host.call("EXISTS", f"later{LATER - 2}") == 1
    after = host.state()
    assert after.state == "sound"
    assert after.cut is not None
    assert (after.cut.file, after.cut.offset, after.cut.bytes) == (host.log.name, found.whole, last - 13)
    assert f"dropped {last - 13} bytes behind byte {found.whole}" in after.text
    # A later start drops nothing, and says so.
    host.service.stop()
    host.service.start(60)
    assert host.state().cut is None


def told_by_verify(host: Broken) -> Any:
    """Return what verify.yml says of the last start, by the log."""
    return redis_cut.last_cut(f"{host.folder}/log", f"{host.folder}/state/redis.aof-sizes")


def test_verify_tells_of_a_cut_tail(host: Broken) -> None:
    assert told_by_verify(host) is None
    host.damage(lambda data: data[:-13])
    host.service.start(60)
    told = told_by_verify(host)
    size = host.log.stat().st_size
    assert f"what was dropped behind byte {size} of {host.log.name} at 20" in told.text
    assert 0 <= told.age < 60
    # With its length noted before the start, as a host does that comes up.
    host.damage(lambda data: data + b"*3\r\n$3\r\nS")
    assert host.command("recover", "redis")[0] == 0
    host.service.start(60)
    assert f"9 bytes were dropped behind byte {size} of {host.log.name}" in told_by_verify(host).text
    # What was noted long before says nothing of this start.
    noted = host.folder / "state/redis.aof-sizes"
    os.utime(noted, (noted.stat().st_mtime - 3600, noted.stat().st_mtime - 3600))
    assert "what was dropped" in told_by_verify(host).text
    cut = host.state().cut
    assert cut is not None
    assert cut.bytes is None
    host.service.stop()
    host.service.start(60)
    assert told_by_verify(host) is None


def test_an_unfinished_transaction_is_a_cut_tail(host: Broken) -> None:
    begun = b"*1\r\n$5\r\nMULTI\r\n" + b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n" * 3
    host.damage(lambda data: data + begun)
    found = host.state()
    assert (found.state, found.dropped) == ("cut tail", len(begun))
    host.service.start(60)
    assert host.call("EXISTS", "a") == 0


@pytest.mark.parametrize("left", [1, 2, 3, 4, 5, 9, 14, 26, 40])
def test_a_tail_cut_anywhere_is_one_that_redis_takes(host: Broken, left: int) -> None:
    last = host.log.read_bytes().rindex(b"*3\r\n")
    host.damage(lambda data: data[: last + left])
    found = host.state()
    assert (found.state, found.whole, found.dropped) == ("cut tail", last, left)
    host.service.start(60)
    assert host.log.stat().st_size == last


def test_a_damaged_length_is_not_taken_for_a_cut_tail(host: Broken) -> None:
    # Redis itself takes it for one, and would drop half of what was written.
    host.damage(lambda data: data.replace(b"$53\r\n", b"$99999\r\n", 1))
    found = host.state()
    assert (found.state, found.starts) == ("damaged", True)
    assert found.commands is not None
    assert found.commands > LATER // 2
    assert "Do not start it" in found.text
    host.service.start(60)
    assert host.state().cut is not None
    assert host.call("EXISTS", "later100") == 0


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("log", in_the_middle, "whole up to byte [0-9]+ of [0-9]+ .*does not start with it; without the [0-9]+ of"),
        ("base", lambda data: data[:200] + bytes(40) + data[240:], "base.rdb is damaged at byte .*no tool mends"),
        ("base", lambda data: data[:-9], "base.rdb is damaged at byte"),
        ("base", lambda data: data[:-3] + b"abc", "base.rdb is damaged .*CRC"),
        ("manifest", lambda data: b"what?\n", "manifest is damaged: it names no files"),
        ("log", None, "has no appendonly.aof.2.incr.aof, which its manifest names"),
    ],
)
def test_damage_that_redis_refuses(host: Broken, path: str, change: Any, words: str) -> None:
    file = host.data / "appendonlydir/appendonly.aof.manifest" if path == "manifest" else getattr(host, path)
    host.damage(change or (lambda data: data), file)
    if change is None:
        file.unlink()
    before = host.tree()
    found = host.state()
    assert (found.state, found.starts) == ("damaged", False)
    assert found.fixable is (change is in_the_middle)
    assert re.search(words, found.text), found.text
    assert host.tree() == before
    host.refuses()
    assert host.tree() == before


def unchecked(data: bytes) -> bytes:
    """Return a snapshot without its checksum, as `rdbchecksum no` writes it."""
    return data[:-8] + bytes(8)


# What an operator has after a step back from a newer server. A format that Redis does not know says nothing of damage.
VALKEY_9 = unchecked(b"VALKEY080" + VALKEY_8[9:].replace(b"8.1.1", b"9.0.1"))
UNKNOWN = unchecked(b"REDIS0099" + REDIS_8[9:].replace(b"redis-ver", b"other-ver"))
NEWER = [
    (REDIS_7_2, r"was written by Redis 7.2.6 \(RDB format 11\), .* Redis 7.2 or newer reads it"),
    (REDIS_8, r"was written by Redis 8.0.2 \(RDB format 12\), which Redis 7\S+ here does not read. Redis 7.4 or newer"),
    (VALKEY_8, r"was written by Valkey 8.1.1 \(RDB format 11\), .* Redis 7.2 or newer reads it"),
    (VALKEY_9, r"was written by Valkey 9.0.1 \(RDB format 80\), .* No Redis reads it; Valkey 9.0.1 or newer does"),
    (b"REDIS0099" + REDIS_8[9:], r"is not whole either: its checksum is wrong"),
    (unchecked(b"REDIS0099" + REDIS_8[9:]), r"Redis 8.0.2 \(RDB format 99\), .* Redis 8.0.2 or newer reads it"),
    (UNKNOWN, r"a Redis that does not declare its version \(RDB format 99\), .* The version that wrote it reads it"),
    (REDIS_8[:-20], r"Redis 8.0.2 .* It is not whole either: its checksum is wrong"),
    (REDIS_8[:-5], r"Redis 8.0.2 .* It is not whole either: the mark of its end is missing"),
]


@pytest.mark.parametrize("where", ["dump", "base"])
@pytest.mark.parametrize(("data", "words"), NEWER)
def test_the_snapshot_of_a_newer_server_is_not_damaged(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, data: bytes, words: str
) -> None:
    monkeypatch.setattr(redis_kind, "Unit", Process)
    with copied(pristine, tmp_path, appendonly="no" if where == "dump" else "yes") as host:
        host.damage(lambda _: data, host.data / "dump.rdb" if where == "dump" else host.base)
        before = host.tree()
        host.refuses()
        found = host.state()
        assert (found.state, found.starts, found.fixable, found.dropped) == ("newer", False, False, 0)
        assert re.search(words, found.text), found.text
        assert ("not whole" in found.text) is ("not whole" in words)
        # Not even for who insists: each way would put older data in its place.
        for choice in ((), ("--confirm",), ("--way", "restore", "--confirm"), ("--way", "fix", "--confirm")):
            assert "there is nothing to repair" in host.repair(*choice)["msg"]
        assert host.tree() == before


@pytest.mark.parametrize(
    "change",
    [
        # The file itself says that a Redis wrote it which has no such format.
        lambda data: b"REDIS0099" + data[9:],
        # A value of a newer Redis under a format that has none.
        lambda data: b"REDIS0010" + REDIS_8[9:],
        lambda data: b"REDIX0010" + data[9:],
        lambda data: b"REDIS00x0" + data[9:],
    ],
)
def test_damage_is_not_taken_for_a_newer_server(host: Broken, change: Callable[[bytes], bytes]) -> None:
    host.damage(change, host.base)
    found = host.state()
    assert found.state == "damaged", found.text
    assert host.repair()["way"] == "restore"


def test_a_served_file_of_a_newer_server_is_about_to_be_overwritten(host: Broken) -> None:
    host.base.write_bytes(REDIS_8)
    found = host.state()
    assert (found.state, found.server) == ("newer", "serving")
    assert "copy it now" in found.text
    assert "BGREWRITEAOF" not in found.text


def test_commands_of_a_newer_server_are_not_damage(host: Broken) -> None:
    # As Redis 8 writes it.
    expire = b"*6\r\n$10\r\nHPEXPIREAT\r\n$1\r\nh\r\n$13\r\n1895902571799\r\n$6\r\nFIELDS\r\n$1\r\n1\r\n$1\r\ng\r\n"
    host.damage(lambda data: data + expire)
    host.refuses()
    found = host.state()
    assert (found.state, found.fixable) == ("newer", False)
    assert "Unknown command 'HPEXPIREAT'" in found.text
    assert "Redis 7.4 or newer reads it" in found.text
    assert "there is nothing to repair" in host.repair("--confirm")["msg"]


def test_the_manifest_of_a_newer_server_is_read(host: Broken) -> None:
    manifest = host.data / "appendonlydir/appendonly.aof.manifest"
    # Redis 8 notes where the last file begins and ends.
    host.damage(lambda data: data.replace(b"type i", b"type i startoffset 4 endoffset 5"), manifest)
    assert host.state().state == "sound"
    host.service.start(60)
    assert host.call("EXISTS", f"later{LATER - 1}") == 1


def test_a_replica_of_a_newer_server_is_named(host: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    host.damage(in_the_middle)
    before = host.tree()
    repair = kinds.repair(host.source, lambda text: None)
    monkeypatch.setattr(Replica, "snapshot", lambda self: iter([VALKEY_8]))
    with pytest.raises(Failed, match=r"the snapshot of redis9:6380 was written by Valkey 8.1.1 .* not damaged"):
        repair.from_replica("redis9:6380")
    assert host.tree() == before


def test_what_is_sound_in_form_and_refused_by_redis(host: Broken) -> None:
    host.damage(lambda data: data.replace(b"SET", b"SEX", 1))
    assert host.state().state == "sound"
    assert "Unknown command" in host.refuses()
    found = host.state()
    assert (found.state, found.fixable) == ("damaged", False)
    assert "Unknown command 'SEX'" in found.text


def test_a_missing_manifest_is_no_empty_server(host: Broken) -> None:
    host.service.stop()
    (host.data / "appendonlydir/appendonly.aof.manifest").unlink()
    found = host.state()
    assert (found.state, found.fixable) == ("missing", False)
    assert "would start with no data at all" in found.text
    assert host.repair()["way"] == "restore"


def test_the_file_of_an_older_server_is_not_missing(host: Broken) -> None:
    host.service.stop()
    shutil.rmtree(host.data / "appendonlydir")
    old = host.data / "appendonly.aof"
    old.write_bytes(b"*3\r\n$3\r\nSET\r\n$3\r\nold\r\n$1\r\n1\r\n")
    found = host.state()
    assert (found.state, found.starts) == ("sound", True)
    assert "as Redis before 7 writes it" in found.text
    assert "there is nothing to repair" in host.repair("--confirm")["msg"]
    old.write_bytes(old.read_bytes()[:-5])
    assert host.state().state == "damaged"
    old.write_bytes(old.read_bytes() + b"\r\n1\r\n")
    host.service.start(60)
    assert host.call("GET", "old") == "1"


def test_a_damaged_file_of_a_server_that_serves_is_written_anew(host: Broken) -> None:
    count = host.count()
    host.log.write_bytes(in_the_middle(host.log.read_bytes()))
    found = host.state()
    assert (found.state, found.server) == ("damaged", "serving")
    assert "BGREWRITEAOF" in found.text
    told = host.repair("--confirm")
    assert "BGREWRITEAOF" in told["msg"]
    assert "nothing that a repair could better" in told["msg"]
    host.call("BGREWRITEAOF")
    wait_for(lambda: host.state().state == "sound", "the files are sound")
    assert host.count() == count


def test_a_dump_is_looked_at_where_there_is_no_append_only_file(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_kind, "Unit", Process)
    with copied(pristine, tmp_path, appendonly="no") as host:
        host.call("SAVE")
        dump = host.data / "dump.rdb"
        assert host.state().state == "sound"
        host.damage(lambda data: data[: len(data) // 2], dump)
        found = host.state()
        assert (found.state, found.file, found.fixable) == ("damaged", "dump.rdb", False)
        assert found.dropped == found.size - found.whole
        host.refuses()
        assert host.repair("--confirm")["way"] == "restore"
        assert host.state().state == "sound"


# --- The ways out ---


@contextmanager
def replica_of(host: Broken, folder: Path) -> Iterator[Host]:
    """Have a replica that has all of the host's data."""
    folder.mkdir()
    made = Host(folder, masterauth=REDIS_PASSWORD)
    try:
        made.call("REPLICAOF", "127.0.0.1", str(host.port))
        wait_for(lambda: "master_link_status:up" in made.call("INFO", "replication"), "the replica follows")
        wait_for(lambda: made.count() == host.count(), "the replica has all")
        yield made
    finally:
        made.service.stop()


def test_a_resync_from_a_replica_loses_nothing(host: Broken, tmp_path: Path) -> None:
    with replica_of(host, tmp_path / "replica") as replica:
        wanted = host.digest()
        host.damage(in_the_middle)
        host.refuses()
        address = f"127.0.0.1:{replica.port}"
        wait_for(lambda: "master_link_status:down" in replica.call("INFO", "replication"), "its primary is gone")
        # It has lost its primary, and gives no snapshot until it has none.
        before = host.tree()
        told = host.repair("--replica", address, "--confirm")
        assert "REPLICAOF NO ONE" in told["msg"]
        replica.call("REPLICAOF", "NO", "ONE")
        told = host.repair("--replica", address)
        assert (told["way"], told["dry_run"]) == ("replica", True)
        assert set(told["costs"]) == {"replica", "restore", "fix"}
        assert "--way replica --confirm" in told["text"]
        assert host.tree() == before
        told = host.repair("--replica", address, "--confirm")
        assert told["way"] == "replica"
        assert host.digest() == wanted == replica.digest()
        assert host.state().state == "sound"
        assert (Path(told["kept"]) / "appendonlydir" / host.log.name).read_bytes() == before[
            f"appendonlydir/{host.log.name}"
        ][1]
        host.service.stop()
        host.service.start(60)
        assert host.digest() == wanted
        # The replica was only read from.
        assert "role:master" in replica.call("INFO", "replication")
        assert "connected_slaves:0" in replica.call("INFO", "replication")


def test_an_empty_replica_is_refused(host: Broken, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = Host(tmp_path / "empty")
    try:
        host.damage(in_the_middle)
        before = host.tree()
        told = host.repair("--replica", f"127.0.0.1:{empty.port}", "--confirm")
        assert f"the replica 127.0.0.1:{empty.port} is empty" in told["msg"]
        assert host.tree() == before
    finally:
        empty.service.stop()


def test_without_its_replica_the_latest_backup_is_restored(host: Broken) -> None:
    host.damage(in_the_middle)
    with socket.create_server(("127.0.0.1", 0)) as spare:
        port = spare.getsockname()[1]
    told = host.repair("--replica", f"127.0.0.1:{port}", "--confirm")
    assert told["way"] == "restore"
    assert "cannot be reached" in told["closed"]["replica"]
    assert "all writes of the last" in told["costs"]["restore"]
    assert told["found"] == told["expected"]
    assert host.call("EXISTS", "later0") == 0
    assert told["found"]["digest"] == told["in_backup"]["digest"] == host.digest()
    # Asked for by name, that replica is no reason for another way.
    told = host.repair("--replica", f"127.0.0.1:{port}", "--way", "replica", "--confirm")
    assert "cannot be reached" in told["msg"]


def test_without_replica_and_backup_the_fix_is_asked_first(host: Broken) -> None:
    total = host.count()
    shutil.rmtree(host.folder / "repository")
    host.damage(in_the_middle)
    host.refuses()
    found = host.state()
    before = host.tree()
    asked = host.repair()
    assert (asked["way"], list(asked["costs"]), asked["dry_run"]) == ("fix", ["fix"], True)
    assert f"{found.dropped} of {found.bytes} bytes, about {found.commands} commands" in asked["text"]
    assert "there is no repository" in asked["closed"]["restore"]
    assert host.tree() == before
    told = host.repair("--confirm")
    assert told["way"] == "fix"
    assert told["dropped"] == found.dropped
    # What is before the damage is there, what is behind it is gone.
    assert found.commands is not None
    assert 0 <= total - host.count() - found.commands <= 1
    assert host.call("EXISTS", "later0") == 1
    assert host.call("EXISTS", f"later{LATER - 1}") == 0
    assert host.digest() == told["found"]["digest"]
    kept = Path(told["kept"])
    for name in (host.log.name, host.base.name, "appendonly.aof.manifest"):
        assert (kept / "appendonlydir" / name).read_bytes() == before[f"appendonlydir/{name}"][1]
    host.call("SET", "afterwards", "1")
    host.service.stop()
    host.service.start(60)
    assert host.call("GET", "afterwards") == "1"


def test_a_cut_tail_is_fixed_though_there_is_a_backup(host: Broken) -> None:
    host.damage(lambda data: data[:-13])
    told = host.repair("--confirm")
    assert told["way"] == "fix"
    assert host.call("EXISTS", f"later{LATER - 2}") == 1


def test_a_fix_that_does_not_help_puts_everything_back(host: Broken) -> None:
    # In form it is mended; but before that there is a command that no Redis knows.
    host.damage(lambda data: in_the_middle(data).replace(b"SET", b"SEX", 1))
    before = host.tree()
    told = host.repair("--way", "fix", "--confirm")
    assert "Unknown command 'SEX'" in told["msg"]
    assert "The data from before are in place" in told["msg"]
    assert host.tree() == before
    assert host.left_over() == []
    assert not host.service.active()


def test_a_repair_that_is_killed_is_undone(host: Broken) -> None:
    host.damage(in_the_middle)
    before = host.tree()
    running = host.start_command("repair", "redis", "--way", "fix", "--confirm", step="Target.exchange:after")
    host.wait_until_paused(running)
    running.kill()
    running.communicate()
    assert host.tree() != before
    assert "databackup recover redis" in host.command("diagnose", "redis")[1]
    code, said = host.command("recover", "redis")
    assert code == 0
    assert "as of the repair that did not end" in said
    assert host.tree() == before


def test_a_damaged_base_is_restored_and_cannot_be_fixed(host: Broken) -> None:
    host.damage(lambda data: data[:200] + bytes(40) + data[240:], host.base)
    assert "mends the end of the last append-only file alone" in host.repair("--way", "fix", "--confirm")["msg"]
    told = host.repair("--confirm")
    assert told["way"] == "restore"
    assert host.digest() == told["found"]["digest"]


def test_no_way_is_open(host: Broken) -> None:
    shutil.rmtree(host.folder / "repository")
    host.damage(lambda data: data[:-9], host.base)
    told = host.repair("--confirm")
    for words in ("no replica was named", "there is no repository", "mends the end"):
        assert words in told["msg"]


def test_other_kinds_have_no_files_to_look_through(host: Broken) -> None:
    host.set_source(kind="files", options={"paths": [os.devnull]})
    with pytest.raises(Failed, match=r"of kind files; expected redis.*databackup restore redis"):
        kinds.repair(host.source, lambda text: None)
