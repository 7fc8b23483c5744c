"""What a confined service can do to databackup, which is root: played with that service's rights, here `nobody`'s.

Redis can write its data, its configuration and its log; the application its database. Each test plants there what would
have root read, write, move or give away something else, or hand a password over, and expects that nothing of the kind
happens. test_boundaries.py in the scenario `recovery` does the same on a host with systemd.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import sqlite3
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from databackup import catalog, kinds, peer, settings
from databackup import cli as program
from databackup.errors import Failed
from databackup.owner import Owner, plain
from databackup.redis import kind as redis_kind
from databackup.redis import restore as redis_restore
from databackup.redis.repair import Repair
from databackup.redis.server import connect
from databackup.restic import Restic
from databackup.service import units
from databackup.settings import Repository
from databackup.sqlite import Sqlite
from host import REDIS_PASSWORD, REPOSITORY_PASSWORD, Host, Process, make_repository, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can play the part of another user"),
]

# Who runs the service.
SERVICE = "nobody"
ENTRY = pwd.getpwnam(SERVICE)
SECRET = "the-secret-of-root"
ASIDE = "before-restore-20260101T000000Z"


def as_service(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with the service's rights and no others."""
    return subprocess.run(
        words,
        user=ENTRY.pw_uid,
        group=ENTRY.pw_gid,
        extra_groups=[],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def play(script: str, *words: str | Path) -> None:
    """Do something as the service, which has to work: it is its own folder."""
    done = as_service("sh", "-euc", script, "sh", *map(str, words))
    assert done.returncode == 0, done.stderr


def plant(path: Path, text: str) -> None:
    """Write a file as the service."""
    play('cat > "$1.planted" && mv "$1.planted" "$1"' if not text else 'printf %s "$2" > "$1"', path, text)


def tree(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return all that is in a folder: owner, mode, number of names and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_uid, stat.S_IMODE(status.st_mode), status.st_nlink, content)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter, as /var/lib is one; those of pytest are its user's alone."""
    folder = Path(tempfile.mkdtemp(prefix="databackup-boundaries-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def victim(place: Path) -> Path:
    """A folder of root's, such as /etc, beside the service's: nobody else may write there, or read the secret."""
    folder = place / "victim"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    for name, mode in (("secret", 0o600), ("public", 0o644), ("of-the-group", 0o640)):
        (folder / name).write_text(f"{SECRET}\n")
        (folder / name).chmod(mode)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds nothing yet."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "password").write_text(f"{REPOSITORY_PASSWORD}\n")
    location, password, cache = (str(folder / name) for name in ("repository", "password", "cache"))
    make_repository(Restic(Repository(location, password, cache=cache)))
    return folder / "repository"


@pytest.fixture(scope="module")
def pristine(empty: Path) -> Iterator[Path]:
    """Redis' data with a backup, made once: its folder has `data`, and `repository` with the backup."""
    folder = Path(tempfile.mkdtemp(prefix="databackup-pristine-"))
    folder.chmod(0o755)
    shutil.copytree(empty, folder / "repository")
    host = Host(folder, user=SERVICE)
    try:
        host.call("SET", "key", "value")
        host.backup()
    finally:
        host.service.stop()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def host(place: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A Redis that `nobody` runs, with one backup."""
    monkeypatch.setattr(redis_kind, "Unit", Process)
    shutil.copytree(pristine / "repository", place / "repository")
    shutil.copytree(pristine / "data", place / "data", copy_function=shutil.copy2)
    for path in (place / "data", *(place / "data").rglob("*")):
        os.chown(path, ENTRY.pw_uid, ENTRY.pw_gid)
    made = Host(place, user=SERVICE)
    try:
        yield made
    finally:
        made.service.stop()


def heard(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what databackup has said."""
    return capsys.readouterr().err


def recover(host: Host, *words: str) -> dict[str, Any]:
    """Run `databackup recover` as the boot, or an operator, does."""
    arguments = program.parser().parse_args(["--config", str(host.etc), "recover", *words])
    try:
        told: dict[str, Any] = arguments.run(arguments)
        return told
    finally:
        Process.booting = False  # type: ignore[attr-defined]  # the stand-in for a unit has none


# --- A journal that the service has written ---


def journal(**changes: Any) -> str:
    """Return a journal as earlier versions wrote it into the data folder."""
    return json.dumps({"backup": "12345678", "aside": ASIDE, "had": [], "active": True, **changes})


@pytest.mark.parametrize("words", [(), ("redis",), ("--boot",)], ids=["recover", "recover redis", "at boot"])
def test_a_planted_journal_moves_nothing_into_a_folder_of_root(
    host: Host, victim: Path, words: tuple[str, ...]
) -> None:
    # What is in place of the data is "put back": aside/../../victim/planted, to data/../victim/planted.
    play(
        'mkdir -p "$1/x/y/victim" && echo planted-by-redis > "$1/x/y/victim/planted" && mkdir -p "$1/x/data"', host.data
    )
    plant(host.data / ".restore.json", journal(aside="x/y/z", had=["../victim/planted"]))
    play('mkdir -p "$1/x/y/z"', host.data)
    host.configure(dbfilename="../victim/planted")
    before = tree(victim)
    # There is nothing to undo, so what stands in the configuration does not matter.
    recover(host, *words)
    assert tree(victim) == before


def test_a_planted_journal_is_no_journal_to_a_restore(host: Host, victim: Path) -> None:
    host.call("SET", "later", "1")
    play('mkdir -p "$1/$2" && echo planted > "$1/$2/dump.rdb"', host.data, ASIDE)
    plant(host.data / ".restore.json", journal(had=["appendonlydir"]))
    assert host.restore()["found"]["keys"] == 1
    assert (host.data / ASIDE / "dump.rdb").exists()


@pytest.mark.parametrize(
    "how", ["file", "link to a file of root's", "pipe", "folder", "another name of a file of root's"]
)
def test_a_planted_journal_stops_no_backup(
    host: Host, victim: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = host.data / ".restore.json"
    (victim / "journal").write_text(journal())
    if how == "file":
        plant(path, journal())
    elif how == "pipe":
        play('mkfifo "$1"', path)
    elif how == "folder":
        play('mkdir "$1"', path)
    elif how == "another name of a file of root's":
        # Where the kernel does not protect hard links, the service can do that itself.
        os.link(victim / "journal", path)
    else:
        play('ln -s "$1" "$2"', victim / "journal", path)
    assert host.backup()["items"] == 1
    assert "databackup recover" not in heard(capsys)
    assert recover(host) == {"recovered": []}
    assert "is not read" in heard(capsys)
    assert host.count() == 1


def begun_by_an_earlier_version(host: Host) -> None:
    """Leave everything as a restore of an earlier version that was killed with the backup in place."""
    host.service.stop()
    aside = host.data / ASIDE
    aside.mkdir(mode=0o700)
    host.own(aside)
    (host.data / "appendonlydir").rename(aside / "appendonlydir")
    had = ["appendonlydir"]
    play('mkdir "$1/appendonlydir" && echo half > "$1/appendonlydir/appendonly.aof.manifest"', host.data)
    (host.data / ".restore-new").mkdir(mode=0o700)
    (host.data / ".restore-new/of-root").write_text("left")
    path = host.data / ".restore.json"
    path.write_text(journal(had=had))
    path.chmod(0o600)


@pytest.mark.parametrize("again", ["recover", "restore", "killed on the way"])
def test_a_restore_that_an_earlier_version_began_is_undone(
    host: Host, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.call("SET", "later", "1")
    begun_by_an_earlier_version(host)
    with pytest.raises(Failed, match="a restore was interrupted; `databackup recover redis` puts the old data back"):
        host.backup()
    with pytest.raises(Failed, match="neither the old nor the new data"):
        kinds.repair(host.source, print).diagnose()
    if again == "killed on the way":
        with monkeypatch.context() as patch:
            patch.setattr(Process, "stop", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                recover(host)
        assert not (host.data / ".restore.json").exists()
        with pytest.raises(Failed, match="a restore was interrupted"):
            host.backup()
    if again == "restore":
        kept = Path(host.restore()["kept"])
        assert host.count() == 1
        # Nothing of what was there before both was lost.
        assert (kept / "appendonlydir/appendonly.aof.manifest").read_text() != "half\n"
        return
    assert recover(host) == {"recovered": ["redis"]}
    assert host.count() == 2
    assert host.left_over() == []
    assert recover(host) == {"recovered": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"aside": "before-restore-20260101T000000Z/../../victim"},
        {"aside": "x"},
        {"had": ["../victim/secret"]},
        {"had": ["other"]},
        {"backup": "\x1b[2J"},
        {"active": "yes"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_journal_of_root_that_no_version_has_written_is_named(host: Host, changes: dict[str, Any]) -> None:
    path = host.data / ".restore.json"
    path.write_text(journal(**changes))
    path.chmod(0o600)
    before = tree(host.data)
    for act in (host.backup, lambda: recover(host), host.restore):
        with pytest.raises(Failed, match=r"\.restore\.json: found .* expected the journal of a restore"):
            act()
    assert tree(host.data).keys() == before.keys()
    assert host.service.active()


def test_a_source_that_cannot_be_recovered_does_not_keep_others_from_it(host: Host, place: Path) -> None:
    begun_by_an_earlier_version(host)
    other = json.loads((host.etc / "source-redis.json").read_text())
    bad = place / "bad.conf"
    bad.write_text("dbfilename 'open\n")
    other["options"]["config_file"] = str(bad)
    other["options"]["data"] = str(place / "nothing")
    other["name"] = "another"
    (host.etc / "source-another.json").write_text(json.dumps(other))
    other["kind"] = "unknown"
    (host.etc / "source-and-one.json").write_text(json.dumps({**other, "name": "and-one"}))
    with pytest.raises(Failed, match="and-one"):
        recover(host)
    assert host.count() == 1


# --- Names that the service has written ---


@pytest.mark.parametrize("directive", ["dbfilename", "appenddirname", "appendfilename"])
@pytest.mark.parametrize(
    "value",
    [
        "../victim/planted",
        "{victim}/planted",
        "..",
        ".",
        '"a b/../../victim/planted"',
        '""',
        "'open",
        r'"a\x2fb"',
        '"a\tb"',
    ],
)
def test_a_path_where_a_name_is_expected_is_refused(host: Host, victim: Path, directive: str, value: str) -> None:
    value = value.format(victim=victim)
    host.configure(**{directive: value, "appendonly": "no" if directive == "dbfilename" else "yes"})
    before = tree(victim)
    words = rf"redis\.conf: found {directive} .*; expected (the name of a file in Redis' own folder|closed quotes)"
    with pytest.raises(Failed, match=words):
        host.restore()
    assert tree(victim) == before
    assert host.count() == 1
    assert host.left_over() == []


def test_names_are_those_of_the_moment_when_the_data_were_moved(
    host: Host, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.call("SET", "later", "1")

    def compare(*_words: Any) -> Any:
        host.configure(dbfilename="other.rdb", appenddirname="other")
        raise Failed("it is something else")

    monkeypatch.setattr(redis_restore.Target, "compare", compare)
    before = tree(victim)
    with pytest.raises(Failed, match=r"something else\. The data from before are in place"):
        host.restore()
    host.configure()
    host.service.stop()
    host.service.start(20)
    assert host.count() == 2
    assert tree(victim) == before


@pytest.mark.parametrize(
    ("name", "is_plain"),
    [
        ("dump.rdb", True),
        ("a b", True),
        ("ä", True),
        ("a\nb", False),
        ("a\0b", False),
        ("a/b", False),
        ("\udcff", False),
    ],
)
def test_what_a_plain_name_is(name: str, is_plain: bool) -> None:
    assert plain(name) is is_plain


# --- Links in the service's folders ---


def test_a_link_in_place_of_what_is_brought_here_leads_nowhere(host: Host, victim: Path) -> None:
    play('ln -s "$1" "$2/.restore-new" && ln -s "$1/secret" "$2/.restore.partial"', victim, host.data)
    before = tree(victim)
    assert host.restore()["found"]["keys"] == 1
    assert tree(victim) == before


class Swapping(Restic):
    """A repository during whose reading something happens, after the first part and before the next."""

    def __init__(self, repository: Repository, act: Callable[[], None]) -> None:
        super().__init__(repository)
        self.act = act

    def read(self, snapshot: str, path: str, *options: str) -> Iterator[bytes]:
        """Yield the data in two parts."""
        data = b"".join(super().read(snapshot, path, *options))
        yield data[:10]
        if path.endswith((".rdb", ".sqlite")):
            self.act()
        yield data[10:]


def restore_with(host: Host, act: Callable[[], None]) -> dict[str, Any]:
    """Restore the latest backup, with something that happens during the fetch."""
    restic = Swapping(settings.repository(host.etc), act)
    chosen = catalog.backups(restic, "source=redis")[-1]
    manifest = catalog.manifest(restic, chosen)
    return kinds.of(host.source, lambda text: None).restore(restic, chosen.id, manifest, "test", True)


SWAPS = {
    "the folder is replaced by a link": 'mv "$2/.restore-new" "$2/away" && ln -s "$1" "$2/.restore-new"',
    "the file is replaced by a link": 'f=$(find "$2/.restore-new" -name "*.rdb") && rm "$f" && ln -s "$1/secret" "$f"',
    "a link is put beside it": 'cd "$2/.restore-new" && ln -s "$1/secret" appendonlydir/more && ln -s "$1" folder',
}


@pytest.mark.parametrize("swap", SWAPS)
def test_what_becomes_a_link_during_the_fetch_gives_nothing_away(host: Host, victim: Path, swap: str) -> None:
    before = tree(victim)
    with suppress(Failed):
        restore_with(host, lambda: play(SWAPS[swap], victim, host.data))
    assert tree(victim) == before
    assert host.service.active()
    assert host.count() == 1


def test_another_name_of_a_file_of_root_is_not_given_away(host: Host, victim: Path) -> None:
    # Where the kernel does not protect hard links, the service can do that itself.
    with suppress(Failed):
        restore_with(host, lambda: os.link(victim / "secret", host.data / ".restore-new/appendonlydir/more"))
    assert (victim / "secret").stat().st_uid == 0
    assert host.service.active()


def test_what_the_data_are_moved_into_becomes_a_link(host: Host, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_rename = Path.rename
    swapped: list[Path] = []

    def rename(path: Path, target: Path) -> Path:
        # Between the making of the folder and the first file in it.
        if ASIDE[:15] in str(target) and not swapped:
            swapped.append(target.parent)
            play('mv "$1" "$1.away" && ln -s "$2" "$1"', target.parent, victim)
        return plain_rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    before = tree(victim)
    with pytest.raises(Failed):
        host.restore()
    assert swapped
    assert tree(victim) == before
    assert host.service.active()


@pytest.fixture
def damaged(host: Host) -> Callable[[], None]:
    """What damages the append-only file so that it could be fixed: a second part of it is whole, the third is not."""

    def damage() -> None:
        for number in range(2):
            host.call("CONFIG", "SET", "auto-aof-rewrite-percentage", "0")
            host.call("SET", f"more{number}", "x" * 100)
        host.service.stop()
        folder = host.data / "appendonlydir"
        (last,) = folder.glob("*.incr.aof")
        manifest = folder / "appendonly.aof.manifest"
        end = "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n*z\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n"
        (folder / "appendonly.aof.9.incr.aof").write_text(end)
        host.own(folder / "appendonly.aof.9.incr.aof")
        manifest.write_text(f"{manifest.read_text()}file appendonly.aof.9.incr.aof seq 9 type i\n")
        assert last.exists()

    return damage


@pytest.mark.parametrize("which", ["a part that is whole", "the damaged part", "the base"])
def test_a_repair_copies_and_links_no_file_of_root(
    host: Host, victim: Path, damaged: Callable[[], None], which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged()
    folder = host.data / "appendonlydir"
    name = {"a part that is whole": "*1.incr.aof", "the damaged part": "*9.incr.aof", "the base": "*.base.rdb"}[which]
    (path,) = folder.glob(name)
    plain_prepare = Repair.prepare

    def prepare(repair: Any, found: Any) -> None:
        # After the look at it, and before the copy.
        plain_prepare(repair, found)
        play('rm "$1" && ln -s "$2" "$1"', path, victim / "secret")

    monkeypatch.setattr(Repair, "prepare", prepare)
    before = tree(victim)
    arguments = program.parser().parse_args(["--config", str(host.etc), "repair", "redis", "--way", "fix", "--confirm"])
    with suppress(Failed):
        arguments.run(arguments)
    assert tree(victim) == before
    found = as_service("grep", "-rlF", SECRET, str(host.data))
    assert found.stdout == ""


def test_a_backup_takes_no_file_of_root_with_it(host: Host, victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((host.etc / "source-redis.json").read_text())
    acl = host.data / "users.acl"
    values["options"]["files"] = [str(host.conf), str(acl), str(host.data / "pipe")]
    (host.etc / "source-redis.json").write_text(json.dumps(values))
    play('ln -s "$1" "$2" && mkfifo "$3"', victim / "secret", acl, host.data / "pipe")
    host.backup()
    said = heard(capsys)
    assert f"{acl} is left out: nobody cannot read it: Permission denied" in said
    manifest = catalog.manifest(host.restic, catalog.backups(host.restic, "source=redis")[-1])
    assert SECRET not in json.dumps(manifest)
    assert list(manifest["files"]) == [str(host.conf)]


def test_a_configuration_that_is_a_link_is_not_read(host: Host, victim: Path) -> None:
    (victim / "secret").write_text(f"maxmemory {SECRET}\n")
    host.conf.unlink()
    host.conf.symlink_to(victim / "secret")
    with pytest.raises(Failed, match="Permission denied") as caught:
        host.restore()
    assert SECRET not in str(caught.value)
    host.conf.unlink()
    host.configure()


def test_a_log_that_is_a_file_of_root_is_not_told(host: Host, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What systemd's journal would say; the stand-in reads the log as this test.
    monkeypatch.setattr(Process, "last_words", lambda _: "nothing")
    (victim / "secret").write_text(f"1:M 01 Jan 2026 00:00:00 # Fatal error: the truncated file {SECRET}\n")
    host.configure(logfile=str(victim / "secret"))
    host.service.stop()
    found = kinds.repair(host.source, lambda text: None).diagnose()
    assert SECRET not in json.dumps(vars(found), default=str)


def test_what_parses_the_data_has_the_rights_of_the_service(
    host: Host, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = place / "tools"
    tools.mkdir()
    # It could be taken over by what it reads.
    script = f'#!/bin/sh\nid -u > {host.data}/id 2>/dev/null\nexec {shutil.which("redis-check-rdb")} "$@"\n'
    (tools / "redis-check-rdb").write_text(script)
    for path in (tools, tools / "redis-check-rdb"):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    host.backup()
    assert (host.data / "id").read_text().strip() == str(ENTRY.pw_uid)


# --- The application's database ---


class Database:
    """A database that `nobody` has, with a backup."""

    def __init__(self, place: Path, empty: Path) -> None:
        shutil.copytree(empty, place / "repository")
        (place / "password").write_text(f"{REPOSITORY_PASSWORD}\n")
        self.values = Repository(str(place / "repository"), str(place / "password"), cache=str(place / "cache"))
        self.restic = Restic(self.values)
        self.folder = place / "application"
        self.folder.mkdir(mode=0o750)
        os.chown(self.folder, ENTRY.pw_uid, ENTRY.pw_gid)
        self.path = self.folder / "app.db"
        self.sql("CREATE TABLE t (x); INSERT INTO t VALUES ('of the application')")
        options = {"database": str(self.path), "unit": "", "user": SERVICE}
        self.source = settings.Source("app", "sqlite", "test", "here", options, state=str(place / "state"))
        self.said: list[str] = []
        self.kind = Sqlite(self.source, self.said.append, units(""))
        self.made = self.kind.backup(self.restic)

    def sql(self, script: str) -> None:
        """Run SQL as the application."""
        code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.commit()"
        done = as_service("/usr/bin/python3", "-c", code, str(self.path), script)
        assert done.returncode == 0, done.stderr

    def restore(self, restic: Restic | None = None) -> dict[str, Any]:
        """Restore the backup."""
        return self.kind.restore(restic or self.restic, self.made["id"], self.made, "test", True)

    def rows(self) -> list[str]:
        """Return what is in it."""
        with closing(sqlite3.connect(self.path)) as connection:
            return [row[0] for row in connection.execute("SELECT x FROM t")]


@pytest.fixture
def database(place: Path, empty: Path) -> Database:
    return Database(place, empty)


@pytest.fixture
def other(victim: Path) -> Path:
    """A database of root's."""
    path = victim / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE t (x); INSERT INTO t VALUES ('{SECRET}')")
    path.chmod(0o600)
    return path


def test_a_link_in_place_of_the_database_is_not_backed_up(database: Database, other: Path) -> None:
    play('rm "$1" && ln -s "$2" "$1"', database.path, other)
    with pytest.raises(Failed, match=r"SQLite cannot copy it|Permission denied"):
        database.kind.backup(database.restic)
    assert len(database.restic.snapshots("source=app")) == 2


def test_a_link_in_place_of_the_database_is_not_restored_into(database: Database, other: Path, victim: Path) -> None:
    play('rm "$1" && ln -s "$2" "$1"', database.path, other)
    before = tree(victim)
    with pytest.raises(Failed, match=r"app\.db: found a link to .*other\.db; expected the database itself"):
        database.restore()
    assert tree(victim) == before


@pytest.mark.parametrize(
    "swap",
    ['rm "$1" && ln -s "$2" "$1"', 'rm "$3" && ln -s "$2" "$3"', 'rm "$1" && mkfifo "$1"'],
    ids=["what is fetched becomes a link", "the database becomes a link", "what is fetched becomes a pipe"],
)
def test_what_becomes_a_link_during_the_fetch_of_a_database_gives_nothing_away(
    database: Database, other: Path, victim: Path, swap: str
) -> None:
    database.path.chmod(0o666)
    before = tree(victim)
    restic = Swapping(database.values, lambda: play(swap, database.kind.new, other, database.path))
    with suppress(Failed):
        database.restore(restic)
    assert tree(victim) == before


def test_a_planted_journal_of_a_database_moves_nothing(database: Database, victim: Path) -> None:
    shutil.copy(database.path, victim / "app.db")
    plant(database.folder / ".app.db.restore.json", journal(aside="../victim", had=True, active=False))
    before, mine = tree(victim), tree(database.folder)
    assert database.kind.recover() == ""
    assert database.kind.backup(database.restic)["items"] == 1
    assert (tree(victim), tree(database.folder)) == (before, mine)
    assert any("is not read" in text for text in database.said)


def test_a_restore_of_a_database_that_an_earlier_version_began_is_undone(database: Database) -> None:
    aside = database.folder / ASIDE
    aside.mkdir(mode=0o700)
    os.chown(aside, ENTRY.pw_uid, ENTRY.pw_gid)
    database.path.rename(aside / "app.db")
    database.sql("CREATE TABLE t (x); INSERT INTO t VALUES ('half of something')")
    path = database.folder / ".app.db.restore.json"
    path.write_text(journal(had=True, active=False))
    path.chmod(0o600)
    with pytest.raises(Failed, match="a restore was interrupted; `databackup recover app`"):
        database.kind.backup(database.restic)
    assert "are back" in database.kind.recover()
    assert database.rows() == ["of the application"]
    assert {item.name for item in database.folder.iterdir()} == {"app.db"}
    path.write_text(journal(aside="../victim", had=True, active=False))
    path.chmod(0o600)
    with pytest.raises(Failed, match=r"\.app\.db\.restore\.json: found .* expected the journal of a restore"):
        database.kind.recover()


def test_what_is_restored_belongs_to_the_application_from_its_first_moment(database: Database) -> None:
    seen: list[int] = []
    restic = Swapping(database.values, lambda: seen.append(database.kind.new.stat().st_uid))
    database.path.chmod(0o640)
    done = database.restore(restic)
    assert seen == [ENTRY.pw_uid]
    assert Path(done["kept"]).stat().st_uid == ENTRY.pw_uid
    assert (database.path.stat().st_uid, stat.S_IMODE(database.path.stat().st_mode)) == (ENTRY.pw_uid, 0o640)


# --- A port that somebody else has taken ---


class Listener:
    """Takes a port, as any user of the host can, and keeps what is sent to it."""

    def __init__(self, port: int, *, silent: bool = False, onward: int = 0) -> None:
        """It answers every word with an error; or not at all; or hands all on to a real server."""
        self.got = b""
        self.socket = socket.create_server(("127.0.0.1", port))
        self.silent, self.onward = silent, onward
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), ExitStack() as stack:
            stack.enter_context(connection)
            server = None
            if self.onward:
                server = stack.enter_context(socket.create_connection(("127.0.0.1", self.onward)))
            while data := connection.recv(4096):
                self.got += data
                if server is not None:
                    server.sendall(data)
                    connection.sendall(server.recv(4096))
                elif not self.silent:
                    connection.sendall(b"+OK\r\n" * data.count(b"*"))

    def close(self) -> None:
        """Give the port back."""
        self.socket.close()


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    made: list[Listener] = []
    yield made
    for listener in made:
        listener.close()


def test_whoever_takes_the_port_of_a_trial_gets_no_password(
    host: Host, monkeypatch: pytest.MonkeyPatch, listeners: list[Listener]
) -> None:
    plain_start = Process.start_apart

    def start_apart(process: Process, arguments: list[str]) -> None:
        if "--port" in arguments:
            listeners.append(Listener(int(arguments[arguments.index("--port") + 1])))
        plain_start(process, arguments)

    monkeypatch.setattr(Process, "start_apart", start_apart)
    with pytest.raises(Failed, match=r"Redis does not start.*The data from before are in place"):
        host.restore()
    assert listeners
    assert REDIS_PASSWORD.encode() not in listeners[0].got
    assert listeners[0].got == b""
    assert host.count() == 1


@pytest.mark.parametrize("silent", [False, True])
def test_whoever_takes_the_port_of_a_server_that_is_down_gets_no_password(
    host: Host, listeners: list[Listener], silent: bool
) -> None:
    host.service.stop()
    listeners.append(Listener(host.port, silent=silent))
    with pytest.raises(Failed, match=f"127.0.0.1:{host.port} is held by another process than that of none"):
        host.backup()
    kinds.repair(host.source, lambda text: None).diagnose()
    assert listeners[0].got == b""


def test_whoever_hands_all_on_to_the_server_gets_no_password(host: Host, listeners: list[Listener]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as spare:
        port = spare.getsockname()[1]
    listeners.append(Listener(port, onward=host.port))
    values = json.loads((host.etc / "source-redis.json").read_text())
    values["options"]["server"]["port"] = port
    (host.etc / "source-redis.json").write_text(json.dumps(values))
    with pytest.raises(Failed, match="is held by another process"):
        host.backup()
    assert listeners[0].got == b""


def test_a_server_is_known_by_its_own_end_of_this_very_connection(host: Host) -> None:
    with closing(socket.create_connection(("127.0.0.1", host.port))) as connection:
        wait_for(lambda: peer.held_by(connection, host.service.number), "it accepts the connection")
        # Its client has the other end, and is not taken for it.
        assert not peer.held_by(connection, os.getpid())
        assert not peer.held_by(connection, 0)
    target = host.target
    with connect({"port": host.port}, ("default", REDIS_PASSWORD), prove=target.prove) as client:
        assert client.call("PING") == "PONG"


# --- Another user's rights ---


def test_the_rights_of_a_user_are_those_of_that_user_alone(victim: Path, place: Path) -> None:
    owner = Owner(SERVICE)
    others: list[str] = []
    inside = threading.Event()

    def read() -> None:
        inside.wait()
        others.append((victim / "secret").read_text())

    thread = threading.Thread(target=read)
    thread.start()
    with owner.acting():
        for name in ("secret", "of-the-group"):
            with pytest.raises(PermissionError):
                (victim / name).read_text()
        with pytest.raises(PermissionError):
            (victim / "new").touch()
        with pytest.raises(PermissionError):
            os.chown(victim / "public", ENTRY.pw_uid, -1)
        # No other thread's, which goes on as root.
        inside.set()
        thread.join()
        # A program is started as before: it is not the user's to stop.
        assert subprocess.run(["cat", victim / "secret"], capture_output=True, check=True).stdout
        with owner.acting():
            pass
        with pytest.raises(PermissionError):
            (victim / "secret").read_text()
        with pytest.raises(RuntimeError, match="within those of nobody"), Owner("daemon").acting():
            pass
    assert others == [f"{SECRET}\n"]
    assert (victim / "secret").read_text()
    with pytest.raises(Failed, match="found no user 'no-such-user'"), Owner("no-such-user").acting():
        pass


def test_a_child_has_no_right_and_no_file_of_its_parent(victim: Path) -> None:
    held = (victim / "secret").open()

    def work(teller: Any) -> None:
        try:
            (victim / "secret").read_text()
            read = True
        except PermissionError:
            read = False
        files = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        teller.tell({"ids": [*os.getresuid(), *os.getresgid()], "groups": os.getgroups(), "read": read, "files": files})

    with Owner(SERVICE).child(work) as child:
        told = child.told()
    held.close()
    assert told["ids"] == [ENTRY.pw_uid] * 3 + [ENTRY.pw_gid] * 3
    assert (told["groups"], told["read"]) == ([], False)
    assert str(victim / "secret") not in told["files"]


def test_a_child_that_is_killed_or_fails_says_so() -> None:
    def die(_teller: Any) -> None:
        os.kill(os.getpid(), 9)

    def fail(_teller: Any) -> None:
        raise Failed("it is not readable")

    for work, words in ((die, "was killed"), (fail, "it is not readable")):
        with pytest.raises(Failed, match=words), Owner(SERVICE).child(work) as child:
            child.told()


def test_what_root_has_left_in_a_folder_of_a_user_is_removed_and_no_link_followed(place: Path, victim: Path) -> None:
    folder = place / "of-nobody"
    folder.mkdir()
    os.chown(folder, ENTRY.pw_uid, ENTRY.pw_gid)
    (folder / "left/of-root").mkdir(parents=True, mode=0o700)
    (folder / "left/of-root/file").write_text("left")
    (folder / "left/link").symlink_to(victim)
    (folder / "link").symlink_to(victim)
    before = tree(victim)
    for name in ("left", "link", "none"):
        Owner(SERVICE).remove(folder / name)
    assert list(folder.iterdir()) == []
    assert tree(victim) == before
