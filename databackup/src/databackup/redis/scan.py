"""How far the files of a Redis server make sense: its append-only files and their manifest."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import BinaryIO

from databackup.owner import plain

# Bytes: of what is behind a damage, how much is read as commands, and how much is searched for their number.
BEHIND = 64 << 20
COUNTED = 1 << 30
CHUNK = 4 << 20
# As Redis writes a command, from its number of words to the length of the first.
COMMAND = re.compile(rb"\*[1-9][0-9]{0,8}\r\n\$[1-9][0-9]{0,3}\r\n[A-Za-z]")


def _line(file: BinaryIO) -> bytes:
    return file.readline(128)


def _number(text: bytes) -> int:
    match = re.match(rb"[0-9]+", text)
    return int(match[0]) if match else -1


def ends_early(path: Path, whole: int) -> bool:
    """Return whether Redis comes to the end of the file before it finds something that is no command.

    That is what it takes for a cut tail. It reads on from where `redis-check-aof` stopped, by the rules of
    https://github.com/redis/redis/blob/7.0/src/aof.c (loadSingleAppendOnlyFile).
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(whole)
        while file.tell() - whole < BEHIND:
            line = _line(file)
            if line in (b"", b"*"):
                return True
            if line[:1] == b"#":
                continue
            words = _number(line[1:])
            if line[:1] != b"*" or words < 1:
                return False
            for _ in range(words):
                line = _line(file)
                if not line:
                    return True
                if line[:1] != b"$" or ((length := _number(line[1:])) < 0 and line[1:].strip()):
                    return False
                # A text and its end of line.
                if file.tell() + max(length, 0) + 2 > size:
                    return True
                file.seek(max(length, 0) + 2, os.SEEK_CUR)
    return False


def commands_behind(path: Path, whole: int) -> int | None:
    """Return about how many commands begin behind a place; None where there is too much to look through."""
    size = path.stat().st_size
    if size - whole > COUNTED:
        return None
    with path.open("rb") as file:
        file.seek(whole)
        # Whether there are any is to be right; of many, a line that begins like one will do, which is much faster.
        count = sum(1 for _ in COMMAND.finditer(file.read(CHUNK)))
        while data := file.read(CHUNK):
            count += data.count(b"\r\n*")
    return count


def transaction_begins(path: Path, whole: int) -> bool:
    """Return whether a transaction begins there that has no end: its commands are whole, and none of them counts."""
    with path.open("rb") as file:
        file.seek(whole)
        return file.read(32).upper().startswith(b"*1\r\n$5\r\nMULTI\r\n") and ends_early(path, whole)


def manifest_files(text: str) -> list[str] | None:
    """Return the files that a manifest of Redis names, in the order in which they are loaded; None for no manifest."""
    base: list[str] = []
    later: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            words = shlex.split(line)
        except ValueError:
            return None
        values = dict(zip(words[::2], words[1::2], strict=False))
        if not {"file", "seq", "type"} <= set(values) or not plain(values["file"]):
            return None
        if values["type"] == "b":
            base.append(values["file"])
        elif values["type"] == "i":
            later.append(values["file"])
    return base + later or None


def rdb_error(told: str) -> tuple[int, str]:
    """Return where and why one of Redis' tools stopped to read a snapshot."""
    after = told.rpartition("--- RDB ERROR DETECTED ---")[2]
    match = re.search(r"\[offset ([0-9]+)\] (.+)", after)
    return (int(match[1]), match[2].strip()) if match else (0, " / ".join(told.strip().splitlines()[-2:]))
