"""Texts as Redis and its clients write them: the words of a line, sizes, and the file with a login.

It needs no other module, as databackup has it, too. After `sdssplitargs` in sds.c and `memtoull` in util.c:
https://github.com/redis/redis/blob/7.0.15/src/sds.c
"""

from __future__ import annotations

import re

SPACES = b" \t\n\v\f\r"
ESCAPES = {ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("b"): 8, ord("a"): 7}
# k, m and g are powers of 1000, and kb, mb and gb powers of 1024.
UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}


class ConfError(ValueError):
    """A directive, a value or a line that cannot be in a redis.conf of ours; the message names it."""


def split(line: str) -> tuple[str, ...]:
    """Return the words of a line, as sdssplitargs does; raises ConfError for quotes that do not close."""
    data = line.encode(errors="surrogateescape")
    words: list[bytes] = []
    at = 0
    while True:
        while at < len(data) and data[at] in SPACES:
            at += 1
        if at == len(data):
            return tuple(word.decode(errors="surrogateescape") for word in words)
        word, at = _word(data, at)
        words.append(word)


def _word(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the word that begins at a place, and the place after it."""
    word = bytearray()
    while at < len(data) and data[at] not in b" \t\n\r":
        if data[at] in b"\"'":
            # As in Redis, a quote may open within a word; where it closes, the word ends.
            part, at = _quoted(data, at + 1, data[at])
            return bytes(word + part), at
        word.append(data[at])
        at += 1
    return bytes(word), at


def _quoted(data: bytes, at: int, quotes: int) -> tuple[bytes, int]:
    """Return the text from after an opening quote to the closing one, and the place after that."""
    text = bytearray()
    double = quotes == ord('"')
    while at < len(data):
        if data[at] == quotes:
            if at + 1 < len(data) and data[at + 1] not in SPACES:
                break
            return bytes(text), at + 1
        if double and (code := re.match(rb"\\x([0-9a-fA-F]{2})", data[at : at + 4])):
            text.append(int(code[1], 16))
            at += 4
        elif double and data[at] == ord("\\") and at + 1 < len(data):
            text.append(ESCAPES.get(data[at + 1], data[at + 1]))
            at += 2
        elif not double and data[at : at + 2] == b"\\'":
            text.append(ord("'"))
            at += 2
        else:
            text.append(data[at])
            at += 1
    raise ConfError("unbalanced quotes")


def size(text: str) -> int | None:
    """Return a size such as `512mb` in bytes; None for what is none."""
    match = re.fullmatch(r"([0-9]+)([a-z]*)", text.lower())
    return int(match[1]) * UNITS[match[2]] if match and match[2] in UNITS else None


def login(text: str) -> tuple[str, str] | None:
    """Return user and password of a file with `REDISCLI_USER=…` and `REDISCLI_AUTH=…`; None without a password."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    password = values.get("REDISCLI_AUTH", "")
    return (values.get("REDISCLI_USER", "default"), password) if password else None
