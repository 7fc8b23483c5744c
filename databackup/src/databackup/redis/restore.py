"""Put a backup in the place of a Redis server's data, or leave everything as it was.

What is here now is moved aside within its folder and never removed. A journal says how far a restore has come: after a
run that was interrupted, `recover` puts the old data back.

The folder is the server's user's, who can put anything under any name there at any moment. All that is done in it is done
with that user's rights; the journal is in a folder of root's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from databackup import journal, programs, restore, service
from databackup.errors import Failed
from databackup.journal import Journal, Say
from databackup.owner import Owner, plain
from databackup.redis import digest, rdb
from databackup.redis.proof import Proof
from databackup.redis.replication import Snapshot
from databackup.redis.resp import Client, ErrorReply, ProtocolError
from databackup.redis.server import Configuration, connect, count, credentials, info, version_of
from databackup.restic import Restic
from databackup.restore import MARGIN
from databackup.settings import Source

# What a server's data are called in the repository.
SUFFIX = "rdb"
# Where earlier versions had their journal: in the data folder, as root's.
FORMER_JOURNAL = ".restore.json"
NEW = ".restore-new"
# What the journal of a repair has in the place of a backup's id.
REPAIR = "repair"
# Of a full cache, Redis counts its own buffers, too; more than this above maxmemory would be thrown away.
SLACK = 1.1
# Keys that expire while live data are compared would be a difference: those of the next seconds are left out.
AHEAD = 3.0
# Seconds between two words on a long load.
STEP = 5.0


class Service(service.Service, Protocol):
    """What runs the server: see service.Unit."""

    def failed(self) -> bool: ...
    def start_apart(self, arguments: list[str]) -> None: ...
    def settle(self) -> None: ...
    def last_words(self) -> str: ...
    def main_pid(self) -> int: ...


class Target:
    """The server whose data are replaced."""

    def __init__(
        self,
        source: Source,
        service: Service,
        say: Say,
        *,
        configuration: Configuration | None = None,
        owner: Owner | None = None,
    ) -> None:
        """`owner` has the data folder: the server's user, unless another one is named.

        `configuration` stands in for the server's own, which is read with the rights of its user.
        """
        self.source = source
        self.service = service
        self.say = say
        self.options = source.options
        user = Owner(str(self.options["user"]))
        self.owner = owner or user
        self.prove = Proof(service, user, str(self.options["unit"]))
        self.data = Path(self.options["data"])
        self.configuration = configuration or Configuration(self.options["config_file"], user)
        self.journal = Journal.of(source)
        self.new = self.data / NEW

    @property
    def log(self) -> str:
        """The name of the folder with the append-only file."""
        return self.configuration["appenddirname"]

    @property
    def dump(self) -> str:
        """The name of the dump."""
        return self.configuration["dbfilename"]

    def tool(self, name: str, *words: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        """Run one of Redis' tools as the owner of the data, and return what came of it; raises Failed if there is none."""
        beside = Path(self.options["binary"]).with_name(name)
        program = str(beside) if beside.exists() else shutil.which(name)
        if program is None:
            raise Failed(f"{name}: there is no such program; the package redis-tools has it")
        return programs.run([program, *words], input=answer, cwd="/", **self.owner.identity)

    # --- Before anything is touched ---

    def accept(self, manifest: dict[str, Any]) -> None:
        """Raise Failed if data do not fit this server: its version, its memory, or its disk."""
        ours = version_of(self.options["binary"])[:2]
        if rdb.numbers(str(manifest["redis_version"])) > ours:
            raise Failed(
                f"the backup was made by Redis {manifest['redis_version']}, and {'.'.join(map(str, ours))} is here, which "
                "cannot read it; expected the same version or a newer one"
            )
        limit, used = self.configuration.maxmemory, int(manifest["used_memory"])
        if limit and used > limit * SLACK:
            raise Failed(
                f"the backup takes {used >> 20} MiB in memory, and maxmemory is {limit >> 20} MiB: keys would be thrown "
                "away. Expected that it fits: raise redis_maxmemory and run redis.yml first"
            )
        restore.room(self.data, int(manifest["bytes"]) + MARGIN, "the backup beside the present data")

    def receive(self, chunks: Iterable[bytes], what: str, of: str = "") -> tuple[Path, int, str]:
        """Write a snapshot where Redis does not look at it, as what Redis will load; return path, size and SHA-256.

        Raises Failed for one of a newer Redis, which the server here would refuse once its own data are moved aside.
        """
        appends = self.configuration["appendonly"] == "yes"
        name = self.configuration["appendfilename"]
        folder = self.new / self.log if appends else self.new
        path = folder / (f"{name}.1.base.rdb" if appends else self.dump)
        try:
            self.make_new(folder)
            with self.owner.new_file(path) as file:
                size, sha256 = restore.save(chunks, file, self.say, of)
            if appends:
                # A dump beside a switched-on append-only file is not even looked at: it must be that file's base.
                with self.owner.new_file(folder / f"{name}.manifest") as file:
                    file.write(f"file {name}.1.base.rdb seq 1 type b\n".encode())
        except OSError as error:
            raise Failed(f"{path}: {error.strerror or error}; nothing else was touched") from None
        ours = version_of(self.options["binary"])
        with self.owner.acting():
            origin = rdb.origin_of(path)
        if origin and origin.beyond(ours):
            raise Failed(f"{what} {origin.unread(ours)}. It is not damaged, and nothing here was touched")
        return path, size, sha256

    def make_new(self, folder: Path) -> None:
        """Make the folder for what is brought here, and one in it; what an earlier run has left there goes."""
        self.owner.remove(self.new)
        with self.owner.acting():
            self.new.mkdir(mode=0o700)
            if folder != self.new:
                folder.mkdir(mode=0o700)

    # --- The exchange ---

    def exchange(self, backup_id: str) -> Path:
        """Stop the server, move its data aside, and put the new ones in their place; return where the old ones are."""
        aside = self.data / f"before-restore-{journal.stamp()}"
        # As they are now: Redis may write its configuration before this is undone.
        names = [self.dump, self.log]

        def had() -> list[str]:
            with self.owner.acting():
                return [item for item in names if os.path.lexists(self.data / item)]

        with self.owner.acting():
            while os.path.lexists(aside):
                # What another restore of this second has kept must not be taken for what this one has moved.
                aside = aside.with_name(f"{aside.name}-again")
        active = self.service.active()
        words = {"backup": backup_id, "aside": aside.name, "names": names, "active": active}
        self.journal.note({**words, "had": had()})
        if active:
            self._spare_the_dump()
            self.service.stop()
        # A dump is written at the stop, if none was there before. Noted before the folder is made: once that is there,
        # what is not noted is taken for the backup's.
        moved = had()
        self.journal.note({**words, "had": moved})
        with self.owner.acting():
            aside.mkdir(mode=0o700)
            for item in moved:
                (self.data / item).rename(aside / item)
            for item in names:
                if os.path.lexists(self.new / item):
                    (self.new / item).rename(self.data / item)
            self.new.rmdir()
        return aside

    def _spare_the_dump(self) -> None:
        # At its end Redis writes a dump, which takes as long as a load; with an append-only file nobody will read it.
        if self.configuration["appendonly"] == "yes":
            with suppress(Failed, ErrorReply, OSError, ProtocolError), self._client(self.options["server"]) as client:
                client.call("CONFIG", "SET", "save", "")

    def recover(self) -> str:
        """Put the old data back if a restore was interrupted, and start what ran then; return what was done, or nothing."""
        with journal.in_words():
            noted = self.journal.read()
            return self._put_back(noted) if noted else self._recover_former()

    def _put_back(self, noted: dict[str, Any]) -> str:
        self.service.stop()
        aside = self.data / noted["aside"]
        with self.owner.acting():
            # It is made after the server has stopped.
            if aside.is_dir() and not aside.is_symlink():
                for item in noted["names"]:
                    kept, here = aside / item, self.data / item
                    if os.path.lexists(kept) or item not in noted["had"]:
                        self.owner.remove(here)
                    if os.path.lexists(kept):
                        kept.rename(here)
                with suppress(OSError):
                    # Somebody else has put something there.
                    aside.rmdir()
        self.owner.remove(self.new)
        self.service.settle()
        if noted["active"]:
            self.service.start(self.source.start_timeout)
        self.journal.forget()
        what = REPAIR if noted["backup"] == REPAIR else f"restore of {noted['backup'][:8]}"
        return f"The data from before are back, as of the {what} that did not end."

    @property
    def cut_off(self) -> bool:
        """Whether a restore was interrupted: what is in place now may be half of something."""
        return self.journal.path.exists() or self.former() is not None

    # --- A restore that an earlier version began ---

    @property
    def planted(self) -> list[str]:
        """What is said of a journal in the data folder that is not this program's."""
        found: list[str] = []
        journal.of_root(self.data / FORMER_JOURNAL, found.append)
        return found

    def former(self) -> dict[str, Any] | None:
        """Return what the journal of an earlier version says, if there is one; see journal.former."""
        advice = f"The data from before are in the folder before-restore-… in {self.data}: put them in place by hand"
        noted = journal.former(
            self.data / FORMER_JOURNAL,
            self.say,
            # Only then: what the configuration says, its owner can have planted as well.
            lambda had: all(plain(item) and item in (self.dump, self.log) for item in had),
            advice,
            REPAIR,
        )
        return noted and {**noted, "names": [self.dump, self.log]}

    def _recover_former(self) -> str:
        noted = self.former()
        if noted is None:
            self.owner.remove(self.new)
            self.journal.forget()
            return ""
        # From here on like one of this version: if this is interrupted, too, it goes on from there.
        self.journal.note(noted)
        self.owner.remove(self.data / FORMER_JOURNAL)
        return self._put_back(noted)

    # --- With the new data ---

    def _client(self, server: dict[str, Any]) -> Client:
        return connect(server, credentials(self.options["admin_credentials_file"]), prove=self.prove)

    def load(self, path: Path) -> tuple[dict[str, Any], rdb.Summary]:
        """Start the server where no client reaches it; return the way in, and what the file holds."""
        moved = self.data / path.relative_to(self.new)
        digester = digest.of_file(moved, self.owner)
        try:
            return self.start_apart(), digester.result()
        finally:
            digester.close()

    def start_apart(self) -> dict[str, Any]:
        """Start the server where no client reaches it, and return the way in once it has loaded its data."""
        with socket.create_server(("127.0.0.1", 0)) as spare:
            port = spare.getsockname()[1]
        apart = {"host": "127.0.0.1", "port": port}
        # On loopback and in plaintext, for the moment of the comparison: no client knows the port.
        self.service.start_apart(["--bind", "127.0.0.1", "--port", str(port), "--tls-port", "0", "--maxmemory", "0"])
        self._wait_until_loaded(apart)
        return apart

    def _wait_until_loaded(self, apart: dict[str, Any]) -> None:
        said = time.monotonic()
        while True:
            with suppress(Failed, OSError, ErrorReply, ProtocolError), self._client(apart) as client:
                while True:
                    told = info(client, "persistence")
                    if told.get("loading", "0") == "0":
                        return
                    if time.monotonic() - said > STEP:
                        said = time.monotonic()
                        self.say(f"Redis has loaded {told.get('loading_loaded_perc', '?')} %")
                    time.sleep(0.05)
            if self.service.failed():
                raise Failed(f"Redis does not start with the restored data: {self.service.last_words()}")
            time.sleep(0.05)

    def live(self, apart: dict[str, Any]) -> rdb.Summary:
        """Return what the server has now, by a snapshot of its own."""
        with self._client(apart) as client:
            try:
                return rdb.summarize(Snapshot(client).chunks())
            except rdb.Damaged as error:
                raise Failed(f"the data of Redis cannot be read back: {error}") from None

    def compare(self, apart: dict[str, Any], file: rdb.Summary, manifest: dict[str, Any], full: bool) -> dict[str, Any]:
        """Raise Failed if what Redis has is not what the manifest says; return keys and digests, wanted and found.

        Keys that have expired meanwhile, or will within seconds, count on neither side. Without `full` keys are
        counted only.
        """
        if (file.keys, file.digest) != (manifest["items"], manifest["digest"]):
            raise Failed(
                f"the restored file differs from its manifest: found {file.keys} keys with digest {file.digest}, "
                f"expected {manifest['items']} with {manifest['digest']}"
            )
        moment = int((time.time() + AHEAD) * 1000)
        wanted = {"keys": file.keys_after(moment), "digest": file.digest_after(moment)}
        if full:
            live = self.live(apart)
            if time.time() * 1000 > moment and live.volatile:
                # The snapshot itself is of its beginning, but make sure: keys may have gone before it.
                begun = int(live.about.get("ctime", "0")) * 1000
                if begun > moment:
                    raise Failed("Redis took longer to begin its snapshot than keys may live")
            found = {"keys": live.keys_after(moment), "digest": live.digest_after(moment)}
        else:
            with self._client(apart) as client:
                # DBSIZE is of one database alone.
                counted = count(info(client, "keyspace"))
            least = file.keys_after(moment)
            found = {"keys": counted if not least <= counted <= file.keys else least, "digest": wanted["digest"]}
        if found != wanted:
            raise Failed(
                f"Redis has other data than were restored: found {found['keys']} keys with digest {found['digest']}, expected "
                f"{wanted['keys']} with {wanted['digest']}"
            )
        return {
            "in_backup": {"keys": file.keys, "digest": file.digest},
            "expected": wanted,
            "found": found,
            "compared": "digest" if full else "count",
        }

    def open(self, apart: dict[str, Any]) -> None:
        """Let the clients in again: the listening sockets become those of the configuration, without a restart."""
        with self._client(apart) as client:
            listen = [word for name in ("tls-port", "bind", "maxmemory") for word in (name, self.configuration[name])]
            client.call("CONFIG", "SET", *listen)
            # Last and alone: this connection came by it.
            with suppress(ErrorReply, OSError, ProtocolError):
                client.call("CONFIG", "SET", "port", self.configuration["port"])
        self.service.settle()
        self.journal.forget()


