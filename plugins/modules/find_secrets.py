"""Ansible module: look for secrets where they must not be. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: find_secrets
short_description: Look for secrets on command lines, in the journal and in files
description:
  - Searches the command line of every process, the journal of this boot and the given files for each of O(secrets).
  - Changes nothing, and returns only where a secret was found, never which characters.
options:
  secrets:
    description: What to look for, by name. Empty ones are left out.
    type: dict
    required: true
  files:
    description: Files to search besides.
    type: list
    elements: path
    default: []
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Look for the password
  quantdesk.redis.find_secrets:
    secrets: {redis_password: "{{ redis_password }}"}
    files: [/etc/redis/users.acl]
"""

RETURN = r"""
found:
  description: A line for each place that holds a secret, such as C(redis_password in the command line of 4711 (sh)).
  type: list
  returned: always
searched:
  description: How many processes and files were searched.
  type: dict
  returned: always
"""

import os  # noqa: E402
import subprocess  # noqa: E402 - Ansible wants the documentation first
from collections.abc import Iterator  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import NotPlain, read_bytes  # noqa: E402


def command_lines() -> Iterator[tuple[str, bytes]]:
    """Yield `command line of PID (name)` and the command line, for every process that lives long enough."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            program = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
            yield f"the command line of {folder.name} ({program})", (folder / "cmdline").read_bytes()
        except OSError:
            continue


def journal() -> bytes:
    """Return this boot's journal; raises OSError when there is no journalctl."""
    command = ["journalctl", "--boot", "--no-pager", "--quiet", "--output", "cat"]
    return subprocess.run(command, check=False, capture_output=True, env={**os.environ, "LC_ALL": "C"}).stdout


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "secrets": {"type": "dict", "required": True, "no_log": True},
            "files": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    wanted = {name: str(value).encode() for name, value in module.params["secrets"].items() if value}
    places = list(command_lines())
    processes = len(places)
    try:
        places.append(("the journal", journal()))
        for file in module.params["files"]:
            # A service may write some of them: a link in the place of one is not followed, and control 58 names it.
            with suppress(NotPlain):
                text = read_bytes(file)
                places += [] if text is None else [(file, text)]
    except OSError as error:
        module.fail_json(msg=f"cannot search {error.filename or 'the journal'}: {error.strerror}")
    found = [f"{name} in {place}" for place, text in places for name, secret in wanted.items() if secret in text]
    module.exit_json(changed=False, found=found, searched={"processes": processes, "others": len(places) - processes})


if __name__ == "__main__":
    main()
