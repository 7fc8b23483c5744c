"""Files that a module and Redis both write: read, replaced atomically, the old one kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def read(path: str) -> str | None:
    """Return a file's text, or None where there is none; raises OSError when it cannot be read."""
    try:
        return Path(path).read_text(errors="surrogateescape")
    except FileNotFoundError:
        return None


class Candidate:
    """A file's next text, on the disk beside it, complete and synced, but not in its place yet.

    Whatever can go wrong with the disk goes wrong in the constructor (OSError), before a server was told anything.
    """

    def __init__(self, path: str, text: str, declare: Callable[[str], object]) -> None:
        """Write the text; `declare` gives the new file its owner and mode."""
        self.path = path
        folder = os.path.dirname(path) or "."
        handle, self.temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=folder)
        try:
            with os.fdopen(handle, "w", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            declare(self.temporary)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove it; harmless when it is gone."""
        Path(self.temporary).unlink(missing_ok=True)

    def replace(self, *, keep: bool = True) -> str | None:
        """Put it in place and return the path of the old file, kept as `<path>.previous`; None if there was none."""
        previous = f"{self.path}.previous"
        kept: str | None = None
        if keep and os.path.exists(self.path):
            # A link, then a rename over the original: at no moment is there no file.
            Path(previous).unlink(missing_ok=True)
            os.link(self.path, previous)
            kept = previous
        os.replace(self.temporary, self.path)
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return kept
