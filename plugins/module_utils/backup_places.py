"""Where the backups of a host are on the host that keeps them, and what tells the hosts apart there."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from typing import NamedTuple

# Of an environment and of a host: what is a folder's name as it stands, and nothing but a name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")
KEY = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\n]*)?")
ACCOUNTS = "/etc/ssh/backup-vault"


def account(environment: str, host: str) -> str:
    """Return the account of a host's repository: of the environment too, as two may have a host of the same name."""
    return f"bak-{_digest(environment, host)}"


def guest(environment: str, host: str, borrower: str) -> str:
    """Return the account that reads this repository on behalf of another host, for one restore.

    Several may borrow the same one at a time: each has an account of its own, and gives back that one.
    """
    return f"lend-{_digest(environment, host, borrower)}"


def _digest(*names: str) -> str:
    return hashlib.sha256("/".join(names).encode()).hexdigest()[:12]


def password(master: str, environment: str, host: str) -> str:
    """Return the password of a host's repository. From it neither the master nor another host's can be told."""
    return hmac.new(master.encode(), f"{environment}/{host}".encode(), hashlib.sha256).hexdigest()


class Entry(NamedTuple):
    """One file or folder below a repository."""

    path: str
    info: os.stat_result


def walk(folder: str) -> list[Entry]:
    """Return all that is below a folder, without ever following a link: the folder's owner chooses the names in it."""
    found: list[Entry] = []
    for parent, folders, files, handle in os.fwalk(folder, follow_symlinks=False):
        for name in [*folders, *files]:
            try:
                info = os.stat(name, dir_fd=handle, follow_symlinks=False)
            except FileNotFoundError:
                # A backup that runs has removed its lock.
                continue
            found.append(Entry(os.path.join(parent, name), info))
    return found


def shown(path: str) -> str:
    """Return a name that somebody else has chosen as plain text on one line."""
    return (
        path.encode(errors="surrogateescape")
        .decode("ascii", errors="backslashreplace")
        .encode("unicode_escape")
        .decode()
    )


def is_plain_folder(path: str) -> bool:
    """Return whether this is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