class Replacement(restore.Replacement):
    """New data on their way into the place of a server's: `fetch` brings them here, and Redis loads them apart."""

    expected = (ErrorReply, ProtocolError)
    # What it is, for an operator.
    what = "the backup"
    # What Redis will load, where it was brought to.
    path: Path

    def __init__(self, target: Target, word: str, manifest: dict[str, Any], *, full: bool = True) -> None:
        """`word` stands for it in the journal; `manifest` is complete when the data are here."""
        super().__init__(target.say)
        self.target = target
        self.word = word
        self.manifest = manifest
        self.full = full

    def phases(self) -> Iterable[restore.Phase]:
        """Return what is done."""
        return [("fetch", self.fetch), ("exchange", self.exchange), ("load", self.load), ("compare", self.open)]

    @abstractmethod
    def fetch(self) -> None:
        """Bring the data here, complete and checked, and set `path`."""

    def exchange(self) -> None:
        """Move the server's data aside, and put the new ones in their place."""
        self.say(f"Stopping Redis and putting {self.what} in place")
        self.aside = self.target.exchange(self.word)

    def load(self) -> None:
        """Have Redis load what is in place."""
        self.apart, self.file = self.target.load(self.path)

    def open(self) -> None:
        """Compare what Redis has with what it was to get, and let the clients in."""
        self.say("Redis has loaded it, out of its clients' reach; comparing")
        self.report = self.target.compare(self.apart, self.file, self.manifest, self.full)
        self.target.open(self.apart)

    def undo(self) -> str:
        """Put the old data back."""
        return self.target.recover()

    def end(self) -> str:
        """Return where the old data are."""
        return restore.left(self.aside, self.target.owner)


class FromBackup(Replacement):
    """The data of a backup."""

    def __init__(self, target: Target, restic: Restic, word: str, manifest: dict[str, Any], *, full: bool) -> None:
        super().__init__(target, word, manifest, full=full)
        self.restic = restic

    def fetch(self) -> None:
        """Bring the backup here, under a name that Redis does not look at."""
        expected = int(self.manifest["bytes"]) >> 20
        serving = "; Redis continues to serve" if self.target.service.active() else ""
        self.say(f"Fetching {expected} MiB{serving}")
        chunks = restore.stored(self.restic, self.manifest, SUFFIX)
        self.path, size, sha256 = self.target.receive(chunks, "the backup", f" of {expected}")
        restore.intact(self.manifest, size, sha256)
