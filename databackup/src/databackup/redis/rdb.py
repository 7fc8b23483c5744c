"""Count the keys of an RDB stream and take a digest of its data, while it arrives.

The digest shows whether two snapshots hold the same data, whatever order their keys are in and however Redis packs its
collections: it is the sum of one hash for each key, over its database, name, value and expiry. Strings count as Redis
stores them, so two snapshots compare only if both were made with the same `rdbcompression`. What a snapshot says of
memory, idle times and consumers' last visits is left out.

Format: https://github.com/redis/redis/blob/7.0/src/rdb.h and rdb.c
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

# The newest that is understood: Redis 7.2 writes 11, 7.0 writes 10.
NEWEST = 11
# The oldest Redis that reads a format. Of later ones, the version that wrote it is known to read it.
FORMATS = {10: (7, 0), 11: (7, 2), 12: (7, 4)}
# From this one on they are Valkey's own.
VALKEY_FORMAT = 80
# Of a format that is not known here, so many bytes have their checksum compared.
CHECKED = 16 << 20
# The name of its writer is within so many bytes of a snapshot.
HEAD = 512
MASK = (1 << 128) - 1
SALT_NONE = bytes(16)


class Damaged(Exception):
    """The stream is no RDB, is truncated, or holds something that this version does not know."""


class Newer(Damaged):
    """The stream is of a newer Redis, or of Valkey, and says so; nothing shows that it is damaged."""


class _More(Exception):
    """A value goes on beyond what has arrived; `needed` bytes from its start are wanted at least."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


