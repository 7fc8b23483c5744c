"""Every fault of a backup or restore, as it happens: a clear message, and live data as they were.

Prints a line for each fault (pytest -s). With FAULT_TABLE=FILE, that file is a table of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from databackup import catalog, status
from databackup import cli as program
from databackup.errors import Busy, Failed
from databackup.journal import Journal
from databackup.redis import kind as redis_kind
from databackup.redis import rdb
from databackup.redis.replication import Snapshot
from databackup.redis.restore import Target
from databackup.restic import Restic, explain
from host import (
    PLAINTEXT,
    REDIS_PASSWORD,
    REPOSITORY_PASSWORD,
    VALKEY_8,
    Host,
    Process,
    make_repository,
    wait_for,
)

pytestmark = pytest.mark.slow

MIB = 1 << 20
# Of the disk that the data are on. databackup wants 64 MiB beside a backup.
DISK = 112 * MIB
HEAD = "| Fault | What was said | Digest before | Digest after |\n|---|---|---|---|\n"


def mounted(folder: Path, size: int) -> bool:
    """Make a folder a disk of its own; return whether that is permitted here."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    return done.returncode == 0


def note(name: str, message: str, before: str, after: str) -> None:
    """Print what a fault said, and the digests of the live data."""
    message = message.replace("<3>databackup: ", "")
    print(f"\n{name} | {message} | {before} | {after}")
    if table := os.environ.get("FAULT_TABLE"):
        said = re.sub(r"/[^ :]*/(?=[^/ :]+)", "…/", message).replace("|", "\\|").replace("\n", " ")
        with open(table, "a") as file:
            if file.tell() == 0:
                file.write(HEAD)
            file.write(f"| {name} | {said} | `{before[:12]}` | `{after[:12]}` |\n")


class Site(Host):
    """The host of all tests here. Each begins with the same backup, and live data that have gone on since."""

    on_its_own_disk = False

    def begin(self) -> None:
        """Make all as it was, but for a new value."""
        for name in ("repository", "cache", "state"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.folder / "pristine", self.folder / "repository")
        self.configure()
        self.set_repository()
        self.set_source()
        for name in self.left_over():
            path = self.data / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not self.service.active():
            self.service.start(60)
        self.call("CONFIG", "SET", "rdb-key-save-delay", "0")
        self.call("SET", "since", os.urandom(8).hex())

    def packs(self) -> list[Path]:
        """The repository's packs, the largest first."""
        files = [path for path in (self.folder / "repository/data").rglob("*") if path.is_file()]
        return sorted(files, key=lambda path: -path.stat().st_size)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    disk = mounted(folder / "data", DISK)
    site = None
    try:
        site = Site(folder)
        site.on_its_own_disk = disk
        site.fill()
        site.fill_with_noise(2)
        make_repository(site.restic)
        site.backup()
        shutil.copytree(folder / "repository", folder / "pristine")
        yield site
    finally:
        if site is not None:
            site.service.stop()
        if disk:
            subprocess.run(["umount", folder / "data"], check=True)


@pytest.fixture
def site(made: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(redis_kind, "Unit", Process)
    made.begin()
    return made


@contextmanager
def refused(site: Site, name: str, words: str, error: type[Failed] = Failed) -> Iterator[None]:
    """Expect that a run fails with such words, and that live data are as they were and served."""
    before = site.digest()
    with pytest.raises(error, match=words) as caught:
        yield
    after = site.digest()
    note(name, str(caught.value), before, after)
    assert after == before
    assert site.left_over() == []


def flip(path: Path, place: float) -> None:
    """Change some bytes of a file."""
    path.chmod(0o600)
    at = int(path.stat().st_size * place)
    with path.open("r+b") as file:
        file.seek(at)
        found = file.read(8)
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in found))


def fail_at(monkeypatch: pytest.MonkeyPatch, words: str, act: Callable[[], None]) -> None:
    """Have something happen when databackup says certain words."""

    def say(text: str) -> None:
        if words in text:
            act()

    monkeypatch.setattr(program, "say", say)


# --- The repository ---


def test_a_wrong_password(site: Site) -> None:
    (site.folder / "password").write_text("wrong\n")
    with refused(site, "wrong repository password, backup", "refuses the password.*backup_master_password"):
        site.backup()
    told = status.tell(site.source)
    assert not told["ok"]
    assert "refuses the password" in told["text"]
    with refused(site, "wrong repository password, restore", "refuses the password"):
        site.restore()


