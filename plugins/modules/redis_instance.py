"""Ansible module: an instance of Redis, as a whole. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_instance
short_description: Have the users, the directives, the files and the unit of a Redis server as declared, in one call
description:
  - Does what redis_users, redis_config, write_files and redis_service do, in this order, as a run that changes nothing
    is mostly the way to the host and back.
  - The order matters to a running server. Its users come first, so that the login of the next steps is known, then its
    settings; both are changed live, and their file to match. Then come the files, and at most one restart, for what a
    running server cannot take over.
  - A step that fails ends it; the message says what the steps before have changed.
options:
  users:
    description: As redis_users takes them, but for what is below.
    type: dict
    required: true
    suboptions:
      path: {description: The ACL file., type: path, required: true}
      users:
        description: The users that there are to be, as redis_users takes them.
        type: list
        elements: dict
        required: true
        suboptions:
          name: {description: Name., type: str, required: true}
          password: {description: Password., type: str}
          previous_password: {description: Another password that is taken for a time., type: str}
          password_hashes: {description: "More passwords, as SHA-256.", type: list, elements: str, default: []}
          enabled: {description: Whether it may log in., type: bool, default: true}
          rules: {description: "What it may, as in ACL SETUSER.", type: str, required: true}
      credentials_user: {description: "Whose login is left in O(credentials_file).", type: str}
  directives:
    description: As redis_config takes them, but for what is below.
    type: dict
    required: true
    suboptions:
      path: {description: The configuration file., type: path, required: true}
      directives: {description: Values by name., type: dict, required: true}
      secrets: {description: The same for secret ones., type: dict, default: {}}
      header: {description: Comment at the top of a file that is new., type: str}
      reload_tls:
        description: Make the server read its certificate again when the file holds another one.
        type: bool
        default: true
  files:
    description: Files that root owns, as write_files takes them.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Where it is., type: path, required: true}
      content: {description: Its whole text., type: str, required: true}
      owner: {description: Who owns it., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode., type: str, default: "0644"}
  unit:
    description: As redis_service takes it, but for what is below.
    type: dict
    required: true
    suboptions:
      unit: {description: Name of the unit., type: str, required: true}
      enabled: {description: Whether it starts with the host., type: bool, default: true}
      restart_for: {description: Reasons for a restart that the caller knows., type: list, elements: str, default: []}
      log_file: {description: "The server's log, shown when it does not come up.", type: path}
      start_timeout: {description: Seconds that a start may take., type: float, default: 120}
      data: {description: The folder of its data., type: path}
  server_binary: {description: "The server's program, for a trial.", type: path, default: /usr/bin/redis-server}
  owner: {description: "The user of the server, who owns its two files.", type: str}
  group: {description: Group of these files., type: str}
  mode: {description: "Mode of these files, in octal digits.", type: raw}
author: The quantdesk-redis maintainers (!UNKNOWN)
extends_documentation_fragment: [quantdesk.redis.redis_login]
"""

EXAMPLES = r"""
- name: Keep an instance as declared
  quantdesk.redis.redis_instance:
    users:
      path: /etc/redis/users.acl
      users: [{name: admin, password: "{{ redis_admin_password }}", rules: "~* &* +@all"}]
      credentials_user: admin
    directives:
      path: /etc/redis/redis.conf
      directives: {maxmemory: 512mb, aclfile: /etc/redis/users.acl}
    unit: {unit: redis-server.service}
    owner: redis
    server: {port: 6379}
    logins: [{username: admin, password: "{{ redis_admin_password }}"}]
    credentials_file: /etc/redis-admin.env
"""

RETURN = r"""
users: {description: What redis_users returns., type: dict, returned: always}
directives: {description: What redis_config returns., type: dict, returned: always}
files: {description: What write_files returns., type: dict, returned: always}
unit: {description: What redis_service returns., type: dict, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_instance import OPTIONS, converge  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    # A rename-command to nothing is an empty text, which is no secret and part of every other one.
    module.no_log_values.discard("")
    try:
        module.exit_json(**converge(module.params, check_mode=module.check_mode, hide=module.no_log_values.update))
    except Failed as error:
        module.fail_json(msg=str(error), **error.result)


if __name__ == "__main__":
    main()
