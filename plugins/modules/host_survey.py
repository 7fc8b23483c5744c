"""Ansible module: what is on a host already. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_survey
short_description: Report what is on a host already that roles must leave alone
description:
  - Reports who listens on TCP ports, users, folders below /opt, units, PostgreSQL clusters, HAProxy's configuration and
    packet filters, for the preflight of the roles that would meet them, and where Ansible comes from.
  - One round trip for all roles. Changes nothing. Without root, programs of other users have no name, and what only
    root may read is not there.
  - community.general.listen_ports_facts does not report units, and needs netstat or ss on the host.
options:
  marker:
    description: The text by which files of this bundle are known.
    type: str
    default: Ansible managed
  files:
    description:
      - Files and folders whose state is of interest. Owner, group and mode are returned, of a file its SHA-256, too.
    type: list
    elements: path
    default: []
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Survey the host
  quantdesk.redis.host_survey: {marker: Ansible managed}
  register: survey
"""

RETURN = r"""
listeners:
  description: >-
    Listening sockets by port, each with port, address, pid (0 is unknown), program (its short name) and unit. A socket
    that systemd holds for a service has the unit of the socket.
  type: list
  returned: always
ssh_connection:
  description: "Client, its port, server and its port of the ssh session; empty for another transport."
  type: str
  returned: always
ansible_facts:
  description: All of it, as the fact C(host_survey), which later plays have, too.
  type: dict
  returned: always
  contains:
    host_survey:
      description: See plugins/module_utils/host_neighbours.py.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible_collections.quantdesk.redis.plugins.module_utils.host_neighbours import survey  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "marker": {"type": "str", "default": "Ansible managed"},
            "files": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    found = survey(module.params["marker"], module.params["files"])
    shown = {name: found[name] for name in ("listeners", "ssh_connection")}
    module.exit_json(changed=False, ansible_facts={"host_survey": found}, **shown)


if __name__ == "__main__":
    main()
