"""The other sources of databackup, with real SQLite, PostgreSQL, files and restic: backups, restores, refusals."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from databackup import catalog, kinds, settings
from databackup import cli as program
from databackup.errors import Failed
from databackup.files import Files, unpack
from databackup.postgresql.database import Postgresql
from databackup.postgresql.server import Server, Summary
from databackup.restic import Restic, end
from databackup.service import units
from databackup.settings import Source
from databackup.sqlite import Sqlite, summarize
from host import REPOSITORY_PASSWORD, make_repository

pytestmark = pytest.mark.slow

PLAINTEXT = "known-plaintext"


def quiet(_text: str) -> None:
    """Print nothing."""


class Repository:
    """A repository that the tests share, each with sources of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0
        (folder / "password").write_text(f"{REPOSITORY_PASSWORD}\n")
        self.facts: dict[str, Any] = {
            "location": str(folder / "repository"),
            "password_file": str(folder / "password"),
            "cache": str(folder / "cache"),
            "lock_timeout": 60,
        }
        self.restic = Restic(settings.Repository(**self.facts))
        make_repository(self.restic)

    def source(self, kind: str, state: Path, **options: Any) -> Source:
        """Return a new source."""
        self.made += 1
        return Source(f"{kind}{self.made}", kind, "test", "here", options, state=str(state / "state"))

    def snapshots(self, source: Source) -> int:
        """Count what is in the repository of a source, a backup or not."""
        return len(self.restic.snapshots(f"source={source.name}"))

    def etc(self, folder: Path, source: Source) -> Path:
        """Write the configuration of a host with this source."""
        folder.mkdir()
        (folder / "repository.json").write_text(json.dumps(self.facts))
        (folder / f"source-{source.name}.json").write_text(json.dumps(vars(source)))
        return folder

    def damaged(self, made: dict[str, Any], suffix: str, change: Callable[[bytes], bytes]) -> dict[str, Any]:
        """Write another backup, with data that are not what they were, under their right checksum."""
        source = Source(made["source"], made["kind"], "test", "here", {})
        data = change(b"".join(self.restic.read(made["data"], f"/{source.name}.{suffix}")))
        writer = catalog.open_data(self.restic, source, suffix, datetime.now(UTC))
        try:
            writer.write(data)
            told = {"data": writer.commit(), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        finally:
            writer.abort()
        return {**made, **told}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("repository"))


def killed(work: Callable[[], Any]) -> None:
    """Do something in a child, which has to kill itself on the way."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_arguments: Any) -> None:
    """End as with kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


class Doing:
    """A service of which a test decides what its verbs do."""

    def __init__(self, *, active: bool = True, stop: Any = None, start: Any = None) -> None:
        self.running, self._stop, self._start = active, stop, start

    def active(self) -> bool:
        return self.running

    def stop(self) -> None:
        if self._stop:
            self._stop()
        self.running = False

    def start(self, _seconds: float) -> None:
        if self._start:
            self._start()
        self.running = True


class Refusing:
    """The first time it raises Failed."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == 1:
            raise Failed("the application does not start: it wants other data")


# --- SQLite ---

APPLICATION = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
while True:
    connection.execute("INSERT INTO written (at) VALUES (?)", (time.time(),))
    time.sleep(0.002)
"""


class Application:
    """A process that writes to its database all the time, as systemd would run it."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.child: subprocess.Popen[bytes] | None = None
        self.stops = 0

    def active(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def stop(self) -> None:
        self.stops += 1
        if self.child is not None:
            # Without a goodbye, so that the log stays beside the database.
            self.child.kill()
            self.child.wait()

    def written(self) -> int:
        """Count what it has written."""
        return int(rows(self.database, "SELECT count(*) FROM written")[0][0])

    def start(self, seconds: float) -> None:
        before = self.written()
        self.child = subprocess.Popen([sys.executable, "-c", APPLICATION, str(self.database)])
        deadline = time.monotonic() + seconds
        while self.written() <= before:
            assert time.monotonic() < deadline
            assert self.active()
            time.sleep(0.01)


def rows(database: Path, statement: str) -> list[Any]:
    """Run a statement and return what it finds."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def content(database: Path) -> str:
    """Return the digest of a database."""
    with closing(sqlite3.connect(database)) as connection:
        return summarize(connection).digest