def test_no_repository(site: Site) -> None:
    site.set_repository(location=str(site.folder / "nowhere"))
    with refused(site, "no repository, backup", "there is no repository.*databackup init"):
        site.backup()
    with refused(site, "no repository, restore", "there is no repository"):
        site.restore()


def sftp(site: Site, port: int, timeout: float, *more: str) -> None:
    """Have the repository behind ssh on a port of loopback."""
    known = f"-F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile={site.folder}/known"
    command = f"ssh {known} -p {port} {' '.join(more)} backup@127.0.0.1 -s sftp"
    site.set_repository(
        location="sftp:backup@127.0.0.1:/repository", options=[f"sftp.command={command}"], timeout=timeout
    )


def test_a_repository_to_which_one_can_only_add(site: Site) -> None:
    """As the role backup_repository serves it, but for ssh."""
    serve = site.folder / "serve"
    serve.write_text(
        "#!/bin/sh\nexec rclone serve restic --stdio --append-only --config= --local-no-preallocate "
        f"--log-level=ERROR {site.folder}/repository\n"
    )
    serve.chmod(0o755)
    site.set_repository(location="rclone:lab/redis1", options=[f"rclone.program={serve}"])
    made = site.backup()
    assert site.restore()["backup"].startswith(made["id"])
    shutil.rmtree(next(site.data.glob("before-restore-*")))
    assert site.command("check")[0] == 0
    # Its own lock is gone, and nobody else's was there.
    assert list((site.folder / "repository/locks").iterdir()) == []
    for pack in site.packs():
        pack.unlink()
    with refused(site, "lost pack behind rclone, restore", "the repository lacks a part of it"):
        site.restore()
    code, said = site.command("unlock")
    assert code != 0
    assert "this host does not maintain its repository" in said


