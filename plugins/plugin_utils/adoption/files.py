"""Putting the file of a host into a folder of the controller, beside one that is there and differs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

Outcome = Literal["written", "unchanged", "beside"]


class CannotWrite(Exception):
    """A file that cannot be read or written; the message names it and the reason."""


def write(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all; raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def place(folder: Path, host: str, text: str, check: bool) -> tuple[Path, Outcome]:
    """Put a host's file into a folder; return its path and `beside` where another text stands at HOST.yml already.

    Where `check` is true, nothing is written. Raises CannotWrite.
    """
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', host).lstrip('.') or 'host'}.yml"
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else None
        if old == text:
            return path, "unchanged"
        target = path if old is None else path.with_name(f"{path.name}.new")
        if not check:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(target, text)
        return target, "written" if old is None else "beside"
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise CannotWrite(f"adopt_folder: {path} cannot be written: {reason}") from error
