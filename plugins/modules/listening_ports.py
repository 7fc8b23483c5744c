"""Ansible module: who listens on the host's TCP ports. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: listening_ports
short_description: Report which programs listen on the host's TCP ports, and where Ansible comes from
description:
  - Changes nothing. Without root, programs of other users have no name.
  - community.general.listen_ports_facts does not report units, and needs netstat or ss on the host.
options: {}
"""

EXAMPLES = r"""
- name: Ask which ports are taken
  listening_ports:
  register: ports
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
"""

from dataclasses import asdict  # noqa: E402 - Ansible wants the documentation first

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible.module_utils.listeners import listeners, ssh_connection  # noqa: E402


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, listeners=[asdict(found) for found in listeners()], ssh_connection=ssh_connection())


if __name__ == "__main__":
    main()
