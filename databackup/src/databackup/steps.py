"""What restores of all kinds have in common: checks, the way here, a journal, and the units that are stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from pwd import getpwnam
from typing import IO, Any, Protocol

from databackup import programs
from databackup.errors import Failed
from databackup.restic import Restic
from databackup.service import Unit
from databackup.settings import Source

Say = Callable[[str], None]
# What is left free beside all that is written: bytes.
MARGIN = 64 << 20
# Between two words on a long transfer.
STEP = 256 << 20


def stamp() -> str:
    """Return the time as part of a name."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def fits(source: Source, manifest: dict[str, Any], environment: str) -> None:
    """Raise Failed if a backup is of another kind or environment."""
    if manifest.get("kind") != source.kind:
        raise Failed(
            f"the backup of {manifest.get('source')} is of kind {manifest.get('kind')!r}, and {source.name} is of kind "
            f"{source.kind!r}; expected a backup of the same kind"
        )
    told = str(manifest.get("environment"))
    if told != environment:
        raise Failed(
            f"the backup is of environment {told!r}, and this host is of {source.environment!r}; expected a backup "
            f"of the same. If that is what you want, say restore_environment={told}"
        )


def room(folder: Path | str, needed: int, what: str) -> None:
    """Raise Failed if a folder's disk has less free than `needed` bytes."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}; expected a folder with room for {what}") from None
    if free < needed:
        raise Failed(f"{folder}: found {free >> 20} MiB free; expected room for {what}, {needed >> 20} MiB")


def receive(restic: Restic, manifest: dict[str, Any], suffix: str, file: IO[bytes], say: Say) -> None:
    """Write a backup's data into a file; raises Failed if they are not those that the manifest names."""
    expected = int(manifest["bytes"])
    hashed = hashlib.sha256()
    size = said = 0
    try:
        for chunk in restic.read(str(manifest["data"]), f"/{manifest['source']}.{suffix}"):
            file.write(chunk)
            hashed.update(chunk)
            size += len(chunk)
            if size - said >= STEP:
                said = size
                say(f"{size >> 20} of {expected >> 20} MiB are here")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise Failed(f"the backup cannot be written to this host's disk: {error.strerror}") from None
    if (size, hashed.hexdigest()) != (expected, manifest["sha256"]):
        raise Failed(
            f"the backup is damaged: found {size} bytes with SHA-256 {hashed.hexdigest()[:12]}…, expected {expected} "
            f"with {str(manifest['sha256'])[:12]}…. Choose another backup"
        )


def same(manifest: dict[str, Any], items: int, digest: str, what: str) -> dict[str, Any]:
    """Raise Failed if what was restored is not what the manifest says; return the part of the report on it."""
    expected = {"keys": int(manifest["items"]), "digest": str(manifest["digest"])}
    found = {"keys": items, "digest": digest}
    if found != expected:
        raise Failed(
            f"what was restored is not what its manifest says: found {items} {what} with digest {digest}, expected "
            f"{expected['keys']} with {expected['digest']}"
        )
    return {"in_backup": expected, "expected": expected, "found": found, "compared": "digest"}


class Journal:
    """A file that says how far a restore has come; it is there as long as one has not ended."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    def note(self, words: dict[str, Any]) -> None:
        """Keep it on the disk before the step that it announces."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._partial.open("w", encoding="utf-8") as file:
            json.dump(words, file)
            file.flush()
            os.fsync(file.fileno())
        self._partial.rename(self.path)
        keep_names(self.path.parent)

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    def read(self) -> dict[str, Any] | None:
        """Return what was noted; None where no restore was cut off."""
        try:
            loaded: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return loaded
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Failed(f"{self.path}: {error}; expected the journal of a restore that was cut off") from None

    def forget(self) -> None:
        """Say that it has ended."""
        self._partial.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    @property
    def refusal(self) -> str:
        """What is said of anything else while a restore has not ended."""
        return f"a restore was cut off; `databackup recover {self.name}` puts the old data back"

    def refuse(self) -> None:
        """Raise Failed if a restore was cut off: what is in place now may be half of something."""
        if self.path.exists():
            raise Failed(self.refusal)


