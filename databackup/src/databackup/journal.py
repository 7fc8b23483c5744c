"""How far a restore has come, on the disk: what a run that was interrupted leaves for `recover`."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from databackup.errors import Failed
from databackup.settings import Source

Say = Callable[[str], None]
# Where what was there before is kept.
ASIDE = re.compile(r"before-restore-[0-9]{8}T[0-9]{6}Z(-again)*")
BACKUP = re.compile(r"[0-9a-f]{8,64}")


def stamp() -> str:
    """Return the time as part of a name."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


class Journal:
    """A file that records how far a restore has come; it is there as long as one has not ended."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    @classmethod
    def of(cls, source: Source) -> Journal:
        """Return that of a source's restores."""
        return cls(Path(source.state) / f".{source.name}.restore.json", source.name)

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
        """Return what was noted; None where no restore was interrupted."""
        try:
            loaded: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return loaded
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Failed(f"{self.path}: {error}; expected the journal of a restore") from None

    def forget(self) -> None:
        """Report that it has ended."""
        self._partial.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    @property
    def refusal(self) -> str:
        """What is said of anything else while a restore has not ended."""
        return f"a restore was interrupted; `databackup recover {self.name}` puts the old data back"

    def refuse(self) -> None:
        """Raise Failed if a restore was interrupted: what is in place now may be half of something."""
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


def former(path: Path, say: Say, had: Callable[[Any], bool], advice: str, *words: str) -> dict[str, Any] | None:
    """Return what the journal of an earlier version says, which is in a folder of the service; None where there is none.

    It is root's: what the service puts there is no journal, whatever it says. Raises Failed for one that no earlier version
    has written, with `advice`. `had` tells whether what it says of the data before is possible; `words` may stand for the
    id of a backup.
    """
    text = of_root(path, say)
    if text is None:
        return None
    with suppress(ValueError, TypeError):
        noted: dict[str, Any] = json.loads(text)
        if (
            set(noted) == {"backup", "aside", "had", "active"}
            and ASIDE.fullmatch(noted["aside"])
            and had(noted["had"])
            and (noted["backup"] in words or BACKUP.fullmatch(noted["backup"]))
            and isinstance(noted["active"], bool)
        ):
            return noted
    raise Failed(
        f"{path}: found {text[:60]!r}; expected the journal of a restore that an earlier version began. {advice}, and remove "
        "this file"
    )