def test_a_host_that_refuses_connections(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as spare:
        port = spare.getsockname()[1]
    sftp(site, port, 20)
    with refused(site, "unreachable repository, backup", "the repository's host does not answer"):
        site.backup()
    with refused(site, "unreachable repository, restore", "the repository's host does not answer"):
        site.restore()


def children(word: str, of: int | None = None) -> list[int]:
    """Return the processes that this one, or another, has started and that have a word in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == (of or os.getpid()) and word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_a_host_that_falls_silent(site: Site) -> None:
    # It takes connections, and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        sftp(site, port, 1)
        with refused(site, "silent repository, backup", "has not answered for 1 s"):
            site.backup()
        with refused(site, "silent repository, restore", "has not answered for 1 s"):
            site.restore()
        # Its ssh is not left to wait for ever.
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert not [line for line in lines if b"ssh" in line and str(port).encode() in line]
        # What the role sets is told by ssh itself, earlier.
        sftp(site, port, 20, "-o ConnectTimeout=1")
        with refused(site, "silent repository, ssh's own limit", "does not answer"):
            site.restore()


def test_a_repository_that_stops_in_the_middle(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever opens a pipe that no process writes waits for ever, as for a share whose host is gone.
    pack = site.packs()[0]
    pack.unlink()
    os.mkfifo(pack)
    site.set_repository(timeout=2)
    with refused(site, "repository stops in the middle, restore", "cannot be read: .*has not answered for 2 s"):
        site.restore()
    snapshots = set((site.folder / "repository/snapshots").iterdir())
    stopped: list[int] = []

    def stop() -> None:
        # Other snapshots than the backup's are taken while no restic runs.
        if found := children("restic"):
            stopped.extend(found)
            os.kill(found[0], signal.SIGSTOP)

    at_the_first_chunk(monkeypatch, stop)
    with refused(site, "repository stops in the middle, backup", "cannot be written: .*has not answered for 2 s"):
        site.backup()
    assert stopped
    assert set((site.folder / "repository/snapshots").iterdir()) == snapshots


def test_a_full_repository(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    used = sum(path.stat().st_size for path in (site.folder / "repository").rglob("*") if path.is_file())
    if not mounted(folder, used + 2 * MIB):
        pytest.skip("a full disk is made by a mount, which is not permitted here")
    try:
        shutil.copytree(site.folder / "repository", folder / "repository")
        site.set_repository(location=str(folder / "repository"))
        site.fill_with_noise(4)
        with refused(site, "full repository", "the repository is full: make room.*no space left"):
            site.backup()
        # What is in it can still be had.
        before = site.digest()
        assert site.restore()["found"]["digest"] != before
    finally:
        subprocess.run(["umount", folder], check=True)


def stopped_with_lock(site: Site) -> subprocess.Popen[bytes]:
    """Return a restic that has locked the repository, as maintenance does, and stands still."""
    locks = site.folder / "repository/locks"

    def held() -> bool:
        # The name that it is written under is not yet that of a lock.
        return any("tmp" not in path.name for path in locks.iterdir())

    # On a machine that is short of time it may have ended before it is stopped.
    for _ in range(10):
        holder = subprocess.Popen(["restic", "check"], env=site.restic.environment, stdout=subprocess.DEVNULL)
        ended = holder.poll
        wait_for(lambda: held() or ended() is not None, "it has its lock")  # noqa: B023 - called here only
        holder.send_signal(signal.SIGSTOP)
        if holder.poll() is None and held():
            return holder
        holder.kill()
        holder.wait()
    raise AssertionError("no restic could be stopped while it had its lock")


def test_a_repository_that_somebody_has_locked(site: Site) -> None:
    holder = stopped_with_lock(site)
    try:
        site.set_repository(lock_timeout=0.5)
        words = f"locked by another run .*PID {holder.pid} .*half an hour later"
        with refused(site, "locked repository, backup", words):
            site.backup()
        # To read needs none.
        assert site.restore()["found"]
        # One that goes on and ends is waited for.
        site.set_repository(lock_timeout=30)
        threading.Timer(0.5, holder.send_signal, [signal.SIGCONT]).start()
        assert site.backup()["id"]
        holder.wait(60)
    finally:
        holder.kill()
        holder.wait()
    dead = stopped_with_lock(site)
    dead.kill()
    dead.wait()
    # What a dead one has left is for the repository's host to remove: from here it is not told from one that is alive.
    site.set_repository(lock_timeout=0.5)
    with pytest.raises(Failed, match="locked by another run"):
        site.backup()
    assert len(list((site.folder / "repository/locks").iterdir())) == 1
    assert site.restore()["found"]


def test_an_index_that_another_run_is_just_writing_is_read_once_more(site: Site) -> None:
    """As rclone 1.60 writes it in the repository of a host with several sources, all backed up at the same time."""
    index = next((site.folder / "repository/index").iterdir())
    whole = index.read_bytes()
    index.chmod(0o600)
    for act in (site.backup, site.restore):
        os.truncate(index, len(whole) // 2)
        timer = threading.Timer(1.5, index.write_bytes, [whole])
        timer.start()
        # Its own copy would be read instead.
        shutil.rmtree(site.folder / "cache", ignore_errors=True)
        assert act()
        timer.join()
    assert site.command("check")[0] == 0


def test_a_lock_that_another_run_removes_while_it_is_looked_at_is_no_damage(site: Site) -> None:
    """As with several sources of a host that are all backed up at the same moment."""
    lock = site.folder / "repository/locks" / ("a" * 64)
    # It stands in the list, and is not there when it is read.
    lock.symlink_to(site.folder / "gone")
    timer = threading.Timer(4, lock.unlink)
    timer.start()
    try:
        assert site.backup()
    finally:
        timer.cancel()
        lock.unlink(missing_ok=True)


def test_what_ssh_says_of_the_account_is_no_cause() -> None:
    said = "rclone: Could not chdir to home directory /nonexistent: No such file or directory\nFatal: no idea\n"
    assert explain(said) == "restic reports: Fatal: no idea"
    said += "Load(<data/5b3f5c7dcd>, 675361, 804179) returned error, retrying after 1.31013006s: EOF\n"
    assert explain(said).endswith("retrying after 1.31013006s: EOF")


# --- A backup that is not what it was ---


def test_damaged_data(site: Site) -> None:
    flip(site.packs()[0], 0.5)
    with refused(site, "damaged data", "the repository is damaged"):
        site.restore()


def test_truncated_data(site: Site) -> None:
    pack = site.packs()[0]
    pack.chmod(0o600)
    os.truncate(pack, pack.stat().st_size // 2)
    with refused(site, "truncated data", "the repository is damaged: a part of it is truncated"):
        site.restore()
    code, said = site.command("check")
    assert code == 1
    assert "the repository is not sound" in said


def test_what_is_cut_off_is_said_when_restic_has_only_said_when_it_tries_again() -> None:
    said = "Load(<data/5b3f5c7dcd>, 675361, 804179) returned error, retrying after 1.31013006s: EOF\n"
    assert explain(said * 3).startswith("the repository is damaged: a part of it is truncated")


def test_lost_data(site: Site) -> None:
    site.packs()[0].unlink()
    with refused(site, "lost data", "the repository lacks a part of it"):
        site.restore()


def test_a_damaged_index(site: Site) -> None:
    for path in (site.folder / "repository/index").iterdir():
        flip(path, 0.5)
    with refused(site, "damaged index", "the repository is damaged"):
        site.restore()


def test_a_damaged_manifest(site: Site) -> None:
    # Of a backup of a few keys the packs that are not the data's are those of trees and manifests.
    for path in site.packs()[1:]:
        flip(path, 0.3)
    with refused(site, "damaged manifest", "the repository is damaged"):
        site.restore()


def test_a_damaged_list(site: Site) -> None:
    # An older backup must not silently stand in for the latest.
    known = catalog.backups(site.restic, "source=redis")[0].id
    latest = site.backup()["id"]
    flip(next((site.folder / "repository/snapshots").glob(f"{latest}*")), 0.5)
    shutil.rmtree(site.folder / "cache")
    with refused(site, "damaged list of backups", "it is not known which backup is the latest"):
        site.restore()
    # Those that can be read are still to be had.
    assert site.restore(backup=known)["backup"] == known


def write(site: Site, data: bytes, **changes: Any) -> None:
    """Add a backup of certain data, with a manifest of the latest's that is changed."""
    when = datetime.now(UTC).replace(microsecond=0)
    writer = catalog.open_data(site.restic, site.source, "rdb", when)
    try:
        writer.write(data)
        written = writer.commit()
    finally:
        writer.abort()
    site.rewrite(data=written, **changes)


def contents(site: Site) -> bytes:
    """Return the live data as a snapshot."""
    with site.client() as client:
        return b"".join(Snapshot(client).chunks())


def test_a_truncated_snapshot(site: Site) -> None:
    whole = contents(site)
    write(site, whole[: len(whole) // 2], bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest())
    with refused(site, "truncated snapshot", f"damaged: found {len(whole) // 2} bytes .* expected {len(whole)}"):
        site.restore()


def test_a_snapshot_that_redis_does_not_load(site: Site) -> None:
    cut = contents(site)[:-100]
    write(site, cut, bytes=len(cut), sha256=hashlib.sha256(cut).hexdigest())
    with refused(site, "snapshot that Redis does not load", "Redis does not start with the restored data: .*RDB"):
        site.restore()


def test_a_snapshot_with_other_data_than_its_manifest_says(site: Site) -> None:
    other = contents(site)
    write(site, other, bytes=len(other), sha256=hashlib.sha256(other).hexdigest())
    with refused(site, "snapshot of other data", "differs from its manifest: found .* expected"):
        site.restore()


def test_a_snapshot_that_redis_takes_as_something_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # One key less than in the file, and the file is whole: as if Redis had lost it on the way.
    plain = Target.load

    def load(target: Target, path: Path) -> Any:
        result = plain(target, path)
        with target._client(result[0]) as client:
            client.call("DEL", "k1")
        return result

    monkeypatch.setattr(Target, "load", load)
    for how in ("digest", "count"):
        with refused(site, f"Redis has other data, found by {how}", "other data than were restored: found 2210 keys"):
            site.restore(verify=how)


# --- A backup that does not fit ---


def test_another_version(site: Site) -> None:
    site.rewrite(redis_version="9.1.0")
    with refused(site, "newer Redis version", "made by Redis 9.1.0, and 7.* cannot read it"):
        site.restore()
    data = bytearray(contents(site))
    # What says so is the file itself.
    data[5:9] = b"0099"
    write(site, bytes(data), bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), redis_version="7.0.15")
    with refused(site, "newer format under an old name", "Can't handle RDB format version 99"):
        site.restore()
    write(site, VALKEY_8, bytes=len(VALKEY_8), sha256=hashlib.sha256(VALKEY_8).hexdigest(), redis_version="")
    with refused(site, "newer format of Valkey", "the backup was written by Valkey 8.1.1 .* nothing here was touched"):
        site.restore()


def test_more_than_maxmemory(site: Site) -> None:
    site.configure(maxmemory="1mb")
    with refused(site, "larger than maxmemory", "takes [0-9]+ MiB in memory, and maxmemory is 1 MiB.*redis_maxmemory"):
        site.restore()
    with refused(site, "larger than maxmemory, dry run", "maxmemory is 1 MiB"):
        site.restore(dry_run=True)


@contextmanager
def filled(site: Site, leave: int = 0) -> Iterator[Callable[[], None]]:
    """Yield what fills the disk of the data, but for some bytes."""
    if not site.on_its_own_disk:
        pytest.skip("a full disk is made by a mount, which is not permitted here")
    path = site.data / "filler"

    def fill() -> None:
        with path.open("wb", buffering=0) as file, suppress(OSError):
            left = shutil.disk_usage(site.data).free - leave
            # Down to the last byte: a page is not a place for a small file either.
            while left > 0:
                left -= file.write(bytes(min(left, MIB)))

    try:
        yield fill
    finally:
        path.unlink(missing_ok=True)


def test_no_room_on_the_disk(site: Site) -> None:
    with filled(site, 10 * MIB) as fill:
        fill()
        with refused(site, "no room on the disk", "found [0-9]+ MiB free; expected room for the backup"):
            site.restore()
        site.set_source(state=str(site.data / "state"))
        with refused(site, "no room for a backup's snapshot", "found [0-9]+ MiB free; expected room for a snapshot"):
            site.backup()
    shutil.rmtree(site.data / "state")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("Fetching", "No space left on device"),
        ("Stopping", "No space left on device"),
        ("Asking", "MiB free; expected room"),
    ],
    ids=["during the fetch", "before the exchange", "before the check"],
)
def test_the_disk_fills_during_a_restore(site: Site, monkeypatch: pytest.MonkeyPatch, words: str, message: str) -> None:
    with filled(site) as fill:
        fail_at(monkeypatch, words, fill)
        with refused(site, f"disk full, from {words!r} on", message):
            site.restore()
    # With room again it does what it should.
    monkeypatch.undo()
    monkeypatch.setattr(redis_kind, "Unit", Process)
    assert site.restore()["found"]["keys"]


