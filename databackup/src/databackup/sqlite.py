"""A database of SQLite: backed up while it is written to, and put back with the units that use it stopped.

A backup is made in memory, by SQLite's own online backup: no writer waits for it, and no plaintext comes to be on the
disk. It takes twice the size of the database in memory for a moment, and is refused where that is not there.

What a restore replaces is moved into a folder `before-restore-…` beside it and never removed. A journal says how far
one has come: after one that was interrupted, `recover` puts the old database back.

The folder is the application's user's, who can put a link or another file under any name there. All that is done in it is
done with that user's rights, and what SQLite reads is read by a process of that user; the journal is in a folder of root's.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from databackup import catalog, journal, restore
from databackup.errors import Failed
from databackup.journal import Say
from databackup.kind import Kind
from databackup.owner import Child, Owner, Teller
from databackup.restic import CHUNK, Restic
from databackup.restore import MARGIN
from databackup.service import Service
from databackup.settings import Source

# What SQLite keeps beside a database: writes that are not in it yet, and who has read how far.
BESIDE = ("-wal", "-shm", "-journal")
MASK = (1 << 128) - 1


@dataclass(frozen=True)
class Summary:
    """What a database holds."""

    rows: int
    digest: str


def summarize(connection: sqlite3.Connection) -> Summary:
    """Read a whole database; the digest does not depend on the order of its rows, nor on where they are in the file.

    Raises sqlite3.Error where it cannot be read.
    """
    # Text that is no UTF-8 is data, too.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    total = rows = 0
    schema = connection.execute("SELECT type, name, tbl_name, sql, rootpage FROM sqlite_schema").fetchall()
    for kind, name, of, sql, root in schema:
        total += _hash("schema", (kind, name, of, sql))
        # A virtual table has no page; its rows are in tables of its own, which are listed like any other.
        if kind == "table" and root:
            escaped = str(name).replace('"', '""')
            for row in connection.execute(f'SELECT * FROM "{escaped}"'):
                total += _hash(name, row)
                rows += not str(name).startswith("sqlite_")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    total += _hash("user_version", (version,))
    return Summary(rows, f"{total & MASK:032x}")


def _hash(name: str, row: tuple[Any, ...]) -> int:
    # ascii() tells types apart, and is the same in all versions of Python.
    return int.from_bytes(hashlib.blake2b(ascii((name, row)).encode(), digest_size=16).digest(), "big")


def _check(connection: sqlite3.Connection) -> None:
    """Raise Failed if SQLite finds a database damaged."""
    # It would sort in a file otherwise.
    connection.execute("PRAGMA temp_store = MEMORY")
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        raise Failed(f"SQLite's integrity check finds it damaged: {' / '.join(found)[:500]}")


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None)


def _available_memory() -> int:
    found = re.search(
        r"MemAvailable:\s+([0-9]+) kB", Path("/proc/meminfo").read_text(encoding="utf-8", errors="replace")
    )
    return int(found[1]) << 10 if found else 1 << 62


class Sqlite(Kind):
    """One database, and what uses it."""

    suffix = "sqlite"

    def __init__(self, source: Source, say: Say, service: Service) -> None:
        super().__init__(source, say)
        self.service = service
        self.database = Path(source.options["database"])
        self.owner = Owner(str(source.options["user"]))
        self.new = self.database.with_name(f"{self.database.name}.restore-new")

    def backup(self, restic: Restic) -> dict[str, Any]:
        """Write a backup and return its manifest, with `id`; raises Failed, and then there is no new one."""
        self.journal.refuse()
        if self._former() is not None:
            raise Failed(self.journal.refusal)
        when = datetime.now(UTC).replace(microsecond=0)
        hashed = hashlib.sha256()
        size = 0
        with self.owner.child(self._give) as child:
            summary = _summary(child)
            # Only a whole copy is handed over; until the end of it restic makes no snapshot.
            writer = catalog.open_data(restic, self.source, self.suffix, when)
            try:
                for data in child.data():
                    writer.write(data)
                    hashed.update(data)
                    size += len(data)
                written = writer.commit()
            finally:
                writer.abort()
        facts = {
            "items": summary.rows,
            "digest": summary.digest,
            "bytes": size,
            "sha256": hashed.hexdigest(),
            "sqlite_version": sqlite3.sqlite_version,
            "about": {"database": str(self.database)},
            "data": written,
        }
        return catalog.complete(restic, self.source, facts, when)

    def _give(self, teller: Teller) -> None:
        """Report what the database holds, and send a copy of it."""
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            self._copy(copy)
            try:
                _check(copy)
                summary = summarize(copy)
            except sqlite3.Error as error:
                raise Failed(f"{self.database}: it cannot be read whole: {error}") from None
            image = copy.serialize()
        teller.tell([summary.rows, summary.digest])
        for data in _pieces(image):
            teller.send(data)
        teller.end()

    def _copy(self, copy: sqlite3.Connection) -> None:
        try:
            size = self.database.stat().st_size
            with suppress(FileNotFoundError):
                size += self.database.with_name(f"{self.database.name}-wal").stat().st_size
        except OSError as error:
            raise Failed(
                f"{self.database}: {error.strerror}; expected the application's database, which it makes at its start"
            ) from None
        if not self.database.is_file() or size == 0:
            raise Failed(f"{self.database}: found an empty file; expected a database with the application's tables")
        available, needed = _available_memory(), 2 * size + MARGIN
        if available < needed:
            raise Failed(
                f"{self.database}: found {available >> 20} MiB of memory free; expected room for a copy, {needed >> 20} MiB"
            )
        try:
            # In one step: pages that are written meanwhile go to the log, and the copy is of one moment.
            with closing(_open(self.database, "mode=ro")) as source:
                source.backup(copy)
        except sqlite3.Error as error:
            raise Failed(f"{self.database}: SQLite cannot copy it: {error}") from None

    # --- Restore ---

    def accept(self, manifest: dict[str, Any]) -> None:
        """Raise Failed for a backup of a newer SQLite, or one for which there is no room."""
        if int(str(manifest["sqlite_version"]).split(".")[0]) > sqlite3.sqlite_version_info[0]:
            raise Failed(
                f"the backup was made by SQLite {manifest['sqlite_version']}, and {sqlite3.sqlite_version} is here, which "
                "cannot read it; expected the same version or a newer one"
            )
        self.no_link()
        if not self.database.parent.is_dir():
            raise Failed(
                f"{self.database.parent}: there is no such folder; the role of the application makes it, run it first"
            )
        restore.room(self.database.parent, int(manifest["bytes"]) + MARGIN, "the backup beside the present data")

    def no_link(self) -> None:
        with self.owner.acting():
            linked = self.database.is_symlink()
        if linked:
            raise Failed(
                f"{self.database}: found a link to {os.readlink(self.database)}; expected the database itself, which the backup "
                "takes the place of"
            )

    def would(self, manifest: dict[str, Any]) -> list[str]:
        """Report what a restore would do."""
        unit = self.source.options["unit"]
        return [
            f"fetch {manifest['bytes']} bytes into {self.new}, compare their SHA-256 and {manifest['items']} rows' digest",
            f"stop {unit}" if unit else "see that no process has the database open",
            f"move {self.database} into a folder before-restore-… beside it",
            f"put the backup in its place and start {unit or 'nothing'} again, if it ran",
            "if anything is wrong, put the present data back",
        ]

    def replacement(self, restic: Restic, backup: str, manifest: dict[str, Any], *, full: bool) -> restore.Replacement:
        """Return what puts a backup into the place of the database."""
        return Replacement(self, restic, backup, manifest)

    def recover(self) -> str:
        """Put the old database back if a restore was interrupted; return what was done, or nothing."""
        with journal.in_words():
            noted = self.journal.read()
            if noted is None and (noted := self._former()) is not None:
                # From here on like one of this version: if this is interrupted, too, it goes on from there.
                self.journal.note(noted)
                self.owner.remove(self._former_path)
            if noted is None:
                self.owner.remove(self.new)
                self.journal.forget()
                return ""
            return self._put_back(noted)

    def inspect(self) -> dict[str, list[str]]:
        """Return journals in the folder of the database that are not this program's, and a link in its place."""
        planted: list[str] = []
        journal.of_root(self._former_path, planted.append)
        links = []
        try:
            self.no_link()
        except Failed as failure:
            links.append(str(failure))
        return {"journals": planted, "names": links}

    @property
    def _former_path(self) -> Path:
        """Where earlier versions had their journal, as root's."""
        return self.database.with_name(f".{self.database.name}.restore.json")

    def _former(self) -> dict[str, Any] | None:
        advice = f"The database from before is in the folder before-restore-… in {self.database.parent}: put it in place by hand"
        return journal.former(self._former_path, self.say, lambda had: isinstance(had, bool), advice)

    def _put_back(self, noted: dict[str, Any]) -> str:
        self.service.stop()
        aside = self.database.with_name(noted["aside"])
        with self.owner.acting():
            # Made after the stop: without it nothing was moved.
            if aside.is_dir() and not aside.is_symlink():
                kept = aside / self.database.name
                if os.path.lexists(self.database) and (os.path.lexists(kept) or not noted["had"]):
                    # All that is here is of the backup, as the old database was moved with what lay beside it.
                    for suffix in ("", *BESIDE):
                        self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)
                for suffix in (*BESIDE, ""):
                    item = aside / (self.database.name + suffix)
                    if os.path.lexists(item):
                        item.rename(self.database.with_name(item.name))
                with suppress(OSError):
                    aside.rmdir()
        self.owner.remove(self.new)
        with self.owner.acting():
            journal.keep_names(self.database.parent)
        if noted["active"]:
            self.service.start(self.source.start_timeout)
        self.journal.forget()
        return f"The data from before are back, as of the restore of {noted['backup'][:8]} that did not end."


