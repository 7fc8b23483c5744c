"""Query a Redis server that was set up by hand: by any way in, with any login that it takes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.processes import Listener, Process, network_of
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import canonical
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_started import Configuration
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, ProtocolError, Reply

# Seconds for a connection, and for each reply.
TIMEOUT = 2.0
# Nothing of it changes the server. The first one is refused only to those who are not logged in.
QUESTIONS = ("PING", "INFO", "INFO modules", "CONFIG GET *", "ACL LIST", "CLIENT LIST", "CLIENT ID")
# How errors begin for those who are not logged in, the last one before Redis 3.
CLOSED = ("NOAUTH", "DENIED", "ERR operation not permitted")


@dataclass
class Answers:
    """What a server said."""

    login: str = "unreachable"
    login_as: str = ""
    problem: str = ""
    # What was connected to in the end.
    tls: bool = False
    port: int = 0
    info: dict[str, str] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    config: dict[str, str] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)
    clients: list[dict[str, str]] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """A way to reach a server: a Unix socket, or an address in plaintext or over TLS."""

    socket: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False


def ways(socket_path: str, addresses: Iterable[Listener], config: Configuration) -> list[Way]:
    """Return the ways to a server, those that its configuration names first."""
    result = [Way(socket=socket_path)] if socket_path else []
    ports: dict[int, list[str]] = {}
    for listener in addresses:
        ports.setdefault(listener.port, []).append(listener.address)
    # That of a cluster's bus, which speaks something else.
    usual = [port for port in sorted(ports) if port - 10000 not in ports]
    plain, tls = config.value("port"), config.value("tls-port")
    for port in sorted(usual, key=lambda port: (str(port) != plain, str(port) != tls, port)):
        # Redis lets everybody in from the loopback interface, and often nobody from elsewhere.
        address = min(
            ports[port], key=lambda one: (not one.startswith("127."), one != "::1", one not in ("0.0.0.0", "::"))
        )
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        kinds = (True, False) if str(port) == tls and tls != plain else (False, True)
        result += [Way(host=host, port=port, tls=kind) for kind in kinds]
    return result


def _context(one: Process, config: Configuration) -> ssl.SSLContext:
    """Return what a server's own host offers it over TLS: its own certificate, where it asks for one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Its socket was found in the process itself: whose certificate it shows does not matter here.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for kind in ("tls-client-", "tls-"):
        certificate, key = config.value(f"{kind}cert-file"), config.value(f"{kind}key-file")
        if certificate and key:
            with contextlib.suppress(OSError, ValueError):
                context.load_cert_chain(
                    one.path(os.path.join(one.cwd, certificate)),
                    one.path(os.path.join(one.cwd, key)),
                    # Empty, it fails for a key that has one; without it, OpenSSL would ask the terminal.
                    config.value(f"{kind}key-file-pass"),
                )
            break
    return context


def _connect(one: Process, way: Way, config: Configuration) -> Client:
    if way.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(TIMEOUT)
            # By the folder's descriptor: the path through /proc may be too long for a socket's address.
            folder = os.open(os.path.dirname(one.path(way.socket)), os.O_RDONLY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(way.socket)}")
            finally:
                os.close(folder)
        except BaseException:
            connection.close()
            raise
    else:
        with network_of(one):
            connection = socket.create_connection((way.host, way.port), timeout=TIMEOUT)
    context = _context(one, config) if way.tls else None
    return Client(way.host, way.port, context=context, connection=connection, timeout=TIMEOUT)


def _sections(reply: Reply) -> tuple[dict[str, str], list[str]]:
    """Return the fields of INFO, and the names of the modules, each of which has a line of the same name."""
    lines = [line.split(":", 1) for line in str(reply).splitlines() if ":" in line and not line.startswith("#")]
    modules = [match[1] for name, value in lines if name == "module" and (match := re.match(r"name=([^,]+)", value))]
    return {line[0]: line[1] for line in lines}, modules


