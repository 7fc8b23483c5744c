"""Ansible module: managed directives in redis.conf and on the running server. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_config
short_description: Keep directives in redis.conf and on the running server as declared
description:
  - Merges directives into the configuration file. Lines that mean the same already, and all that are not managed, stay
    as they are, so a file that Redis rewrote (CONFIG REWRITE, a failover) is not fought over.
  - Sets on the running server what differs there, in one CONFIG SET, all of it or nothing. Restarts nothing; what needs
    a restart is returned, also when an earlier run was interrupted before it.
  - The running server is the judge. What it refuses is said in its own words, and nothing is changed then. Where it
    cannot judge, because it is down or reads the value at its start only, a second one is started for a moment on the
    new file.
  - In check mode values are not judged.
  - Without O(server) only the file is looked after.
options:
  path: {description: The configuration file., type: path, required: true}
  directives:
    description:
      - Values by name. A list is several lines for C(save), C(client-output-buffer-limit), C(include) and
        C(loadmodule), and one line for all others. Null takes the line out, so that Redis' default holds.
      - An empty list for C(save) is no snapshots. Of C(client-output-buffer-limit) only the named classes are changed.
    type: dict
    required: true
  secrets:
    description: The same for C(requirepass), C(masterauth), C(tls-key-file-pass), C(tls-client-key-file-pass) and
      C(rename-command); never shown.
    type: dict
    default: {}
  header: {description: Comment at the top of a file that is new., type: str}
  server_binary: {description: "The server's program, for the trial.", type: path, default: /usr/bin/redis-server}
  reload_tls:
    description: Make the server read its certificate again when the file holds another one.
    type: bool
    default: true
  owner:
    description: Who owns the file. A trial of it is that user's process, too, and leaves out modules and included files
      that root alone cannot vouch for.
    type: str
  group: {description: Group of the file., type: str}
  mode: {description: "Mode of the file, in octal digits.", type: raw}
notes:
  - Redis may write in the folder of the file. A link, or a file with another name besides, is refused there.
author: The quantdesk-redis maintainers (!UNKNOWN)
extends_documentation_fragment: [quantdesk.redis.redis_login]
"""

EXAMPLES = r"""
- name: Memory, snapshots and a password
  quantdesk.redis.redis_config:
    path: /etc/redis/redis.conf
    directives:
      maxmemory: 512mb
      maxmemory-policy: allkeys-lru
      save: ["3600 1", "300 100"]
      client-output-buffer-limit: ["replica 256mb 64mb 60"]
      unixsocket: null
    secrets: {requirepass: "{{ redis_password }}"}
    owner: redis
    group: redis
    mode: "0640"
    server: {port: 6380, ca_file: /etc/ssl/ca.crt}
    logins: [{password: "{{ redis_password }}"}]
"""

RETURN = r"""
applied: {description: Names of the directives that were set on the running server., type: list, returned: always}
restart:
  description: What the running server takes only at its start, each with C(directive), C(running) (null if it does not
    tell), C(wanted) and C(reason).
  type: list
  returned: always
server: {description: "C(up), C(down) or C(none).", type: str, returned: always}
role: {description: "The running server's, C(master) or C(slave).", type: str, returned: always}
backup: {description: Where the old file is kept; null if nothing was written or replaced., type: str, returned: always}
tls_reloaded: {description: Whether the server was made to read its certificate again., type: bool, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_directive_changes import OPTIONS, converge  # noqa: E402


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
