"""How modules reach the Redis server on their own host: the option `server`, and logins that are tried in order.

A password that is being changed is known to the server under its old value until the change is made, so a module is
given every login that may be valid, the wanted one first.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import programs, redis_text
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_peer import (
    Foreign,
    listening,
    main_pid,
    older_than,
    prove,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, ProtocolError

# `argument_spec` of the options that the modules share.
SERVER_OPTIONS: dict[str, Any] = {
    "server": {
        "type": "dict",
        "options": {
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "required": True},
            "ca_file": {"type": "path"},
            "server_name": {"type": "str"},
            "cert_file": {"type": "path"},
            "key_file": {"type": "path"},
        },
    },
    "logins": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "username": {"type": "str", "default": "default"},
            "password": {"type": "str", "no_log": True},
        },
    },
    # The login that this host last knew, as redis_users leaves it for operators; tried after the first of `logins`.
    "credentials_file": {"type": "path"},
    # Its process is taken for the server although it shows a certificate that `ca_file` has not signed, as it does when
    # its files were replaced. No other process gets a password.
    "trusted_unit": {"type": "str"},
    # Seconds for a connection and each reply, and for a server that is still loading its data.
    "timeout": {"type": "float", "default": 5.0},
    "loading_timeout": {"type": "float", "default": 60.0},
}


class Refused(Exception):
    """The server is there and cannot be used; the message has the reason and what to do."""


class Stale(Refused):
    """The server refuses this host's own certificate: it knows another authority than its files have now."""


def credentials(file: str | None) -> list[dict[str, Any]]:
    """Return the login of a credentials file (`REDISCLI_USER=…`, `REDISCLI_AUTH=…`), or none where there is no file."""
    if file is None:
        return []
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    known = redis_text.login(text)
    return [{"username": known[0], "password": known[1]}] if known else []


def where(server: dict[str, Any]) -> str:
    """Return the server's address as people write it."""
    return f"{server['host']}:{server['port']}"


def login(client: Client, logins: list[dict[str, Any]], address: str) -> str | None:
    """Authenticate with the first login that the server takes, and return its user; None if it asks for no password.

    Raises Refused when it takes none of them.
    """
    refusals = []
    for attempt in logins:
        if attempt["password"] is None:
            continue
        try:
            client.call("AUTH", attempt["username"], attempt["password"])
        except ErrorReply as error:
            refusals.append(f"{attempt['username']}: {str(error).split('.')[0]}")
        else:
            return str(attempt["username"])
    try:
        client.call("PING")
    except ErrorReply as error:
        if str(error).startswith("NOAUTH"):
            raise Refused(
                f"the server on {address} refuses every login that was tried ({'; '.join(refusals) or 'none given'}). "
                "Nothing was changed. Its users were changed by hand: make it read its ACL file again (ACL LOAD, or a "
                "restart), then run this again."
            ) from error
        # Loading, or a full disk: somebody is in.
    return None


def offer(server: dict[str, Any], *, named: bool, signed: bool = True) -> ssl.SSLContext | None:
    """Return what to ask of the server over TLS: a certificate of the authority, and of its name; None in plaintext."""
    if not server["ca_file"]:
        return None
    context = ssl.create_default_context(cafile=server["ca_file"])
    context.check_hostname = named
    if not signed:
        context.verify_mode = ssl.CERT_NONE
    if server["cert_file"]:
        context.load_cert_chain(server["cert_file"], server["key_file"])
    return context


def dial(server: dict[str, Any], unit: str | None, timeout: float) -> socket.socket:
    """Return a connection to the server; with a unit, one that is proven to end at its process.

    That process may still listen at the addresses that its host had when it started, and at none that is asked for.
    """

    def proven(connection: socket.socket) -> socket.socket:
        try:
            if unit:
                prove(connection, unit, timeout)
        except BaseException:
            connection.close()
            raise
        return connection

    try:
        connection = socket.create_connection((server["host"], server["port"]), timeout=timeout)
    except OSError:
        for host in listening(main_pid(unit), server["port"]) if unit else []:
            try:
                # From loopback, which the unit lets in whatever systemd knows of the host's addresses by now.
                source = ("::1" if ":" in host else "127.0.0.1", 0)
                return proven(socket.create_connection((host, server["port"]), timeout, source_address=source))
            except OSError:
                # The host has that address no more, and perhaps another one has it.
                continue
        raise
    return proven(connection)


