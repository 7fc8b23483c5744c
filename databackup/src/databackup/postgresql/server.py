"""The PostgreSQL server of this host, and sessions in it that are no more than the role that they are of.

What reads or writes a database's content logs in as the database's owner, and runs as a system user (`client_user`) whom
pg_ident.conf lets in as that owner and as nobody else. The system's user of PostgreSQL, its superuser, is in the maintenance
database only. Both go over the socket, without a password.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pwd import getpwnam
from typing import IO, Any

from databackup.errors import Failed
from databackup.restic import die_with_parent, end, said

# Seconds to wait for a lock that a change of the schema has, and for sessions to end.
LOCKS = 10
# Where the database of the name is not there, its commands are asked here.
MAINTENANCE = "postgres"

# Who runs the clients that read and write the database's content.
CLIENT_USER = "databackup-postgresql"
# Where Debian has the programs of each version. The one that is found by its name alone is the newest, and what a newer
# pg_restore sets first of all is an error to an older server.
PROGRAMS = "/usr/lib/postgresql"
# Bytes of a client's messages: whoever has functions in a database can have them say something without an end.
MESSAGES = 16 << 20

# A role and a database have settings of their own, which the role can change: none of them may change what a session of
# ours reads, writes or understands. The same text for the same row, whatever the server is set to.
FIXED = {
    "search_path": "pg_catalog",
    "role": "none",
    "row_security": "off",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": r"read\ committed",
    "default_transaction_deferrable": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "client_min_messages": "error",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}
SETTINGS = (
    f"SET lock_timeout = '{LOCKS}s'; "
    # What not all versions have. A query whose client is gone ends.
    "DO $$ BEGIN PERFORM set_config(name, value, false) FROM pg_settings JOIN (VALUES "
    "('client_connection_check_interval', '2s'), ('idle_session_timeout', '0'), ('transaction_timeout', '0')) "
    "AS wanted (name, value) USING (name); END $$"
)
# Tables with rows of their own: not those of the system or of an extension, and partitions instead of the whole.
TABLES = (
    "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname NOT LIKE 'pg\\_%' "
    "AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT FROM pg_depend d "
    "WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"
)
# What the owner cannot back up as a whole: tables whose rows it may not read, or not all of them.
HIDDEN = (
    "SELECT json_build_array(n.nspname, c.relname, pg_get_userbyid(c.relowner), readable) "
    "FROM (SELECT *, has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'SELECT') AS readable "
    "FROM pg_class WHERE relkind IN ('r', 'p', 'S')) c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE (NOT readable OR c.relkind = 'r' AND row_security_active(c.oid)) AND c.relpersistence <> 't' "
    "AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT FROM pg_depend d "
    "WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') "
    "ORDER BY n.nspname, c.relname LIMIT 1"
)
# How a row becomes text for the digest, as a manifest names it in `row_text`. A cast from a row's type can be the
# role's own, which is what backups had that name none.
ROW_TEXT = {
    "output": "pg_catalog.textin(pg_catalog.record_out(ROW(databackup_row.*)))",
    "cast": "databackup_row::text",
}


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
        self.client_user = str(options.get("client_user", CLIENT_USER))
        # Its major version, from the first session on.
        self.major = 0

    def program(self, name: str) -> str:
        """Return a client program of the server's own version, where the host has several."""
        own = f"{PROGRAMS}/{self.major}/bin/{name}"
        return own if self.major and os.path.exists(own) else name

    @property
    def where(self) -> str:
        """Report which one it is."""
        return f"PostgreSQL on port {self.port} of {self.socket}"

    def run(
        self,
        words: Sequence[str],
        *,
        role: str = "",
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes],
        stderr: IO[bytes],
        inherited: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a program that logs in as a role, or as the superuser; it ends with this process, even if that is killed."""
        identity: dict[str, Any] = {}
        if user := self.client_user if role else self.user:
            try:
                entry = getpwnam(user)
            except KeyError:
                expected = "the one that may log in as the owner" if role else "the one that PostgreSQL runs as"
                raise Failed(
                    f"found no user {user!r} on this host; expected {expected}: playbooks/database.yml makes it"
                ) from None
            # Not by runuser: that would stand between, and live or die on its own.
            identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        where = ["--host", self.socket, "--port", str(self.port), "--no-password"]
        if role:
            where += ["--username", role]
        try:
            return subprocess.Popen(
                [self.program(words[0]), *(where if "--dbname" in words else []), *words[1:]],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=inherited,
                # No PG… of the caller's changes whom it asks, or as whom; and no setting of a role or a database how.
                env={
                    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
                    "LC_ALL": "C",
                    "PGCONNECT_TIMEOUT": "20",
                    "PGCLIENTENCODING": "UTF8",
                    "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in FIXED.items()),
                },
                cwd="/",
                preexec_fn=_prepare,
                **identity,
            )
        except FileNotFoundError:
            raise Failed(
                f"{words[0]} is not installed; expected PostgreSQL's client programs beside its server"
            ) from None
        except PermissionError as error:
            raise Failed(f"{words[0]} cannot be run as {user}: {error.strerror}; expected to be root") from None

    def session(self, database: str, role: str = "") -> Session:
        """Return a session in a database, of a role or the superuser; raises Failed when none comes about."""
        return Session(self, database, role)


def _prepare() -> None:
    die_with_parent()
    # Ctrl-C and a cut ssh connection are for the parent to handle.
    os.setpgid(0, 0)
    # Of files: what goes through a pipe has no end.
    resource.setrlimit(resource.RLIMIT_FSIZE, (MESSAGES, MESSAGES))


def words_of(file: IO[bytes]) -> str:
    """Return the last lines that a program has written into a file, as one."""
    lines = [line for line in said(file).strip().splitlines() if line.strip()]
    return printable(" / ".join(lines[-3:])[:500]) or "no message"


def printable(text: str) -> str:
    """Return a text that a terminal only shows: names of a database's are in it, and are whatever its role likes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text.replace("\t", " "))


