"""Ask an application's instances on this host for what nobody may have; prints one JSON document and changes nothing.

ask.py QUESTIONS, which are JSON: address, ports, name, environment (a file), login and socket (paths, or empty).
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

# What lets users name themselves.
SWITCH = "AUTH_DEVELOPMENT_USERS"
OFF = ("", "false", "0", "no", "off")
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def anybody() -> ssl.SSLContext:
    """Return a TLS client that trusts anybody: nothing is told that is a secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def ask(address: str, port: int, method: str, path: str, body: str | None, headers: dict[str, str]) -> str:
    """Return the status of an answer, in plaintext or else over TLS; or why there is none."""
    why = ""
    for tls in (False, True):
        connection = (
            http.client.HTTPSConnection(address, port, timeout=5, context=anybody())
            if tls
            else http.client.HTTPConnection(address, port, timeout=5)
        )
        try:
            connection.request(method, path, body, headers)
            return str(connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            why = type(error).__name__
        finally:
            connection.close()
    return why


def switched_on(name: str, values: dict[str, str]) -> list[str]:
    """Return where the switch is on: `name`, or nothing."""
    return [name] if values.get(SWITCH, "").strip().lower() not in OFF else []


def written(path: str) -> dict[str, str]:
    """Return the variables in an environment file; none where it cannot be read, which its own check finds."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip().strip("\"'") for name, _, value in (line.partition("=") for line in lines)}


def running(unit: str) -> dict[str, str]:
    """Return the variables that a unit's process was started with; none where it does not run."""
    command = ["systemctl", "show", unit, "--property", "MainPID", "--value"]
    shown = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"})
    try:
        text = Path(f"/proc/{int(shown.stdout)}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def main(given: dict[str, Any]) -> None:
    """Ask everything, and print it."""
    where = switched_on(given["environment"], written(given["environment"]))
    logins: dict[str, str] = {}
    sockets: dict[str, str] = {}
    for port in given["ports"]:
        unit = f"{given['name']}@{port}"
        where += switched_on(unit, running(unit))
        for kind, body in (
            ("a name", {"user": "control"}),
            ("nothing", {}),
            ("no signature", {"assertion": "e30.e30."}),
        ):
            if given["login"]:
                sent = {"Content-Type": "application/json"}
                status = ask(given["address"], port, "POST", given["login"], json.dumps(body), sent)
                logins[f"{port} with {kind}"] = status
        if given["socket"]:
            sockets[str(port)] = ask(given["address"], port, "GET", given["socket"], None, HANDSHAKE)
    print(json.dumps({"development": where, "logins": logins, "sockets": sockets}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