@dataclass
class Summary:
    """What is in a snapshot."""

    version: int = 0
    keys: int = 0
    # Of them, those that expire.
    volatile: int = 0
    # Hash of each key, summed up: of those that stay, and of those that expire.
    lasting_sum: int = 0
    # For each key that expires: when, in milliseconds since the epoch, and the lower half of its hash.
    expiries: array[int] = field(default_factory=lambda: array("Q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    # The facts about the writer at the stream's beginning, such as redis-ver and used-mem.
    about: dict[str, str] = field(default_factory=dict)
    functions: int = 0

    @property
    def digest(self) -> str:
        """The digest of all keys."""
        return self.digest_after(0)

    def digest_after(self, moment: int) -> str:
        """Return the digest without the keys that expire up to `moment`, in milliseconds since the epoch."""
        total = sum(hash_ for when, hash_ in zip(self.expiries, self.hashes, strict=True) if when > moment)
        return f"{(self.lasting_sum + total) & MASK:032x}"

    def keys_after(self, moment: int) -> int:
        """Return the number of keys without those that expire up to `moment`."""
        return self.keys - self.volatile + sum(when > moment for when in self.expiries)


def decompress(data: bytes, length: int) -> bytes:
    """Return what LZF packed into `data`; raises Damaged if that is not `length` bytes."""
    out = bytearray()
    at = 0
    try:
        while at < len(data):
            control = data[at]
            at += 1
            if control < 32:
                out += data[at : at + control + 1]
                at += control + 1
                continue
            size = control >> 5
            if size == 7:
                size += data[at]
                at += 1
            back = ((control & 31) << 8) + data[at] + 1
            at += 1
            start = len(out) - back
            if start < 0:
                raise Damaged("a compressed text points before its beginning")
            size += 2
            if back >= size:
                out += out[start : start + size]
            else:
                out += (out[start:] * (size // back + 1))[:size]
    except IndexError:
        raise Damaged("a compressed text is truncated") from None
    if len(out) != length:
        raise Damaged("a compressed text has another length than it declares")
    return bytes(out)


def listpack(data: bytes) -> list[bytes]:
    """Return the elements of a listpack as texts."""
    items: list[bytes] = []
    at = 6
    try:
        while data[at] != 0xFF:
            head = data[at]
            if head < 0x80:
                items.append(b"%d" % head)
                size = 1
            elif head < 0xC0:
                length = head & 0x3F
                items.append(data[at + 1 : at + 1 + length])
                size = 1 + length
            elif head < 0xE0:
                number = ((head & 0x1F) << 8) | data[at + 1]
                items.append(b"%d" % (number - 0x2000 if number >= 0x1000 else number))
                size = 2
            elif head < 0xF0:
                length = ((head & 0x0F) << 8) | data[at + 1]
                items.append(data[at + 2 : at + 2 + length])
                size = 2 + length
            elif head == 0xF0:
                length = int.from_bytes(data[at + 1 : at + 5], "little")
                items.append(data[at + 5 : at + 5 + length])
                size = 5 + length
            elif head in (0xF1, 0xF2, 0xF3, 0xF4):
                width = {0xF1: 2, 0xF2: 3, 0xF3: 4, 0xF4: 8}[head]
                items.append(b"%d" % int.from_bytes(data[at + 1 : at + 1 + width], "little", signed=True))
                size = 1 + width
            else:
                raise Damaged("a listpack holds an unknown element")
            # Each element ends with its own length, in as many bytes as that takes at seven bits each.
            at += size + (
                1 if size < 128 else 2 if size < 16384 else 3 if size < 2097152 else 4 if size < 268435456 else 5
            )
    except IndexError:
        raise Damaged("a listpack is truncated") from None
    return items


def ziplist(data: bytes) -> list[bytes]:
    """Return the elements of a ziplist, what Redis before 7 wrote, as texts."""
    items: list[bytes] = []
    at = 10
    try:
        while data[at] != 0xFF:
            at += 5 if data[at] == 0xFE else 1
            head = data[at]
            if head < 0x40:
                length, at = head, at + 1
            elif head < 0x80:
                length, at = ((head & 0x3F) << 8) | data[at + 1], at + 2
            elif head < 0xC0:
                length, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
            else:
                width = {0xC0: 2, 0xD0: 4, 0xE0: 8, 0xF0: 3, 0xFE: 1}.get(head, 0)
                if width == 0 and not 0xF1 <= head <= 0xFD:
                    raise Damaged("a ziplist holds an unknown element")
                number = int.from_bytes(data[at + 1 : at + 1 + width], "little", signed=True)
                items.append(b"%d" % (number if width else (head & 0x0F) - 1))
                at += 1 + width
                continue
            items.append(data[at : at + length])
            at += length
    except IndexError:
        raise Damaged("a ziplist is truncated") from None
    return items


def intset(data: bytes) -> list[bytes]:
    """Return the numbers of an intset as texts."""
    width, count = struct.unpack_from("<II", data)
    code = {2: "h", 4: "i", 8: "q"}.get(width)
    if code is None or len(data) != 8 + width * count:
        raise Damaged("an intset has another length than it declares")
    return [b"%d" % number for number in struct.unpack_from(f"<{count}{code}", data, 8)]


def _hash(*parts: bytes) -> int:
    """Return one number for texts in their order, with their lengths."""
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(b"%d:" % len(part))
        state.update(part)
    return int.from_bytes(state.digest(), "little")


def _pairs(items: list[bytes]) -> int:
    return sum(_hash(name, value) for name, value in zip(items[::2], items[1::2], strict=True))


def _score(value: float) -> bytes:
    return struct.pack("<d", value)


def _scored(items: list[bytes]) -> int:
    return sum(_hash(name, _score(float(value))) for name, value in zip(items[::2], items[1::2], strict=True))


# --- Who wrote it ---


@dataclass(frozen=True)
class Origin:
    """The writer of a snapshot, as it names itself."""

    # Redis or Valkey.
    program: str
    # Empty where it does not say.
    version: str
    format: int

    @property
    def text(self) -> str:
        """Return it for an operator."""
        name = (
            f"{self.program} {self.version}" if self.version else f"a {self.program} that does not declare its version"
        )
        return f"{name} (RDB format {self.format})"

    @property
    def reader(self) -> str:
        """Return what reads it."""
        if self.program == "Valkey" and self.format >= VALKEY_FORMAT:
            return f"No Redis reads it; Valkey {self.version or '9.0'} or newer does"
        if self.format in FORMATS:
            return f"Redis {'.'.join(map(str, FORMATS[self.format]))} or newer reads it"
        known = f"{self.program} {self.version} or newer" if self.version else "The version that wrote it"
        return f"{known} reads it"

    def beyond(self, installed: tuple[int, ...]) -> bool:
        """Return whether it is too new for an installed Redis.

        A format that is newer than the Redis which the file names is none: there, the number itself is damaged.
        """
        if self.format <= max((number for number, least in FORMATS.items() if least <= installed[:2]), default=9):
            return False
        return self.program != "Redis" or not self.version or numbers(self.version) > installed[:2]

    def unread(self, installed: tuple[int, ...]) -> str:
        """Report that an installed Redis does not read it, and which one does."""
        here = ".".join(map(str, installed))
        return f"was written by {self.text}, which Redis {here} here does not read. {self.reader}"


def numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; none of a text that is no version."""
    match = re.match(r"([0-9]+)\.([0-9]+)", version)
    return (int(match[1]), int(match[2])) if match else ()


def origin(head: bytes) -> Origin | None:
    """Return what the first bytes of a snapshot say of who wrote it; None where they are those of no snapshot."""
    match = re.match(rb"REDIS([0-9]{4})|VALKEY([0-9]{3})", head)
    if match is None:
        return None
    reader = Reader(iter([head[match.end() :]]))
    about: dict[bytes, str] = {}
    # They end with the head, at the latest.
    with suppress(Damaged, _More):
        reader.fill(1)
        while reader.byte() == 0xFA:
            name, value = reader.text(), reader.text()
            about[name] = value.decode(errors="replace")
    program = "Valkey" if match[2] or b"valkey-ver" in about else "Redis"
    version = about.get(b"valkey-ver" if program == "Valkey" else b"redis-ver", "")
    return Origin(program, version if numbers(version) else "", int(match[1] or match[2]))


def origin_of(path: Path) -> Origin | None:
    """Return the writer of a file; None for a file that is no snapshot, or cannot be read."""
    try:
        with path.open("rb") as file:
            return origin(file.read(HEAD))
    except OSError:
        return None


def foreign(path: Path) -> bool:
    """Return whether a file is a snapshot that Redis does not take for one."""
    found = origin_of(path)
    return found is not None and found.program == "Valkey" and found.format >= VALKEY_FORMAT


def broken(path: Path) -> str:
    """Return what shows that a snapshot of any format is not whole, or nothing.

    All formats end alike: a mark, and the checksum of what is before it, or zeros. Of a large file the mark is looked at
    only, since the checksum takes Python a second for each 10 MB.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 9))
        end = file.read()
        if end[:1] != b"\xff":
            return "the mark of its end is missing"
        if size > CHECKED or not any(end[1:]):
            return ""
        file.seek(0)
        return "" if checksum(file.read(size - 8)) == int.from_bytes(end[1:], "little") else "its checksum is wrong"


def checksum(data: bytes) -> int:
    """Return the CRC-64 of Jones' that ends a snapshot."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x95AC9329AC4BC9B5 if value & 1 else 0)
        table.append(value)
    state = 0
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    return state


class Reader:
    """Reads values from chunks of a stream. Positions are those of the current buffer."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.buffer = b""
        self.at = 0

    def fill(self, needed: int) -> None:
        """Drop what was read, and go on until `needed` bytes are there; raises Damaged at the stream's end."""
        parts = [self.buffer[self.at :]]
        size = len(parts[0])
        self.at = 0
        # A chunk more than what is needed: each refill copies what is left.
        while size < needed or len(parts) == 1:
            try:
                part = next(self.chunks)
            except StopIteration:
                self.buffer = b"".join(parts)
                raise Damaged("the snapshot is truncated") from None
            parts.append(part)
            size += len(part)
        self.buffer = b"".join(parts)

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        at = self.at
        if at + size > len(self.buffer):
            raise _More(at + size)
        self.at = at + size
        return self.buffer[at : at + size]

    def byte(self) -> int:
        """Return the next byte."""
        at = self.at
        if at >= len(self.buffer):
            raise _More(at + 1)
        self.at = at + 1
        return self.buffer[at]

    def length(self) -> tuple[int, bool]:
        """Return a length; or, with True, the number of a special encoding of a text."""
        first = self.byte()
        kind = first >> 6
        if kind == 0:
            return first, False
        if kind == 1:
            return ((first & 0x3F) << 8) | self.byte(), False
        if kind == 3:
            return first & 0x3F, True
        if first == 0x80:
            return int.from_bytes(self.take(4), "big"), False
        if first == 0x81:
            return int.from_bytes(self.take(8), "big"), False
        raise Damaged(f"the snapshot has no length where one should be ({first:#x})")

    def count(self) -> int:
        """Return a length that must be a plain number."""
        number, special = self.length()
        if special:
            raise Damaged("the snapshot has a text where a number should be")
        return number

    def text(self) -> bytes:
        """Return a text."""
        number, special = self.length()
        if not special:
            return self.take(number)
        if number == 3:
            packed, size = self.count(), self.count()
            return decompress(self.take(packed), size)
        if number > 2:
            raise Damaged(f"the snapshot has a text of an unknown kind ({number})")
        return b"%d" % int.from_bytes(self.take(1 << number), "little", signed=True)

    def skip_text(self) -> None:
        """Pass over a text without unpacking it."""
        number, special = self.length()
        if special and number == 3:
            number = self.count()
            self.count()
        elif special:
            if number > 2:
                raise Damaged(f"the snapshot has a text of an unknown kind ({number})")
            number = 1 << number
        self.take(number)


def _float(reader: Reader) -> float:
    size = reader.byte()
    if size >= 253:
        return {253: float("nan"), 254: float("inf"), 255: float("-inf")}[size]
    return float(reader.take(size))


def _stream(kind: int) -> Callable[[Reader], int]:
    def value(reader: Reader) -> int:
        parts = []
        for _ in range(reader.count()):
            parts += [reader.text(), reader.text()]
        numbers = [reader.count() for _ in range(3)]
        if kind >= 19:
            for _ in range(5):
                reader.count()
        for _ in range(reader.count()):
            parts.append(reader.text())
            numbers += [reader.count(), reader.count()]
            if kind >= 19:
                reader.count()
            for _ in range(reader.count()):
                parts.append(reader.take(16))
                reader.take(8)
                reader.count()
            for _ in range(reader.count()):
                parts.append(reader.text())
                reader.take(8 if kind < 21 else 16)
                parts += [reader.take(16) for _ in range(reader.count())]
        return _hash(*parts, *(b"%d" % number for number in numbers))

    return value


def _quicklist(reader: Reader) -> int:
    items: list[bytes] = []
    for _ in range(reader.count()):
        plain = reader.count() == 1
        text = reader.text()
        items += [text] if plain else listpack(text)
    return _hash(*items)


def _old_quicklist(reader: Reader) -> int:
    return _hash(*(item for _ in range(reader.count()) for item in ziplist(reader.text())))


# The kind of a value for the digest, one for all ways in which Redis packs it, and what reads one.
LIST, SET, ZSET, HASH, STREAM = range(1, 6)
VALUES: dict[int, tuple[int, Callable[[Reader], int]]] = {
    1: (LIST, lambda r: _hash(*[r.text() for _ in range(r.count())])),
    2: (SET, lambda r: sum(_hash(r.text()) for _ in range(r.count()))),
    3: (ZSET, lambda r: sum(_hash(r.text(), _score(_float(r))) for _ in range(r.count()))),
    4: (HASH, lambda r: sum(_hash(r.text(), r.text()) for _ in range(r.count()))),
    5: (ZSET, lambda r: sum(_hash(r.text(), r.take(8)) for _ in range(r.count()))),
    10: (LIST, lambda r: _hash(*ziplist(r.text()))),
    11: (SET, lambda r: sum(_hash(item) for item in intset(r.text()))),
    12: (ZSET, lambda r: _scored(ziplist(r.text()))),
    13: (HASH, lambda r: _pairs(ziplist(r.text()))),
    14: (LIST, _old_quicklist),
    15: (STREAM, _stream(15)),
    16: (HASH, lambda r: _pairs(listpack(r.text()))),
    17: (ZSET, lambda r: _scored(listpack(r.text()))),
    18: (LIST, _quicklist),
    19: (STREAM, _stream(19)),
    20: (SET, lambda r: sum(_hash(item) for item in listpack(r.text()))),
    21: (STREAM, _stream(21)),
}


def summarize(chunks: Iterator[bytes]) -> Summary:
    """Return what is in an RDB stream; reads it to its end and raises Damaged for one that is not whole."""
    reader = Reader(chunks)
    reader.fill(9)
    found = origin(reader.buffer)
    if found is None:
        raise Damaged("this is no snapshot of Redis: it does not begin with REDIS and a version")
    summary = Summary(version=found.format)
    if summary.version > NEWEST:
        with suppress(Damaged):
            reader.fill(HEAD)
        found = origin(reader.buffer) or found
        raise Newer(f"the snapshot was written by {found.text}; the newest format that databackup reads is {NEWEST}")
    reader.at = 9
    state = _State()
    while True:
        start = reader.at
        try:
            if _records(reader, summary, state):
                return summary
        except _More as more:
            # Back to the record that is not whole yet, or to where the fast loop had got.
            begin = max(start, state.record)
            needed = more.needed - begin
            reader.at = begin
            reader.fill(needed)
        state.record = 0


@dataclass
class _State:
    """What the records before have said of those to come."""

    database: int = 0
    expiry: int = 0
    # Where the current record begins.
    record: int = 0


def _records(reader: Reader, summary: Summary, state: _State) -> bool:
    """Read record after record; return True at the end of the snapshot. Raises _More within a record."""
    keys = 0
    lasting = 0
    salt = SALT_NONE if not state.database else state.database.to_bytes(16, "little")
    try:
        while True:
            state.record = at = reader.at
            buffer = reader.buffer
            try:
                kind = buffer[at]
                if kind == 0:
                    # Most of most snapshots: a text, by name. Its record is hashed as it lies there.
                    spot = at + 1
                    for _ in (0, 1):
                        first = buffer[spot]
                        if first < 0x40:
                            spot += 1 + first
                        elif first < 0x80:
                            spot += 2 + (((first & 0x3F) << 8) | buffer[spot + 1])
                        else:
                            reader.at = spot
                            reader.skip_text()
                            spot = reader.at
                    if spot > len(buffer):
                        raise _More(spot)
                    reader.at = spot
                    value = int.from_bytes(
                        blake2b(
                            buffer[at:spot],
                            digest_size=16,
                            salt=salt
                            if not state.expiry
                            else (state.database << 64 | state.expiry).to_bytes(16, "little"),
                        ).digest(),
                        "little",
                    )
                elif kind == 0xFC:
                    if at + 9 > len(buffer):
                        raise _More(at + 9)
                    state.expiry = int.from_bytes(buffer[at + 1 : at + 9], "little")
                    reader.at = at + 9
                    continue
                elif kind == 0xF8:
                    reader.at = at + 1
                    reader.count()
                    continue
                elif kind in VALUES:
                    reader.at = at + 1
                    name = reader.text()
                    family, read = VALUES[kind]
                    content = read(reader) & MASK
                    value = int.from_bytes(
                        blake2b(
                            b"%d:%d:%b%d" % (family, len(name), name, content),
                            digest_size=16,
                            salt=(state.database << 64 | state.expiry).to_bytes(16, "little"),
                        ).digest(),
                        "little",
                    )
                else:
                    reader.at = at + 1
                    if _special(reader, kind, summary, state):
                        return True
                    salt = SALT_NONE if not state.database else (state.database << 64).to_bytes(16, "little")
                    continue
            except IndexError:
                raise _More(at + 16) from None
            keys += 1
            if state.expiry:
                summary.expiries.append(state.expiry)
                summary.hashes.append(value & 0xFFFFFFFFFFFFFFFF)
                state.expiry = 0
            else:
                lasting += value
    finally:
        summary.keys += keys
        summary.volatile = len(summary.expiries)
        summary.lasting_sum = (summary.lasting_sum + lasting) & MASK


def _special(reader: Reader, kind: int, summary: Summary, state: _State) -> bool:
    """Read what is no key; return True at the end of the snapshot."""
    if kind == 0xFF:
        # A checksum follows since version 5; Redis and redis-check-rdb compare it.
        reader.take(8)
        return True
    if kind == 0xFA:
        name, value = reader.text(), reader.text()
        summary.about[name.decode(errors="replace")] = value.decode(errors="replace")
    elif kind == 0xFE:
        state.database = reader.count()
    elif kind == 0xFB:
        reader.count()
        reader.count()
    elif kind == 0xFD:
        state.expiry = int.from_bytes(reader.take(4), "little") * 1000
    elif kind == 0xF9:
        reader.byte()
    elif kind == 0xF5:
        text = reader.text()
        summary.lasting_sum += _hash(b"function", text)
        summary.functions += 1
    elif kind in (0xF7, 6, 7):
        raise Damaged("the snapshot holds data of a module, which only that module can read")
    else:
        raise Damaged(f"the snapshot holds a value of an unknown kind ({kind})")
    return False
