"""What the balancer believes of the application's instances."""

from __future__ import annotations

from conftest import connect, eventually

STATES = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
    " s.sendall(b'show stat\\n'); rows = b''.join(iter(lambda: s.recv(65536), b'')).decode().splitlines();"
    " rows = [row.split(',') for row in rows if row.startswith('app,app')];"
    " print(*[':'.join(row[n] for n in (1, 17, 36)) for row in rows], sep='\\n')"
)


def states() -> dict[str, list[str]]:
    """Return of each instance its state, and what came of the last question."""
    lines = connect("lb1").check_output("python3 -c %s", STATES).splitlines()
    return {name: rest for name, *rest in (line.split(":") for line in lines)}


def all_up() -> bool:
    """Wait until every instance serves."""
    return eventually(lambda: {state for state, _ in states().values()}, lambda found: found == {"UP"}, 60) == {"UP"}
