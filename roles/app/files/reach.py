"""Connect as an application's user to what its environment names; prints what root reaches and that user does not.

reach.py USER ENDPOINTS, which are JSON: [name, host, port] of each. Sends nothing and changes nothing.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import sys

# Seconds for one connection.
PATIENCE = 3


def attempt(host: str, port: int) -> str:
    """Return why there is no connection; empty when there is one."""
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    except UnicodeError as error:
        # Of a host that can be no name.
        return type(error).__name__
    return ""


def main(user: str, endpoints: list[tuple[str, str, int]]) -> None:
    """Ask as root first: a server that is away is nobody's fault here."""
    reached = [item for item in endpoints if not attempt(item[1], item[2])]
    who = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(who.pw_gid)
    os.setuid(who.pw_uid)
    tried = [(f"{name}: {host}:{port}", attempt(host, port)) for name, host, port in reached]
    print(json.dumps([f"{where} ({why})" for where, why in tried if why]))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
