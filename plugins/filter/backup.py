"""Jinja filters of the role backup: what is too much for an expression."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import backup_places


def text(lines: Iterable[str]) -> str:
    """Return a file's text from its lines."""
    return "".join(f"{line}\n" for line in lines)


# The option of restic for each word of a policy: https://restic.readthedocs.io/en/stable/060_forget.html
KEEP = ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within")
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def source_files(
    sources: Iterable[Mapping[str, Any]], folder: str, values: Mapping[str, Any], credentials: str
) -> list[dict[str, str]]:
    """Return for write_files the file of each source; `values` are those that all have."""
    files = []
    for source in sources:
        options = dict(source["options"])
        if source["kind"] == "redis":
            options.setdefault("credentials_file", credentials)
        wanted = {**values, "name": source["name"], "kind": source["kind"], "options": options}
        text = json.dumps(wanted, indent=2, sort_keys=True)
        files.append({"path": f"{folder}/source-{source['name']}.json", "content": text + "\n"})
    return files


def retention(policy: Mapping[str, Any]) -> list[str]:
    """Return a policy such as {daily: 7} as options of `restic forget`."""
    return [word for name in KEEP if name in policy for word in (f"--keep-{name}", str(policy[name]))]


def retention_problems(policy: Any) -> list[str]:
    """Return what is wrong with a policy; one that keeps nothing is wrong, too."""
    if not isinstance(policy, Mapping):
        return [f"found {type(policy).__name__}"]
    wrong = [f"{name}: not one of {', '.join(KEEP)}" for name in policy if name not in KEEP]
    for name, value in policy.items():
        pattern = r"([0-9]+[ymdh])+" if name == "within" else r"[1-9][0-9]{0,4}"
        if name in KEEP and not re.fullmatch(pattern, str(value)):
            wrong.append(f"{name}: found {value}")
    return wrong or ([] if policy else ["it keeps nothing"])


REQUIRED = {
    "redis": ("server", "unit", "command", "binary", "config_file", "data", "user", "admin_credentials_file"),
    "sqlite": ("database", "unit", "user"),
    "postgresql": ("database", "owner"),
    "files": ("paths",),
}


def source_problems(sources: Any) -> list[str]:
    """Return what is wrong with a list of sources."""
    if not isinstance(sources, list):
        return [f"found {type(sources).__name__}"]
    wrong: list[str] = []
    seen: set[str] = set()
    for index, source in enumerate(sources):
        if not isinstance(source, Mapping) or not isinstance(source.get("options"), Mapping):
            wrong.append(f"item {index + 1} is not a source")
            continue
        name, kind = str(source.get("name")), str(source.get("kind"))
        if not NAME.fullmatch(name):
            wrong.append(f"name {name!r} of item {index + 1}")
        if name in seen:
            wrong.append(f"name {name} twice")
        seen.add(name)
        if kind not in REQUIRED:
            wrong.append(f"{name}: kind {kind!r}")
        wrong += [f"{name}: no option {option}" for option in REQUIRED.get(kind, ()) if option not in source["options"]]
    return wrong


def repository_hosts(names: Iterable[str], keys: Iterable[str] = ()) -> list[dict[str, str]]:
    """Return for the role backup_repository each host with its key; an empty one for those of which none is known."""
    return [{"name": name, "key": str(key or "")} for name, key in zip_longest(names, keys, fillvalue="")]


def repository_host_problems(hosts: Any) -> list[str]:
    """Return what is wrong with the hosts of the role backup_repository."""
    if not isinstance(hosts, list):
        return [f"found {type(hosts).__name__}"]
    wrong: list[str] = []
    seen: set[str] = set()
    for index, host in enumerate(hosts):
        name = str(host.get("name")) if isinstance(host, Mapping) else ""
        if not backup_places.NAME.fullmatch(name):
            wrong.append(f"item {index + 1} has the name {name!r}")
            continue
        if name in seen:
            wrong.append(f"{name} twice")
        seen.add(name)
        if host.get("key") and not backup_places.KEY.fullmatch(str(host["key"])):
            wrong.append(f"{name}: its key is none")
    return wrong


def repositories(hosts: Iterable[str], master: str, environment: str) -> list[dict[str, str]]:
    """Return for backup_repository each host with the password of its repository."""
    return [{"host": host, "password": backup_places.password(master, environment, host)} for host in hosts]


def backup_lines(listed: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return as lines for people what backup_repository has listed, the newest last.

    The host is that of the repository. A backup that names another one is marked: nobody but that host has made it.
    """
    form = "{:<8}  {:<20}  {:<12} {:<12} {:<12} {:>10}  {:>12}{}"
    rows = []
    for backup in (item for repository in listed for item in repository.get("backups", [])):
        mark = "" if backup["said"] == backup["host"] else f"  says that it is of {backup['said']}"
        words = [str(backup.get(name, "?")) for name in ("environment", "host", "source", "items", "bytes")]
        rows.append((backup["id"][:8], f"{backup['time'][:19]}Z", *words, mark))
    if not rows:
        return ["there is no backup in any repository"]
    rows = [
        ("ID", "TIME", "ENVIRONMENT", "HOST", "SOURCE", "ITEMS", "BYTES", ""),
        *sorted(rows, key=lambda row: row[1]),
    ]
    # Tags and names are a host's choice: none of them is to look like another line.
    return [form.format(*row).encode("unicode_escape").decode().rstrip() for row in rows]


def phase(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> dict[str, Any]:
    """Return for recovery_report a phase, from its beginning and that of the next one."""
    return {"name": pair[0]["name"], "began": pair[0]["began"], "ended": pair[1]["began"]}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "rebuild_phase": phase,
            "backup_text": text,
            "backup_account": backup_places.account,
            "backup_guest": backup_places.guest,
            "backup_host_password": backup_places.password,
            "backup_repositories": repositories,
            "backup_lines": backup_lines,
            "backup_repository_hosts": repository_hosts,
            "backup_repository_host_problems": repository_host_problems,
            "backup_source_files": source_files,
            "backup_retention": retention,
            "backup_retention_problems": retention_problems,
            "backup_source_problems": source_problems,
        }