class Replacement(restore.Replacement):
    """A backup on its way into the place of a database."""

    expected = (sqlite3.Error,)

    def __init__(self, of: Sqlite, restic: Restic, backup: str, manifest: dict[str, Any]) -> None:
        super().__init__(of.say)
        self.of = of
        self.restic = restic
        self.backup = backup
        self.manifest = manifest
        self.active = False

    def phases(self) -> Iterable[restore.Phase]:
        """Return what is done."""
        return [("fetch", self.fetch), ("compare", self.compare), ("exchange", self.exchange), ("start", self.start)]

    def fetch(self) -> None:
        """Bring the backup here, beside the database."""
        of = self.of
        self.say(f"Fetching {int(self.manifest['bytes']) >> 20} MiB; the application continues")
        of.no_link()
        of.owner.remove(of.new)
        with of.owner.new_file(of.new) as file:
            restore.receive(self.restic, self.manifest, of.suffix, file, self.say)
            with of.owner.acting():
                mode = of.database.stat().st_mode & 0o777 if of.database.exists() else 0o640
            os.fchmod(file.fileno(), mode)

    def compare(self) -> None:
        """Read the fetched database with its owner's rights."""
        with self.of.owner.child(self._look) as child:
            summary = _summary(child)
        self.report = restore.same(self.manifest, summary.rows, summary.digest, "rows")

    def _look(self, teller: Teller) -> None:
        """Report what the fetched database holds."""
        new = self.of.new
        if not new.is_file():
            raise Failed(f"{new}: found another file than the one fetched; expected no change by another program")
        try:
            # Nothing is made beside it.
            with closing(_open(new, "mode=ro&immutable=1")) as fetched:
                _check(fetched)
                summary = summarize(fetched)
        except sqlite3.Error as error:
            raise Failed(f"SQLite {sqlite3.sqlite_version} cannot read the backup: {error}") from None
        teller.tell([summary.rows, summary.digest])

    def exchange(self) -> None:
        """Stop what uses the database, move that aside, and put the new one in its place."""
        of, database = self.of, self.of.database
        self.say("Stopping the application and putting the backup in place")
        self.aside = database.with_name(f"before-restore-{journal.stamp()}")
        with of.owner.acting():
            if os.path.lexists(self.aside):
                raise Failed(f"{self.aside}: it is there already; was another restore made this second? Try again")
            had = database.exists()
        self.active = of.service.active()
        of.journal.note({"backup": self.backup, "aside": self.aside.name, "had": had, "active": self.active})
        # A part of it may run though it does not.
        of.service.stop()
        if found := holders(database):
            raise Failed(
                f"{database}: processes {', '.join(map(str, found))} have it open, though the application was stopped; "
                "end them first, or their writes would be lost"
            )
        with of.owner.acting():
            self.aside.mkdir(mode=0o700)
            # The database first: where it is missing, what lies beside it is still its own.
            for suffix in ("", *BESIDE):
                item = database.with_name(database.name + suffix)
                if os.path.lexists(item):
                    item.rename(self.aside / item.name)
            of.new.rename(database)
            journal.keep_names(self.aside)
            journal.keep_names(database.parent)

    def start(self) -> None:
        """Start what was stopped."""
        of = self.of
        if self.active:
            self.say("Starting the application")
            of.service.start(of.source.start_timeout)
            if not of.service.active():
                raise Failed(f"{of.options['unit']} does not stay active after the restore")
        of.journal.forget()

    def undo(self) -> str:
        """Put the old database back."""
        return self.of.recover()

    def end(self) -> str:
        """Return where the old database is."""
        return restore.left(self.aside, self.of.owner)


def holders(path: Path) -> list[int]:
    """Return the processes that have a file open, this one apart."""
    found = set()
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        # A process may end while it is looked at.
        with suppress(OSError):
            for item in folder.iterdir():
                with suppress(OSError):
                    if os.path.samestat(item.stat(), wanted):
                        found.add(int(folder.parent.name))
    return sorted(found - {os.getpid()})


def _summary(child: Child) -> Summary:
    rows, digest = child.told()
    return Summary(int(rows), str(digest))


def _pieces(image: bytes) -> Iterator[memoryview]:
    view = memoryview(image)
    for at in range(0, len(view), CHUNK):
        yield view[at : at + CHUNK]
