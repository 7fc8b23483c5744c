"""Ansible module: find the Redis servers of a host, of any origin. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_survey
short_description: Find every Redis server of a host, its data and what it listens on
description:
  - Finds Redis, Valkey, KeyDB and Sentinel processes, also those that were started by hand, from another folder or in a
    container, and data that no running server has.
  - Asks each server what it is. Tries no login, then the passwords in the server's own configuration, then O(logins).
    Where it cannot be asked, its configuration answers.
  - Changes nothing. A server that does not answer costs two seconds.
options:
  logins:
    description:
      - Logins that servers may know, tried in order.
      - Anybody can run a program by the name of redis-server, so a login without O(logins[].port) is shown only to
        servers that a unit starts, or that run as root or redis, or in a container of the host's.
    type: list
    elements: dict
    default: []
    suboptions:
      username: {description: User to authenticate as., type: str, default: default}
      password: {description: Its password., type: str}
      port: {description: Show it only to the server that listens on this port; 0 for any., type: int, default: 0}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Find Redis servers
  quantdesk.redis.redis_survey:
    logins: [{username: admin, password: "{{ redis_adopt_password }}", port: 6379}]
"""

RETURN = r"""
servers:
  description:
    - One for each server, with C(pid), C(program), C(version) (empty if unknown), C(kind) (C(redis), C(valkey),
      C(keydb) or C(sentinel)), C(unit), C(unit_file), C(unit_enabled), C(ours), C(container), C(user), C(cwd),
      C(config_file) and C(config_problem).
    - C(port) and C(tls_port) (0 is off), C(addresses), C(socket); C(login) (C(open), C(accepted), C(refused) or
      C(unreachable)), C(login_as), C(login_problem).
    - C(loading), C(role), C(primary), C(replicas), C(cluster), C(keys) (null if unknown), C(databases), C(used_memory),
      C(modules), C(functions), C(renamed), C(users) (C(name) and C(rules), with hashes of passwords), C(data),
      C(settings) (what differs from the defaults of Redis 7, without secrets) and C(clients), each host, user, name,
      database and library once.
  type: list
  returned: always
files:
  description: Snapshots and append-only files in data folders without a running server, each with C(path), C(kind),
    C(rdb_version), C(redis_version), C(empty) (no keys and no functions), C(bytes), C(modified) and C(ours).
  type: list
  returned: always
listeners:
  description: All listening TCP sockets, each with C(port), C(address), C(pid), C(program) and C(unit).
  type: list
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_host import survey  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "logins": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "username": {"type": "str", "default": "default"},
                    "password": {"type": "str", "no_log": True},
                    "port": {"type": "int", "default": 0},
                },
            },
        },
        supports_check_mode=True,
    )
    # An empty password is no secret, and part of every text.
    module.no_log_values.discard("")
    module.exit_json(changed=False, **survey(module.params["logins"]))


if __name__ == "__main__":
    main()
