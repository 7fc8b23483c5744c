"""Ansible module: several small files in one call. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: write_files
short_description: Write several small files in one call
description:
  - What ansible.builtin.template does for one file in two round trips, this does for many in one. The texts are
    rendered by the template lookup.
  - Each file is replaced atomically. Its folder is made if it is missing; the one above that must be there.
  - Something else in the place of a file, such as a link, is replaced as well; it is neither read nor followed.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where it is., type: path, required: true}
      content: {description: Its whole text., type: str, required: true}
      owner: {description: Who owns it., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode., type: str, default: "0644"}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write the unit and its slice
  quantdesk.redis.write_files:
    files:
      - {path: /etc/systemd/system/a.service, content: "{{ lookup('ansible.builtin.template', 'a.service.j2') }}"}
      - {path: /etc/systemd/system/a.slice, content: "{{ lookup('ansible.builtin.template', 'a.slice.j2') }}"}
"""

RETURN = r"""
written: {description: The files whose text changed., type: list, returned: always}
"""

import os  # noqa: E402 - Ansible wants the documentation first
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import Candidate, Ownership, text_of  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable  # noqa: E402


def write(module: AnsibleModule, file: dict[str, Any]) -> tuple[bool, dict[str, str] | None]:
    """Write one file, or predict it; return whether anything changed, and the diff of its text if that did."""
    path = file["path"]
    before = text_of(path)
    if before == file["content"]:
        return Ownership.of(file, check_mode=module.check_mode).declare(path, pretend=module.check_mode), None
    if not module.check_mode:
        candidate = Candidate(path, file["content"], Ownership.of(file).apply)
        try:
            candidate.replace(keep=False)
        finally:
            candidate.discard()
    diff = {"before_header": path, "after_header": path, "before": before or "", "after": file["content"]}
    return True, diff


def main() -> None:
    """Run as Ansible runs a module."""
    # Folders that it makes are for all to enter, whatever the login's umask.
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
        },
        supports_check_mode=True,
    )
    changed = False
    diffs: list[dict[str, str]] = []
    written: list[str] = []
    for file in module.params["files"]:
        folder = os.path.dirname(file["path"])
        try:
            if not module.check_mode and not os.path.isdir(folder):
                os.mkdir(folder, 0o755)
            different, diff = write(module, file)
        except OSError as error:
            module.fail_json(msg=f"{error.filename or file['path']}: {error.strerror}", written=written)
        except ValueError as error:
            module.fail_json(msg=f"{file['path']}: {error}", written=written)
        changed = changed or different
        if diff:
            diffs.append(diff)
            written.append(file["path"])
    module.exit_json(changed=changed, written=written, diff=sendable(diffs))


if __name__ == "__main__":
    main()
