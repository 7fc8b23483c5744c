"""Ansible module: Redis' users, in the ACL file and live. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_users
short_description: Keep Redis' users as declared, in the ACL file and on the running server
description:
  - Writes the ACL file with hashed passwords, and changes the running server to match.
  - ACL LOAD of Redis 7.0 would cut every connection of every user but C(default). This module changes only the users
    that differ, with ACL SETUSER, which leaves their connections alone, and removes those that are not declared.
  - The running server is the judge. What it refuses is said in its own words, and nothing is changed then.
  - A user that may change users, and whose login is in O(logins) or left in O(credentials_file), must be declared.
    Otherwise the next run would be locked out, and this one is refused.
options:
  path: {description: The ACL file., type: path, required: true}
  users:
    description: All users. C(default) is switched off when it is not among them.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name., type: str, required: true}
      password:
        description: Password. Without one, and without O(users[].password_hashes), the user is off.
        type: str
      previous_password: {description: "Another one that is accepted, while clients change over.", type: str}
      password_hashes:
        description: SHA-256 hashes of more passwords that are accepted, where those are not known in clear.
        type: list
        elements: str
        default: []
      enabled: {description: Whether the user may log in., type: bool, default: true}
      rules: {description: "Keys, channels and commands, in the words of an ACL.", type: str, required: true}
  credentials_user:
    description: The user whose login is left in O(credentials_file), for root alone, when all the rest is done.
    type: str
  server_binary:
    description: The server's program, for a trial of the file while no server runs.
    type: path
    default: /usr/bin/redis-server
  owner:
    description: Who owns the file. A trial of it while no server runs is that user's process, too.
    type: str
  group: {description: Group of the file., type: str}
  mode: {description: "Mode of the file, in octal digits.", type: raw}
notes:
  - The service may write in the folder of the file. A link, or a file with another name besides, is refused there.
author: The quantdesk-redis maintainers (!UNKNOWN)
extends_documentation_fragment: [quantdesk.redis.redis_login]
"""

EXAMPLES = r"""
- name: Two users
  quantdesk.redis.redis_users:
    path: /etc/redis/users.acl
    users:
      - {name: admin, password: "{{ redis_admin_password }}", rules: "~* &* +@all"}
      - {name: app, password: "{{ redis_app_password }}", rules: "~app:* &app:* +get +set +ping"}
    server: {port: 6380, ca_file: /etc/ssl/ca.crt}
    logins: [{username: admin, password: "{{ redis_admin_password }}"}]
"""

RETURN = r"""
added: {description: Names of users that were not there., type: list, returned: always}
updated: {description: Names of users that were different., type: list, returned: always}
removed: {description: Names of users that are not declared; their connections were cut., type: list, returned: always}
restarted:
  description: Whether the server was restarted, as it refused this host's certificate for that of an older authority.
  type: bool
  returned: always
server: {description: "C(up), C(down) or C(none).", type: str, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_user_changes import OPTIONS, converge  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        module.exit_json(**converge(module.params, check_mode=module.check_mode))
    except Failed as error:
        module.fail_json(msg=str(error), **error.result)


if __name__ == "__main__":
    main()
