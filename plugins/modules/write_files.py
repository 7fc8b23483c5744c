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

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.text_files import OPTIONS, converge  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    # Folders that it makes are for all to enter, whatever the login's umask.
    os.umask(0o022)
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        module.exit_json(**converge(module.params, check_mode=module.check_mode))
    except Failed as error:
        module.fail_json(msg=str(error), **error.result)


if __name__ == "__main__":
    main()
