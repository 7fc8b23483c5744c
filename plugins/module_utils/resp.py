"""A small blocking client for the Redis protocol, RESP2, on the standard library alone.

Hosts have no redis-py, and redis-cli takes a password only in its environment or from standard input. Modules use this
client instead: a secret stays in the memory of one process. Protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Any, BinaryIO, Union

Reply = Union[str, int, None, "ErrorReply", "list[Reply]"]


class ErrorReply(Exception):
    """An error that the server answered, such as `NOAUTH Authentication required.`"""


class ProtocolError(Exception):
    """The peer does not speak the Redis protocol, or stopped in the middle of a reply."""


def encode(*words: str) -> bytes:
    """Return one command as the server reads it; any character may stand in a word."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def decode(stream: BinaryIO) -> Reply:
    """Read one reply. An error reply is returned, not raised, so that those within a list stay in place.

    Raises ProtocolError when the stream ends early or holds something else.
    """
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ProtocolError("the connection was closed" if not line else "not a Redis reply")
    kind, rest = line[:1], line[1:-2]
    try:
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return ErrorReply(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            length = int(rest)
            if length < 0:
                return None
            body = stream.read(length + 2)
            if len(body) != length + 2:
                raise ProtocolError("the connection was closed within a reply")
            if body[-2:] != b"\r\n":
                raise ProtocolError("not a Redis reply: a text without its end")
            return body[:-2].decode(errors="surrogateescape")
        if kind == b"*":
            count = int(rest)
            return None if count < 0 else [decode(stream) for _ in range(count)]
    except ValueError as error:
        raise ProtocolError(f"not a Redis reply: {line[:40]!r}") from error
    raise ProtocolError(f"not a Redis reply: {line[:40]!r}")


def _plain(name: str) -> str | bytes:
    """Return a name for TLS. As bytes Python takes it as it is, also with more than 63 characters between two dots."""
    return name.encode() if name.isascii() else name


class Client:
    """One connection to one server; use it in a `with` block.

    `timeout` is in seconds and holds for connecting and for each reply. `ca_file` turns TLS on; the certificate is
    then always verified, and must name `server_name`, or `host` where that is not given. `cert_file` and `key_file` are
    for a server that asks its clients for certificates; `context` stands in for all three. `connection` is a socket
    that is connected already, such as a Unix socket. Raises OSError (ssl.SSLError among them) when no connection comes
    about.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ca_file: str | None = None,
        server_name: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        context: ssl.SSLContext | None = None,
        connection: socket.socket | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._socket = connection or socket.create_connection((host, port), timeout=timeout)
        try:
            if ca_file and context is None:
                context = ssl.create_default_context(cafile=ca_file)
                if cert_file:
                    context.load_cert_chain(cert_file, key_file)
            if context is not None:
                self._socket = context.wrap_socket(self._socket, server_hostname=_plain(server_name or host))
        except BaseException:
            self._socket.close()
            raise
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; harmless when it is closed already."""
        self._stream.close()
        self._socket.close()

    def peer_certificate(self) -> bytes | None:
        """Return the certificate that the server showed, in DER; None in plaintext."""
        return self._socket.getpeercert(True) if isinstance(self._socket, ssl.SSLSocket) else None

    def peer(self) -> dict[str, Any]:
        """Return the server's verified certificate, as ssl.SSLSocket.getpeercert(); empty in plaintext."""
        return (self._socket.getpeercert() or {}) if isinstance(self._socket, ssl.SSLSocket) else {}

    def send(self, *words: str) -> BinaryIO:
        """Send one command and return the connection's bytes, for what is no reply: a replication stream."""
        self._socket.sendall(encode(*words))
        return self._stream

    def pipeline(self, commands: Sequence[Sequence[str]]) -> list[Reply]:
        """Send all commands at once and return their replies in order, error replies included."""
        self._socket.sendall(b"".join(encode(*command) for command in commands))
        return [decode(self._stream) for _ in commands]

    def call(self, *words: str) -> Reply:
        """Send one command and return its reply; raises ErrorReply if that is an error."""
        reply = self.pipeline([words])[0]
        if isinstance(reply, ErrorReply):
            raise reply
        return reply
