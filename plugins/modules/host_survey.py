"""Ansible module: what is on a host already. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_survey
short_description: Report what is on a host already that roles must leave alone
description:
  - Reports users, folders below /opt, units, listening sockets, PostgreSQL clusters, HAProxy's configuration and packet
    filters, for the preflight of the roles that would meet them, and where Ansible comes from.
  - One round trip for all roles. Changes nothing.
options:
  marker:
    description: The text by which files of this bundle are known.
    type: str
    default: Ansible managed
"""

EXAMPLES = r"""
- name: Ask the host what is there already
  host_survey: {marker: Ansible managed}
"""

RETURN = r"""
ansible_facts:
  description: What was found, as the fact C(host_survey).
  type: dict
  returned: always
  contains:
    host_survey:
      description: See plugins/module_utils/host_neighbours.py.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible.module_utils.host_neighbours import survey  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={"marker": {"type": "str", "default": "Ansible managed"}}, supports_check_mode=True
    )
    module.exit_json(changed=False, ansible_facts={"host_survey": survey(module.params["marker"])})


if __name__ == "__main__":
    main()
