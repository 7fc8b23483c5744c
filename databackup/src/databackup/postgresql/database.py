"""A database of PostgreSQL on this host: backed up while it is written to, and put back beside the old one.

Nothing that the application's role could have made is evaluated with more rights than that role has: what reads or
writes the database's content logs in as the database's owner, so that there is nothing to fall back to, and runs as a
system user (`client_user`) whom pg_ident.conf lets in as that owner and as nobody else. The system's user of PostgreSQL,
its superuser, is in the maintenance database only: it makes, renames and drops databases, and reads the catalog that all
of them share. Both go over the socket, without a password. A transaction holds one moment of the database; pg_dump and
the digest both read that moment.

A restore loads the backup into a database of its own, compares it, and exchanges the two names in one transaction: the
old database stays as NAME_before_restore_… A journal says how far one has come: one that was interrupted before the
exchange is undone, one after it is finished, as clients may have written to the new database since.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import IO, Any

from databackup import catalog, journal, restore, spool
from databackup.errors import Failed
from databackup.journal import Say
from databackup.kind import Kind
from databackup.postgresql.server import (
    LOCKS,
    MAINTENANCE,
    ROW_TEXT,
    TABLES,
    Server,
    Session,
    Summary,
    identifier,
    literal,
    printable,
    words_of,
)
from databackup.restic import CHUNK, Restic, end
from databackup.restore import MARGIN
from databackup.service import Service
from databackup.settings import Source
from databackup.spool import Spool, Upload

# PostgreSQL cuts longer names.
LONGEST = 63
# How much there is in a database, of any kind.
OBJECTS = (
    "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
)
# Of some extensions, those that only a superuser may create, and the schema where one has to be.
UNTRUSTED = (
    "SELECT json_build_array(name, schema) FROM pg_available_extensions JOIN pg_available_extension_versions "
    "USING (name) WHERE version = default_version AND NOT trusted AND name IN ({})"
)
# Settings that are lists: each of their items is a literal of its own (variable_is_guc_list_quote in PostgreSQL).
LISTS = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
)
# A line of `pg_restore --list` with a comment that belongs to an extension, which the owner of the database may not own.
COMMENTS = re.compile(r"^[0-9]+; [0-9]+ [0-9]+ COMMENT - EXTENSION .*\n", re.MULTILINE)
# One with rights that are granted to others, and what it then says in SQL.
RIGHTS = re.compile(r"^[0-9]+; [0-9]+ [0-9]+ (?:DEFAULT )?ACL .*", re.MULTILINE)
GRANTS = re.compile(r"^(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES) .*(?=;$)", re.MULTILINE)
# Runs each of some statements, and answers what is wrong with those that fail.
TRY = """
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN EXECUTE statement; RETURN NULL; EXCEPTION WHEN OTHERS THEN RETURN SQLERRM; END $$;
SELECT to_json(statement || ': ' || wrong)
FROM (SELECT statement, pg_temp.try(statement) AS wrong FROM unnest(ARRAY[{}]) AS statement OFFSET 0) AS tried
WHERE wrong IS NOT NULL"""


def setting(text: str) -> str:
    """Return a setting of a database, NAME=VALUE as the catalog has it, as SQL sets it; nothing is evaluated for it."""
    name, value = text.split("=", 1)
    values = [value]
    if name.lower() in LISTS:
        items = re.findall(r'\s*(?:"((?:[^"]|"")*)"|([^",]*))\s*(?:,|$)', value)
        values = [quoted.replace('""', '"') or plain.strip() for quoted, plain in items]
        # The end of the text is found as one more, empty.
        values = [item for item in values if item] or [""]
    return f"{'.'.join(map(identifier, name.split('.')))} TO {', '.join(map(literal, values))}"


@contextmanager
def _listing(text: str) -> Iterator[int]:
    """Keep a text in a file without a name, which a child that inherits its number can open."""
    descriptor = os.memfd_create("listing", 0)
    try:
        with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        yield descriptor
    finally:
        os.close(descriptor)


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


class Postgresql(Kind):
    """One database."""

    suffix = "dump"

    def __init__(self, source: Source, say: Say, service: Service) -> None:
        super().__init__(source, say)
        self.service = service
        self.server = Server(source.options)
        self.name = str(source.options["database"])
        self.owner = str(source.options["owner"])
        self.new = self.derived("_restore")

    def derived(self, suffix: str) -> str:
        return self.name[: LONGEST - len(suffix)] + suffix

    # --- Backup ---

    def backup(self, restic: Restic) -> dict[str, Any]:
        """Write a backup and return its manifest, with `id`; raises Failed, and then there is no new one."""
        self.journal.refuse()
        when = datetime.now(UTC).replace(microsecond=0)
        with closing(self.server.session(self.name, self.owner)) as session:
            if hidden := session.hidden():
                raise Failed(f"{self.server.where}, database {self.name}: {hidden}")
            session.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            (snapshot,) = session.ask("SELECT pg_export_snapshot()")
            about = session.one(
                "SELECT json_build_object('version', current_setting('server_version'), "
                "'number', current_setting('server_version_num')::int, 'size', pg_database_size(current_database()))"
            )
            result = self._transfer(restic, session, snapshot, about["size"], when)
        facts = {
            "server_version": about["version"],
            "server_version_num": about["number"],
            "about": {"database": self.name},
            **result,
        }
        return catalog.complete(restic, self.source, facts, when)

    def _transfer(self, restic: Restic, session: Session, snapshot: str, size: int, when: datetime) -> dict[str, Any]:
        folder = spool.folder(self.source)
        restore.room(folder, size + MARGIN, "a dump")
        dump = Spool(folder)
        try:
            upload = Upload(dump, catalog.open_data(restic, self.source, self.suffix, when))
            try:
                with tempfile.TemporaryFile() as err:
                    summary, sha256 = self._dump(session, snapshot, dump, upload, err)
                if not upload.failure:
                    dump.finish()
                    self.look(dump.file)
                # Only now does restic see the end of the data, without which it makes no snapshot.
                written = upload.commit()
            finally:
                upload.close()
        except OSError as error:
            raise Failed(f"{folder}: the dump cannot be kept: {error.strerror}") from None
        finally:
            dump.close()
        return {
            "items": summary.rows,
            "tables": summary.tables,
            "digest": summary.digest,
            "row_text": "output",
            "bytes": dump.size,
            "sha256": sha256,
            "data": written,
        }

    def _dump(
        self, session: Session, snapshot: str, dump: Spool, upload: Upload, err: IO[bytes]
    ) -> tuple[Summary, str]:
        """Dump into the spool while the digest is made of the same snapshot."""
        # Not compressed: restic does that, and finds what it has already.
        process = self.server.run(
            [
                *("pg_dump", "--format=custom", "--compress=0", "--encoding=UTF8", f"--snapshot={snapshot}"),
                *(f"--lock-wait-timeout={LOCKS}s", "--dbname", self.name),
            ],
            role=self.owner,
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
                    dump.write(data)
                    hashed.update(data)
                    if counting is None:
                        # pg_dump has its locks now: what it reads will not be cut before it is counted.
                        self.say(f"Dumping {self.name}")
                        counting = pool.submit(self._count, session)
                    if upload.failure:
                        raise upload.failure
                if process.wait() != 0 or counting is None:
                    raise Failed(f"pg_dump of {self.name} ended before its end: {words_of(err)}")
                return counting.result(), hashed.hexdigest()
            except BaseException:
                session.close()
                raise
            finally:
                end(process)

    def _count(self, session: Session) -> Summary:
        session.each(
            "SELECT format('LOCK TABLE %s IN ACCESS SHARE MODE', string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', ')) "
            f"{TABLES} HAVING count(*) > 0"
        )
        return session.summarize()

    def look(self, file: IO[bytes], *options: str, inherited: Sequence[int] = ()) -> str:
        """Return pg_restore's output for a dump, at first its table of contents; raises Failed if it cannot read it."""
        file.seek(0)
        with tempfile.TemporaryFile() as err:
            process = self.server.run(
                ["pg_restore", *(options or ["--list"])],
                role=self.owner,
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=err,
                inherited=inherited,
            )
            told, _ = process.communicate()
            if process.returncode != 0:
                raise Failed(f"pg_restore cannot read the dump: {words_of(err)}")
        return told.decode(errors="replace")

    # --- Restore ---

    def accept(self, manifest: dict[str, Any]) -> None:
        """Raise Failed for a backup of a newer server, or one for which there is no role or no room."""
        if (row_text := manifest.get("row_text", "cast")) not in ROW_TEXT:
            raise Failed(f"the backup's row_text: found {row_text!r}; expected one of {', '.join(ROW_TEXT)}")
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
        restore.room(told["folder"], 3 * size + MARGIN, "the backup beside the database that is there")
        restore.room(spool.folder(self.source), size + MARGIN, "the dump")

    def would(self, manifest: dict[str, Any]) -> list[str]:
        """Report what a restore would do."""
        unit = self.source.options.get("unit", "")
        return [
            f"fetch {manifest['bytes']} bytes and compare their SHA-256",
            f"load them into a database {self.new} and compare {manifest['items']} rows and their digest",
            *([f"stop {unit}"] if unit else []),
            f"end all sessions of {self.name}, rename it to {self.derived('_before_restore_…')}, and {self.new} to {self.name}",
            *([f"start {unit} again, if it ran"] if unit else []),
            "if anything is wrong, put the present data back",
        ]

    def replacement(self, restic: Restic, backup: str, manifest: dict[str, Any], *, full: bool) -> restore.Replacement:
        """Return what puts a backup into the place of the database."""
        return Replacement(self, restic, backup, manifest)

    def described(self, session: Session, name: str = "") -> dict[str, Any] | None:
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

    def rename(
        self, session: Session, first: list[tuple[str, str]], then: list[tuple[str, str]], noted: dict[str, Any]
    ) -> None:
        renames = [f"ALTER DATABASE {identifier(old)} RENAME TO {identifier(new)}" for old, new in (*first, *then)]
        if noted["had"] and noted["allowed"]:
            renames += [f"ALTER DATABASE {identifier(new)} ALLOW_CONNECTIONS true" for _, new in (*first, *then)]
        session.ask(f"BEGIN; {'; '.join(renames)}; COMMIT")

    def end_sessions(self, session: Session, names: list[str], spared: Sequence[str] = ()) -> None:
        wanted = ", ".join(map(literal, names))
        # Two statements: in one, the server may end sessions before it asks of which database they are.
        pids = session.ask(
            "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' "
            f"AND datname IN ({wanted})"
        )
        pids = [pid for pid in pids if pid not in spared]
        left = [pid for pid in pids if session.ask(f"SELECT pg_terminate_backend({int(pid)}, {LOCKS * 1000})") == ["f"]]
        # One that has ended by itself is no failure.
        left = [pid for pid in left if session.ask(f"SELECT FROM pg_stat_activity WHERE pid = {int(pid)}")]
        if left:
            raise Failed(f"{self.server.where}: sessions {', '.join(left)} of {self.name} do not end within {LOCKS} s")

    # --- After it ---

    def _exchanged(self, session: Session, noted: dict[str, Any]) -> bool:
        """Tell whether the names were exchanged: the new database's own name is gone, and the old one's came to be."""
        there = {name: self.described(session, name) is not None for name in (noted["new"], noted["old"], self.name)}
        return not there[noted["new"]] and (there[noted["old"]] if noted["had"] else there[self.name])

    def undo(self, noted: dict[str, Any]) -> str:
        """Put the old database back."""
        self.service.stop()
        with closing(self.server.session(MAINTENANCE)) as session:
            if self._exchanged(session, noted):
                session.ask(f"ALTER DATABASE {identifier(self.name)} ALLOW_CONNECTIONS false")
                self.end_sessions(session, [self.name, noted["old"]])
                back = [(noted["old"], self.name)] if noted["had"] else []
                self.rename(session, [(self.name, noted["new"])], back, noted)
            elif noted["had"] and noted["allowed"]:
                session.ask(f"ALTER DATABASE {identifier(self.name)} ALLOW_CONNECTIONS true")
            session.ask(f"DROP DATABASE IF EXISTS {identifier(noted['new'])} WITH (FORCE)")
        if noted["active"]:
            self.service.start(self.source.start_timeout)
        self.journal.forget()
        return f"The database from before is in place, as of the restore of {noted['backup'][:8]} that did not end."

    def tidy(self, noted: dict[str, Any]) -> str:
        """Drop the old database if nothing was in it; return its name if it is kept."""
        kept = str(noted["old"]) if noted["had"] else ""
        # The restore is done: what cannot be dropped is kept.
        with suppress(Failed):
            if kept and noted.get("empty"):
                with closing(self.server.session(MAINTENANCE)) as session:
                    session.ask(f"DROP DATABASE {identifier(kept)} WITH (FORCE)")
                kept = ""
        self.journal.forget()
        return kept

    def recover(self) -> str:
        """Undo a restore that was interrupted, or finish it if clients reach the new data; return what was done."""
        noted = self.journal.read()
        if noted is None:
            return ""
        with closing(self.server.session(MAINTENANCE)) as session:
            exchanged = self._exchanged(session, noted)
        if not exchanged:
            return self.undo(noted)
        # It was compared before, and whoever uses the database may have written to it since.
        if noted["active"]:
            self.service.start(self.source.start_timeout)
        kept = self.tidy(noted)
        return (
            f"The restore of {noted['backup'][:8]} was interrupted after its data were compared and in place; it is finished"
            + (f", the database from before is {kept}." if kept else ".")
        )


