"""A database of PostgreSQL on this host: backed up while it is written to, and put back beside the old one.

All is asked as the system's user of PostgreSQL over its socket, which needs no password. A transaction holds one
moment of the database; pg_dump and the digest both read that moment.

A restore loads the backup into a database of its own, compares it, and exchanges the two names in one transaction: the
old database stays as NAME_before_restore_… A journal says how far one has come: one that was cut off before the
exchange is undone, one after it is finished, as clients may have written to the new database since.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pwd import getpwnam
from typing import IO, Any

from databackup import catalog, steps
from databackup.errors import Failed
from databackup.redis_backup import Upload
from databackup.restic import CHUNK, Restic, die_with_parent, end, said
from databackup.settings import Source
from databackup.spool import Spool
from databackup.steps import MARGIN, Say, Service

SUFFIX = "dump"
# PostgreSQL cuts longer names.
LONGEST = 63
# Seconds to wait for a lock that a change of the schema has, and for sessions to end.
LOCKS = 10
# Where the database of the name is not there, its commands are asked here.
MAINTENANCE = "postgres"

# The same text for the same row, whatever the server, the database or the role are set to.
SETTINGS = (
    "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; "
    f"SET lock_timeout = '{LOCKS}s'; SET row_security = off; SET search_path = pg_catalog; SET TimeZone = 'UTC'; "
    "SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1; SET bytea_output = 'hex'; "
    # A query whose client is gone ends; PostgreSQL 14 and later.
    "DO $$ BEGIN PERFORM set_config(name, '2s', false) FROM pg_settings "
    "WHERE name = 'client_connection_check_interval'; END $$;"
)
# Tables with rows of their own: not those of the system or of an extension, and partitions instead of the whole.
TABLES = (
    "SELECT json_build_array(n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname NOT LIKE 'pg\\_%' "
    "AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT FROM pg_depend d "
    "WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"
)
OBJECTS = (
    "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
)


@dataclass(frozen=True)
class Summary:
    """What a database holds. Sequences and large objects are not in the digest."""

    rows: int
    digest: str
    tables: int


def identifier(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL has it."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


class Server:
    """The server on this host, and the programs that speak to it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.socket = str(options.get("socket", "/var/run/postgresql"))
        self.port = int(options.get("port", 5432))
        self.user = str(options.get("system_user", "postgres"))

    @property
    def where(self) -> str:
        """Say which one it is."""
        return f"PostgreSQL on port {self.port} of {self.socket}"

    def run(
        self, words: Sequence[str], *, stdin: int | IO[bytes] = subprocess.DEVNULL, stdout: int, stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a program as the system's user; it ends with this process, even if that is killed."""
        identity: dict[str, Any] = {}
        if self.user:
            try:
                entry = getpwnam(self.user)
            except KeyError:
                raise Failed(
                    f"found no user {self.user!r} on this host; expected the one that PostgreSQL runs as"
                ) from None
            # Not by runuser: that would stand between, and live or die on its own.
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        where = ["--host", self.socket, "--port", str(self.port), "--no-password"]
        try:
            return subprocess.Popen(
                [words[0], *([] if "--list" in words else where), *words[1:]],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                # No PG… of the caller's changes whom it asks, or as whom.
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "PGCONNECT_TIMEOUT": "20"},
                cwd="/",
                preexec_fn=_prepare,
                **identity,
            )
        except FileNotFoundError:
            raise Failed(
                f"{words[0]} is not installed; expected PostgreSQL's client programs beside its server"
            ) from None
        except PermissionError as error:
            raise Failed(f"{words[0]} cannot be run as {self.user}: {error.strerror}; expected to be root") from None

    def session(self, database: str) -> Session:
        """Return a session in a database; raises Failed when none comes about."""
        return Session(self, database)


def _prepare() -> None:
    die_with_parent()
    # Ctrl-C and a cut ssh connection are for the parent to handle.
    os.setpgid(0, 0)


def _words(file: IO[bytes]) -> str:
    lines = [line for line in said(file).strip().splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:500] or "nothing was said"