def test_the_disk_fills_while_redis_starts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Target.exchange
    with filled(site) as fill:

        def exchange(target: Target, backup: str) -> Path:
            aside = plain(target, backup)
            fill()
            return aside

        monkeypatch.setattr(Target, "exchange", exchange)
        # Redis begins a new append-only file, for which there is no room. So that the old data can be served, room is
        # made by the new ones, which go.
        with refused(site, "disk full as Redis starts", "does not start with the restored data"):
            site.restore()


# --- The wrong one ---


def test_an_unknown_backup(site: Site) -> None:
    known = catalog.backups(site.restic, "source=redis")[0].id[:8]
    with refused(site, "unknown id", f"'ffffffff' of redis: there is no such backup; expected one of {known}"):
        site.restore(backup="ffffffff")
    with refused(site, "id that is too short", "there is no such backup"):
        site.restore(backup="")
    with refused(
        site, "time before the first backup", "no backup of redis up to 2001-01-01T00:00:00Z; the first is [0-9a-f]{8}"
    ):
        site.restore(as_of="2001-01-01T00:00:00Z")
    with refused(site, "no time", "found 'yesterday'; expected a date with its time"):
        site.restore(as_of="yesterday")
    with refused(site, "unknown host", "there is no backup of redis"):
        site.restore(host="elsewhere")


