"""Put a backup in the place of a Redis server's data, or leave everything as it was.

What is here now is moved aside within its folder and never removed. A journal beside it says how far a restore has
come: after a run that was cut off, `recover` puts the old data back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from databackup import digest, rdb
from databackup.errors import Failed
from databackup.redis_server import Configuration, connect, credentials, info, version_of
from databackup.replication import Snapshot
from databackup.resp import Client, ErrorReply, ProtocolError
from databackup.restic import Restic
from databackup.settings import Source

Say = Callable[[str], None]
JOURNAL = ".restore.json"
NEW = ".restore-new"
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


class Target:
    """The server whose data are replaced."""

    def __init__(self, source: Source, service: Service, say: Say) -> None:
        self.source = source
        self.service = service
        self.say = say
        self.options = source.options
        self.data = Path(self.options["data"])
        self.configuration = Configuration(self.options["config_file"])
        self.journal = self.data / JOURNAL
        self.new = self.data / NEW
        self.log = self.configuration["appenddirname"]
        self.dump = self.configuration["dbfilename"]

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
        shutil.rmtree(self.new, ignore_errors=True)
        appends = self.configuration["appendonly"] == "yes"
        name = self.configuration["appendfilename"]
        folder = self.new / self.log if appends else self.new
        folder.mkdir(mode=0o700, parents=True)
        path = folder / (f"{name}.1.base.rdb" if appends else self.dump)
        hashed = hashlib.sha256()
        size = said = 0
        try:
            with path.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    hashed.update(chunk)
                    size += len(chunk)
                    if size - said >= 256 << 20:
                        said = size
                        self.say(f"{size >> 20}{of} MiB are here")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Failed(f"{path}: {error.strerror or error}; nothing else was touched") from None
        ours = version_of(self.options["binary"])
        if (origin := rdb.origin_of(path)) and origin.beyond(ours):
            raise Failed(f"{what} {origin.unread(ours)}. It is not damaged, and nothing here was touched")
        if appends:
            # A dump beside a switched-on append-only file is not even looked at: it must be that file's base.
            (folder / f"{name}.manifest").write_text(f"file {name}.1.base.rdb seq 1 type b\n")
        self.own_new()
        return path, size, hashed.hexdigest()

    def own_new(self) -> None:
        """Give what was brought here to the server's user."""
        for item in (self.new, *self.new.rglob("*")):
            shutil.chown(item, self.options["user"], self.options["user"])
            item.chmod(0o700 if item.is_dir() else 0o600)

    # --- The exchange ---

    def exchange(self, backup_id: str) -> Path:
        """Stop the server, move its data aside, and put the new ones in their place; return where the old ones are."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self.data / f"before-restore-{stamp}"
        while aside.exists():
            # What another restore of this second has kept must not be taken for what this one has moved.
            aside = aside.with_name(f"{aside.name}-again")
        active = self.service.active()
        had = [item for item in (self.dump, self.log) if (self.data / item).exists()]
        self._note({"backup": backup_id, "aside": aside.name, "had": had, "active": active})
        if active:
            self._spare_the_dump()
            self.service.stop()
        # A dump is written at the stop, if none was there before. Noted before the folder is made: once that is there,
        # what is not noted is taken for the backup's.
        had = [item for item in (self.dump, self.log) if (self.data / item).exists()]
        self._note({"backup": backup_id, "aside": aside.name, "had": had, "active": active})
        aside.mkdir(mode=0o700)
        shutil.chown(aside, self.options["user"], self.options["user"])
        for item in had:
            (self.data / item).rename(aside / item)
        for fresh in list(self.new.iterdir()):
            fresh.rename(self.data / fresh.name)
        self.new.rmdir()
        return aside

    @property
    def _partial(self) -> Path:
        return self.journal.with_suffix(".partial")

    def _note(self, words: dict[str, Any]) -> None:
        partial = self._partial
        with partial.open("w") as file:
            json.dump(words, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.journal)

    def _spare_the_dump(self) -> None:
        # At its end Redis writes a dump, which takes as long as a load; with an append-only file nobody will read it.
        if self.configuration["appendonly"] == "yes":
            with suppress(Failed, ErrorReply, OSError, ProtocolError), self._client(self.options["server"]) as client:
                client.call("CONFIG", "SET", "save", "")

    def recover(self) -> str:
        """Put the old data back if a restore was cut off, and start what ran then; return what was done, or nothing."""
        try:
            noted = json.loads(self.journal.read_text())
        except FileNotFoundError:
            self._clean()
            return ""
        self.service.stop()
        aside = self.data / noted["aside"]
        # Only this program makes the folder, after the server has stopped.
        if aside.is_dir():
            for item in (self.dump, self.log):
                kept, here = aside / item, self.data / item
                if (kept.exists() or item not in noted["had"]) and here.exists():
                    shutil.rmtree(here) if here.is_dir() else here.unlink()
                if kept.exists():
                    kept.rename(here)
            aside.rmdir()
        self._clean()
        self.service.settle()
        if noted["active"]:
            self.service.start(float(self.options.get("start_timeout", 120)))
        self.journal.unlink()
        what = REPAIR if noted["backup"] == REPAIR else f"restore of {noted['backup'][:8]}"
        return f"The data from before are back, as of the {what} that did not end."

    def _clean(self) -> None:
        shutil.rmtree(self.new, ignore_errors=True)
        self._partial.unlink(missing_ok=True)

    # --- With the new data ---

    def _client(self, server: dict[str, Any]) -> Client:
        return connect(server, credentials(self.options["admin_credentials_file"]))

    def load(self, path: Path) -> tuple[dict[str, Any], rdb.Summary, float]:
        """Start the server where no client reaches it; return the way in, what the file holds, and the seconds."""
        began = time.monotonic()
        moved = self.data / path.relative_to(self.new)
        digester = digest.of_file(str(moved))
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
        self.journal.unlink()


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
    with suppress(OSError):
        # Nothing was there before.
        aside.rmdir()
        kept = ""
    return {**report, "kept": kept, "seconds": seconds}
