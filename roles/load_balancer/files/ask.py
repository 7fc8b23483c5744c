"""Ask the balancer of this host what it lets through; prints one JSON document and changes nothing.

ask.py PORT HEALTH-PATH ADMIN-SOCKET CERTIFICATE PATH…
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import sys
import warnings
from pathlib import Path

# Other ways to write a path, and what HAProxy itself says to them: the application has a 403 of its own.
WAYS = ("/{}", "/{}/", "//{}", "/./{}", "/x/../{}", "/%2e/{}", "/{}%2f", "/{}?x=1")
REFUSALS = (b"not one that is taken here", b"not reachable from here")
END = "-----END CERTIFICATE-----\n"


def offer(newest: ssl.TLSVersion | None = None, ciphers: str = "") -> ssl.SSLContext:
    """Return a TLS client that trusts anybody: who serves is compared with the file on the disk."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if newest:
        with warnings.catch_warnings():
            # Old versions are what is asked for: the server must be the one that refuses them.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
        context.set_ciphers(ciphers)
    return context


def shake(port: int, context: ssl.SSLContext) -> tuple[str, str]:
    """Return how a handshake ended, and the SHA-256 of the certificate that was shown."""
    try:
        with socket.create_connection(("127.0.0.1", port), 3) as raw, context.wrap_socket(raw) as tls:
            return f"a connection, {tls.version()}", hashlib.sha256(tls.getpeercert(True) or b"").hexdigest()
    except OSError as error:
        return f"refused: {type(error).__name__}", ""


def ask(port: int, path: str) -> tuple[int, bytes]:
    """Return status and body of an answer; 0 when there is none."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=offer())
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def say(admin: str, command: str) -> str:
    """Return what the admin socket answers."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(admin)
        client.sendall(command.encode() + b"\n")
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def over_tls(admin: str) -> list[str]:
    """Return the backends that the running process reaches over TLS."""
    lines = [line.split() for line in say(admin, "show servers state app").splitlines()]
    names = next(line[1:] for line in lines if line[:1] == ["#"])
    rows = [dict(zip(names, line, strict=False)) for line in lines if len(line) > len(names) // 2 and line[0] != "#"]
    return [row["srv_name"] for row in rows if row.get("srv_use_ssl") == "1"]


def backends(admin: str) -> dict[str, str]:
    """Return the state of each backend, as the admin socket tells."""
    names, *rows = [line.split(",") for line in say(admin, "show stat").lstrip("# ").splitlines() if line]
    found = [dict(zip(names, row, strict=False)) for row in rows]
    return {row["svname"]: row["status"] for row in found if row["pxname"] == "app" and row["svname"] != "BACKEND"}


def counts(admin: str) -> str:
    """Tell whether connections are counted by address."""
    tables = [line for line in say(admin, "show table").splitlines() if line.startswith("# table: https,")]
    return "by address" if any("type: ipv6" in table for table in tables) else "not counted"


def let_in(port: int, path: str) -> list[str]:
    """Return the ways to a refused path that HAProxy does not refuse."""
    bare = path.removesuffix("*").lstrip("/")
    ways = [*(way.format(bare) for way in WAYS), f"/{bare.upper()}"]
    return [way for way in ways if not any(refusal in ask(port, way)[1] for refusal in REFUSALS)]


def main(port: int, health: str, admin: str, certificate: str, *refused: str) -> None:
    """Ask everything, and print it."""
    disk = ssl.PEM_cert_to_DER_cert(Path(certificate).read_text(encoding="utf-8").split(END)[0] + END)
    served = shake(port, offer())[1]
    found = {
        "health": ask(port, health)[0],
        "tls11": shake(port, offer(ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"))[0],
        # Ciphers with a hash of their own are those in CBC mode.
        "cbc": shake(port, offer(ssl.TLSVersion.TLSv1_2, "SHA1:SHA256:SHA384:@SECLEVEL=0"))[0],
        "certificate": "the one on the disk" if served == hashlib.sha256(disk).hexdigest() else "an older one",
        "backends": backends(admin),
        "over_tls": over_tls(admin),
        "counts": counts(admin),
        "let_in": [way for path in refused for way in let_in(port, path)],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