class Session:
    """psql, kept open. Every answer is lines without a line break in them."""

    END = "-- end of the answer --"

    def __init__(self, server: Server, database: str) -> None:
        self.server = server
        self.database = database
        self.err = tempfile.TemporaryFile()
        self.process = server.run(
            [
                "psql",
                "--no-psqlrc",
                "--quiet",
                "--no-align",
                "--tuples-only",
                "--set=ON_ERROR_STOP=1",
                "--dbname",
                database,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.err,
        )
        try:
            self.ask(SETTINGS)
        except BaseException:
            self.close()
            raise

    def ask(self, statements: str) -> list[str]:
        """Run SQL and return what it answers; raises Failed in the server's words, and then the session has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        lines = []
        try:
            self.process.stdin.write(f"{statements};\n\\echo {self.END!r}\n".encode())
            self.process.stdin.flush()
            while (line := self.process.stdout.readline().decode()) != f"{self.END}\n":
                if not line:
                    break
                lines.append(line.rstrip("\n"))
            else:
                return lines
        except (OSError, ValueError):
            # It has ended, or was ended by `close`.
            pass
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        words = "" if self.err.closed else _words(self.err)
        raise Failed(f"{self.server.where}, database {self.database}: {words}")

    def one(self, statement: str) -> Any:
        """Return the JSON that a statement answers; None where it answers nothing."""
        answer = "\n".join(self.ask(statement))
        return json.loads(answer) if answer else None

    def tables(self) -> list[tuple[str, str]]:
        """Return schema and name of all tables with rows of their own."""
        return sorted((schema, name) for schema, name in map(json.loads, self.ask(TABLES)))

    def summarize(self, tables: list[tuple[str, str]]) -> Summary:
        """Count and digest rows, whatever their order is."""
        lines, rows = [], 0
        for schema, name in tables:
            # The whole row as text: an alias that is no column's name, or it would be that column.
            count, total = self.one(
                "SELECT json_build_array(count(*), coalesce(sum(('x' || substr(md5(databackup_row::text), 1, 16))"
                f"::bit(64)::bigint::numeric), 0)::text) FROM ONLY {identifier(schema)}.{identifier(name)} "
                "AS databackup_row"
            )
            lines.append(f"{json.dumps([schema, name])}:{count}:{total}")
            rows += int(count)
        digest = hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=16).hexdigest()
        return Summary(rows, digest, len(tables))

    def close(self) -> None:
        """End it; what was not committed is undone."""
        end(self.process)
        self.err.close()


class Postgresql:
    """One database."""

    def __init__(self, source: Source, say: Say, service: Service) -> None:
        self.source = source
        self.say = say
        self.service = service
        self.server = Server(source.options)
        self.name = str(source.options["database"])
        self.owner = str(source.options["owner"])
        self.new = self._derived("_restore")
        self.journal = steps.Journal(Path(source.state) / f".{source.name}.restore.json", source.name)

    def _derived(self, suffix: str) -> str:
        return self.name[: LONGEST - len(suffix)] + suffix

    # --- Backup ---

    def backup(self, restic: Restic) -> dict[str, Any]:
        """Write a backup and return its manifest, with `id`; raises Failed, and then there is no new one."""
        self.journal.refuse()
        when = datetime.now(UTC).replace(microsecond=0)
        with closing(self.server.session(self.name)) as session:
            session.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            (snapshot,) = session.ask("SELECT pg_export_snapshot()")
            about = session.one(
                "SELECT json_build_object('version', current_setting('server_version'), "
                "'number', current_setting('server_version_num')::int, 'size', pg_database_size(current_database()))"
            )
            result = self._transfer(restic, session, snapshot, about["size"], when)
        manifest = {
            "kind": self.source.kind,
            "source": self.source.name,
            "environment": self.source.environment,
            "host": self.source.host,
            "time": when.isoformat(),
            "server_version": about["version"],
            "server_version_num": about["number"],
            "about": {"database": self.name},
            **result,
        }
        return {**manifest, "id": catalog.write_manifest(restic, self.source, manifest, when)}

    def _spool(self) -> str:
        folder = Path(self.source.state) / "spool"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder)

    def _transfer(self, restic: Restic, session: Session, snapshot: str, size: int, when: datetime) -> dict[str, Any]:
        steps.room(self._spool(), size + MARGIN, "a dump")
        spool = Spool(self._spool())
        try:
            upload = Upload(spool, catalog.open_data(restic, self.source, SUFFIX, when))
            try:
                with tempfile.TemporaryFile() as err:
                    summary, sha256 = self._dump(session, snapshot, spool, upload, err)
                if not upload.failure:
                    spool.finish()
                    self._look(spool.file)
                # Only now does restic see the end of the data, without which it makes no snapshot.
                written = upload.commit()
            finally:
                upload.close()
        except OSError as error:
            raise Failed(f"{self._spool()}: the dump cannot be kept: {error.strerror}") from None
        finally:
            spool.close()
        return {
            "items": summary.rows,
            "tables": summary.tables,
            "digest": summary.digest,
            "bytes": spool.size,
            "sha256": sha256,
            "data": written,
        }

    def _dump(
        self, session: Session, snapshot: str, spool: Spool, upload: Upload, err: IO[bytes]
    ) -> tuple[Summary, str]:
        """Dump into the spool while the digest is made of the same snapshot."""
        # Not compressed: restic does that, and finds what it has already.
        process = self.server.run(
            [
                *("pg_dump", "--format=custom", "--compress=0", f"--snapshot={snapshot}"),
                *(f"--lock-wait-timeout={LOCKS}s", "--dbname", self.name),
            ],
            stdout=subprocess.PIPE,
            stderr=err,
        )
        assert process.stdout is not None
        hashed = hashlib.sha256()
        counting = None
        # A session that is closed ends whoever waits for it.
        with ThreadPoolExecutor(1) as pool:
            try:
                while data := process.stdout.read1(CHUNK):  # type: ignore[attr-defined]  # it is buffered
                    spool.write(data)
                    hashed.update(data)
                    if counting is None:
                        # pg_dump has its locks now: what it reads will not be cut before it is counted.
                        self.say(f"Dumping {self.name}")
                        counting = pool.submit(self._count, session)
                    if upload.failure:
                        raise upload.failure
                if process.wait() != 0 or counting is None:
                    raise Failed(f"pg_dump of {self.name} ended before its end: {_words(err)}")
                return counting.result(), hashed.hexdigest()
            except BaseException:
                session.close()
                raise
            finally:
                end(process)

    def _count(self, session: Session) -> Summary:
        tables = session.tables()
        if tables:
            named = ", ".join(f"ONLY {identifier(schema)}.{identifier(name)}" for schema, name in tables)
            session.ask(f"LOCK TABLE {named} IN ACCESS SHARE MODE")
        return session.summarize(tables)

    def _look(self, file: IO[bytes]) -> None:
        """Have pg_restore read a dump's table of contents; raises Failed if it cannot."""
        file.seek(0)
        with tempfile.TemporaryFile() as err:
            process = self.server.run(["pg_restore", "--list"], stdin=file, stdout=subprocess.DEVNULL, stderr=err)
            if process.wait() != 0:
                raise Failed(f"pg_restore cannot read the dump: {_words(err)}")

    # --- Restore ---

    def check(self, manifest: dict[str, Any], environment: str) -> None:
        """Raise Failed if the backup does not fit this server."""
        steps.fits(self.source, manifest, environment)
        with closing(self.server.session(MAINTENANCE)) as session:
            told = session.one(
                "SELECT json_build_object('version', current_setting('server_version'), "
                "'number', current_setting('server_version_num')::int, 'folder', current_setting('data_directory'), "
                f"'owner', EXISTS (SELECT FROM pg_roles WHERE rolname = {literal(self.owner)}))"
            )
        if int(manifest["server_version_num"]) // 10000 > told["number"] // 10000:
            raise Failed(
                f"the backup was made by PostgreSQL {manifest['server_version']}, and {told['version']} is here, which cannot "
                "read it; expected the same major version or a newer one"
            )
        if not told["owner"]:
            raise Failed(
                f"{self.server.where}: found no role {self.owner!r}; playbooks/database.yml makes it, run it first"
            )
        size = int(manifest["bytes"])
        steps.room(told["folder"], 3 * size + MARGIN, "the backup beside the database that is there")
        steps.room(self._spool(), size + MARGIN, "the dump")

    def would(self, manifest: dict[str, Any]) -> list[str]:
        """Say what a restore would do."""
        unit = self.source.options.get("unit", "")
        return [
            f"fetch {manifest['bytes']} bytes and compare their SHA-256",
            f"load them into a database {self.new} and compare {manifest['items']} rows and their digest",
            *([f"stop {unit}"] if unit else []),
            f"end all sessions of {self.name}, rename it to {self._derived('_before_restore_…')}, and {self.new} to {self.name}",
            *([f"start {unit} again, if it ran"] if unit else []),
            "if anything is wrong, put back what was there",
        ]

    def restore(
        self, restic: Restic, backup: str, manifest: dict[str, Any], environment: str, full: bool
    ) -> dict[str, Any]:
        """Restore a backup and return what was done; raises Failed after the old database is back in place."""
        if undone := self.recover():
            self.say(undone)
        self.check(manifest, environment)
        clock = steps.Clock()
        with tempfile.TemporaryFile(dir=self._spool()) as file, closing(self.server.session(MAINTENANCE)) as session:
            with clock.phase("fetch"):
                self.say(f"Fetching {int(manifest['bytes']) >> 20} MiB")
                steps.receive(restic, manifest, SUFFIX, file, self.say)
                self._look(file)
            here = self._described(session)
            if self._described(session, self.new):
                raise Failed(
                    f"{self.server.where}: there is a database {self.new}, which no restore has left; rename it, or drop it"
                )
            noted = {
                "backup": backup,
                "new": self.new,
                "old": self._derived(f"_before_restore_{steps.stamp()}"),
                "had": here is not None,
                "allowed": here is None or here["allowed"],
                "active": self.service.active(),
            }
            try:
                self.journal.note(noted)
                with clock.phase("load"):
                    self.say(f"Loading it into {self.new}; {self.name} goes on serving")
                    self._create(session, here)
                    self._load(file)
                with clock.phase("compare"), closing(self.server.session(self.new)) as loaded:
                    self.say("Comparing")
                    summary = loaded.summarize(loaded.tables())
                    compared = steps.same(manifest, summary.rows, summary.digest, "rows")
                    # The first queries are to be planned well, too.
                    loaded.ask("ANALYZE")
                with clock.phase("exchange"):
                    self.say(f"Putting it in the place of {self.name}")
                    self.service.stop()
                    self._exchange(session, noted)
                    if noted["active"]:
                        self.service.start(float(self.source.options.get("start_timeout", 120)))
            except BaseException as error:
                session.close()
                raise steps.put_back(error, lambda: self._undo(noted), self.say) from error
            kept = self._tidy(noted)
        return {**compared, "kept": kept, "seconds": clock.seconds}

    def _described(self, session: Session, name: str = "") -> dict[str, Any] | None:
        """Return what is kept of a database that is replaced; None where there is none."""
        # As JSON, columns that only other versions have are no error.
        described: dict[str, Any] | None = session.one(
            "SELECT json_build_object('collate', datcollate, 'ctype', datctype, 'provider', to_jsonb(d)->>'datlocprovider', "
            "'icu', coalesce(to_jsonb(d)->>'daticulocale', to_jsonb(d)->>'datlocale'), 'allowed', datallowconn, "
            "'limit', datconnlimit, 'own_acl', datacl IS NOT NULL, "
            "'grants', (SELECT json_agg(json_build_array(privilege_type, CASE grantee WHEN 0 THEN '' "
            "ELSE pg_get_userbyid(grantee) END, is_grantable)) FROM aclexplode(datacl)), "
            "'settings', (SELECT json_agg(json_build_array(CASE setrole WHEN 0 THEN '' ELSE pg_get_userbyid(setrole) END, "
            "setconfig)) FROM pg_db_role_setting WHERE setdatabase = d.oid)) "
            f"FROM pg_database d WHERE datname = {literal(name or self.name)}"
        )
        return described

    def _create(self, session: Session, here: dict[str, Any] | None) -> None:
        new = identifier(self.new)
        like = here or {"collate": "C.UTF-8", "ctype": "C.UTF-8", "provider": "c"}
        icu = f" LOCALE_PROVIDER icu ICU_LOCALE {literal(like['icu'])}" if like["provider"] == "i" else ""
        session.ask(
            f"CREATE DATABASE {new} OWNER {identifier(self.owner)} TEMPLATE template0 ENCODING 'UTF8' "
            f"LC_COLLATE {literal(like['collate'])} LC_CTYPE {literal(like['ctype'])}{icu}"
        )
        if here is None:
            return
        statements = [f"ALTER DATABASE {new} CONNECTION LIMIT {int(here['limit'])}"]
        if here["own_acl"]:
            statements.append(f"REVOKE ALL ON DATABASE {new} FROM PUBLIC, {identifier(self.owner)}")
        for privilege, role, grantable in here["grants"] or []:
            to = identifier(role) if role else "PUBLIC"
            option = " WITH GRANT OPTION" if grantable else ""
            statements.append(f"GRANT {privilege} ON DATABASE {new} TO {to}{option}")
        for role, settings in here["settings"] or []:
            whose = f"ALTER ROLE {identifier(role)} IN DATABASE {new}" if role else f"ALTER DATABASE {new}"
            for setting in settings:
                name, value = setting.split("=", 1)
                # Lists are kept as such so, whatever is in them.
                statements.append(f"SELECT FROM set_config({literal(name)}, {literal(value)}, true)")
                statements.append(f"{whose} SET {name} FROM CURRENT")
        session.ask(f"BEGIN; {'; '.join(statements)}; COMMIT")

    def _load(self, file: IO[bytes]) -> None:
        file.seek(0)
        with tempfile.TemporaryFile() as err:
            process = self.server.run(
                [
                    *("pg_restore", "--exit-on-error", "--no-owner", f"--role={self.owner}"),
                    *("--dbname", self.new),
                ],
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
            try:
                if process.wait() != 0:
                    raise Failed(f"PostgreSQL refuses the backup: {_words(err)}")
            finally:
                end(process)

    def _exchange(self, session: Session, noted: dict[str, Any]) -> None:
        """Exchange the names in one transaction, with no client in between."""
        if noted["had"]:
            # First of all, or a client's pool would be back before the rename.
            session.ask(f"ALTER DATABASE {identifier(self.name)} ALLOW_CONNECTIONS false")
        self._end_sessions(session, self.name, self.new)
        self._rename(session, [(self.name, noted["old"])] if noted["had"] else [], [(self.new, self.name)], noted)

    def _rename(
        self, session: Session, first: list[tuple[str, str]], then: list[tuple[str, str]], noted: dict[str, Any]
    ) -> None:
        renames = [f"ALTER DATABASE {identifier(old)} RENAME TO {identifier(new)}" for old, new in (*first, *then)]
        if noted["had"] and noted["allowed"]:
            renames += [f"ALTER DATABASE {identifier(new)} ALLOW_CONNECTIONS true" for _, new in (*first, *then)]
        session.ask(f"BEGIN; {'; '.join(renames)}; COMMIT")

    def _end_sessions(self, session: Session, *names: str) -> None:
        wanted = ", ".join(map(literal, names))
        # Two statements: in one, the server may end sessions before it asks of which database they are.
        pids = session.ask(
            "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' "
            f"AND datname IN ({wanted})"
        )
        left = [pid for pid in pids if session.ask(f"SELECT pg_terminate_backend({int(pid)}, {LOCKS * 1000})") == ["f"]]
        # One that has ended by itself is no failure.
        left = [pid for pid in left if session.ask(f"SELECT FROM pg_stat_activity WHERE pid = {int(pid)}")]
        if left:
            raise Failed(f"{self.server.where}: sessions {', '.join(left)} of {self.name} do not end within {LOCKS} s")

    # --- After it ---

    def _exchanged(self, session: Session, noted: dict[str, Any]) -> bool:
        """Tell whether the names were exchanged: the new database's own name is gone, and the old one's came to be."""
        there = {name: self._described(session, name) is not None for name in (noted["new"], noted["old"], self.name)}
        return not there[noted["new"]] and (there[noted["old"]] if noted["had"] else there[self.name])

    def _undo(self, noted: dict[str, Any]) -> str:
        """Put the old database back."""
        self.service.stop()
        with closing(self.server.session(MAINTENANCE)) as session:
            if self._exchanged(session, noted):
                session.ask(f"ALTER DATABASE {identifier(self.name)} ALLOW_CONNECTIONS false")
                self._end_sessions(session, self.name, noted["old"])
                back = [(noted["old"], self.name)] if noted["had"] else []
                self._rename(session, [(self.name, noted["new"])], back, noted)
            elif noted["had"] and noted["allowed"]:
                session.ask(f"ALTER DATABASE {identifier(self.name)} ALLOW_CONNECTIONS true")
            session.ask(f"DROP DATABASE IF EXISTS {identifier(noted['new'])} WITH (FORCE)")
        if noted["active"]:
            self.service.start(float(self.source.options.get("start_timeout", 120)))
        self.journal.forget()
        return f"The database from before is in place, as of the restore of {noted['backup'][:8]} that did not end."

    def _tidy(self, noted: dict[str, Any]) -> str:
        """Drop the old database if nothing was in it; return its name if it is kept."""
        kept = str(noted["old"]) if noted["had"] else ""
        # The restore is done; what cannot be looked into is kept.
        with suppress(Failed):
            if kept and noted["allowed"]:
                with closing(self.server.session(kept)) as session:
                    empty = session.ask(OBJECTS) == ["0"]
                if empty:
                    with closing(self.server.session(MAINTENANCE)) as session:
                        session.ask(f"DROP DATABASE {identifier(kept)} WITH (FORCE)")
                    kept = ""
        self.journal.forget()
        return kept

    def recover(self) -> str:
        """Undo a restore that was cut off, or finish it if clients reach the new data; return what was done."""
        noted = self.journal.read()
        if noted is None:
            return ""
        with closing(self.server.session(MAINTENANCE)) as session:
            exchanged = self._exchanged(session, noted)
        if not exchanged:
            return self._undo(noted)
        # It was compared before, and whoever uses the database may have written to it since.
        if noted["active"]:
            self.service.start(float(self.source.options.get("start_timeout", 120)))
        kept = self._tidy(noted)
        return (
            f"The restore of {noted['backup'][:8]} was cut off after its data were compared and in place; it is finished"
            + (f", the database from before is {kept}." if kept else ".")
        )
