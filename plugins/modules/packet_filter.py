"""Ansible module: one table of the packet filter, its files and the unit that loads it. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packet_filter
short_description: Try, load or compare one table of nftables, with its unit
description:
  - The rules are rendered on the controller. What the kernel has is compared with them, never with a file of the host.
  - C(tried) has the kernel check the rules, and changes nothing but this - a user for whom the table has rules already
    may from now on connect to what the new ones allow, so that a release that needs it can be tried before they are
    loaded.
  - C(loaded) writes O(files), which are root's, has O(unit) enabled, and loads the rules when the kernel's differ,
    in one transaction.
  - C(compared) reports what differs and changes nothing.
  - Rules about a user that the host does not have are left out by C(tried) and C(loaded), and reported by C(compared).
options:
  table: {description: "Name of the table, of the family inet.", type: str, required: true}
  rules: {description: "The first of O(files), which makes the table.", type: path, required: true}
  unit: {description: Unit that loads it., type: str, required: true}
  files:
    description: The rules, what is loaded until they are, and units.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where it is., type: path, required: true}
      content: {description: Its whole text., type: str, required: true}
      mode: {description: Its mode., type: str, default: "0644"}
  state: {description: What to do., type: str, choices: [tried, loaded, compared], default: loaded}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Load the rules
  quantdesk.redis.packet_filter:
    table: example
    rules: /etc/nftables-example.conf
    unit: nftables-example.service
    files:
      - {path: /etc/nftables-example.conf, content: "{{ lookup('template', 'rules.j2') }}"}
"""

RETURN = r"""
differences: {description: "What the kernel's table lacks (-) and has besides (+).", type: list, returned: always}
written: {description: "Files that differ, or that differed, by text, owner or mode.", type: list, returned: always}
opened: {description: Rules that C(tried) added., type: list, returned: always}
unknown_users: {description: Users of the rules that the host does not have., type: list, returned: always}
unit_state: {description: "Systemd's report on the unit, as in C(active, enabled).", type: str, returned: always}
policies: {description: "What the chains input and forward do in the end, by chain.", type: dict, returned: always}
confined: {description: "Users whom a rule refuses all else, and their rules.", type: dict, returned: always}
"""

import os  # noqa: E402 - Ansible wants the documentation first
import subprocess  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils import nftables  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.app_units import put, systemctl  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import Ownership, read  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable  # noqa: E402

UNITS = "/etc/systemd/system/"


def unit_state(unit: str) -> str:
    """Return systemd's report on a unit, and whether it has read other files than are there now."""
    lines = systemctl("show", unit, "--property", "ActiveState,UnitFileState,NeedDaemonReload").stdout.splitlines()
    shown = dict(line.split("=", 1) for line in lines if "=" in line)
    words = [shown.get("ActiveState") or "unknown", shown.get("UnitFileState") or "unknown"]
    return ", ".join(words + (["older than its file"] if shown.get("NeedDaemonReload") == "yes" else []))


def wanted_of(file: dict[str, Any]) -> Ownership:
    """Return whose one of the files is to be: root's, as who writes it decides what the host lets in."""
    return Ownership.of({**file, "owner": "root", "group": "root"})


def differs(file: dict[str, Any]) -> bool:
    """Return whether a file is another than it should be, by its text, its owner or its mode; raises OSError."""
    return bool(read(file["path"]) != file["content"] or wanted_of(file).declare(file["path"], pretend=True))


