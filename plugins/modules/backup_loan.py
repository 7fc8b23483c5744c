"""Ansible module: let one host read the backups of another one for a while. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_loan
short_description: Let one host read the backups of another one for a while
description:
  - Runs on the host that keeps the backups. Makes an account that the other host may come as, which can read the
    repository and nothing else. What it is encrypted with is not given by this.
  - The key is refused after a day, should nobody take the account away before.
options:
  path: {description: The folder with a folder for each environment., type: path, required: true}
  environment: {description: The environment of the host whose backups are lent., type: str, required: true}
  host: {description: The host whose backups are lent., type: str, required: true}
  borrower: {description: "The host that may read them, as ENVIRONMENT/HOST.", type: str, required: true}
  key: {description: The public key of the host that may read them., type: str, default: ""}
  state: {description: Whether it may., type: str, choices: [present, absent], default: present}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let a new host read the backups of the one that is lost
  quantdesk.redis.backup_loan:
    path: /srv/backups
    environment: production
    host: redis1
    borrower: staging/redis9
    key: "{{ backup_public_key }}"
"""

RETURN = r"""
account: {description: Whom the other host comes as., type: str, returned: always}
"""

import os  # noqa: E402 - Ansible wants the documentation first
import pwd  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.backup_places import (  # noqa: E402
    ACCOUNTS,
    KEY,
    NAME,
    account,
    guest,
    is_plain_folder,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.programs import ENGLISH  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import Candidate  # noqa: E402

LONG = 86400


def exists(name: str) -> bool:
    """Return whether there is an account of this name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def lend(module: AnsibleModule, name: str, owner: str, folder: str) -> None:
    """Make the account; it is of the group that may read the repository."""
    if not is_plain_folder(folder) or not exists(owner):
        module.fail_json(
            msg=f"{folder}: there are no backups of that host here; restore_list=true lists those that there are"
        )
    if not exists(name):
        words = [
            "--system",
            "--gid",
            owner,
            "--home-dir",
            "/nonexistent",
            "--no-create-home",
            "--shell",
            "/bin/sh",
            name,
        ]
        module.run_command(["useradd", *words], check_rc=True, environ_update=ENGLISH)
    until = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + LONG))
    texts = {
        "folder": f"{folder}\n",
        "keys": f'restrict,expiry-time="{until}" {module.params["key"]}\n',
    }
    for kind, text in texts.items():
        Candidate(f"{ACCOUNTS}/{name}.{kind}", text, lambda target: os.chmod(target, 0o644)).replace(keep=False)


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "environment": {"type": "str", "required": True},
            "host": {"type": "str", "required": True},
            "borrower": {"type": "str", "required": True},
            "key": {"type": "str", "default": "", "no_log": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    environment, host = module.params["environment"], module.params["host"]
    if not (NAME.fullmatch(environment) and NAME.fullmatch(host)):
        module.fail_json(msg=f"found {environment!r} and {host!r}; expected the names of an environment and of a host")
    if module.params["state"] == "present" and not KEY.fullmatch(module.params["key"]):
        module.fail_json(msg=f"key: found {module.params['key']!r}; expected a public key such as ssh-ed25519 AAAA…")
    name = guest(environment, host, module.params["borrower"])
    there = exists(name)
    try:
        if module.params["state"] == "present" and not module.check_mode:
            lend(module, name, account(environment, host), f"{module.params['path']}/{environment}/{host}")
        elif module.params["state"] == "absent" and there and not module.check_mode:
            for kind in ("keys", "folder"):
                Path(f"{ACCOUNTS}/{name}.{kind}").unlink(missing_ok=True)
            module.run_command(["userdel", name], check_rc=True, environ_update=ENGLISH)
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(changed=module.params["state"] == "present" or there, account=name)


if __name__ == "__main__":
    main()
