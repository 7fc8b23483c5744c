"""Jinja filters of the role backup: what is too much for an expression."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def text(lines: Iterable[str]) -> str:
    """Return a file's text from its lines."""
    return "".join(f"{line}\n" for line in lines)


# The option of restic for each word of a policy: https://restic.readthedocs.io/en/stable/060_forget.html
KEEP = ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within")
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


def program(paths: Iterable[str], library: str) -> list[dict[str, str]]:
    """Return for write_files what a package's modules on the controller become on a host."""
    return [{"path": f"{library}/{Path(path).name}", "content": Path(path).read_text()} for path in paths]


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


def host_of(key: str) -> str:
    """Return the host that a public key is of, as `databackup@NAME` at its end says; empty where nothing says so."""
    words = str(key).split()
    return words[-1].removeprefix("databackup@") if words and words[-1].startswith("databackup@") else ""


def keys(given: Iterable[str], known: Iterable[str], hosts: Iterable[str]) -> list[str]:
    """Return the given keys, and of those known from earlier runs the ones of hosts that gave none."""
    kept = set(hosts) - {"", *map(host_of, given)}
    return list(dict.fromkeys([*given, *(key for key in known if host_of(key) in kept)]))


def keys_missing(hosts: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the hosts of which there is no key."""
    names = {host_of(key) for key in known}
    return [host for host in hosts if host not in names]


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
            "backup_keys": keys,
            "backup_keys_missing": keys_missing,
            "backup_program": program,
            "backup_source_files": source_files,
            "backup_retention": retention,
            "backup_retention_problems": retention_problems,
            "backup_source_problems": source_problems,
        }