def fitted(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the files without rules about users that this host does not have."""
    return [
        {**file, "content": nftables.without(file["content"], nftables.unknown_users(file["content"]))}
        for file in params["files"]
    ]


def attempt(params: dict[str, Any], check_mode: bool) -> list[str]:
    """Have the kernel check the rules, open what they let users connect to, and return that; raises Refused."""
    files = fitted(params)
    for file in files:
        if not file["path"].startswith(UNITS):
            nftables.load(file["content"], "--check")
    there = nftables.live(params["table"])
    # A table without such rules refuses nothing.
    if not there.rules("output"):
        return []
    missing: list[str] = nftables.openings(nftables.wanted(params["table"], files[0]["content"]), there)
    if missing and not check_mode:
        nftables.load("".join(f"insert rule inet {params['table']} output {rule}\n" for rule in missing))
    return missing


def compare(params: dict[str, Any], files: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how kernel, files and unit differ from what they should be; raises Refused."""
    there = nftables.live(params["table"])
    should = nftables.wanted(params["table"], nftables.without(files[0]["content"], params["unknown"]))
    return {
        "differences": nftables.differences(params["table"], should, there),
        "written": [file["path"] for file in files if differs(file)],
        "unit_state": unit_state(params["unit"]),
        **nftables.answer(params["table"], there),
    }


def bring(module: AnsibleModule, params: dict[str, Any], files: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Make files, unit and kernel what they should be; raises Refused, OSError."""
    for file in files:
        if not file["path"].startswith(UNITS):
            nftables.load(file["content"], "--check")
    for file in files:
        if file["path"] in found["written"]:
            folder = os.path.dirname(file["path"])
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o755)
            put({**file, "owner": "root", "group": "root"}, module)
    if found["unit_state"] != "active, enabled" or any(path.startswith(UNITS) for path in found["written"]):
        systemctl("daemon-reload")
    if systemctl("enable", "--now", params["unit"]).returncode != 0 or (
        (found["differences"] or found["written"]) and systemctl("reload", params["unit"]).returncode != 0
    ):
        log = nftables.run("journalctl", "--unit", params["unit"], "--lines", "10", "--output", "cat", "--no-pager")
        raise nftables.Refused(f"{params['unit']} failed:\n{log.stdout.strip()}")
    left = compare(params, files)
    if left["differences"]:
        raise nftables.Refused(f"after loading them, the kernel's rules differ: {'; '.join(left['differences'])}")


def main() -> None:
    """Run as Ansible runs a module."""
    # Folders that it makes are for all to enter, whatever the login's umask.
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "table": {"type": "str", "required": True},
            "rules": {"type": "path", "required": True},
            "unit": {"type": "str", "required": True},
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "state": {"type": "str", "choices": ["tried", "loaded", "compared"], "default": "loaded"},
        },
        supports_check_mode=True,
    )
    params = module.params
    unknown = nftables.unknown_users(params["files"][0]["content"])
    params["unknown"] = unknown
    answer: dict[str, Any] = {"differences": [], "written": [], "opened": [], "unit_state": "", "policies": {}}
    answer |= {"confined": {}, "unknown_users": unknown}
    if module.check_mode and params["state"] != "compared" and not os.path.exists(nftables.NFT):
        # A bare host, on which the package is not installed in check mode.
        module.exit_json(changed=params["state"] == "loaded", **answer)
    try:
        if params["state"] == "tried":
            answer["opened"] = attempt(params, module.check_mode)
            module.exit_json(changed=bool(answer["opened"]), **answer)
        files = params["files"] if params["state"] == "compared" else fitted(params)
        answer |= compare(params, files)
        if params["state"] == "compared":
            module.exit_json(changed=False, **answer)
        texts = {file["path"]: (read(file["path"]) or "", file["content"]) for file in files}
        changed = bool(answer["differences"] or answer["written"] or answer["unit_state"] != "active, enabled")
        if changed and not module.check_mode:
            bring(module, params, files, answer)
        diff = [
            {"before_header": path, "after_header": path, "before": before, "after": after}
            for path, (before, after) in texts.items()
            if before != after
        ]
        diff += [{"prepared": "".join(f"{line}\n" for line in answer["differences"])}] if answer["differences"] else []
        module.exit_json(changed=changed, diff=sendable(diff), **answer)
    except nftables.Refused as error:
        module.fail_json(msg=f"packet filter: {error}", **answer)
    except (OSError, subprocess.TimeoutExpired) as error:
        module.fail_json(msg=f"packet filter: {type(error).__name__}: {error}", **answer)


if __name__ == "__main__":
    main()
