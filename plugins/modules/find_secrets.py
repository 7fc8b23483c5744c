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

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible_collections.quantdesk.redis.plugins.module_utils.secret_places import Places  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "secrets": {"type": "dict", "required": True, "no_log": True},
            "files": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    wanted = {name: str(value) for name, value in module.params["secrets"].items()}
    try:
        places = Places()
        files = places.files(module.params["files"])
    except OSError as error:
        module.fail_json(msg=f"cannot search {error.filename or 'the journal'}: {error.strerror}")
    searched = {"processes": places.processes, "others": 1 + len(files)}
    module.exit_json(changed=False, found=places.search(wanted, files), searched=searched)


if __name__ == "__main__":
    main()
