"""Variables and groups that earlier versions knew by other names: the preflight refuses the old ones.

What is set under an old name would have no effect, and nothing would say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The same value under another name.
RENAMED = {
    "app_outgoing": "app_firewall_outgoing",
    "backup_sftp_host": "backup_ssh_host",
    "backup_sftp_host_keys": "backup_ssh_host_keys",
    "backup_sftp_port": "backup_ssh_port",
    "backup_vault_check_subset": "backup_repository_check_subset",
    "backup_vault_environment": "backup_repository_environment",
    "backup_vault_firewall_allow": "backup_repository_firewall_allow",
    "backup_vault_from": "backup_repository_from",
    "backup_vault_host": "backup_repository_host",
    "backup_vault_hosts": "backup_repository_hosts",
    "backup_vault_keep": "backup_repository_keep",
    "backup_vault_maintained": "backup_repository_maintained",
    "backup_vault_path": "backup_repository_path",
    "backup_vault_retention": "backup_repository_retention",
    "backup_vault_single_password": "backup_repository_single_password",
    "backup_vault_single_path": "backup_repository_single_path",
    "backup_vault_single_without": "backup_repository_single_without",
    "load_balancer_outgoing": "load_balancer_firewall_outgoing",
}
# Something else takes its place, or nothing.
REPLACED = {
    "app_health_url": "app_ports and app_health_path take its place",
    "app_no_log": "it has no effect any more, as the environment is never printed; remove it",
    "app_outgoing_redis": "app_firewall_outgoing has the addresses of redis_endpoints; app_outgoing_more adds others",
    "backup_password": (
        "backup_master_password takes its place, with a new value of 32 characters or more; the old value is"
        " backup_single_password until playbooks/backup.yml has copied the old backups"
    ),
    "backup_sftp_user": (
        "it is called backup_ssh_user now, and with a host of the group backup_repository remove it: each host has an"
        " account of its own there"
    ),
    "backup_vault_folder": "backup_repository_single_path is the whole path of the repository that all hosts shared",
    "backup_vault_keys": "backup_repository_hosts has hosts and keys, and playbooks/backup.yml fills it; remove it",
    "backup_vault_user": "each host has an account of its own; remove it",
    "redis_address": "redis_endpoints says where Redis is",
}
GROUPS = {"backup_vault": "backup_repository"}
# Facts, which an inventory reads and never sets.
FACTS = {"backup_vault_host_key": "backup_repository_host_key"}

REASONS = {
    **{old: f"it is called {new} now" for old, new in (RENAMED | FACTS).items()},
    **{old: f"the group is called {new} now" for old, new in GROUPS.items()},
    **REPLACED,
}
SET = frozenset(RENAMED) | frozenset(REPLACED)
# Values that no report shows: those of such variables, and URLs with a password.
SECRET = re.compile("password|passphrase|secret|token|^vault_")
CREDENTIALS = re.compile("://[^/]*@")
# As a name in a template: no part of a longer name or of a path.
NAMED = re.compile(rf"(?<![\w/-])({'|'.join(sorted(REASONS))})(?![\w/-])")
TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
# What Ansible adds to the variables of an inventory.
MAGIC = frozenset(("hostvars", "groups", "group_names", "vars", "ansible_facts"))


@dataclass(frozen=True)
class Finding:
    """An old name: where it stands, what must not be there, and whether a report may show the variable's value."""

    where: str
    rule: str
    name: str
    shown: bool = False

    @property
    def reason(self) -> str:
        """Return what the name is called now, or what takes its place."""
        return REASONS[self.name]


def texts(value: Any) -> Iterator[Any]:
    """Return what is in a value, at any depth, that is neither a list nor a mapping."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from texts(one)
    else:
        yield value


def is_shown(name: str, value: Any) -> bool:
    """Tell whether a report may show a value: none of a secret, none that ansible-vault has encrypted, and no template.

    What a template refers to may be a secret.
    """
    return SECRET.search(name) is None and all(
        isinstance(one, (int, float, type(None)))
        or (isinstance(one, str) and not CREDENTIALS.search(one) and not TEMPLATE.search(one))
        for one in texts(value)
    )


def named(value: Any) -> list[str]:
    """Return the old names that templates in a value mention."""
    found: set[str] = set()
    for text in texts(value):
        # Few texts come this far: each host pays for all of its variables.
        if isinstance(text, str) and "{" in text and any(old in text for old in REASONS):
            found.update(name for part in TEMPLATE.findall(text) for name in NAMED.findall(part))
    return sorted(found)


def group_files(sources: Iterable[str], group: str) -> list[str]:
    """Return the files and folders of a group's variables that are beside the sources of an inventory."""
    folders = {
        Path(source) if Path(source).is_dir() else Path(source).parent for source in sources if "," not in source
    }
    paths = (folder / "group_vars" / f"{group}{end}" for folder in folders for end in ("", ".yml", ".yaml", ".json"))
    return sorted(str(path) for path in paths if path.exists())


def findings(variables: Mapping[str, Any]) -> list[Finding]:
    """Return the old names among a host's variables, with their templates as they are; groups once for a play."""
    found = [
        Finding(name, "must not be set", name, is_shown(name, variables[name]))
        for name in sorted(SET & variables.keys())
    ]
    for name, value in variables.items():
        if name not in MAGIC and not name.startswith("ansible_"):
            found += [Finding(name, f"must not refer to {old}", old) for old in named(value)]
    hosts = list(variables["ansible_play_hosts_all"])
    for group in GROUPS:
        members = [host for host in variables["groups"].get(group, []) if host in hosts]
        if group in variables["groups"] and variables["inventory_hostname"] in (members or hosts[:1]):
            found.append(Finding(f"group {group}", "must not be in the inventory", group))
        if variables["inventory_hostname"] == hosts[0]:
            files = group_files(variables.get("ansible_inventory_sources") or [], group)
            found += [Finding(file, "must not be there", group) for file in files]
    return found
