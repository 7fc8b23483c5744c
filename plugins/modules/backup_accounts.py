"""Ansible module: the accounts and folders of the hosts whose backups this host keeps. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_accounts
short_description: Give each host an account and a folder for its backups, or tell what each has
description:
  - Each host of an environment has an account of its own, which reaches nothing but its own folder.
  - Accounts of other environments are never touched. A host of this one that is no longer listed loses its key; its
    folder stays.
options:
  path: {description: The folder with a folder for each environment., type: path, required: true}
  environment: {description: The environment of the hosts., type: str, required: true}
  hosts:
    description: The hosts, with their public keys. A host without a key keeps the one that it has.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: The host., type: str, required: true}
      key: {description: Its public key., type: str, default: ""}
  addresses:
    description: Addresses and networks that they may come from. Empty for any.
    type: list
    elements: str
    default: []
  single: {description: The repository that all hosts shared in earlier versions., type: path, required: true}
  state:
    description: Whether to make them, or only to tell what is there.
    type: str
    choices: [present, told]
    default: present
  thorough: {description: Whether to look through the files of the repositories too., type: bool, default: false}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Make an account for each host that keeps backups here
  quantdesk.redis.backup_accounts:
    path: /srv/backups
    environment: production
    hosts: [{name: redis1, key: "{{ backup_public_key }}"}]
    single: /srv/backup
"""

RETURN = r"""
accounts:
  description: The accounts of the environment, each with host, account, folder and key.
  type: list
  returned: always
host_key: {description: The public key of this host., type: str, returned: always}
single:
  description: "The repository that all hosts shared: V(none), V(open) (hosts can still write to it) or V(closed)."
  type: str
  returned: always
elsewhere:
  description: Open repositories that earlier versions made in other places than O(single).
  type: list
  returned: always
reload: {description: Whether sshd has read another file than is there., type: bool, returned: always}
problems: {description: What an account or a repository is not as it should be., type: list, returned: always}
plain: {description: Files that begin like data that were never encrypted., type: list, returned: always}
open: {description: Files of repositories that others may read or own., type: list, returned: always}
"""

