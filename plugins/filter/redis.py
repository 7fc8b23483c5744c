"""Jinja filters of the role redis: what is too much for an expression."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.template import trust_as_template
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_built_in import BUILT_IN, BY_NAME

SPEC = Path(__file__).resolve().parents[2] / "roles/redis/meta/argument_specs.yml"
# Inputs that all instances of a host share.
HOST_WIDE = {
    *("redis_topology", "redis_install", "redis_source_version", "redis_source_archive", "redis_source_checksum"),
    *(
        "redis_repository",
        "redis_security_max_age",
        "redis_version_accepted",
        "redis_upgrade",
        "redis_kernel",
        "redis_somaxconn",
        "redis_no_log",
        "redis_leave",
    ),
}


@cache
def instance_inputs() -> frozenset[str]:
    """Return the inputs of the role redis that instances of a host may have otherwise, as an instance names them."""
    # Its defaults have tags of Ansible.
    spec = DataLoader().load_from_file(str(SPEC))["argument_specs"]["main"]["options"]
    return frozenset(name.removeprefix("redis_") for name in spec if name not in HOST_WIDE)


def unknown_inputs(instances: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return `maxmem (in cache)` for each key of an instance that is no input of its own."""
    return [
        f"{key} (in {instance.get('name') or 'the instance without a name'}"
        + (f"; redis_{key} is for the whole host)" if f"redis_{key}" in HOST_WIDE else ")")
        for instance in instances
        for key in instance
        if key not in instance_inputs()
    ]


def ports(instances: Iterable[Mapping[str, Any]], port: Any, tls_port: Any) -> list[Any]:
    """Return the ports of all instances that are on; those of an instance that names none are the given ones."""
    pairs = [(instance.get("port", port), instance.get("tls_port", tls_port)) for instance in instances]
    return [number for pair in pairs for number in pair if str(number) != "0"]


def adopt_logins(instances: Iterable[Any], username: str, password: str, port: Any) -> list[dict[str, Any]]:
    """Return the logins to old servers for redis_survey: those of instances, each for its port, and the host's."""
    known = [item for item in instances if isinstance(item, Mapping)]
    return [
        {"username": name or "default", "password": word, "port": int(number) if str(number).isdigit() else 0}
        for name, word, number in [
            *((item.get("adopt_username"), item.get("adopt_password"), item.get("adopt_from")) for item in known),
            (username, password, port),
        ]
        if word
    ]


def with_previous(
    users: Iterable[Mapping[str, Any]],
    previous: Mapping[str, str],
    hashes: Mapping[str, Iterable[str]] | None = None,
) -> list[dict[str, Any]]:
    """Return the users with what each had as a password until now, in clear or as hashes, where there is any."""
    known = hashes or {}
    return [
        {
            **user,
            **({"previous_password": previous[user["name"]]} if user["name"] in previous else {}),
            **(
                {"password_hashes": [*(user.get("password_hashes") or []), *known[user["name"]]]}
                if user["name"] in known
                else {}
            ),
        }
        for user in users
    ]


def sharing_passwords(users: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of users whose password is another one's, too; what is known as hashes alone is left out."""
    known = [(user["name"], user["password"]) for user in users if user.get("password")]
    return [name for name, password in known if sum(other == password for _, other in known) > 1]


def port_clashes(ports: Iterable[Any], taken: Mapping[str, str]) -> list[str]:
    """Return `6380 (/etc/redis/redis-state.conf)` for each port that another instance has."""
    return [f"{port} ({taken[str(port)]})" for port in ports if str(port) in taken]


def confined(rules: str, name: str) -> bool:
    """Return whether a built-in user's rules keep it to what its record says, whatever else the inventory gives it."""
    return BY_NAME[name].confined(str(rules))


def password_checks(expected: str) -> list[dict[str, Any]]:
    """Return a check for the password of each built-in user, for the action `checks`; an optional one may be empty."""
    checks = []
    for user in BUILT_IN:
        valid = f"{user.password} is quantdesk.redis.password(redis_password_min_length)"
        checks.append(
            {
                "name": trust_as_template(user.password),
                "secret": True,
                "that": trust_as_template(valid if user.required else f"{user.password} == '' or {valid}"),
                "expected": expected if user.required else f"an empty text for no such user, or {expected}",
            }
        )
    return checks


def file_checksum(path: str) -> str:
    """Return `sha256:` and the digest of a file on the controller; raises AnsibleFilterError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise AnsibleFilterError(f"{path}: {error.strerror}") from error


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "redis_adopt_logins": adopt_logins,
            "redis_ports": ports,
            "redis_unknown_inputs": unknown_inputs,
            "redis_with_previous": with_previous,
            "redis_sharing_passwords": sharing_passwords,
            "redis_port_clashes": port_clashes,
            "redis_file_checksum": file_checksum,
            "redis_confined": confined,
            "redis_password_checks": password_checks,
        }
