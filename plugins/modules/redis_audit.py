"""Ansible module: compare the Redis instances of a host with the inventory. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_audit
short_description: Compare all Redis instances of a host with the inventory, in one call
description:
  - Connects to each instance in every way that is to work and that is to be refused, compares users and directives,
    and looks at its unit, process, sockets and files, at the kernel, and at other Redis servers of the host.
  - Returns a row for each check, which the plugin C(checks) reports. A check that cannot be made is a failed row that
    says why. Changes nothing.
  - Secrets travel in the module's arguments, never on a command line, and no row shows one.
options:
  instances:
    description: What each instance is to be. The first one's rows tell of the host, too.
    type: list
    elements: dict
    required: true
    suboptions:
      subject: {description: What its rows are about., type: str, required: true}
      unit: {description: Its unit., type: str, required: true}
      user: {description: Its user., type: str, required: true}
      folder: {description: The folder of its configuration., type: path, required: true}
      folder_mode: {description: "Mode of that folder, in octal digits.", type: str, required: true}
      conf: {description: Its redis.conf., type: path, required: true}
      acl: {description: Its ACL file., type: path, required: true}
      credentials: {description: The file with the administrator's login., type: path, required: true}
      data: {description: The folder of its data., type: path, required: true}
      log: {description: "Its log, in a folder of its own.", type: path, required: true}
      sizes: {description: Where the sizes of its append-only files are noted., type: path, required: true}
      server:
        description: "How to reach it from the host: C(host), C(port), and over TLS C(ca_file), C(server_name),
          C(cert_file) and C(key_file)."
        type: dict
        required: true
      port: {description: Its port in plaintext; 0 is off., type: int, required: true}
      tls_port: {description: Its port over TLS; 0 is off., type: int, required: true}
      tls_auth_clients: {description: Whether clients must show a certificate., type: bool, required: true}
      names: {description: What its certificate must name., type: list, elements: str, required: true}
      exposure: {description: The highest figure of systemd-analyze security for its unit., type: float, required: true}
      maxmemory: {description: How much memory it may use for data., type: int, required: true}
      directives: {description: "Its directives, as redis_config takes them.", type: dict, required: true}
      users: {description: "Its users, as redis_users takes them.", type: list, elements: dict, required: true}
  host:
    description: The name of the host.
    type: str
    required: true
  topology: {description: How servers stand together., type: str, required: true}
  install: {description: "C(package), C(repository) or C(source).", type: str, required: true}
  source_version: {description: "The version that was built, of C(source).", type: str, default: ""}
  version_accepted: {description: A version that was accepted by name., type: str, default: ""}
  packages:
    description: What to ask apt about the package, as the class Offers of C(module_utils/apt_state.py) takes it.
    type: dict
    required: true
  kernel: {description: Whether the kernel is the host's own., type: bool, required: true}
  somaxconn: {description: How long the kernel's queues of connections are to be., type: int, required: true}
  leave: {description: Ports of servers that are none of the inventory's., type: list, elements: int, default: []}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Compare the instances with the inventory
  quantdesk.redis.redis_audit:
    host: "{{ inventory_hostname }}"
    instances: "{{ query('quantdesk.redis.redis_each', '__redis_audited') }}"
    topology: standalone
    install: package
    packages: {kind: package, days: 7, bad: []}
    kernel: true
    somaxconn: 1024
  register: audited
"""

RETURN = r"""
rows:
  description: A row for each check, in the order of the table.
  type: list
  elements: dict
  returned: always
  contains:
    subject: {description: The instance., type: str}
    name: {description: What was checked., type: str}
    control: {description: Numbers in docs/controls.md., type: list, elements: int}
    found: {description: "What was found; of a check that has no place here, the reason.", type: str}
    expected: {description: What was expected., type: str}
    verdict: {description: "C(ok), C(FAILED) or C(n/a).", type: str}
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 - Ansible wants the documentation first
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_checks import rows  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import SECRETS, canonical  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_seen import look  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_wanted import INSTANCE_OPTIONS, Host, Instance  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable  # noqa: E402


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True, "options": INSTANCE_OPTIONS},
            "host": {"type": "str", "required": True},
            "topology": {"type": "str", "required": True},
            "install": {"type": "str", "required": True},
            "source_version": {"type": "str", "default": ""},
            "version_accepted": {"type": "str", "default": ""},
            "packages": {"type": "dict", "required": True},
            "kernel": {"type": "bool", "required": True},
            "somaxconn": {"type": "int", "required": True},
            "leave": {"type": "list", "elements": "int", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    for one in params["instances"]:
        # None belongs there, which redis_config says, too.
        secret = [str(value) for name, value in one["directives"].items() if canonical(name) in SECRETS]
        module.no_log_values.update(filter(None, secret))
    host = Host(
        name=params["host"],
        topology=params["topology"],
        install=params["install"],
        source_version=params["source_version"],
        version_accepted=params["version_accepted"],
        packages=params["packages"],
        kernel=params["kernel"],
        somaxconn=params["somaxconn"],
        leave=frozenset(map(str, params["leave"])),
    )
    found = []
    for number, seen in enumerate(look([Instance(**one) for one in params["instances"]], host)):
        found += rows(seen, first=number == 0)
    module.exit_json(changed=False, rows=sendable(found))


if __name__ == "__main__":
    main()
