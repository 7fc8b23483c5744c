"""A connection to Redis that is made as a client would, to see what it is answered: a refusal is an answer, too."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, ProtocolError, Reply


def readable(command: list[str], reply: Reply) -> Any:
    """Return a reply as JSON can hold it: errors as their text, CONFIG GET as a dictionary."""
    if isinstance(reply, ErrorReply):
        return f"error: {reply}"
    if isinstance(reply, list):
        if [word.upper() for word in command[:2]] == ["CONFIG", "GET"]:
            return dict(zip(reply[::2], reply[1::2], strict=True))
        return [readable([], part) for part in reply]
    return reply


def context(probe: Mapping[str, Any]) -> ssl.SSLContext | None:
    """Return what a probe offers over TLS; None without a `ca_file`."""
    if not probe["ca_file"]:
        return None
    offer = ssl.create_default_context(cafile=probe["ca_file"])
    if probe["tls_maximum"]:
        with warnings.catch_warnings():
            # Old versions are what is asked for: the server must be the one that refuses them.
            warnings.simplefilter("ignore", DeprecationWarning)
            offer.minimum_version = ssl.TLSVersion.TLSv1
            offer.maximum_version = {"TLSv1.1": ssl.TLSVersion.TLSv1_1, "TLSv1.2": ssl.TLSVersion.TLSv1_2}[
                probe["tls_maximum"]
            ]
    if probe["tls_ciphers"]:
        offer.set_ciphers(probe["tls_ciphers"])
    if probe["foreign_certificate"]:
        with tempfile.TemporaryDirectory() as folder:
            key, certificate = f"{folder}/key", f"{folder}/certificate"
            new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
            subject = ["-subj", "/CN=foreign", "-keyout", key, "-out", certificate]
            subprocess.run([*new, *subject], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            offer.load_cert_chain(certificate, key)
    elif probe["cert_file"]:
        offer.load_cert_chain(probe["cert_file"], probe["key_file"])
    return offer


def spelled(name: str) -> str:
    """Return a name or an address of a certificate as the role certificates spells it."""
    try:
        return ipaddress.ip_address(name.strip()).compressed
    except ValueError:
        return name.lower()


def describe(client: Client) -> dict[str, Any]:
    """Return the names of the server's certificate, the days until it ends, and its SHA-256; nothing in plaintext."""
    shown, raw = client.peer(), client.peer_certificate()
    if not shown or raw is None:
        return {}
    seconds = ssl.cert_time_to_seconds(shown["notAfter"]) - time.time()
    return {
        "names": [spelled(name) for _, name in shown.get("subjectAltName", ())],
        "days": int(seconds // 86400),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def ask(probe: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Return what one connection answered; connection errors are part of the answer."""
    commands = [[str(word) for word in command] for command in probe["commands"]]
    try:
        with Client(
            probe["host"],
            probe["port"],
            server_name=probe["server_name"],
            context=context(probe),
            timeout=timeout,
        ) as client:
            certificate = describe(client)
            try:
                if probe["password"] is not None:
                    client.call("AUTH", probe["username"], probe["password"])
                replies = client.pipeline(commands)
            except (ErrorReply, ProtocolError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
                return {"connected": True, "error": problem, "replies": [], "certificate": certificate}
    except OSError as error:
        return {"connected": False, "error": f"{type(error).__name__}: {error}", "replies": [], "certificate": {}}
    answers = [readable(command, reply) for command, reply in zip(commands, replies, strict=True)]
    errors = [reply for reply in replies if isinstance(reply, ErrorReply)]
    problem = str(errors[0]) if errors else ""
    return {"connected": True, "error": problem, "replies": answers, "certificate": certificate}
