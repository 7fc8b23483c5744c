"""Which servers of a host can be adopted, as which instances, and what changes with the first run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.quantdesk.redis.plugins.filter import adoption

from .directives import directive_inputs, further_settings
from .model import Adopted, Host, Input, Instance, Refused
from .survey import Server, free_tls_ports, number, value_of
from .users import user_inputs
from .words import one_line


def obstacles(server: Server, version: str) -> list[str]:
    """Return why a server cannot be adopted, as the role itself would refuse it; nothing where it can."""
    limit = number(value_of(server, "maxmemory"))
    found = adoption.obstacles(server, version, limit, "keep")
    return [one_line(f"{item.name}: found {item.found}; expected {item.expected}").rstrip(".") for item in found]


def instance_names(servers: Sequence[Server]) -> list[str]:
    """Return a name for each server: none for the only one, else after its unit or file, else its port."""
    if len(servers) == 1:
        return [""]
    names: list[str] = []
    for server in servers:
        texts = [
            str(server.get("unit") or "").removesuffix(".service"),
            Path(str(server.get("config_file") or "")).stem,
        ]
        parts = [re.sub(r"^(redis|server|sentinel|[^a-z]+)+", "", text.lower()) for text in texts]
        clean = [re.sub("[^a-z0-9]", "", part)[:21] for part in parts]
        fallback = f"port{server.get('port') or server.get('tls_port') or server.get('pid')}"
        names.append(next((name for name in clean if name and name not in (*names, "conf")), fallback))
    return names


def other_changes(server: Server, name: str) -> list[str]:
    """Return in words what changes besides directives and users."""
    found = []
    if server.get("replicas"):
        found.append(
            f"its replicas ({', '.join(map(one_line, server['replicas']))}) are cut off, as topology standalone has"
            " none"
        )
    if server.get("tls_port"):
        found.append(
            "its certificate is another one: give clients the authority's ca.crt first, or bring today's files with"
            " certificates_source: files"
        )
    user = f"redis-{name}" if name else "redis"
    if server.get("user") not in ("redis", user, None, ""):
        found.append(f"it runs as {one_line(server['user'])} today, and as {user} from now on (control 31 fails today)")
    elif server.get("user") not in (user, None, ""):
        found.append(f"it runs as {one_line(server['user'])} today, and as {user} from now on, which is its alone")
    if server.get("config_problem"):
        found.append(f"its file is not understood in full: {one_line(server['config_problem'])}")
    return found


def as_instance(server: Server, name: str, tls_port: int, memory: int) -> Instance:
    """Return a server as an instance; see directives.directive_inputs for the numbers."""
    found = Adopted(
        [
            Input("name", name, note="" if not name else "names its unit, its files and its folders"),
            Input("adopt", "keep"),
            Input("adopt_from", number(server.get("port")) or number(server.get("tls_port")) or ""),
            *directive_inputs(server, tls_port, memory),
        ]
    )
    found += user_inputs(server)
    found += further_settings(server, name)
    found.changes += other_changes(server, name)
    return Instance(server, name, found.inputs, found.changes)


def judge(name: str, survey: Mapping[str, Any], memory: int = 0, version: str = "7.0") -> Host:
    """Return a host with its servers judged.

    `survey` is the result of redis_survey, `memory` the host's in MiB, or 0 where it is unknown, and `version` that of
    the Redis that the role installs. The result is the same as long as the servers are.
    """
    known = survey.get("servers") or []
    foreign = sorted(
        (server for server in known if not server.get("ours")),
        key=lambda server: (number(server.get("port")) or number(server.get("tls_port")), str(server.get("socket"))),
    )
    reasons = [obstacles(server, version) for server in foreign]
    names = iter(instance_names([server for server, found in zip(foreign, reasons, strict=True) if not found]))
    ports = iter(free_tls_ports(survey))
    servers: list[Instance | Refused] = []
    for server, found in zip(foreign, reasons, strict=True):
        if found:
            servers.append(Refused(server, found))
        else:
            servers.append(as_instance(server, next(names), number(server.get("tls_port")) or next(ports), memory))
    own = sum(bool(server.get("ours")) for server in known)
    return Host(name, servers, own, [file for file in survey.get("files") or [] if not file.get("ours")])
