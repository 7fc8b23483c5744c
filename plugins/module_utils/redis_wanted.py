"""The inventory's declaration of a host's Redis instances, as redis_audit takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.redis_declared_users import USERS
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_server import SERVER_OPTIONS

# `argument_spec` of an instance.
INSTANCE_OPTIONS: dict[str, Any] = {
    "subject": {"type": "str", "required": True},
    "unit": {"type": "str", "required": True},
    "user": {"type": "str", "required": True},
    "folder": {"type": "path", "required": True},
    "folder_mode": {"type": "str", "required": True},
    "conf": {"type": "path", "required": True},
    "acl": {"type": "path", "required": True},
    "credentials": {"type": "path", "required": True},
    "data": {"type": "path", "required": True},
    "log": {"type": "path", "required": True},
    "sizes": {"type": "path", "required": True},
    "server": {**SERVER_OPTIONS["server"], "required": True},
    "port": {"type": "int", "required": True},
    "tls_port": {"type": "int", "required": True},
    "tls_auth_clients": {"type": "bool", "required": True},
    "names": {"type": "list", "elements": "str", "required": True},
    "exposure": {"type": "float", "required": True},
    "maxmemory": {"type": "int", "required": True},
    "directives": {"type": "dict", "required": True},
    "users": USERS,
}


@dataclass(frozen=True)
class Host:
    """What all instances of a host share."""

    topology: str
    # package, repository or source, and of the last one which.
    install: str
    source_version: str
    version_accepted: str
    # What apt is asked about the package.
    packages: Mapping[str, Any]
    # Whether the kernel is the host's own, and how long its queues of connections are to be.
    kernel: bool
    somaxconn: int
    # Ports of servers that are none of the bundle's business.
    leave: frozenset[str]
    name: str = ""


@dataclass(frozen=True)
class Instance:
    """What one server is to be."""

    subject: str
    unit: str
    user: str
    folder: str
    folder_mode: str
    conf: str
    acl: str
    credentials: str
    data: str
    log: str
    # Where the role backup notes, before Redis starts, how long its files are.
    sizes: str
    # The way in for the host itself: TLS where it is on.
    server: Mapping[str, Any]
    port: int
    tls_port: int
    tls_auth_clients: bool
    # What the certificate must name, as a certificate spells it.
    names: list[str]
    # The most that systemd-analyze may say.
    exposure: float
    maxmemory: int
    directives: Mapping[str, Any]
    # As redis_users takes them.
    users: list[dict[str, Any]]

    @property
    def tls(self) -> bool:
        """Whether it speaks TLS."""
        return self.tls_port > 0

    @property
    def log_folder(self) -> str:
        """The folder of its log."""
        return self.log.rpartition("/")[0]

    @property
    def folders(self) -> list[str]:
        """The folders that are its own."""
        return [self.folder, self.data, self.log_folder]

    @property
    def sockets(self) -> list[str]:
        """The sockets that it listens on, as `127.0.0.1:6380` and `[::1]:6380`."""
        addresses = [str(address).removeprefix("-") for address in self.directives["bind"]]
        quoted = [f"[{address}]" if ":" in address else address for address in addresses]
        return [f"{address}:{port}" for address in quoted for port in (self.port, self.tls_port) if port]

    def user_named(self, name: str) -> dict[str, Any]:
        """Return a user; an empty one where it is not wanted."""
        return next((user for user in self.users if user["name"] == name), {})

    def password(self, name: str) -> str:
        """Return a user's password; nothing where there is no such user, or only hashes are known."""
        return self.user_named(name).get("password") or ""

    def switched_on(self, name: str) -> bool:
        """Return whether a directive is on."""
        return str(self.directives[name]).lower() in ("true", "yes")