def test_the_wrong_environment(site: Site) -> None:
    known = catalog.backups(site.restic, "source=redis")[0].id
    site.set_source(environment="production")
    with refused(site, "another environment, latest", "no backup of redis in the repository.*in this environment"):
        site.restore()
    with refused(site, "another environment, by id", "of environment 'test', and this host is of 'production'"):
        site.restore(backup=known)
    # Said in so many words, it is done.
    assert site.restore(environment="test")["backup"] == known


# --- Two at once, and the end in the middle ---


def ended(site: Site, running: subprocess.Popen[str]) -> None:
    """Let a command go on, and end well."""
    (site.folder / "go").touch()
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 0, said


def test_two_at_once(site: Site) -> None:
    running = site.start_command("restore", "redis", step="FromBackup.fetch:after")
    try:
        site.wait_until_paused(running)
        before = site.digest()
        for name in ("restore", "backup"):
            words = ["--wait", "0"] if name == "restore" else []
            code, said = site.command(name, "redis", *words)
            assert code == 75, said
            assert f"another run has it (a restore, process {running.pid}" in said
            after = site.digest()
            note(f"{name} during a restore", said.strip(), before, after)
            assert after == before
        with pytest.raises(Busy, match="another run has it"):
            site.restore()
    finally:
        ended(site, running)
    assert site.call("EXISTS", "since") == 0


