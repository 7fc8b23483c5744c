"""Put a backup in the place of a Redis server's data, or leave everything as it was.

What is here now is moved aside within its folder and never removed. A journal says how far a restore has come: after a
run that was cut off, `recover` puts the old data back.

The folder is the server's user's, who can put anything under any name there at any moment. All that is done in it is done
with that user's rights; the journal is in a folder of root's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from databackup import programs, steps
from databackup.errors import Failed
from databackup.owner import Owner, plain
from databackup.redis import digest, proof, rdb
from databackup.redis.replication import Snapshot
from databackup.redis.resp import Client, ErrorReply, ProtocolError
from databackup.redis.server import Configuration, connect, credentials, info, version_of
from databackup.restic import Restic
from databackup.settings import Source

Say = Callable[[str], None]
# Where earlier versions had their journal: in the data folder, as root's.
FORMER_JOURNAL = ".restore.json"
NEW = ".restore-new"
ASIDE = re.compile(r"before-restore-[0-9]{8}T[0-9]{6}Z(-again)*")
# What the journal of a repair has in the place of a backup's id.
REPAIR = "repair"
MARGIN = 64 << 20
# Of a full cache, Redis counts its own buffers, too; more than this above maxmemory would be thrown away.
SLACK = 1.1
# Keys that expire while live data are compared would be a difference: those of the next seconds are left out.
AHEAD = 3.0
# Seconds between two words on a long load.
STEP = 5.0


class Service(Protocol):
    """What runs the server: see service.Unit."""

    def active(self) -> bool: ...
    def failed(self) -> bool: ...
    def stop(self) -> None: ...
    def start_apart(self, arguments: list[str]) -> None: ...
    def settle(self) -> None: ...
    def start(self, seconds: float) -> None: ...
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
        self.prove = proof.of(service, user, str(self.options["unit"]))
        self.data = Path(self.options["data"])
        self.configuration = configuration or Configuration(self.options["config_file"], user)
        self.journal = steps.Journal(Path(source.state) / f".{source.name}.restore.json", source.name)
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

    def check(self, manifest: dict[str, Any], environment: str) -> None:
        """Raise Failed if the backup does not fit this server."""
        told = str(manifest.get("environment"))
        if told != environment:
            raise Failed(
                f"the backup is of environment {told!r}, and this host is of {self.source.environment!r}; expected a backup "
                f"of the same. If that is what you want, say restore_environment={told}"
            )
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
        free, needed = shutil.disk_usage(self.data).free, int(manifest["bytes"]) + MARGIN
        if free < needed:
            raise Failed(
                f"{self.data}: found {free >> 20} MiB free; expected room for the backup beside what is there, "
                f"{needed >> 20} MiB"
            )

    def fetch(self, restic: Restic, manifest: dict[str, Any]) -> Path:
        """Bring a backup's data to this host, complete and checked, under a name that Redis does not look at."""
        expected = int(manifest["bytes"])
        path, size, sha256 = self.receive(
            restic.read(str(manifest["data"]), f"/{manifest['source']}.rdb"), "the backup", f" of {expected >> 20}"
        )
        if (size, sha256) != (expected, manifest["sha256"]):
            raise Failed(
                f"the backup is damaged: found {size} bytes with SHA-256 {sha256[:12]}…, expected {expected} "
                f"with {str(manifest['sha256'])[:12]}…. Nothing was touched; choose another backup"
            )
        return path

    def receive(self, chunks: Iterator[bytes], what: str, of: str = "") -> tuple[Path, int, str]:
        """Write a snapshot where Redis does not look at it, as what Redis will load; return path, size and SHA-256.

        Raises Failed for one of a newer Redis, which the server here would refuse once its own data are moved aside.
        """
        appends = self.configuration["appendonly"] == "yes"
        name = self.configuration["appendfilename"]
        folder = self.new / self.log if appends else self.new
        path = folder / (f"{name}.1.base.rdb" if appends else self.dump)
        hashed = hashlib.sha256()
        size = said = 0
        try:
            self.make_new(folder)
            with self.owner.new_file(path) as file:
                for chunk in chunks:
                    file.write(chunk)
                    hashed.update(chunk)
                    size += len(chunk)
                    if size - said >= 256 << 20:
                        said = size
                        self.say(f"{size >> 20}{of} MiB are here")
                file.flush()
                os.fsync(file.fileno())
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
        return path, size, hashed.hexdigest()

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
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self.data / f"before-restore-{stamp}"
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
        """Put the old data back if a restore was cut off, and start what ran then; return what was done, or nothing."""
        with steps.in_words():
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
            self.service.start(float(self.options.get("start_timeout", 120)))
        self.journal.forget()
        what = REPAIR if noted["backup"] == REPAIR else f"restore of {noted['backup'][:8]}"
        return f"The data from before are back, as of the {what} that did not end."

    @property
    def cut_off(self) -> bool:
        """Whether a restore was cut off: what is in place now may be half of something."""
        return self.journal.path.exists() or self.former() is not None

    # --- A restore that an earlier version began ---

    @property
    def planted(self) -> list[str]:
        """What is said of a journal in the data folder that is not this program's."""
        found: list[str] = []
        steps.of_root(self.data / FORMER_JOURNAL, found.append)
        return found

    def former(self) -> dict[str, Any] | None:
        """Return what the journal of an earlier version says, if there is one.

        It is in the data folder, but root's: what the server's user puts there is no journal, whatever it says. Raises Failed
        for one that no earlier version has written.
        """
        path = self.data / FORMER_JOURNAL
        text = steps.of_root(path, self.say)
        if text is None:
            return None
        try:
            noted: dict[str, Any] = json.loads(text)
            names = [self.dump, self.log]
            if (
                set(noted) == {"backup", "aside", "had", "active"}
                and ASIDE.fullmatch(noted["aside"])
                and all(plain(item) and item in names for item in noted["had"])
                and (noted["backup"] == REPAIR or re.fullmatch("[0-9a-f]{8,64}", noted["backup"]))
                and isinstance(noted["active"], bool)
            ):
                return {**noted, "names": names}
        except (ValueError, TypeError):
            pass
        raise Failed(
            f"{path}: found {text[:60]!r}; expected the journal of a restore that an earlier version began. The data from "
            f"before are in the folder before-restore-… in {self.data}: put them in place by hand, and remove this file"
        )

    def _recover_former(self) -> str:
        noted = self.former()
        if noted is None:
            self.owner.remove(self.new)
            self.journal.forget()
            return ""
        # From here on like one of this version: if this is cut off, too, it goes on from there.
        self.journal.note(noted)
        self.owner.remove(self.data / FORMER_JOURNAL)
        return self._put_back(noted)

    # --- With the new data ---

    def _client(self, server: dict[str, Any]) -> Client:
        return connect(server, credentials(self.options["admin_credentials_file"]), prove=self.prove)

    def load(self, path: Path) -> tuple[dict[str, Any], rdb.Summary, float]:
        """Start the server where no client reaches it; return the way in, what the file holds, and the seconds."""
        began = time.monotonic()
        moved = self.data / path.relative_to(self.new)
        digester = digest.of_file(moved, self.owner)
        try:
            apart = self.start_apart()
            seconds = time.monotonic() - began
            return apart, digester.result(), seconds
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

    def compare(self, apart: dict[str, Any], file: rdb.Summary, manifest: dict[str, Any], full: bool) -> dict[str, Any]:
        """Raise Failed if what Redis has is not what the manifest says; return keys and digests, wanted and found.

        Keys that have expired meanwhile, or will within seconds, count on neither side. Without `full` keys are
        counted only.
        """
        if (file.keys, file.digest) != (manifest["items"], manifest["digest"]):
            raise Failed(
                f"the restored file is not what its manifest says: found {file.keys} keys with digest {file.digest}, "
                f"expected {manifest['items']} with {manifest['digest']}"
            )
        moment = int((time.time() + AHEAD) * 1000)
        wanted = {"keys": file.keys_after(moment), "digest": file.digest_after(moment)}
        with self._client(apart) as client:
            if full:
                chunks = Snapshot(client).chunks()
                try:
                    live = rdb.summarize(chunks)
                except rdb.Damaged as error:
                    raise Failed(f"what Redis has cannot be read back: {error}") from None
                if time.time() * 1000 > moment and live.volatile:
                    # The snapshot itself is of its beginning, but make sure: keys may have gone before it.
                    begun = int(live.about.get("ctime", "0")) * 1000
                    if begun > moment:
                        raise Failed("Redis took longer to begin its snapshot than keys may live")
                found = {"keys": live.keys_after(moment), "digest": live.digest_after(moment)}
            else:
                # DBSIZE is of one database alone.
                told = info(client, "keyspace")
                count = sum(
                    int(text.split(",")[0].removeprefix("keys=")) for name, text in told.items() if name[:2] == "db"
                )
                least = file.keys_after(moment)
                found = {"keys": count if not least <= count <= file.keys else least, "digest": wanted["digest"]}
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


