"""A Redis server on this host: how to reach it, and what its configuration file says."""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from databackup import programs
from databackup.errors import Failed
from databackup.owner import Owner, plain
from databackup.redis import text
from databackup.redis.defaults import DEFAULTS
from databackup.redis.proof import Proof
from databackup.redis.resp import Client, ErrorReply, ProtocolError


def credentials(file: str) -> tuple[str, str] | None:
    """Return user and password from a file with REDISCLI_USER=… and REDISCLI_AUTH=…; None for no file."""
    if not file:
        return None
    try:
        login = text.login(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}; the roles redis and backup write it") from None
    if login is None:
        raise Failed(f"{file}: found no REDISCLI_AUTH; expected the password of a user of Redis")
    return login


def reach(server: dict[str, Any], timeout: float = 60.0, *, prove: Proof | None = None) -> socket.socket:
    """Return a connection to the server, proven where that is asked for, through which nothing was sent yet.

    A unit's process that no longer listens where the source says is found where it does: after a new address,
    redis.yml runs before backup.yml. Raises Failed when the connection ends elsewhere, and when none comes about.
    """
    host, port = server.get("host", "127.0.0.1"), int(server["port"])
    try:
        connection = socket.create_connection((host, port), timeout=timeout)
    except OSError as error:
        found = _elsewhere(port, timeout, prove) if prove else None
        if found is None:
            raise Failed(f"Redis on {host}:{port} cannot be reached: {error}") from None
        connection = found
    try:
        if prove is not None:
            prove(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _elsewhere(port: int, timeout: float, prove: Proof) -> socket.socket | None:
    for host in prove.listening(port):
        # From loopback, which the unit lets in whatever systemd knows of the host's addresses by now.
        source = ("::1" if ":" in host else "127.0.0.1", 0)
        with suppress(OSError):
            return socket.create_connection((host, port), timeout, source_address=source)
    return None


def _offer(server: dict[str, Any], *, named: bool) -> ssl.SSLContext | None:
    """Return what is asked of the server over TLS: a certificate of the authority, and of its name; None in plaintext."""
    if not server.get("ca_file"):
        return None
    context = ssl.create_default_context(cafile=server["ca_file"])
    context.check_hostname = named
    if server.get("cert_file"):
        context.load_cert_chain(server["cert_file"], server.get("key_file"))
    return context


def connect(
    server: dict[str, Any], login: tuple[str, str] | None, timeout: float = 60.0, *, prove: Proof | None = None
) -> Client:
    """Return a connection that is logged in; raises Failed when none comes about.

    `prove` is given the connection before a password goes through it, and raises Failed where it ends elsewhere. One that
    is proven may show a certificate of any name: its host may have been renamed. Without it the server is known by its
    certificate, or not at all.
    """
    host = server.get("host", "127.0.0.1")
    where = f"Redis on {host}:{server['port']}"
    connection = reach(server, timeout, prove=prove)
    try:
        context, name = _offer(server, named=prove is None), server.get("server_name")
        client = Client(host, server["port"], connection=connection, context=context, server_name=name)
    except OSError as error:
        connection.close()
        raise Failed(f"{where} cannot be reached: {error}") from None
    try:
        if login is not None:
            client.call("AUTH", *login)
        client.call("PING")
    except ErrorReply as error:
        if not str(error).startswith(("LOADING", "MISCONF", "MASTERDOWN")):
            client.close()
            user = login[0] if login else "default"
            raise Failed(f"{where} refuses the user {user}: {error}") from None
    except (OSError, ProtocolError) as error:
        client.close()
        raise Failed(f"{where} does not answer: {error}") from None
    return client


def info(client: Client, *sections: str) -> dict[str, str]:
    """Return the answer to INFO."""
    found: dict[str, str] = {}
    for section in sections:
        told = str(client.call("INFO", section))
        found |= dict(line.split(":", 1) for line in told.split("\r\n") if ":" in line)
    return found


def count(keyspace: dict[str, str]) -> int:
    """Return the number of keys in all databases, by the keyspace of INFO; other sections do not matter."""
    return sum(
        int(counts.split(",")[0].removeprefix("keys="))
        for name, counts in keyspace.items()
        if re.fullmatch("db[0-9]+", name)
    )


class Configuration:
    """The directives of a redis.conf; the last of a name counts. Redis itself may write it: no value is taken on trust."""

    # What names a file in Redis' folder. Redis refuses a path, too.
    NAMES: ClassVar = ("appenddirname", "appendfilename", "dbfilename")

    def __init__(self, file: str, owner: Owner | None = None) -> None:
        """Read the file, with its owner's rights where it is in a folder of that user; raises Failed when that cannot be."""
        self.values = dict(DEFAULTS)
        self.file = file
        try:
            content = Path(file).read_bytes() if owner is None else owner.read(file)
            for line in content.decode(errors="surrogateescape").splitlines():
                words = line.split(None, 1)
                if len(words) == 2 and not line.lstrip().startswith("#"):
                    self.values[words[0].lower()] = words[1]
        except OSError as error:
            raise Failed(f"{file}: {error.strerror}; is Redis set up here? (playbooks/redis.yml)") from None

    def __getitem__(self, name: str) -> str:
        """Return a directive's words as one text, without quotes; raises Failed for a path where a name is expected."""
        try:
            value = " ".join(text.split(self.values[name]))
        except text.ConfError:
            raise Failed(f"{self.file}: found {name} {self.values[name]!r}; expected closed quotes") from None
        if name in self.NAMES and not plain(value):
            raise Failed(
                f"{self.file}: found {name} {value!r}; expected the name of a file in Redis' own folder, no path"
            )
        return value

    def paths(self) -> list[str]:
        """Return what is said of each directive that should be a name and is none."""
        found = []
        for name in self.NAMES:
            try:
                self[name]
            except Failed as failure:
                found.append(str(failure))
        return found

    @property
    def maxmemory(self) -> int:
        """The limit in bytes; 0 is none."""
        limit = text.size(self["maxmemory"])
        if limit is None:
            raise Failed(f"{self.file}: found maxmemory {self['maxmemory']!r}; expected a size such as 512mb")
        return limit


def version_of(binary: str) -> tuple[int, ...]:
    """Return the version of an installed server."""
    try:
        told = programs.run([binary, "--version"]).stdout
    except OSError as error:
        raise Failed(f"{binary}: {error.strerror}; is Redis installed here? (playbooks/redis.yml)") from None
    match = re.search(r"v=([0-9]+(?:\.[0-9]+)*)", told)
    if match is None:
        raise Failed(f"{binary} --version: found {told.strip()!r}; expected a Redis server")
    return tuple(map(int, match[1].split(".")))