def test_a_restore_during_a_backup_waits_for_it(site: Site) -> None:
    running = site.start_command("backup", "redis", step="Snapshot.__init__:after")
    try:
        site.wait_until_paused(running)
        with refused(site, "restore during a backup", r"another run has it \(a backup", Busy):
            site.restore()
        timer = threading.Timer(0.5, (site.folder / "go").touch)
        timer.start()
        assert site.restore(wait=60.0)["found"]
        timer.join()
    finally:
        ended(site, running)


@pytest.mark.parametrize(
    ("step", "again"),
    [
        ("FromBackup.fetch:after", "restore"),
        ("Process.stop:after", "recover"),
        ("Target.exchange:after", "restore"),
        ("Target.load:after", "recover"),
        ("Target.open:before", "restore"),
    ],
)
def test_a_restore_that_is_killed(site: Site, step: str, again: str) -> None:
    wanted = catalog.backups(site.restic, "source=redis")[0].facts["digest"]
    before = site.digest()
    running = site.start_command("restore", "redis", step=step)
    site.wait_until_paused(running)
    running.kill()
    running.communicate(timeout=300)
    cut = site.target.journal.path.exists()
    assert cut == (step != "FromBackup.fetch:after")
    if cut:
        code, said = site.command("backup", "redis")
        assert code == 1
        assert "a restore was interrupted; `databackup recover redis`" in said
    code, said = site.command(again, "redis")
    assert code == 0, said
    after = site.digest()
    note(f"killed at {step}, then {again}", said.strip().splitlines()[-1], before, after)
    if cut:
        assert "The data from before are back" in said
    if again == "recover":
        assert after == before
        assert site.left_over() == []
    else:
        assert after == wanted
        assert [name[:15] for name in site.left_over()] == ["before-restore-"]


@pytest.mark.parametrize("step", ["FromBackup.fetch:before", "Target.exchange:after", "Target.load:after"])
def test_a_restore_that_is_ended(site: Site, step: str) -> None:
    before = site.digest()
    running = site.start_command("restore", "redis", step=step)
    site.wait_until_paused(running)
    running.terminate()
    said, _ = running.communicate(timeout=300)
    after = site.digest()
    note(f"SIGTERM at {step}", said.strip().splitlines()[-1], before, after)
    assert running.returncode == 1
    assert "ended by SIGTERM. The data from before are in place" in said
    assert after == before
    assert site.left_over() == []


