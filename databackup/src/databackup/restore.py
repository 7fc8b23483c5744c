"""What restores of all kinds have in common: checks, the way here, and the phases of an exchange that is undone if one fails."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn

from databackup.errors import Failed
from databackup.journal import Say
from databackup.owner import Owner
from databackup.restic import Restic
from databackup.settings import Source

# What is left free beside all that is written: bytes.
MARGIN = 64 << 20
# Between two words on a long transfer.
STEP = 256 << 20


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


def save(chunks: Iterable[bytes], file: IO[bytes], say: Say, of: str = "") -> tuple[int, str]:
    """Write data into a file, and onto the disk; return their size and SHA-256. `of` says how many are to come."""
    hashed = hashlib.sha256()
    size = said = 0
    for chunk in chunks:
        file.write(chunk)
        hashed.update(chunk)
        size += len(chunk)
        if size - said >= STEP:
            said = size
            say(f"{size >> 20}{of} MiB are here")
    file.flush()
    os.fsync(file.fileno())
    return size, hashed.hexdigest()


def intact(manifest: dict[str, Any], size: int, sha256: str) -> None:
    """Raise Failed if what came is not what the manifest names."""
    if (size, sha256) != (int(manifest["bytes"]), manifest["sha256"]):
        raise Failed(
            f"the backup is damaged: found {size} bytes with SHA-256 {sha256[:12]}…, expected {manifest['bytes']} with "
            f"{str(manifest['sha256'])[:12]}…; choose another backup"
        )


def stored(restic: Restic, manifest: dict[str, Any], suffix: str) -> Iterator[bytes]:
    """Yield a backup's data."""
    return restic.read(str(manifest["data"]), f"/{manifest['source']}.{suffix}")


def receive(restic: Restic, manifest: dict[str, Any], suffix: str, file: IO[bytes], say: Say) -> None:
    """Write a backup's data into a file; raises Failed if they are not those that the manifest names."""
    try:
        size, sha256 = save(stored(restic, manifest, suffix), file, say, f" of {int(manifest['bytes']) >> 20}")
    except OSError as error:
        raise Failed(f"the backup cannot be written to this host's disk: {error.strerror}") from None
    intact(manifest, size, sha256)


def same(manifest: dict[str, Any], items: int, digest: str, what: str) -> dict[str, Any]:
    """Raise Failed if what was restored is not what the manifest says; return the part of the report on it."""
    expected = {"keys": int(manifest["items"]), "digest": str(manifest["digest"])}
    found = {"keys": items, "digest": digest}
    if found != expected:
        raise Failed(
            f"the restored data differ from their manifest: found {items} {what} with digest {digest}, expected "
            f"{expected['keys']} with {expected['digest']}"
        )
    return {"in_backup": expected, "expected": expected, "found": found, "compared": "digest"}


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


Phase = tuple[str, Callable[[], None]]


class Replacement(ABC):
    """New data on their way into the place of those that are there: what a kind does in each phase.

    Until the last phase has ended, whatever goes wrong has what was there put back.
    """

    # Errors that are told in their own words, besides Failed and those of the disk.
    expected: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, say: Say) -> None:
        self.say = say
        # For the report: the comparison.
        self.report: dict[str, Any] = {}
        # What is closed at the end, and before anything is put back.
        self.held = ExitStack()

    @abstractmethod
    def phases(self) -> Iterable[Phase]:
        """Return what is done, in its order, by the names that the report has for it."""

    @abstractmethod
    def undo(self) -> str:
        """Put back what was there; harmless where nothing was changed yet."""

    @abstractmethod
    def end(self) -> str:
        """Return where the data from before are; nothing where none were there. The new ones stay, whatever comes of it."""

    def run(self) -> dict[str, Any]:
        """Carry out all phases and return what was done; raises Failed after the old data are back in place."""
        clock = Clock()
        with self.held:
            try:
                for name, act in self.phases():
                    with clock.phase(name):
                        act()
            except BaseException as error:
                self.held.close()
                self._put_back(error)
            return {**self.report, "kept": self.end(), "seconds": clock.seconds}

    def _put_back(self, error: BaseException) -> NoReturn:
        self.say("It failed; putting the earlier data back")
        try:
            self.undo()
        except (Failed, OSError) as second:
            raise Failed(f"{error}. And the old data could not be put back by itself: {second}") from error
        if not isinstance(error, (Failed, OSError, *self.expected)):
            # One that nobody thought of.
            raise error
        words = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename:
            words = f"{error.filename}: {error.strerror}"
        raise Failed(f"{words.rstrip('.')}. The data from before are in place, as they were") from error


def left(aside: Path, owner: Owner) -> str:
    """Return a folder of data from before; remove it, and return nothing, where none are in it."""
    with suppress(OSError), owner.acting():
        aside.rmdir()
        return ""
    return str(aside)