import os  # noqa: E402 - Ansible wants the documentation first
import pwd  # noqa: E402
import re  # noqa: E402
import stat  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.backup_places import (  # noqa: E402
    ACCOUNTS,
    KEY,
    NAME,
    account,
    is_plain_folder,
    shown,
    walk,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.programs import ENGLISH  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import Candidate, read  # noqa: E402

HOST_KEY = Path("/etc/ssh/ssh_host_ed25519_key.pub")
SSHD = "/etc/ssh/sshd_config.d/backup-vault.conf"
# The keys that the account of the shared repository had.
SHARED_KEYS = Path("/etc/ssh/backup-vault.keys")
SHARED_USER = "backup-vault"
CLEAR = (b"REDIS0", b"PGDMP", b"SQLite format")
# So many files are looked into, and so many are named.
LOOKED, NAMED = 500, 5
# What removes stale locks.
TIMER = "backup-vault-locks.timer"
# What sshd must say of each account.
EXPECTED = {
    "authorizedkeysfile": f"{ACCOUNTS}/%u.keys",
    "forcecommand": f"{ACCOUNTS}/serve",
    "authenticationmethods": "publickey",
    "disableforwarding": "yes",
    "permittty": "no",
    "permituserrc": "no",
}


class Accounts:
    """The accounts of one environment."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path: str = module.params["path"]
        self.environment: str = module.params["environment"]
        self.changed = False

    def folder(self, host: str) -> str:
        """Return the folder of a host's repository."""
        return f"{self.path}/{self.environment}/{host}"

    def known(self) -> list[str]:
        """Return the hosts that have a folder here. Root alone makes these names."""
        try:
            names = sorted(os.listdir(f"{self.path}/{self.environment}"))
        except FileNotFoundError:
            return []
        return [name for name in names if NAME.fullmatch(name) and is_plain_folder(self.folder(name))]

    def key(self, host: str) -> str:
        """Return the key that a host comes with, as an earlier run has left it."""
        text = read(f"{ACCOUNTS}/{account(self.environment, host)}.keys") or ""
        found = re.search(r"^restrict(?:,\S*)? (.+)$", text, re.MULTILINE)
        return found[1] if found else ""

    def lent(self) -> list[str]:
        """Return the hosts whose backups another one may read. Root alone makes these files."""
        guests = Path(ACCOUNTS).glob("lend-*.keys")
        told = {(read(str(path.with_suffix(".folder"))) or "").strip() for path in guests}
        return [host for host in self.known() if self.folder(host) in told]

    def make(self, hosts: list[dict[str, str]]) -> None:
        """Make what is missing, and take the keys of hosts that are not listed away."""
        listed = [host["name"] for host in hosts]
        self.make_folder(self.path, 0, 0, 0o755)
        self.make_folder(f"{self.path}/{self.environment}", 0, 0, 0o755)
        self.make_folder(ACCOUNTS, 0, 0, 0o755)
        limit = f',from="{",".join(self.module.params["addresses"])}"' if self.module.params["addresses"] else ""
        for host in hosts:
            name = account(self.environment, host["name"])
            if self.make_user(name):
                user = pwd.getpwnam(name)
                self.make_folder(self.folder(host["name"]), user.pw_uid, user.pw_gid, 0o750)
            self.make_file(f"{ACCOUNTS}/{name}.folder", f"{self.folder(host['name'])}\n")
            key = host["key"] or self.key(host["name"])
            self.make_file(f"{ACCOUNTS}/{name}.keys", f"restrict{limit} {key}\n" if key else "")
        for name in set(self.known()) - set(listed):
            self.make_file(f"{ACCOUNTS}/{account(self.environment, name)}.keys", "")
        if SHARED_KEYS.exists():
            self.changed = True
            if not self.module.check_mode:
                SHARED_KEYS.unlink()

    def make_user(self, name: str) -> bool:
        """Make an account, if there is none; tell whether it is there."""
        try:
            pwd.getpwnam(name)
        except KeyError:
            self.changed = True
            if self.module.check_mode:
                return False
            # No home: what a host writes must not be where sshd, PAM or a shell look for settings.
            words = ["--system", "--user-group", "--home-dir", "/nonexistent", "--no-create-home", "--shell", "/bin/sh"]
            self.module.run_command(["useradd", *words, name], check_rc=True, environ_update=ENGLISH)
        return True

    def make_folder(self, path: str, owner: int, group: int, mode: int) -> None:
        """Make a folder, or give it its owner and mode. The one above it belongs to root."""
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            self.changed = True
            if self.module.check_mode:
                return
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            os.mkdir(path, 0o700)
        else:
            if (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (owner, group, mode) and stat.S_ISDIR(
                info.st_mode
            ):
                return
            self.changed = True
            if self.module.check_mode:
                return
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(handle, owner, group)
            os.fchmod(handle, mode)
        finally:
            os.close(handle)

    def make_file(self, path: str, text: str) -> None:
        """Write a file of root's that sshd reads on the account's behalf; an empty one is removed."""
        before = read(path)
        if before == (text or None):
            return
        self.changed = True
        if self.module.check_mode:
            return
        if text:
            Candidate(path, text, lambda target: os.chmod(target, 0o644)).replace(keep=False)
        else:
            Path(path).unlink()

    def problems(self, hosts: list[str]) -> list[str]:
        """Return what is not as it should be with the accounts and folders of some hosts."""
        code, out, _ = self.module.run_command(["systemctl", "is-active", TIMER], environ_update=ENGLISH)
        found = [f"{TIMER} is {out.strip()}"] if code != 0 else []
        found += [f"{host}: its backups are lent to another host, and were not given back" for host in self.lent()]
        for host in hosts:
            name = account(self.environment, host)
            try:
                user = pwd.getpwnam(name)
            except KeyError:
                found.append(f"{host}: no account {name}")
                continue
            if (user.pw_dir, user.pw_shell) != ("/nonexistent", "/bin/sh"):
                found.append(f"{host}: {name} has the home {user.pw_dir} and the shell {user.pw_shell}")
            try:
                info = os.lstat(self.folder(host))
            except FileNotFoundError:
                found.append(f"{host}: no folder")
            else:
                is_ = (stat.filemode(info.st_mode), info.st_uid == user.pw_uid)
                if is_ != ("drwxr-x---", True):
                    found.append(
                        f"{host}: its folder is {is_[0]} and {'its own' if is_[1] else f'of uid {info.st_uid}'}"
                    )
            if (told := (read(f"{ACCOUNTS}/{name}.folder") or "").strip()) != self.folder(host):
                found.append(f"{host}: its account is served {told or 'nothing'}")
            found += [f"{host}: {text}" for text in self.sshd(name)]
        return found

    def sshd(self, name: str) -> list[str]:
        """Return what sshd would let an account do besides what it must."""
        code, out, err = self.module.run_command(
            ["sshd", "-T", "-C", f"user={name},host=x,addr=127.0.0.1"], environ_update=ENGLISH
        )
        if code != 0:
            return [f"sshd does not tell what {name} may do: {err.strip()[:200]}"]
        told = dict(line.split(" ", 1) for line in out.splitlines() if " " in line)
        return [
            f"{name} has {word} {told.get(word, 'none')!r}; expected {value!r}"
            for word, value in EXPECTED.items()
            if told.get(word) != value
        ]

    def files(self, hosts: list[str]) -> tuple[list[str], list[str]]:
        """Return the files that others than the account may read or own, and those with data in clear."""
        open_: list[str] = []
        plain: list[str] = []
        for host in hosts:
            folder = self.folder(host)
            if not is_plain_folder(folder):
                continue
            owner = os.lstat(folder).st_uid
            looked = 0
            for path, info in walk(folder):
                odd = not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode))
                if odd or info.st_uid != owner or info.st_mode & 0o007:
                    open_.append(shown(path))
                elif stat.S_ISREG(info.st_mode) and info.st_size > 1024 and looked < LOOKED:
                    looked += 1
                    if beginning(path).startswith(CLEAR):
                        plain.append(shown(path))
        return open_[:NAMED], plain[:NAMED]


