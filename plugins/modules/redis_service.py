"""Ansible module: make a unit of Redis run what is installed. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_service
short_description: Start Redis, or restart it once if it must, and wait until it answers
description:
  - Enables and starts the unit. Restarts it only for O(restart_for), and for what it sees itself, namely a unit file
    that is newer than the process, a program that was replaced under it, or a server that listens on addresses alone
    that the host has no more. So a run that was interrupted before its restart is completed by the next one.
  - Then waits for a login and a PONG; a server that does not come up fails the task with its own log.
options:
  unit: {description: Name of the unit., type: str, required: true}
  enabled: {description: Whether it starts with the host., type: bool, default: true}
  restart_for: {description: Reasons for a restart that the caller knows., type: list, elements: str, default: []}
  log_file: {description: "The server's log, shown when it does not come up.", type: path}
  config_file: {description: "Its configuration, whose old version is named when it does not come up.", type: path}
  start_timeout: {description: Seconds that a start may take., type: float, default: 120}
  user:
    description:
      - Whose process it is to be. One that runs as somebody else is restarted, and only once its data are on the disk,
        whether its configuration saves them or not.
    type: str
  data: {description: The folder of its data., type: path}
author: The quantdesk-redis maintainers (!UNKNOWN)
extends_documentation_fragment: [quantdesk.redis.redis_login]
"""

EXAMPLES = r"""
- name: Run Redis
  quantdesk.redis.redis_service:
    unit: redis-server.service
    restart_for: ["io-threads is 1, wanted 4"]
    server: {port: 6380, ca_file: /etc/ssl/ca.crt}
    logins: [{username: admin, password: "{{ redis_admin_password }}"}]
"""

RETURN = r"""
restarted: {description: Whether it was restarted., type: bool, returned: always}
started: {description: Whether it was started., type: bool, returned: always}
reasons: {description: Why it was restarted., type: list, returned: always}
seconds: {description: Seconds until it answered., type: float, returned: when it was started or restarted}
main_pid: {description: The server's process., type: int, returned: always but in check mode}
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_unit import OPTIONS, converge  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        module.exit_json(**converge(module.params, check_mode=module.check_mode))
    except Failed as error:
        module.fail_json(msg=str(error), **error.result)


if __name__ == "__main__":
    main()