def ask(one: Process, way: Way, config: Configuration, logins: list[dict[str, Any]]) -> Answers:
    """Return a server's description for the login that may most, trying none first; raises OSError or ProtocolError."""
    renamed = config.renamed()
    questions = {}
    for question in QUESTIONS:
        command, *words = question.split()
        # By the name that it has there; what has none cannot be asked.
        if name := renamed.get(command, command):
            questions[question] = [name, *words]
    first, *others = questions.values()
    answers = Answers(tls=way.tls, port=way.port)
    with _connect(one, way, config) as client:
        best: dict[str, Reply] = {}
        refusals: list[str] = []
        for login in [None, *logins]:
            if login is not None:
                # Before Redis 6 there were no names.
                user = [login["username"]] if login["username"] != "default" else []
                reply = client.pipeline([["AUTH", *user, login["password"]]])[0]
                if isinstance(reply, ErrorReply):
                    refusals.append(f"{login['username']}: {_first(reply)}")
                    continue
            reply = client.pipeline([first])[0]
            if isinstance(reply, ErrorReply) and str(reply).startswith(CLOSED):
                answers.login = "refused"
                refusals.append(_first(reply))
                continue
            replies = dict(zip(questions, [reply, *client.pipeline(others)], strict=True))
            if not best or _errors(replies) < _errors(best):
                best = replies
                answers.login = "open" if login is None else "accepted"
                answers.login_as = "default" if login is None else login["username"]
            if not any(isinstance(reply, ErrorReply) and "NOPERM" in str(reply) for reply in replies.values()):
                break
    if best:
        _sort_out(best, answers)
    else:
        # That there is a password is no news where one was tried.
        answers.problem = "; ".join(dict.fromkeys(refusals[1:] or refusals))
    return answers


def _first(error: ErrorReply) -> str:
    """Return an error's first sentence."""
    return re.split(r"[.\n](\s|$)", str(error))[0][:200]


def _errors(replies: Mapping[str, Reply]) -> int:
    return sum(isinstance(reply, ErrorReply) for reply in replies.values())


def _sort_out(replies: Mapping[str, Reply], answers: Answers) -> None:
    """Put replies where they belong."""
    for question, reply in replies.items():
        if isinstance(reply, ErrorReply):
            answers.refusals[question] = _first(reply)
        elif question == "INFO":
            answers.info, answers.modules = _sections(reply)
        elif question == "INFO modules":
            answers.modules = answers.modules or _sections(reply)[1]
        elif question == "CONFIG GET *" and isinstance(reply, list):
            answers.config = {
                canonical(str(name)): str(value) for name, value in zip(reply[::2], reply[1::2], strict=False)
            }
        elif question == "ACL LIST" and isinstance(reply, list):
            answers.users = [str(line) for line in reply]
    own = str(replies.get("CLIENT ID", ""))
    lines = replies.get("CLIENT LIST")
    if isinstance(lines, str):
        clients = [dict(word.split("=", 1) for word in line.split(" ") if "=" in word) for line in lines.splitlines()]
        answers.clients = [client for client in clients if client.get("id") != own]
    # What is renamed or gone is known beforehand; before Redis 6 there was no ACL.
    telling = {name: text for name, text in answers.refusals.items() if name in ("INFO", "CONFIG GET *")}
    if telling:
        user = answers.login_as
        answers.problem = "; ".join(f"{name} as {user}: {text}" for name, text in telling.items())


def reach(one: Process, found_ways: list[Way], config: Configuration, logins: list[dict[str, Any]]) -> Answers:
    """Return a server's description, over the first way that leads to it."""
    problems = list[str]()
    refused: Answers | None = None
    for way in found_ways:
        kind = way.socket or f"port {way.port}{', TLS' if way.tls else ''}"
        if refused and way.tls != refused.tls and way.port == refused.port:
            continue
        try:
            answers = ask(one, way, config, logins)
        except TimeoutError:
            # Whoever is stuck answers nowhere.
            return Answers(problem=f"{kind}: no answer within {TIMEOUT:g} s")
        except (OSError, ProtocolError) as error:
            problems.append(f"{kind}: {getattr(error, 'strerror', None) or error}")
            continue
        if answers.login != "refused":
            return answers
        refused = refused or answers
        # Protected mode may refuse an address and not a socket; a wrong login is wrong everywhere.
        if not refused.problem.startswith("DENIED"):
            break
    return refused or Answers(problem="; ".join(problems) or "it listens nowhere")
