"""A host with the servers that this bundle did not set up: each one an instance of the role redis, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .survey import Server, label


@dataclass
class Input:
    """An input of an instance: its value, the bundle's default in words, and the controls that fail today."""

    name: str
    value: Any
    default: str = ""
    fails: tuple[int, ...] = ()
    note: str = ""


@dataclass
class Adopted:
    """A part of a server as inputs of the role, and in words what of that part changes with the first run."""

    inputs: list[Input] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def __iadd__(self, other: Adopted) -> Adopted:
        """Put another part behind this one."""
        self.inputs += other.inputs
        self.changes += other.changes
        return self


@dataclass(frozen=True)
class Instance:
    """A server as an instance of the role redis; the only one of a host has no name."""

    server: Server
    name: str
    inputs: Sequence[Input]
    changes: Sequence[str]


@dataclass(frozen=True)
class Refused:
    """A server that cannot be adopted, and why: one reason at least."""

    server: Server
    reasons: Sequence[str]


@dataclass(frozen=True)
class Host:
    """A host, its foreign servers by port, how many servers the bundle has there, and data without a server."""

    name: str
    servers: Sequence[Instance | Refused]
    own_servers: int
    files: Sequence[Mapping[str, Any]]

    @property
    def instances(self) -> list[Instance]:
        """The servers that can be adopted."""
        return [item for item in self.servers if isinstance(item, Instance)]

    @property
    def refused(self) -> list[Refused]:
        """The servers that cannot be adopted."""
        return [item for item in self.servers if isinstance(item, Refused)]

    @property
    def adoptable_labels(self) -> list[str]:
        """How the servers that can be adopted are told from others."""
        return [label(item.server) for item in self.instances]

    @property
    def refused_labels(self) -> list[str]:
        """How the servers that cannot be adopted are told from others."""
        return [label(item.server) for item in self.refused]