class Session:
    """psql, kept open. Every answer is lines without a line break in them."""

    END = "-- end of the answer --"

    def __init__(self, server: Server, database: str, role: str) -> None:
        self.server = server
        self.database = database
        self.role = role
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
            role=role,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.err,
        )
        try:
            (number,) = self.ask(f"{SETTINGS}; SHOW server_version_num")
            server.major = int(number) // 10000
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
        words = "" if self.err.closed else words_of(self.err)
        if self.role and re.search(r"Peer authentication failed|no pg_hba\.conf entry", words):
            words += (
                f"; expected a login of {self.server.client_user} as {self.role}, which playbooks/database.yml allows"
            )
        raise Failed(f"{self.server.where}, database {self.database}: {words}")

    def one(self, statement: str) -> Any:
        """Return the JSON that a statement answers; None where it answers nothing."""
        answer = "\n".join(self.ask(statement))
        return json.loads(answer) if answer else None

    def each(self, query: str) -> list[str]:
        """Run the SQL that a query answers. Names of the database's are in it: psql itself does not read them so."""
        return self.ask(f"{query} \\gexec\n")

    def hidden(self) -> str:
        """Return what keeps the session's role from reading all rows; nothing where it reads all."""
        found = self.one(HIDDEN)
        if found is None:
            return ""
        schema, name, owner = map(printable, found[:3])
        if found[3]:
            return (
                f"table {schema}.{name} hides rows from its owner, and so from a backup; expected ALTER TABLE … NO FORCE "
                "ROW LEVEL SECURITY"
            )
        return (
            f"table {schema}.{name} belongs to {owner}; expected an owner that {self.role} may act as: ALTER TABLE … "
            f"OWNER TO {self.role}"
        )

    def summarize(self, row_text: str = "output") -> Summary:
        """Count and digest rows, whatever their order is."""
        text = ROW_TEXT[row_text]
        # The whole row as text: an alias that is no column's name, or it would be that column.
        count = (
            "SELECT json_build_array(%L, %L, count(*), coalesce(sum((''x'' || pg_catalog.substr(pg_catalog.md5("
            f"{text}), 1, 16))::bit(64)::bigint::numeric), 0)::text) FROM ONLY %I.%I AS databackup_row"
        )
        lines, rows = [], 0
        answers = self.each(f"SELECT format('{count}', n.nspname, c.relname, n.nspname, c.relname) {TABLES}")
        for schema, name, number, total in map(json.loads, answers):
            lines.append(f"{json.dumps([schema, name])}:{number}:{total}")
            rows += int(number)
        digest = hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=16).hexdigest()
        return Summary(rows, digest, len(answers))

    def close(self) -> None:
        """End it; what was not committed is undone."""
        end(self.process)
        self.err.close()