class Lite:
    """A database with its source."""

    def __init__(self, folder: Path, repository: Repository, service: Any = None) -> None:
        self.repository = repository
        # It ends up in URIs and in SQL.
        self.folder = folder / "a ?b#'c"
        self.folder.mkdir()
        self.database = self.folder / "quant desk.db"
        with closing(sqlite3.connect(self.database)) as connection:
            connection.executescript(
                f"""
                PRAGMA journal_mode = WAL;
                CREATE TABLE written (at REAL);
                CREATE TABLE "of ""all"" types" (id INTEGER PRIMARY KEY AUTOINCREMENT, a, b TEXT UNIQUE);
                CREATE TABLE keyed (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
                CREATE INDEX by_v ON keyed (v);
                CREATE VIEW seen AS SELECT k FROM keyed;
                WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                INSERT INTO keyed SELECT '{PLAINTEXT}' || i, i * 1.5 FROM n;
                INSERT INTO "of ""all"" types" (a, b) VALUES
                  (NULL, 'ü☃'), (1, '1'), (1.0, '1.0'), ('1', ''), (x'00ff', CAST(x'fffe' AS TEXT)), (1e999, 'inf');
                PRAGMA user_version = 7;
                """
            )
        # All of it is done with the rights of the application's user.
        for path in (self.folder, *self.folder.iterdir()):
            shutil.chown(path, "nobody")
        self.service = service or Doing()
        self.source = repository.source(
            "sqlite", folder, database=str(self.database), unit="some.target", user="nobody"
        )

    @property
    def kind(self) -> Sqlite:
        """What is tested."""
        return Sqlite(self.source, quiet, self.service)

    def backup(self) -> dict[str, Any]:
        """Make a backup."""
        return self.kind.backup(self.repository.restic)

    def restore(self, made: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Restore one, whose manifest may be changed before."""
        return self.kind.restore(self.repository.restic, made["id"], {**made, **changes}, "test", True)

    def later(self) -> None:
        """Write something that is in no backup."""
        rows(self.database, "INSERT INTO keyed VALUES ('later', 1)")

    @property
    def is_later(self) -> bool:
        """Return whether that is there."""
        return bool(rows(self.database, "SELECT 1 FROM keyed WHERE k = 'later'"))

    @property
    def names(self) -> set[str]:
        """What lies beside the database, but for its log."""
        return {path.name for path in self.folder.iterdir()} - {f"{self.database.name}{s}" for s in ("-wal", "-shm")}


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: those of pytest are its user's alone."""
    folder = Path(tempfile.mkdtemp(prefix="databackup-sqlite-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def lite(repository: Repository) -> Iterator[Lite]:
    with open_folder() as folder:
        yield Lite(folder, repository)


@pytest.fixture(scope="module")
def lite_made(repository: Repository) -> Iterator[dict[str, Any]]:
    """A backup of another database with the same data, as one may be restored from another host."""
    with open_folder() as folder:
        yield Lite(folder, repository).backup()


def test_a_database_that_is_written_to_is_backed_up_and_brought_back(lite: Lite) -> None:
    lite.database.chmod(0o660)
    application = lite.service = Application(lite.database)
    application.start(60)
    try:
        made = lite.backup()
        assert application.stops == 0
        lite.later()
        done = lite.restore(made)
        assert application.active()
        # It writes to the new one.
        assert application.written() > 0
    finally:
        application.stop()
    assert done["found"] == done["expected"] == {"keys": made["items"], "digest": made["digest"]}
    assert set(done["seconds"]) == {"fetch", "compare", "exchange", "start"}
    assert not lite.is_later
    kept = Path(done["kept"])
    assert lite.names == {lite.database.name, kept.name}
    # The log had what was not in the file yet.
    assert rows(kept / lite.database.name, "SELECT 1 FROM keyed WHERE k = 'later'")
    status = lite.database.stat()
    assert (status.st_mode & 0o777, pwd.getpwuid(status.st_uid).pw_name) == (0o660, "nobody")
    for path in (lite.repository.folder / "repository").rglob("*"):
        assert not path.is_file() or PLAINTEXT.encode() not in path.read_bytes(), path


def test_the_digest_of_a_database_is_that_of_its_rows_and_types(lite: Lite) -> None:
    first = content(lite.database)
    rows(lite.database, "VACUUM")
    rows(lite.database, "UPDATE keyed SET v = v")
    assert content(lite.database) == first
    seen = {first}
    for statement in (
        """UPDATE "of ""all"" types" SET a = 1 WHERE b = '1.0'""",
        """UPDATE "of ""all"" types" SET a = x'31' WHERE b = ''""",
        "CREATE INDEX another ON keyed (k, v)",
        "INSERT INTO written VALUES (NULL)",
        "INSERT INTO written VALUES (NULL)",
        "PRAGMA user_version = 8",
    ):
        rows(lite.database, statement)
        seen.add(content(lite.database))
    assert len(seen) == 7


def test_a_bare_host_gets_its_database(lite: Lite, lite_made: dict[str, Any]) -> None:
    made = lite_made
    for path in lite.folder.iterdir():
        path.unlink()
    with pytest.raises(Failed, match="No such file or directory; expected the application's database"):
        lite.backup()
    done = lite.restore(made)
    assert (done["kept"], content(lite.database)) == ("", made["digest"])
    assert lite.names == {lite.database.name}
    assert lite.database.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "the backup is damaged"),
        ({"digest": "0" * 32}, "differs? from (its|their) manifest"),
        ({"items": 1}, "expected 1 with"),
        ({"environment": "production"}, "environment 'production'"),
        ({"kind": "redis"}, "expected a backup of the same kind"),
        ({"sqlite_version": "4.0.0"}, "cannot read it"),
        ({"bytes": 1 << 60}, "MiB free"),
        ({"data": "ffffffff"}, "cannot be read"),
    ],
)
def test_a_database_stays_when_the_backup_does_not_fit(
    lite: Lite, lite_made: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    lite.later()
    lite.service = Doing(stop=lambda: pytest.fail("it was stopped"))
    before = content(lite.database)
    with pytest.raises(Failed, match=words):
        lite.restore(lite_made, **changes)
    assert content(lite.database) == before
    assert lite.is_later
    assert lite.service.running
    assert lite.names == {lite.database.name}


def test_damaged_databases_are_neither_backed_up_nor_restored(lite: Lite, lite_made: dict[str, Any]) -> None:
    lite.later()
    # Within the pages of a table, of which the head is as it was.
    cut = lite.repository.damaged(lite_made, "sqlite", lambda data: data[: len(data) // 2])
    with pytest.raises(Failed, match=r"cannot read|integrity check"):
        lite.restore(cut)
    assert lite.is_later
    assert lite.names == {lite.database.name}
    rows(lite.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    with lite.database.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 4096)
    with pytest.raises(Failed, match=r"integrity check|cannot be read"):
        lite.backup()
    lite.database.write_bytes(b"this is no database at all" * 400)
    with pytest.raises(Failed, match="file is not a database"):
        lite.backup()
    lite.database.write_bytes(b"")
    with pytest.raises(Failed, match="found an empty file"):
        lite.backup()
    assert lite.repository.snapshots(lite.source) == 0


def test_a_database_that_somebody_has_open_stays(lite: Lite, lite_made: dict[str, Any]) -> None:
    other = Application(lite.database)
    other.start(60)
    assert other.child is not None
    try:
        with pytest.raises(Failed, match=f"processes {other.child.pid} have it open"):
            lite.restore(lite_made)
        before = other.written()
        assert before > 0
    finally:
        other.stop()
    assert lite.service.active()
    assert lite.names == {lite.database.name}


def test_an_application_that_does_not_start_has_its_old_database_back(lite: Lite, lite_made: dict[str, Any]) -> None:
    lite.later()
    refusing = Refusing()
    lite.service = Doing(start=refusing)
    with pytest.raises(Failed, match=r"it wants other data\. The data from before are in place"):
        lite.restore(lite_made)
    assert refusing.asked == 2
    assert lite.service.active()
    assert lite.is_later
    assert lite.names == {lite.database.name}


@pytest.mark.parametrize("step", ["stop", "start"])
def test_a_restore_of_a_database_that_was_killed_is_undone(lite: Lite, lite_made: dict[str, Any], step: str) -> None:
    lite.later()
    lite.service = Doing(stop=die) if step == "stop" else Doing(start=die)
    killed(lambda: lite.restore(lite_made))
    with pytest.raises(Failed, match="a restore was interrupted; `databackup recover"):
        lite.backup()
    lite.service = Doing()
    assert "are back" in lite.kind.recover()
    assert lite.is_later
    assert lite.names == {lite.database.name}
    assert lite.service.active()
    assert lite.kind.recover() == ""


def test_a_restore_of_a_database_that_was_killed_is_undone_by_the_next(lite: Lite, lite_made: dict[str, Any]) -> None:
    lite.later()
    lite.service = Doing(start=die)
    killed(lambda: lite.restore(lite_made))
    assert not lite.is_later
    lite.service = Doing()
    kept = Path(lite.restore(lite_made)["kept"])
    assert not lite.is_later
    assert lite.service.active()
    # Of what the first one had moved away, nothing was lost.
    assert rows(kept / lite.database.name, "SELECT 1 FROM keyed WHERE k = 'later'")
    assert lite.names == {lite.database.name, kept.name}


# --- PostgreSQL ---


class Cluster:
    """A server of its own user, who needs no password on its socket."""

    def __init__(self) -> None:
        # Not below pytest's folders: the server's user may not enter those.
        self.folder = Path(tempfile.mkdtemp(prefix="databackup-postgresql-"))
        self.folder.chmod(0o711)
        self.bin = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[4]))
        self.user = ""
        if os.geteuid() == 0:
            self.user = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
            shutil.chown(self.folder, self.user)
        self.port = free_port()
        # What reads and writes a database's content is another user, who comes in as the database's owner only.
        client = "nobody" if self.user else ""
        self.users = {"system_user": self.user, "client_user": client}
        self.server = Server({"socket": str(self.folder), "port": self.port, **self.users})
        user = self.user or pwd.getpwuid(os.getuid()).pw_name
        self.run(
            "initdb", "-D", f"{self.folder}/data", "-U", user, "-A", "peer", "-E", "UTF8", "--locale=C", "--no-sync"
        )
        data = self.folder / "data"
        (data / "pg_hba.conf").write_text("local all app peer map=databackup\nlocal all all peer\n")
        (data / "pg_ident.conf").write_text(f"databackup {client or user} app\n")
        self.start()
        self.databases = 0
        self.sql("CREATE ROLE app LOGIN; CREATE ROLE reader; CREATE ROLE other")

    def run(self, name: str, *words: str) -> None:
        """Run one of the server's programs."""
        with (self.folder / "log").open("ab") as log:
            done = subprocess.run(
                [self.bin / name, *words], cwd="/", stdout=log, stderr=log, check=False, **self.identity
            )
        assert done.returncode == 0, (self.folder / "log").read_text()[-2000:]

    @property
    def identity(self) -> dict[str, Any]:
        """What makes a program the server's user's."""
        return self._identity(self.user)

    def _identity(self, user: str) -> dict[str, Any]:
        if not user:
            return {}
        entry = pwd.getpwnam(user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def log_in(self, role: str, statements: str, database: str) -> None:
        """Run SQL in a session that is a role's from its beginning."""
        words = [
            "psql",
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            f"{self.folder}",
            "-p",
            str(self.port),
            "-U",
            role,
            "-d",
        ]
        identity = self._identity(self.users["client_user"])
        done = subprocess.run(
            [*words, database], input=statements, cwd="/", capture_output=True, text=True, check=False, **identity
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and wait until it serves."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-o", options, "start")

    def start_again(self) -> None:
        """Start it if a test has ended it."""
        if not (self.folder / "data" / "postmaster.pid").exists():
            self.start()

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is as if its host went down."""
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", mode, "stop")

    def sql(self, statements: str, database: str = "postgres") -> list[str]:
        """Run SQL and return what it answers."""
        with closing(self.server.session(database)) as session:
            return session.ask(statements)

    def names(self) -> set[str]:
        """Return the databases that are not the server's own."""
        return set(self.sql("SELECT datname FROM pg_database")) - {"postgres", "template0", "template1"}

    def summary(self, database: str, row_text: str = "output") -> Summary:
        """Return what is in a database."""
        with closing(self.server.session(database, "app")) as session:
            return session.summarize(row_text)

    def new(self) -> str:
        """Make a database with data of several types, and return its name."""
        self.databases += 1
        # It ends up in SQL.
        name = f'my "app\'s" {self.databases}'
        quoted = name.replace('"', '""')
        self.sql(f'CREATE DATABASE "{quoted}" OWNER app TEMPLATE template0')
        self.sql(
            f"""
            SET ROLE app;
            CREATE SCHEMA "an other";
            CREATE TABLE "an other"."quo""ted" (
              databackup text, t timestamptz, f double precision, b bytea, j jsonb, a int[]
            );
            INSERT INTO "an other"."quo""ted" SELECT '{PLAINTEXT}' || i, to_timestamp(i), i / 3.0, '\\x00ff'::bytea,
              '{{"a": null}}', ARRAY[i, NULL] FROM generate_series(1, 50) i;
            CREATE TABLE public.orders (id bigserial PRIMARY KEY, note text NOT NULL DEFAULT '', price numeric(20, 4));
            INSERT INTO public.orders (note, price) SELECT md5(i::text), i FROM generate_series(1, 2000) i;
            CREATE INDEX ON public.orders (note);
            CREATE TABLE public.parts (id int, at date) PARTITION BY RANGE (at);
            CREATE TABLE public.parts_1 PARTITION OF public.parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
            INSERT INTO public.parts VALUES (1, '2020-02-02'), (1, '2020-02-02'), (2, '2020-02-03');
            CREATE TABLE public.nothing ();
            GRANT SELECT ON public.orders TO reader
            """,
            name,
        )
        return name


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        with contextlib.suppress(AssertionError):
            made.stop("immediate")
        shutil.rmtree(made.folder)


class Base:
    """A database of the cluster with its source."""

    def __init__(self, folder: Path, repository: Repository, cluster: Cluster) -> None:
        self.repository, self.cluster = repository, cluster
        self.name = cluster.new()
        self.source = repository.source(
            "postgresql",
            folder,
            database=self.name,
            port=cluster.port,
            socket=str(cluster.folder),
            owner="app",
            unit="",
            **cluster.users,
        )
        self.service: Any = units("")
        self.say: Callable[[str], None] = quiet

    @property
    def kind(self) -> Postgresql:
        """What is tested."""
        return Postgresql(self.source, self.say, self.service)

    def backup(self) -> dict[str, Any]:
        """Make a backup."""
        return self.kind.backup(self.repository.restic)

    def restore(self, made: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Restore one, whose manifest may be changed before."""
        return self.kind.restore(self.repository.restic, made["id"], {**made, **changes}, "test", True)

    def sql(self, statement: str) -> list[str]:
        """Run SQL in it."""
        return self.cluster.sql(statement, self.name)

    def later(self) -> None:
        """Write something that is in no backup."""
        self.sql("INSERT INTO public.orders (note) VALUES ('later')")

    @property
    def is_later(self) -> bool:
        """Return whether that is there."""
        return bool(self.sql("SELECT 1 FROM public.orders WHERE note = 'later'"))

    @property
    def names(self) -> set[str]:
        """Return the databases that have to do with it."""
        return {name for name in self.cluster.names() if name.startswith(self.name)}


@pytest.fixture
def base(tmp_path: Path, repository: Repository, cluster: Cluster) -> Base:
    return Base(tmp_path, repository, cluster)


@pytest.fixture(scope="module")
def base_made(tmp_path_factory: pytest.TempPathFactory, repository: Repository, cluster: Cluster) -> dict[str, Any]:
    """A backup of another database with the same data."""
    return Base(tmp_path_factory.mktemp("base"), repository, cluster).backup()


def test_the_programs_of_the_servers_own_version_are_used_beside_newer_ones(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after an upgrade of the distribution: by its name alone a program is that of the newest version.
    newer = base.cluster.folder / "newer"
    newer.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (newer / name).write_text("#!/bin/sh\necho unrecognized configuration parameter >&2\nexit 1\n")
        (newer / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{newer}:{os.environ['PATH']}")
    made = base.backup()
    base.later()
    base.restore(made)
    assert not base.is_later


def test_a_database_that_serves_is_backed_up_and_brought_back(base: Base) -> None:
    quoted = base.name.replace('"', '""')
    base.cluster.sql(
        f"""ALTER DATABASE "{quoted}" CONNECTION LIMIT 30; REVOKE CONNECT ON DATABASE "{quoted}" FROM PUBLIC;
        GRANT CONNECT ON DATABASE "{quoted}" TO reader WITH GRANT OPTION;
        ALTER DATABASE "{quoted}" SET search_path = "$user", 'an other'; ALTER DATABASE "{quoted}" SET work_mem = '7MB';
        ALTER ROLE app IN DATABASE "{quoted}" SET statement_timeout = '9s'"""
    )
    facts = (
        "SELECT json_build_array(d.datdba::regrole, d.datconnlimit, d.datallowconn, d.datcollate, "
        "(SELECT array_agg(a::text ORDER BY a::text) FROM unnest(d.datacl) a), "
        "(SELECT array_agg(s.setrole::regrole || s.setconfig::text ORDER BY s.setrole) FROM pg_db_role_setting s "
        "WHERE s.setdatabase = d.oid)) FROM pg_database d WHERE datname = current_database()"
    )
    before = base.sql(facts)
    # One who writes all the while, and holds a session when the database is exchanged.
    log = (base.cluster.folder / "log").open("ab")
    writer = base.cluster.server.run(
        ["psql", "--no-psqlrc", "--quiet", "--dbname", base.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log,
    )
    try:
        assert writer.stdin is not None
        writer.stdin.write(b"INSERT INTO public.orders (note) VALUES ('again') \\watch 0.005\n")
        writer.stdin.flush()
        deadline = time.monotonic() + 60
        while not base.sql("SELECT 1 FROM public.orders WHERE note = 'again' LIMIT 1"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        made = base.backup()
        assert made["items"] >= 2054
        base.later()
        done = base.restore(made)
        # Its session was ended.
        writer.wait(60)
    finally:
        end(writer)
        log.close()
    assert done["found"] == done["expected"] == {"keys": made["items"], "digest": made["digest"]}
    assert set(done["seconds"]) == {"fetch", "load", "compare", "exchange"}
    assert base.cluster.summary(base.name).digest == made["digest"]
    assert base.sql(facts) == before
    assert base.sql("SELECT has_table_privilege('reader', 'public.orders', 'SELECT'), tableowner FROM pg_tables "
                    "WHERE tablename = 'orders'") == ["t|app"]  # fmt: skip
    assert base.names == {base.name, done["kept"]}
    assert base.cluster.sql("SELECT 1 FROM public.orders WHERE note = 'later'", done["kept"])
    # The next number of an order is a new one.
    base.later()
    for folder in (base.repository.folder / "repository", Path(base.source.state)):
        for path in folder.rglob("*"):
            assert not path.is_file() or PLAINTEXT.encode() not in path.read_bytes(), path


def test_a_bare_server_gets_its_database_and_an_empty_one_is_not_kept(base: Base, base_made: dict[str, Any]) -> None:
    quoted = base.name.replace('"', '""')
    base.cluster.sql(f'DROP DATABASE "{quoted}"')
    with pytest.raises(Failed, match=r"database my .* does not exist"):
        base.backup()
    assert base.restore(base_made)["kept"] == ""
    assert base.cluster.summary(base.name).digest == base_made["digest"]
    base.cluster.sql(f'DROP DATABASE "{quoted}"')
    base.cluster.sql(f'CREATE DATABASE "{quoted}" OWNER app')
    assert base.restore(base_made)["kept"] == ""
    assert base.names == {base.name}
    assert base.cluster.summary(base.name).digest == base_made["digest"]


def test_the_digest_of_a_postgresql_database_is_that_of_its_rows(base: Base) -> None:
    first = base.cluster.summary(base.name)
    base.sql("UPDATE public.orders SET price = price; CREATE INDEX ON public.orders (price)")
    quoted = base.name.replace('"', '""')
    base.cluster.sql(f"""ALTER DATABASE "{quoted}" SET TimeZone = 'Asia/Tokyo'""")
    assert base.cluster.summary(base.name) == first
    base.sql("INSERT INTO public.parts VALUES (1, '2020-02-02')")
    second = base.cluster.summary(base.name)
    assert second.rows == first.rows + 1
    base.sql("DELETE FROM public.parts WHERE id = 2; INSERT INTO public.parts VALUES (1, '2020-02-02')")
    assert len({first.digest, second.digest, base.cluster.summary(base.name).digest}) == 3


def test_a_served_database_stays_when_the_backup_does_not_fit(base: Base, base_made: dict[str, Any]) -> None:
    base.later()
    before = base.cluster.summary(base.name)
    cut = base.repository.damaged(base_made, "dump", lambda data: data[: len(data) // 2])
    for changes, words in (
        ({"sha256": "0" * 64}, "the backup is damaged"),
        ({"digest": "0" * 32}, r"differs? from (its|their) manifest.*The data from before are in place"),
        ({"environment": "production"}, "environment 'production'"),
        ({"kind": "sqlite"}, "expected a backup of the same kind"),
        ({"row_text": "another"}, "row_text: found 'another'; expected one of output, cast"),
        ({"server_version_num": 990001, "server_version": "99.1"}, "made by PostgreSQL 99.1, and .* cannot read it"),
        ({"bytes": 1 << 60}, "MiB free"),
        (cut, r"(PostgreSQL refuses the backup|pg_restore cannot read the dump)"),
    ):
        with pytest.raises(Failed, match=words):
            base.restore(base_made, **changes)
        assert base.cluster.summary(base.name) == before
        assert base.names == {base.name}
    base.source.options["owner"] = "nobody at all"
    with pytest.raises(Failed, match="found no role 'nobody at all'"):
        base.restore(base_made)
    # Not this program's: it is neither overwritten nor dropped.
    base.source.options["owner"] = "app"
    new = base.kind.new.replace('"', '""')
    base.cluster.sql(f'CREATE DATABASE "{new}"')
    with pytest.raises(Failed, match="which no restore has left"):
        base.restore(base_made)
    assert base.names == {base.name, base.kind.new}


def _end_pg_dump(_cluster: Cluster) -> None:
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    (dump,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "pg_dump"]
    os.kill(int(dump), signal.SIGKILL)


@pytest.mark.parametrize("cut", [_end_pg_dump, lambda cluster: cluster.stop("immediate")], ids=["pg_dump", "server"])
def test_a_dump_that_is_cut_off_is_no_backup(base: Base, cut: Callable[[Cluster], None]) -> None:
    # More than pipes hold, so that the end of the dump cannot be there yet.
    base.sql(
        "SET ROLE app; CREATE TABLE public.big AS SELECT repeat(md5(i::text), 40) AS v FROM generate_series(1, 6000) i"
    )
    base.say = lambda text: cut(base.cluster) if text.startswith("Dumping") else None
    try:
        with pytest.raises(Failed, match=r"pg_dump of .* ended before its end|PostgreSQL on port"):
            base.backup()
        if not (base.cluster.folder / "data" / "postmaster.pid").exists():
            with pytest.raises(Failed, match=r"PostgreSQL on port [0-9]+ of .* refused|No such file or directory"):
                base.backup()
    finally:
        base.cluster.start_again()
    # The transaction that held the moment has gone with it.
    held = "SELECT pid FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 60
    while base.cluster.sql(f"{held} AND backend_type = 'client backend'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert base.repository.snapshots(base.source) == 0


class KilledAtTheExchange(Postgresql):
    """Is killed while nobody may connect to the old database."""

    def end_sessions(self, *_arguments: Any) -> None:
        die()


@pytest.mark.parametrize("point", ["Comparing", "exchange"])
def test_a_restore_that_was_killed_before_the_exchange_is_undone(
    base: Base, base_made: dict[str, Any], point: str
) -> None:
    base.later()
    work: Postgresql
    if point == "exchange":
        work = KilledAtTheExchange(base.source, quiet, base.service)
    else:
        work = Postgresql(base.source, lambda text: die() if text.startswith(point) else None, base.service)
    killed(lambda: work.restore(base.repository.restic, base_made["id"], base_made, "test", True))
    assert base.names == {base.name, base.kind.new}
    with pytest.raises(Failed, match="a restore was interrupted; `databackup recover"):
        base.backup()
    assert "is in place" in base.kind.recover()
    assert base.is_later
    assert base.names == {base.name}
    assert base.kind.recover() == ""
    if point == "exchange":
        done = base.restore(base_made)
        assert base.names == {base.name, done["kept"]}
        assert not base.is_later


def test_a_restore_that_was_killed_after_the_exchange_is_finished(base: Base, base_made: dict[str, Any]) -> None:
    base.later()
    base.service = Doing(start=die)
    killed(lambda: base.restore(base_made))
    # A client has written to it since.
    base.sql("INSERT INTO public.orders (note) VALUES ('since')")
    base.service = Doing(active=False)
    assert "it is finished" in base.kind.recover()
    assert base.service.active()
    assert base.sql("SELECT note FROM public.orders WHERE note IN ('since', 'later')") == ["since"]
    (kept,) = base.names - {base.name}
    assert base.cluster.sql("SELECT note FROM public.orders WHERE note IN ('since', 'later')", kept) == ["later"]
    assert base.kind.recover() == ""


def test_a_unit_that_does_not_start_has_its_old_database_back(base: Base, base_made: dict[str, Any]) -> None:
    base.later()
    base.service = Doing(start=Refusing())
    with pytest.raises(Failed, match=r"it wants other data\. The data from before are in place"):
        base.restore(base_made)
    assert base.service.active()
    assert base.is_later
    assert base.names == {base.name}


# --- Files ---


class Folder:
    """A folder and a file with their source."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.folder, self.repository = folder, repository
        self.wheels = folder / "releases" / "one" / "wheels"
        (self.wheels / "sub" / "empty").mkdir(parents=True)
        for name, data in (
            ("b.whl", PLAINTEXT.encode() * 999),
            ("a.whl", b""),
            ("sub/\u00fc x", bytes(range(256)) * 700),
        ):
            (self.wheels / name).write_bytes(data)
        (self.wheels / "sub" / "run").write_text("#!/bin/sh\n")
        (self.wheels / "sub" / "run").chmod(0o750)
        (self.wheels / "latest.whl").symlink_to("sub/../b.whl")
        os.utime(self.wheels / "b.whl", (1_000_000_000, 1_000_000_000))
        self.single = folder / "requirements.txt"
        self.single.write_text("quantdesk==1.0\n")
        # As a release is: the last part of a path is a link.
        self.link = folder / "current"
        self.link.symlink_to("releases/one/wheels")
        self.source = repository.source("files", folder, paths=[str(self.link), str(self.single)], owner="nobody")

    @property
    def kind(self) -> Files:
        """What is tested."""
        return Files(self.source, quiet)

    def backup(self) -> dict[str, Any]:
        """Make a backup."""
        return self.kind.backup(self.repository.restic)

    def restore(self, made: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Restore one, whose manifest may be changed before."""
        return self.kind.restore(self.repository.restic, made["id"], {**made, **changes}, "test", True)

    @property
    def seen(self) -> dict[str, Any]:
        """All that is there."""
        return {
            str(path.relative_to(self.folder)): (
                path.lstat().st_mode,
                path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
            )
            for path in self.folder.rglob("*")
            if not path.is_relative_to(self.folder / "state")
        }


@pytest.fixture
def files(tmp_path: Path, repository: Repository) -> Folder:
    return Folder(tmp_path, repository)


def test_a_restic_that_ends_early_is_told_in_its_own_words(
    files: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than a pipe holds: packing goes on when restic has ended.
    with (files.wheels / "large.whl").open("wb") as file:
        file.truncate(64 << 20)
    restic = files.repository.restic
    wrong = tmp_path / "wrong"
    wrong.write_text("another one\n")
    monkeypatch.setitem(restic.environment, "RESTIC_PASSWORD_FILE", str(wrong))
    with pytest.raises(Failed, match="the repository refuses the password"):
        files.kind.backup(restic)


def test_files_are_backed_up_and_brought_back(files: Folder) -> None:
    before = files.seen
    made = files.backup()
    assert made["items"] == 6
    assert made["about"]["paths"] == [str(files.wheels), str(files.single)]
    # The same files are the same tar.
    assert {name: made[name] for name in ("sha256", "digest", "data")} | {"data": ""} == {
        **{name: files.backup()[name] for name in ("sha256", "digest")},
        "data": "",
    }
    (files.wheels / "b.whl").write_bytes(b"changed")
    (files.wheels / "new.whl").write_bytes(b"new")
    files.single.unlink()
    done = files.restore(made)
    assert done["found"] == done["expected"] == {"keys": 6, "digest": made["digest"]}
    kept = Path(done["kept"])
    assert (kept / "b.whl").read_bytes() == b"changed"
    assert kept.name.startswith("wheels.before-restore-")
    shutil.rmtree(kept)
    assert files.seen == before
    assert (files.wheels / "b.whl").stat().st_mtime == 1_000_000_000
    assert {path.lstat().st_uid for path in files.wheels.rglob("*")} == {pwd.getpwnam("nobody").pw_uid}


def test_files_that_could_not_be_brought_back_are_not_backed_up(files: Folder) -> None:
    for name, make, words in (
        ("out", lambda path: path.symlink_to("../../one"), "which is not in the backup"),
        ("absolute", lambda path: path.symlink_to("/etc/passwd"), "found a link to /etc/passwd"),
        ("pipe", os.mkfifo, "found a socket, pipe or device"),
    ):
        path = files.wheels / "sub" / name
        make(path)
        with pytest.raises(Failed, match=f"{path}: .*{words}"):
            files.backup()
        path.unlink()
    files.single.unlink()
    with pytest.raises(Failed, match=f"{files.single}: there is no such file or folder"):
        files.backup()
    assert files.repository.snapshots(files.source) == 0


def _tar(*members: tuple[str, bytes, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
    return out.getvalue()


def test_files_stay_when_the_backup_does_not_fit(files: Folder) -> None:
    made = files.backup()
    (files.wheels / "since").write_text("since")
    before = files.seen
    file, link, folder = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE
    evil = [
        _tar(("wheels", folder, ""), ("wheels/../../x", file, "")),
        _tar(("/wheels/x", file, "")),
        _tar(("other/x", file, "")),
        _tar(("wheels", folder, ""), ("wheels/l", link, "sub"), ("wheels/l/x", file, "")),
        _tar(("wheels", folder, ""), ("wheels/l", link, "/etc")),
        _tar(("wheels", folder, ""), ("wheels/d", tarfile.CHRTYPE, "")),
    ]
    for changes, words in (
        ({"digest": "0" * 32}, r"differs? from (its|their) manifest.*The data from before are in place"),
        ({"environment": "production"}, "environment 'production'"),
        ({"kind": "redis"}, "expected a backup of the same kind"),
        ({"bytes": 1 << 60}, "MiB free"),
        ({"about": {"names": {"/elsewhere": "wheels"}}}, "the backup is of /elsewhere"),
        (files.repository.damaged(made, "tar", lambda data: data[:5000]), "The data from before"),
    ):
        with pytest.raises(Failed, match=words):
            files.restore(made, **changes)
        assert files.seen == before
    for data in evil:
        with pytest.raises(Failed, match="which does not belong into it"):
            unpack(io.BytesIO(data), {"wheels": str(files.folder / "there")})
        shutil.rmtree(files.folder / "there", ignore_errors=True)
        assert files.seen == before
    assert not (files.folder.parent / "x").exists()


def test_a_restore_of_files_that_was_killed_is_undone(files: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = files.backup()
    (files.wheels / "since").write_text("since")
    files.single.unlink()
    before = files.seen
    real = os.rename
    # The old folder, the new one, and the file that is no more.
    for renames in range(3):
        # And before all, the journal.
        left = renames + 1

        def rename(old: str, new: str) -> None:
            nonlocal left
            if left == 0:
                die()
            left -= 1
            real(old, new)

        with monkeypatch.context() as patched:
            patched.setattr("databackup.files.os.rename", rename)
            killed(lambda: files.restore(made))
        assert files.seen != before
        with pytest.raises(Failed, match="a restore was interrupted"):
            files.backup()
        assert "are back" in files.kind.recover()
        assert files.seen == before
    assert files.kind.recover() == ""


# --- The program ---


def test_the_program_has_all_kinds(
    lite: Lite, lite_made: dict[str, Any], base: Base, base_made: dict[str, Any], files: Folder, tmp_path: Path
) -> None:
    lite.source.options["unit"] = ""
    for source, beginning in ((files.source, b"requirements.txt"), (lite.source, b"SQLite"), (base.source, b"PGDMP")):
        etc = lite.repository.etc(tmp_path / f"etc-{source.kind}", source)
        choice = {"name": source.name, "config": etc, "backup": "latest", "as_of": "", "host": "", "environment": ""}
        choice["repository"] = None
        if source is files.source:
            made = program.backup(Namespace(name=source.name, config=etc))
            done = program.restore(Namespace(**choice, source="", dry_run=False, wait=1, verify="digest"))
            assert done["found"]["digest"] == made["digest"]
            assert done["kept"]
        else:
            # Those of a source with another name.
            made = lite_made if source is lite.source else base_made
        to = tmp_path / f"fetched-{source.kind}"
        fetched = program.fetch(Namespace(**choice, source=made["source"], to=str(to)))
        assert fetched["about"] == made["about"]
        assert hashlib.sha256(to.read_bytes()).hexdigest() == made["sha256"]
        assert to.read_bytes().startswith(beginning)
        assert str(made["items"]) in " ".join(kinds.of(source, quiet).would(made))
        assert program.recover(Namespace(name=source.name, boot=False, config=etc)) == {"recovered": []}
    unknown = Source("x", "mysql", "test", "here", {}, state=str(tmp_path / "state"))
    etc = lite.repository.etc(tmp_path / "etc", unknown)
    with pytest.raises(Failed, match="found kind 'mysql'; expected one of redis, sqlite, postgresql, files"):
        program.backup(Namespace(name="x", config=etc))