def restore(
    target: Target, restic: Restic, backup_id: str, manifest: dict[str, Any], environment: str, full: bool
) -> dict[str, Any]:
    """Restore a backup and return what was done; raises Failed after the old data are back in place."""
    say = target.say

    def fetch() -> Path:
        serving = "; Redis goes on serving" if target.service.active() else ""
        say(f"Fetching {int(manifest['bytes']) >> 20} MiB{serving}")
        return target.fetch(restic, manifest)

    undone = target.recover()
    if undone:
        say(undone)
    target.check(manifest, environment)
    return replace(
        target, backup_id, "the backup", fetch, lambda path, seconds: proven(target, path, manifest, full, seconds)
    )


Seconds = dict[str, float]
Apart = dict[str, Any]


def proven(
    target: Target, path: Path, manifest: dict[str, Any], full: bool, seconds: Seconds
) -> tuple[Apart, dict[str, Any]]:
    """Have Redis load what is in place, and compare; return the way in and the report."""
    apart, file, load = target.load(path)
    seconds["load"] = round(load, 2)
    target.say("Redis has loaded it, out of its clients' reach; comparing")
    began = time.monotonic()
    compared = target.compare(apart, file, manifest, full)
    seconds["compare"] = round(time.monotonic() - began, 2)
    return apart, compared