def of_root(path: Path, say: Say) -> str | None:
    """Return a text that only root can have written, in a folder that somebody else can write; None for any other.

    For what earlier versions have left there. Such a file belongs to root, nobody else writes it, and it has one name: a link
    to another file of root's is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        say(f"{path} is not of this program ({error.strerror}), and is not read")
        return None
    try:
        found = os.fstat(descriptor)
        mode = found.st_mode
        if found.st_uid == os.geteuid() and stat.S_ISREG(mode) and not mode & 0o022 and found.st_nlink == 1:
            return os.read(descriptor, 1 << 16).decode(errors="replace")
    finally:
        os.close(descriptor)
    say(
        f"{path}: found a file of user {found.st_uid} with mode {stat.S_IMODE(mode):o} and {found.st_nlink} names; it is not "
        "of this program, and is not read. Find out who put it there"
    )
    return None


def keep_names(folder: Path) -> None:
    """Have the disk keep a folder's names as they are now."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def in_words() -> Iterator[None]:
    """Turn what the disk refuses while old data are put back into a message."""
    try:
        yield
    except OSError as error:
        raise Failed(
            f"{error.filename}: {error.strerror}, while the data from before were put back; see to that, and run "
            "`databackup recover` again"
        ) from None


class Clock:
    """Seconds by phase, as the report has them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Take the time of a block."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)


def put_back(error: BaseException, recover: Callable[[], str], say: Say, *also: type[Exception]) -> Failed:
    """Undo a restore, and return what ends it; an error that nobody thought of is raised again."""
    say("It failed; putting back what was there")
    try:
        recover()
    except (Failed, OSError) as second:
        return Failed(f"{error}. And the old data could not be put back by itself: {second}")
    if isinstance(error, (Failed, OSError, *also)):
        return Failed(f"{str(error).rstrip('.')}. The data from before are in place, as they were")
    raise error


class Service(Protocol):
    """What uses the data and is stopped for a restore."""

    def active(self) -> bool: ...
    def stop(self) -> None: ...
    def start(self, seconds: float) -> None: ...


class Nothing:
    """No unit is to be stopped."""

    def active(self) -> bool:
        """Tell that nothing runs."""
        return False

    def stop(self) -> None:
        """Do nothing."""

    def start(self, seconds: float) -> None:
        """Do nothing."""


class Units(Unit):
    """A unit of systemd, or a target with the instances and sockets that are part of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, [])

    def _members(self, *properties: str) -> list[str]:
        if not self.name.endswith(".target"):
            return []
        told = _systemctl("show", "--property", ",".join(properties), "--value", self.name).stdout.split()
        return sorted({unit for unit in told if unit.endswith((".service", ".socket"))})

    def active(self) -> bool:
        """Tell whether it, or a part of it, runs."""
        return super().active() or any(Unit(unit, []).active() for unit in self._members("ConsistsOf"))

    def stop(self) -> None:
        """Stop it with all its parts, and wait until they have ended."""
        if self.booting:
            return
        # In a rebuild the data come before what uses them.
        if _systemctl("show", "--property", "LoadState", "--value", self.name).stdout.strip() == "not-found":
            return
        # A target alone ends at once, before those that are part of it.
        units = [self.name, *self._members("Wants", "Requires", "ConsistsOf")]
        done = _systemctl("stop", *units)
        if done.returncode != 0:
            raise Failed(f"{self.name} does not stop: {done.stderr.strip()}")
        _systemctl("reset-failed", *units)

    def start(self, seconds: float) -> None:
        """Start it, and wait until it and all that it wants are active."""
        if self.booting:
            return
        deadline = time.monotonic() + seconds
        super().start(seconds)
        # A target is active whatever became of its parts.
        for name in self._members("Wants", "Requires"):
            member = Unit(name, [])
            while (state := member.state()) != "active":
                if state in ("failed", "inactive") or time.monotonic() > deadline:
                    raise Failed(f"{name} does not start ({state}): {member.last_words()}")
                time.sleep(0.1)


def units(name: str) -> Service:
    """Return the unit with this name; for no name nothing is stopped."""
    return Units(name) if name else Nothing()


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return programs.run(["systemctl", *words])


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


def chown(path: Path, user: str) -> None:
    """Give a file or link to a user and the user's group; raises Failed for an unknown one."""
    try:
        entry = getpwnam(user)
    except KeyError:
        raise Failed(f"found no user {user!r} on this host; the role of the application makes it") from None
    os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
