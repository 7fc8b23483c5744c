"""Ansible module: ask Redis servers several things in one call. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_command
short_description: Send commands to Redis, over several connections, in one call
description:
  - Opens each connection of O(probes), sends its commands and returns every reply, or why there was none.
  - An error reply or a refused connection is an answer, not a failure, so that refusals can be asserted.
    With O(strict) they fail the task.
  - Secrets travel in the module's arguments, never on a command line.
  - Says that nothing changed, unless O(changes) is set; then check mode sends nothing.
options:
  probes:
    description: The connections to open, one after another unless O(together) is set.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: What the result is called., type: str, required: true}
      host: {description: Address to connect to., type: str, default: 127.0.0.1}
      port: {description: Port to connect to., type: int, required: true}
      ca_file: {description: Trust root on the host; turns TLS on., type: path}
      server_name: {description: "What the certificate must name; O(probes[].host) by default.", type: str}
      cert_file: {description: "Certificate of this client on the host, for mutual TLS.", type: path}
      key_file: {description: Its key., type: path}
      foreign_certificate: {description: Show a certificate that its authority did not sign., type: bool}
      tls_maximum: {description: Newest TLS version to offer., type: str, choices: [TLSv1.1, TLSv1.2]}
      tls_ciphers: {description: "What to offer up to TLS 1.2, in OpenSSL's words.", type: str}
      username: {description: User to authenticate as., type: str, default: default}
      password: {description: Password to authenticate with; none sends no AUTH., type: str}
      commands: {description: "The commands, each a list of words.", type: list, elements: list, required: true}
  timeout:
    description: Seconds to wait for a connection and for each reply.
    type: float
    default: 5
  strict:
    description: Fail when a connection or a command does.
    type: bool
    default: false
  changes:
    description: Whether the commands change the server.
    type: bool
    default: false
  together:
    description: Open all connections at once, so that many time-outs take as long as one.
    type: bool
    default: false
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Ask for the version, and make sure that strangers are refused
  quantdesk.redis.redis_command:
    probes:
      - {name: known, port: 6380, ca_file: /etc/ssl/ca.crt, password: "{{ redis_password }}", commands: [[PING]]}
      - {name: anonymous, port: 6380, ca_file: /etc/ssl/ca.crt, commands: [[PING]]}
"""

RETURN = r"""
probes:
  description: By name, C(connected), C(error) (empty if there was none) and C(replies), one for each command.
    The reply to CONFIG GET and its like is a dictionary. Over TLS also C(certificate) of the server, with its C(names),
    C(days) until it ends and its C(sha256).
  type: dict
  returned: always
"""

from concurrent.futures import ThreadPoolExecutor  # noqa: E402 - Ansible wants the documentation first

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_probe import ask  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "probes": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "host": {"type": "str", "default": "127.0.0.1"},
                    "port": {"type": "int", "required": True},
                    "ca_file": {"type": "path"},
                    "server_name": {"type": "str"},
                    "cert_file": {"type": "path"},
                    "key_file": {"type": "path"},
                    "foreign_certificate": {"type": "bool"},
                    "tls_maximum": {"type": "str", "choices": ["TLSv1.1", "TLSv1.2"]},
                    "tls_ciphers": {"type": "str"},
                    "username": {"type": "str", "default": "default"},
                    "password": {"type": "str", "no_log": True},
                    "commands": {"type": "list", "elements": "list", "required": True},
                },
            },
            "timeout": {"type": "float", "default": 5.0},
            "strict": {"type": "bool", "default": False},
            "changes": {"type": "bool", "default": False},
            "together": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode and params["changes"]:
        module.exit_json(changed=True, probes={})
    names = [probe["name"] for probe in params["probes"]]
    with ThreadPoolExecutor(max_workers=(len(names) or 1) if params["together"] else 1) as workers:
        found = workers.map(lambda probe: ask(probe, params["timeout"]), params["probes"])
        answers = dict(zip(names, found, strict=True))
    refused = [f"{name}: {answer['error']}" for name, answer in answers.items() if answer["error"]]
    if params["strict"] and refused:
        module.fail_json(msg=sendable("; ".join(refused)), probes=sendable(answers))
    module.exit_json(changed=params["changes"], probes=sendable(answers))


if __name__ == "__main__":
    main()