def open_to(params: Mapping[str, Any]) -> Client:
    """Return a connection to the server, verified; or to the unit's own process, which needs no certificate.

    Where systemd runs, a connection to the unit of `params` is proven before anything is sent through it; raises
    Foreign for one to another process. One that is proven may show a certificate of any name: a server goes on showing
    the one that it was started with, and its host may have been renamed since.
    """
    server, timeout = params["server"], params["timeout"]
    unit = params.get("trusted_unit") or params.get("unit")

    def opened(proven: bool, signed: bool = True) -> Client:
        connection = dial(server, unit if proven else None, timeout)
        try:
            context, name = offer(server, named=not proven, signed=signed), server["server_name"]
            return Client(server["host"], server["port"], server_name=name, context=context, connection=connection)
        except BaseException:
            connection.close()
            raise

    try:
        return opened(bool(unit) and os.path.isdir("/run/systemd/system"))
    except ssl.SSLCertVerificationError as error:
        if not params.get("trusted_unit"):
            raise
        try:
            return opened(True, signed=False)
        except OSError:
            # Somebody else's, or closed by now, as the server does with a certificate that it does not know.
            raise error from None


def restart_stale(params: Mapping[str, Any], seconds: float) -> Client | None:
    """Restart the unit that refuses this host's certificate, and return a connection; raises Refused.

    Nothing else makes a server take another authority that lets nobody in. It is done only when its files changed since
    it started: then a restart is what they wait for.
    """
    unit = params["trusted_unit"]
    if programs.run(["systemctl", "restart", unit]).returncode != 0:
        raise Refused(f"{unit} refuses the certificate of this host, and does not restart; see journalctl -u {unit}")
    deadline = time.monotonic() + seconds
    while True:
        client = connect(params)
        if client is not None or time.monotonic() > deadline:
            return client
        time.sleep(0.1)


def stale(params: Mapping[str, Any]) -> bool:
    """Return whether the files of TLS changed since the unit\'s process started."""
    server, unit = params["server"], params.get("trusted_unit")
    files = [server["ca_file"], server["cert_file"], server["key_file"]]
    return bool(unit) and older_than(main_pid(str(unit)), files)


def connect(params: Mapping[str, Any]) -> Client | None:
    """Return an authenticated connection to a server that has its data; None when nobody of ours listens there.

    With `trusted_unit`, or `unit`, another process on the port is nobody: while that unit is down, any user of the host
    can take its port, and another instance has the key of the host's certificate, too.

    `params` are a module's, with SERVER_OPTIONS among them. Raises Refused when the server is there but takes no login,
    keeps loading for too long, or does not speak TLS as expected.
    """
    server, loading_timeout = params["server"], params["loading_timeout"]
    address = where(server)
    try:
        client = open_to(params)
    except (ConnectionRefusedError, Foreign):
        return None
    except OSError as error:
        message = f"a server listens on {address}, but no connection came about: {type(error).__name__}: {error}"
        outdated = isinstance(error, ssl.SSLError) and server["cert_file"] and stale(params)
        raise (Stale if outdated else Refused)(message) from error
    try:
        # What this host knew last comes before what others may have left: it is the same user, before its change.
        first, *others = params["logins"] or [{"username": "default", "password": None}]
        try:
            login(client, [first, *credentials(params["credentials_file"]), *others], address)
        except (OSError, ProtocolError) as error:
            # TLS 1.3 lets a client speak before its certificate is refused.
            if server["cert_file"] and not isinstance(error, TimeoutError) and stale(params):
                raise Stale(f"the server on {address} ends the connection: {type(error).__name__}: {error}") from error
            raise
        deadline = time.monotonic() + loading_timeout
        while True:
            # INFO is served while the data is loaded, and says how long it will take.
            info = dict(
                line.split(":", 1) for line in str(client.call("INFO", "persistence")).split("\r\n") if ":" in line
            )
            if info.get("loading", "0") == "0":
                return client
            if time.monotonic() > deadline:
                raise Refused(
                    f"the server on {address} is still loading its data after {loading_timeout:g} s "
                    f"({info.get('loading_loaded_perc', '?')} %, {info.get('loading_eta_seconds', '?')} s to go). "
                    "Nothing was changed; run this again when it is done."
                )
            time.sleep(0.2)
    except ErrorReply as error:
        client.close()
        raise Refused(f"the server on {address} answers: {error}") from error
    except BaseException:
        client.close()
        raise
