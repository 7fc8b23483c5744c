"""Try whether backends can be reached over TLS before the balancer does so; changes nothing.

try_backends.py CA NAME ADDRESS PORT TLS-NAME…

Prints one line for each backend that cannot, and ends with 1 when none of them can.
"""

from __future__ import annotations

import socket
import ssl
import sys


def fault(ca: str, address: str, port: int, name: str) -> str:
    """Return why a backend cannot be reached over TLS with its name; empty when it can."""
    try:
        context = ssl.create_default_context(cafile=ca)
        with (
            socket.create_connection((address, port), 5) as plain,
            context.wrap_socket(plain, server_hostname=name),
        ):
            return ""
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def main(ca: str, words: list[str]) -> int:
    """Try all of them."""
    good = False
    for number in range(0, len(words), 4):
        backend, address, port, name = words[number : number + 4]
        found = fault(ca, address, int(port), name)
        good = good or not found
        if found:
            print(f"{backend}, {address}:{port} as {name}: {found}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
