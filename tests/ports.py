"""Ports for servers of tests."""

from __future__ import annotations

import socket

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a port of loopback that is free now, and that nobody else is given while this process runs.

    A socket stays bound to it, which does not listen. A server that sets SO_REUSEADDR, as all of ours do, may do so;
    a test of another process that asks for any port gets another one.
    """
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _reserved.append(reserved)
    port: int = reserved.getsockname()[1]
    return port
