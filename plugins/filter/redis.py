"""Jinja filters of the role redis: what is too much for an expression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def with_previous(users: Iterable[Mapping[str, Any]], previous: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the users with the password that each had until now, where there is one."""
    return [
        {**user, "previous_password": previous[user["name"]]} if user["name"] in previous else {**user}
        for user in users
    ]


def sharing_passwords(users: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of users whose password is another one's, too."""
    known = [(user["name"], user["password"]) for user in users]
    return [name for name, password in known if sum(other == password for _, other in known) > 1]


def port_clashes(ports: Iterable[Any], taken: Mapping[str, str]) -> list[str]:
    """Return `6380 (/etc/redis/redis-state.conf)` for each port that another instance has."""
    return [f"{port} ({taken[str(port)]})" for port in ports if str(port) in taken]


def restart_reason(item: Mapping[str, Any]) -> str:
    """Return in words why redis_config asks for a restart."""
    return f"{item['directive']} is {item['running']}, wanted {item['wanted']}"


def dry_runs(permissions: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the commands that ask a server for permissions without using them: `ACL DRYRUN user command…`."""
    return [["ACL", "DRYRUN", item["user"], *item["command"]] for item in permissions]


def wrong_permissions(
    permissions: Iterable[Mapping[str, Any]], replies: Iterable[Any]
) -> dict[str, dict[str, list[str]]]:
    """Return by control and user what the server's answers to `dry_runs` say against the wanted permissions.

    A user who may do what it should not is `app may FLUSHALL`; with fewer answers than questions, all are wrong.
    """
    wanted, answers = list(permissions), list(replies)
    answers += ["no answer"] * (len(wanted) - len(answers))
    wrong: dict[str, dict[str, list[str]]] = {}
    for item, answer in zip(wanted, answers, strict=True):
        found = wrong.setdefault(str(item["control"]), {}).setdefault(item["user"], [])
        command = " ".join(item["command"])
        if answer == "no answer" or str(answer).startswith("error"):
            found.append(f"{item['user']} {command}: {answer}")
        elif (answer == "OK") is not item["may"]:
            found.append(f"{item['user']} {'may' if answer == 'OK' else 'may not'} {command}")
    return wrong


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "redis_with_previous": with_previous,
            "redis_sharing_passwords": sharing_passwords,
            "redis_port_clashes": port_clashes,
            "redis_restart_reason": restart_reason,
            "redis_dry_runs": dry_runs,
            "redis_wrong_permissions": wrong_permissions,
        }