class Stored(Restic):
    """A repository of one file, that a restore may read often."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, snapshot: str, path: str, *options: str) -> Iterator[bytes]:
        """Yield the file."""
        yield self.data


# All that changes something.
CHANGES: tuple[tuple[Any, str], ...] = (
    *((Path, name) for name in ("rename", "mkdir", "rmdir", "unlink", "write_text")),
    *((Process, name) for name in ("stop", "start_apart", "start")),
    *((shutil, name) for name in ("rmtree", "chown")),
    *((os, name) for name in ("fsync",)),
    *((Target, name) for name in ("compare", "open")),
)
ENDS = ((Journal, "forget"),)


def killed_at(number: int, act: Callable[[], object], changes: tuple[tuple[Any, str], ...] = CHANGES) -> bool:
    """Do something in a process of its own that kills itself before its nth change; return whether it came to that."""
    child = os.fork()
    if child == 0:
        left = number

        def counting(plain: Callable[..., Any]) -> Callable[..., Any]:
            def call(*words: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(*words, **named)

            return call

        for place, name in changes:
            setattr(place, name, counting(getattr(place, name)))
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    _, result = os.waitpid(child, 0)
    if os.WIFSIGNALED(result):
        return True
    assert os.waitstatus_to_exitcode(result) == 0
    return False


@pytest.mark.parametrize("appends", ["yes", "no"])
def test_a_restore_that_is_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, appends: str) -> None:
    monkeypatch.setattr(redis_kind, "Unit", Process)
    host = Host(tmp_path, appendonly=appends)
    try:
        host.call("SET", "old", "1")
        with host.client() as client:
            data = b"".join(Snapshot(client).chunks())
        summary = rdb.summarize(iter([data]))
        manifest = {
            "kind": "redis",
            "source": "redis",
            "environment": "test",
            "items": summary.keys,
            "digest": summary.digest,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "redis_version": summary.about["redis-ver"],
            "used_memory": int(summary.about["used-mem"]),
            "data": "1",
        }
        host.call("SET", "new", "1")
        before = host.digest()

        def restore() -> None:
            redis_kind.Redis(host.source, lambda text: None).restore(Stored(data), "12345678", manifest, "test", True)

        def again() -> None:
            for name in host.left_over():
                shutil.rmtree(host.data / name)
            host.call("SET", "new", "2")

        # Before each change that a restore makes, in turn.
        number = 1
        while killed_at(number, restore):
            # Without its journal it had ended: what was left to do was no part of it.
            done = number > 15 and not host.target.journal.path.exists()
            host.target.recover()
            assert host.digest() == (summary.digest if done else before), number
            if done:
                again()
                before = host.digest()
            assert host.left_over() == [], number
            number += 1
        assert number > 15
        assert host.digest() == summary.digest
        # And before each that puts the old data back.
        again()
        before = host.digest()
        whole, number = number, 1
        while True:
            # Before the journal's end: the first is that of the journal that is not there.
            assert killed_at(2, restore, ENDS)
            if not killed_at(number, lambda: host.target.recover()):
                break
            host.target.recover()
            assert host.digest() == before, number
            assert host.left_over() == [], number
            number += 1
        assert number > 5
        assert host.digest() == before
        note(
            f"killed at {whole - 1} places of a restore and {number - 1} of a recovery, appendonly {appends}",
            "(the last one's digests)",
            before,
            host.digest(),
        )
    finally:
        host.service.stop()


# --- While a backup runs ---


def at_the_first_chunk(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have something happen when the first part of a backup's snapshot is here, and the rest is not yet."""
    plain = Snapshot.chunks

    def chunks(snapshot: Snapshot) -> Iterator[bytes]:
        for number, chunk in enumerate(plain(snapshot)):
            if number == 0:
                act()
            yield chunk

    monkeypatch.setattr(Snapshot, "chunks", chunks)