class Replacement(restore.Replacement):
    """A backup on its way into the place of a database, by a database of its own."""

    def __init__(self, of: Postgresql, restic: Restic, backup: str, manifest: dict[str, Any]) -> None:
        super().__init__(of.say)
        self.of = of
        self.restic = restic
        self.backup = backup
        self.manifest = manifest
        # What the journal has; nothing until something is changed.
        self.noted: dict[str, Any] = {}

    def phases(self) -> Iterable[restore.Phase]:
        """Return what is done."""
        return [("fetch", self.fetch), ("load", self.load), ("compare", self.compare), ("exchange", self.exchange)]

    def fetch(self) -> None:
        """Bring the dump here, under no name."""
        of = self.of
        self.file = self.held.enter_context(tempfile.TemporaryFile(dir=spool.folder(of.source)))
        self.session = self.held.enter_context(closing(of.server.session(MAINTENANCE)))
        self.say(f"Fetching {int(self.manifest['bytes']) >> 20} MiB")
        restore.receive(self.restic, self.manifest, of.suffix, self.file, self.say)
        self.contents = of.look(self.file)

    def load(self) -> None:
        """Load it into a database of its own."""
        of = self.of
        self.here = of.described(self.session)
        if of.described(self.session, of.new):
            raise Failed(
                f"{of.server.where}: there is a database {of.new}, which no restore has left; rename it, or drop it"
            )
        self.noted = {
            "backup": self.backup,
            "new": of.new,
            "old": of.derived(f"_before_restore_{journal.stamp()}"),
            "had": self.here is not None,
            "allowed": self.here is None or self.here["allowed"],
            "active": of.service.active(),
        }
        of.journal.note(self.noted)
        self.say(f"Loading it into {of.new}; {of.name} continues to serve")
        self._create(self.session, self.here)
        self._fill(self.file, self.contents)

    def compare(self) -> None:
        """Compare what was loaded with the manifest, and give others their rights in it."""
        of = self.of
        with closing(of.server.session(of.new, of.owner)) as loaded:
            self.say("Comparing")
            loaded.ask("BEGIN")
            # Older backups were made by whoever nothing is hidden from.
            loaded.each(
                "SELECT format('ALTER TABLE ONLY %I.%I NO FORCE ROW LEVEL SECURITY', n.nspname, c.relname) "
                f"{TABLES} AND c.relforcerowsecurity"
            )
            summary = loaded.summarize(str(self.manifest.get("row_text", "cast")))
            loaded.ask("ROLLBACK")
            self.report = restore.same(self.manifest, summary.rows, summary.digest, "rows")
            self._grant(self.file, self.contents, loaded)
            # The first queries are to be planned well, too.
            loaded.ask("ANALYZE")

    def exchange(self) -> None:
        """Exchange the names of the two databases, with no client in between."""
        of = self.of
        self.say(f"Putting it in the place of {of.name}")
        if self.here:
            self._liken(self.session, self.here)
        of.service.stop()
        self._exchange_names(self.session, self.noted)
        if self.noted["active"]:
            of.service.start(of.source.start_timeout)

    def undo(self) -> str:
        """Put the old database back."""
        return self.of.undo(self.noted) if self.noted else ""

    def end(self) -> str:
        """Return the name of the old database."""
        return self.of.tidy(self.noted)

    def _create(self, session: Session, here: dict[str, Any] | None) -> None:
        new = identifier(self.of.new)
        like = here or {"collate": "C.UTF-8", "ctype": "C.UTF-8", "provider": "c"}
        icu = f" LOCALE_PROVIDER icu ICU_LOCALE {literal(like['icu'])}" if like["provider"] == "i" else ""
        session.ask(
            f"CREATE DATABASE {new} CONNECTION LIMIT 0 TEMPLATE template0 ENCODING 'UTF8' "
            f"LC_COLLATE {literal(like['collate'])} LC_CTYPE {literal(like['ctype'])}{icu}"
        )
        names = self._extensions(here)
        if wanted := session.ask(UNTRUSTED.format(", ".join(map(literal, names)))) if names else []:
            # Scripts of the server's own, in a database that is empty and that nobody else may enter yet.
            with closing(self.of.server.session(self.of.new)) as empty:
                for name, schema in map(json.loads, wanted):
                    empty.ask(f"CREATE EXTENSION {identifier(name)}{'' if schema else ' SCHEMA public'}")
        session.ask(
            f"ALTER DATABASE {new} OWNER TO {identifier(self.of.owner)}; ALTER DATABASE {new} CONNECTION LIMIT -1"
        )

    def _extensions(self, here: dict[str, Any] | None) -> list[str]:
        """Return the extensions that were declared, and those of the database that is there: a dump's are not taken."""
        names = [str(name) for name in self.of.options.get("extensions", [])]
        if here and here["allowed"]:
            # A database that the owner cannot enter has none that its backup would need.
            with suppress(Failed), closing(self.of.server.session(self.of.name, self.of.owner)) as session:
                names += [str(json.loads(line)) for line in session.ask("SELECT to_json(extname) FROM pg_extension")]
        return names

    def _liken(self, session: Session, here: dict[str, Any]) -> None:
        """Give the new database what the old one has around its content: settings, rights, and the limit of clients."""
        new = identifier(self.of.new)
        statements = [f"ALTER DATABASE {new} CONNECTION LIMIT {int(here['limit'])}"]
        if here["own_acl"]:
            statements.append(f"REVOKE ALL ON DATABASE {new} FROM PUBLIC, {identifier(self.of.owner)}")
        for privilege, role, grantable in here["grants"] or []:
            to = identifier(role) if role else "PUBLIC"
            option = " WITH GRANT OPTION" if grantable else ""
            statements.append(f"GRANT {privilege} ON DATABASE {new} TO {to}{option}")
        for role, settings in here["settings"] or []:
            whose = f"ALTER ROLE {identifier(role)} IN DATABASE {new}" if role else f"ALTER DATABASE {new}"
            statements += [f"{whose} SET {setting(item)}" for item in settings]
        session.ask(f"BEGIN; {'; '.join(statements)}; COMMIT")

    def _fill(self, file: IO[bytes], contents: str) -> None:
        """Load a dump as the owner, who has nothing to fall back to."""
        file.seek(0)
        with tempfile.TemporaryFile() as err, _listing(COMMENTS.sub("", contents)) as listed:
            process = self.of.server.run(
                [
                    *("pg_restore", "--exit-on-error", "--no-owner", "--no-privileges", f"--use-list={_path(listed)}"),
                    *("--dbname", self.of.new),
                ],
                role=self.of.owner,
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=err,
                inherited=[listed],
            )
            try:
                if process.wait() != 0:
                    raise Failed(f"PostgreSQL refuses the backup, as {self.of.owner}: {words_of(err)}")
            finally:
                end(process)

    def _grant(self, file: IO[bytes], contents: str, loaded: Session) -> None:
        """Give others the rights that they had, as the owner: also those that one of them has passed on to another."""
        entries = RIGHTS.findall(contents)
        if not entries:
            return
        with _listing("\n".join([*entries, ""])) as listed:
            script = self.of.look(file, "--file=-", f"--use-list={_path(listed)}", inherited=[listed])
        refused = []
        if grants := GRANTS.findall(script):
            refused = [str(json.loads(line)) for line in loaded.ask(TRY.format(", ".join(map(literal, grants))))]
        if refused:
            self.say(f"{len(refused)} rights are not restored: {printable('; '.join(refused)[:500])}")

    def _exchange_names(self, session: Session, noted: dict[str, Any]) -> None:
        """Exchange the names in one transaction, with no client in between."""
        with ExitStack() as stack:
            old = None
            if noted["had"] and noted["allowed"]:
                # An old database that cannot be looked into is kept.
                with suppress(Failed):
                    old = stack.enter_context(closing(self.of.server.session(self.of.name, self.of.owner)))
            if noted["had"]:
                # First of all, or a client's pool would be back before the rename.
                session.ask(f"ALTER DATABASE {identifier(self.of.name)} ALLOW_CONNECTIONS false")
            own = old.ask("SELECT pg_backend_pid()") if old else []
            self.of.end_sessions(session, [self.of.name, self.of.new], own)
            noted["empty"] = old is not None and old.ask(OBJECTS) == ["0"]
        self.of.journal.note(noted)
        self.of.end_sessions(session, [self.of.name, self.of.new])
        self.of.rename(
            session, [(self.of.name, noted["old"])] if noted["had"] else [], [(self.of.new, self.of.name)], noted
        )