def beginning(path: str) -> bytes:
    """Return the first bytes of a file; none of what is no file, or has gone meanwhile."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(handle, 16)
    finally:
        os.close(handle)


def host_key() -> str:
    """Return the public key of this host, or nothing where it has none of that kind."""
    words = (read(str(HOST_KEY)) or "").split()[:2]
    key = " ".join(words)
    return key if KEY.fullmatch(key) else ""


def needs_reload(module: AnsibleModule) -> bool:
    """Tell whether sshd was last started or reloaded before its file was written: a run was cut off between."""
    try:
        written = os.stat(SSHD).st_mtime
    except FileNotFoundError:
        return False
    words = ["systemctl", "show", "ssh.service", "--property", "StateChangeTimestamp", "--timestamp=unix", "--value"]
    code, out, _ = module.run_command(words, environ_update=ENGLISH)
    at = out.strip().lstrip("@")
    return code == 0 and int(at if at.isdigit() else 0) < int(written)


def shared(path: str) -> str:
    """Return what there is of the repository that all hosts shared: none, open or closed."""
    try:
        info = os.lstat(path)
        if not stat.S_ISREG(os.lstat(f"{path}/config").st_mode):
            return "none"
    except (FileNotFoundError, NotADirectoryError):
        return "none"
    return "closed" if info.st_uid == 0 and not info.st_mode & 0o222 else "open"


def elsewhere(path: str, single: str) -> list[str]:
    """Return the open repositories in places where earlier versions made the one that all hosts shared.

    That was in a folder of any name, in backup_repository_path of then, which was the home of its account.
    """
    folders = {path}
    with suppress(KeyError):
        folders.add(pwd.getpwnam(SHARED_USER).pw_dir)
    found = [f"{folder}/{name}" for folder in folders if is_plain_folder(folder) for name in sorted(os.listdir(folder))]
    return sorted(
        each for each in found if shared(each) == "open" and os.path.realpath(each) != os.path.realpath(single)
    )


def main() -> None:
    """Run as Ansible runs a module."""
    # Folders that it makes are for all to enter, whatever the login's umask.
    os.umask(0o022)
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "environment": {"type": "str", "required": True},
            "hosts": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "key": {"type": "str", "default": "", "no_log": False},
                },
            },
            "addresses": {"type": "list", "elements": "str", "default": []},
            "single": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "told"], "default": "present"},
            "thorough": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    hosts: list[dict[str, str]] = module.params["hosts"]
    wrong = [
        repr(name) for name in [module.params["environment"], *(h["name"] for h in hosts)] if not NAME.fullmatch(name)
    ]
    wrong += [repr(host["key"]) for host in hosts if host["key"] and not KEY.fullmatch(host["key"])]
    if wrong:
        module.fail_json(
            msg=f"found {', '.join(wrong)}; expected names of an environment and of hosts, and public keys"
        )
    accounts = Accounts(module)
    try:
        if module.params["state"] == "present":
            accounts.make(hosts)
        known = accounts.known()
        result: dict[str, Any] = {
            "changed": accounts.changed,
            "accounts": [
                {
                    "host": host,
                    "account": account(accounts.environment, host),
                    "folder": accounts.folder(host),
                    "key": accounts.key(host),
                }
                for host in known
            ],
            "host_key": host_key(),
            "single": shared(module.params["single"]),
            "elsewhere": elsewhere(module.params["path"], module.params["single"]),
            "reload": needs_reload(module),
            "problems": [],
            "plain": [],
            "open": [],
        }
        if module.params["thorough"]:
            result["problems"] = accounts.problems([host["name"] for host in hosts])
            result["open"], result["plain"] = accounts.files(known)
    except OSError as error:
        module.fail_json(msg=f"{error.filename or accounts.path}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