@pytest.mark.parametrize("whom", ["server", "child"])
def test_redis_is_killed_during_a_backup(site: Site, monkeypatch: pytest.MonkeyPatch, whom: str) -> None:
    before = site.digest()
    known = catalog.backups(site.restic, "source=redis")
    snapshots = len(site.restic.snapshots(catalog.PROGRAM))
    site.call("CONFIG", "SET", "rdb-key-save-delay", "500")
    server = site.service.number

    def kill() -> None:
        if whom == "server":
            site.service.end(signal.SIGKILL)
        else:
            os.kill(children("redis", of=server)[0], signal.SIGKILL)

    with monkeypatch.context() as patch:
        at_the_first_chunk(patch, kill)
        with pytest.raises(Failed, match=r"the snapshot (ends early|was interrupted)") as caught:
            site.backup()
    if whom == "server":
        assert not site.service.active()
        site.service.start(60)
    site.call("CONFIG", "SET", "rdb-key-save-delay", "0")
    after = site.digest()
    note(f"Redis killed during a backup: its {whom}", str(caught.value), before, after)
    assert after == before
    # No half of a snapshot came to be.
    assert catalog.backups(site.restic, "source=redis") == known
    assert len(site.restic.snapshots(catalog.PROGRAM)) == snapshots
    assert "the last run failed" in status.tell(site.source)["text"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_backup_that_is_killed(site: Site, how: signal.Signals) -> None:
    before = site.digest()
    snapshots = len(site.restic.snapshots(catalog.PROGRAM))
    running = site.start_command("backup", "redis", step="Snapshot.__init__:after")
    site.wait_until_paused(running)
    helpers = [int(name.name) for name in Path("/proc").glob("[0-9]*") if ours(name, site)]
    running.send_signal(how)
    said, _ = running.communicate(timeout=300)
    assert running.returncode != 0
    after = site.digest()
    note(f"backup ended by {how.name}", said.strip() or "(nothing: it was killed)", before, after)
    assert after == before
    # Nothing that it has started outlives it and keeps the lock.
    wait_for(lambda: not [number for number in helpers if ours(Path(f"/proc/{number}"), site)], "its helpers end")
    assert len(site.restic.snapshots(catalog.PROGRAM)) == snapshots
    assert site.backup()["digest"] == before


def ours(folder: Path, site: Site) -> bool:
    """Return whether a process is one of databackup's for this site."""
    with suppress(OSError):
        state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z" and str(site.etc).encode() in (folder / "cmdline").read_bytes()
    return False


def test_no_secret_and_no_plaintext_while_a_backup_runs(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    site.call("CONFIG", "SET", "rdb-key-save-delay", "100")
    lines: set[bytes] = set()
    # Each begins only when it has been seen: on a machine that is short of time its whole life may go unnoticed.
    for name in ("restic", "redis-check-rdb"):
        script = tmp_path / name
        script.write_text(
            f'#!/bin/sh\nwhile [ ! -e {script}.seen ]; do sleep 0.02; done\nexec {shutil.which(name)} "$@"\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    spooled: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    line = path.read_bytes()
                    lines.add(line)
                    for name in ("restic", "redis-check-rdb"):
                        if f"{tmp_path}/{name}\0".encode() in line:
                            (tmp_path / f"{name}.seen").touch()
            with suppress(OSError):
                spooled.update(os.listdir(f"{site.source.state}/spool"))

    thread = threading.Thread(target=look)
    thread.start()
    seen: list[str] = []
    try:
        at_the_first_chunk(monkeypatch, lambda: seen.append("a part of the snapshot is here"))
        site.backup()
        code, said = site.command("backup", "redis")
        assert code == 0, said
    finally:
        done.set()
        thread.join()
    assert seen
    secrets = (REDIS_PASSWORD.encode(), REPOSITORY_PASSWORD.encode(), PLAINTEXT)
    assert [line for line in lines if b"restic\0" in line]
    assert [line for line in lines if b"redis-check-rdb" in line]
    assert not [line for line in lines if any(secret in line for secret in secrets)]
    shown = capfd.readouterr()
    assert not [secret for secret in secrets if secret.decode() in said + shown.out + shown.err]
    # The spool has no name, whatever is in it; and what has a name is not in plaintext.
    assert spooled == set()
    for folder in ("repository", "state", "cache"):
        for path in (site.folder / folder).rglob("*"):
            assert not path.is_file() or PLAINTEXT not in path.read_bytes(), path


# --- Redis itself is not well ---


def test_a_restore_where_redis_refuses_its_own_data(site: Site) -> None:
    wanted = catalog.backups(site.restic, "source=redis")[0].facts["digest"]
    before = site.digest()
    site.service.stop()
    (log,) = (site.data / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(log.read_bytes().replace(b"*3", b"*z", 1))
    damaged = {path.name: path.read_bytes() for path in (site.data / "appendonlydir").iterdir()}
    with pytest.raises(Failed, match="it does not start"):
        site.service.start(5)
    # A restore that fails leaves the damage as it was, for whoever wants to repair it.
    with pytest.raises(Failed, match="no such backup"):
        site.restore(backup="ffffffff")
    assert {path.name: path.read_bytes() for path in (site.data / "appendonlydir").iterdir()} == damaged
    done = site.restore()
    after = site.digest()
    note("damaged append-only file, then restore", f"restored; kept: {Path(done['kept']).name}", before, after)
    assert after == wanted
    assert {path.name: path.read_bytes() for path in (Path(done["kept"]) / "appendonlydir").iterdir()} == damaged


def test_a_backup_of_a_redis_that_is_down_or_refuses(site: Site) -> None:
    (site.folder / "redis.env").write_text("REDISCLI_AUTH=wrong\n")
    with refused(site, "wrong Redis password", "refuses the user default: WRONGPASS"):
        site.backup()
    (site.folder / "redis.env").write_text(f"REDISCLI_AUTH={REDIS_PASSWORD}\n")
    before = site.digest()
    site.service.stop()
    with pytest.raises(Failed, match="cannot be reached") as caught:
        site.backup()
    site.service.start(60)
    after = site.digest()
    note("Redis is down, backup", str(caught.value), before, after)
    assert after == before


def test_a_redis_that_listens_at_another_address_by_now_is_found_by_its_process(site: Site) -> None:
    """As between redis.yml, which has moved it, and backup.yml, which tells databackup of it."""
    site.set_source(options={**site.source.options, "server": {"host": "127.0.0.9", "port": site.port}})
    assert site.backup()
    # Where it does not run, there is nobody to be found, whoever listens at its address from before.
    site.service.stop()
    with pytest.raises(Failed, match=r"127\.0\.0\.9:\d+ cannot be reached"):
        site.backup()
    with socket.create_server(("127.0.0.9", site.port)), pytest.raises(Failed, match="held by another process"):
        site.backup()
    site.service.start(60)
