"""A snapshot of a Redis server by its replication protocol: no write waits, and no file is made in its folder.

After `redis-cli --rdb` and https://github.com/redis/redis/blob/7.0/src/replication.c
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from databackup.errors import Failed
from databackup.redis.resp import Client, ErrorReply

MARK = 40
CHUNK = 1 << 18


class Snapshot:
    """A stream of the server's data as of one moment. `offset` and `replication_id` say which."""

    def __init__(self, client: Client) -> None:
        """Request the data; raises Failed when the server gives none."""
        try:
            # The end by a mark: a server that sends straight from memory does not know the length before.
            client.call("REPLCONF", "capa", "eof")
            # Nothing but the snapshot: the server keeps no buffer of later writes for us.
            client.call("REPLCONF", "rdb-only", "1")
        except ErrorReply as error:
            raise Failed(f"Redis gives no snapshot: {error}") from None
        self.stream: BinaryIO = client.send("PSYNC", "?", "-1")
        line = self._line()
        words = line.split()
        if len(words) != 3 or words[0] != "+FULLRESYNC":
            raise Failed(f"Redis gives no snapshot: {line.removeprefix('-') or 'it closed the connection'}")
        self.replication_id, self.offset = words[1], int(words[2])

    def _line(self) -> str:
        while (line := self.stream.readline()) == b"\n":
            # The server is alive, and still prepares.
            pass
        return line.decode(errors="replace").strip()

    def chunks(self) -> Iterator[bytes]:
        """Yield the data; raises Failed when they end early, and OSError when the connection breaks."""
        head = self._line()
        if head.startswith("$EOF:"):
            yield from self._until(head[5:].encode())
        elif head.startswith("$") and head[1:].isdigit():
            yield from self._exactly(int(head[1:]))
        else:
            raise Failed(f"Redis gives no snapshot: {head.removeprefix('-') or 'its child ended; see its log'}")

    def _until(self, mark: bytes) -> Iterator[bytes]:
        held = b""
        while data := self.stream.read1(CHUNK):  # type: ignore[attr-defined]  # of a buffered reader
            held += data
            if held.endswith(mark):
                yield held[:-MARK]
                return
            if len(held) > MARK:
                yield held[:-MARK]
                held = held[-MARK:]
        raise Failed("the snapshot ends early: Redis or its child was ended in the middle; see its log")

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.stream.read1(min(size, CHUNK))  # type: ignore[attr-defined]  # of a buffered reader
            if not data:
                raise Failed("the snapshot ends early: Redis or its child was ended in the middle; see its log")
            size -= len(data)
            yield data