def replace(
    target: Target,
    word: str,
    what: str,
    fetch: Callable[[], Path],
    load: Callable[[Path, Seconds], tuple[Apart, dict[str, Any]]],
) -> dict[str, Any]:
    """Put what `fetch` brings in the place of the data, and serve it if `load` finds no fault; return what was done.

    Raises Failed after the old data are back in place. `word` stands for it in the journal.
    """
    say = target.say
    seconds: Seconds = {}
    try:
        began = time.monotonic()
        path = fetch()
        seconds["fetch"] = round(time.monotonic() - began, 2)
        began = time.monotonic()
        say(f"Stopping Redis and putting {what} in place")
        aside = target.exchange(word)
        seconds["exchange"] = round(time.monotonic() - began, 2)
        apart, report = load(path, seconds)
        target.open(apart)
    except BaseException as error:
        say("It failed; putting back what was there")
        try:
            target.recover()
        except Failed as second:
            raise Failed(f"{error}. And the old data could not be put back by itself: {second}") from error
        if isinstance(error, OSError) and error.strerror:
            where = error.filename or target.data
            raise Failed(
                f"{where}: {error.strerror}. The data from before are in place and served, as they were"
            ) from error
        if isinstance(error, (ErrorReply, ProtocolError, OSError)):
            served = "and served, " if target.service.active() else ""
            raise Failed(f"{error}. The data from before are in place {served}as they were") from error
        if isinstance(error, Failed):
            raise Failed(f"{error}. The data from before are in place, as they were") from error
        raise
    kept = str(aside)
    with suppress(OSError), target.owner.acting():
        # Nothing was there before.
        aside.rmdir()
        kept = ""
    return {**report, "kept": kept, "seconds": seconds}
