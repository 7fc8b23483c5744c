"""Redis' users as they are declared, compared with those of a server or of an ACL file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.redis_acl import (
    AclError,
    User,
    build,
    digest,
    parse,
    parse_file,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, Reply

Users = dict[str, User]
# The option of a module that takes declared users.
USERS: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "required": True,
    "options": {
        "name": {"type": "str", "required": True},
        "password": {"type": "str", "no_log": True},
        "previous_password": {"type": "str", "no_log": True},
        # Long and random: to log in takes the password.
        "password_hashes": {"type": "list", "elements": "str", "default": [], "no_log": True},
        "enabled": {"type": "bool", "default": True},
        "rules": {"type": "str", "required": True},
    },
}
# Rules that are no rights; the module's options say the same.
STATES = {"on", "off", "nopass", "reset", "resetpass", "sanitize-payload", "skip-sanitize-payload"}


def wanted_users(declared: Sequence[dict[str, Any]]) -> Users:
    """Return the declared users by name, and `default` switched off if it is not among them; raises AclError."""
    users: Users = {}
    for item in declared:
        name, rules = item["name"], item["rules"]
        if re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name) is None:
            raise AclError(f"user {name!r}: a name is letters, digits, dots, dashes and underscores")
        if name in users:
            raise AclError(f"user {name} is declared twice")
        if not rules.isprintable() or re.search(r"""["'()\\]""", rules):
            raise AclError(f"user {name}: rules are one line without quotes and parentheses, found {rules!r}")
        words = rules.split()
        for word in words:
            if word.startswith((">", "<", "#", "!")) or word.lower() in STATES:
                raise AclError(f"user {name}: passwords and on or off are no rules; use password and enabled")
        passwords = [word for word in (item["password"], item["previous_password"]) if word is not None]
        hashes = item.get("password_hashes") or []
        if not all(re.fullmatch("[0-9a-f]{64}", word) for word in hashes):
            raise AclError(f"user {name}: a hash of a password is 64 small hexadecimal digits")
        if not all(passwords):
            raise AclError(f"user {name} has an empty password")
        if item["previous_password"] and not item["password"]:
            raise AclError(f"user {name} has a previous password and none now")
        hashes = [*map(digest, passwords), *hashes]
        switch = "on" if item["enabled"] and hashes else "off"
        users[name] = build(name, [switch, *(f"#{word}" for word in hashes), *words])
    users.setdefault("default", build("default", ["off"]))
    return users


def users_of(lines: Reply) -> Users:
    """Return the users of a reply to ACL LIST."""
    assert isinstance(lines, list)
    users = [parse(str(line)) for line in lines]
    return {user.name: user for user in users}


def compare(now: Users, wanted: Users) -> dict[str, list[str]]:
    """Return the names of users that are missing, different and too many."""
    return {
        "added": sorted(wanted.keys() - now.keys()),
        "updated": sorted(name for name in wanted.keys() & now.keys() if wanted[name] != now[name]),
        "removed": sorted(now.keys() - wanted.keys()),
    }


def rehearse(client: Client, wanted: Users) -> Users:
    """Return the wanted users in the server's own words; raises AclError in the same where it refuses one.

    Redis rewrites command rules (`-@dangerous` becomes a list of commands), so that only the server can tell whether
    two mean the same. It is asked with stand-ins that are switched off and have no password: nobody can be one. They
    come and go in one transaction, so that no client sees them, and a run that is interrupted leaves none.
    """
    prefix = "stand-in-for-"
    bodies = {
        f"{prefix}{name}": ["reset", *(rule for rule in user.rules() if rule != "on" and not rule.startswith("#"))]
        for name, user in wanted.items()
    }
    sets = [["ACL", "SETUSER", name, *body] for name, body in bodies.items()]
    queued = client.pipeline([["MULTI"], *sets, ["ACL", "LIST"], ["ACL", "DELUSER", *bodies], ["EXEC"]])
    for reply in queued:
        if isinstance(reply, ErrorReply):
            raise reply
    replies = queued[-1]
    assert isinstance(replies, list)
    for name, reply in zip(wanted, replies, strict=False):
        if isinstance(reply, ErrorReply):
            raise AclError(f"user {name}: Redis reports: {str(reply).replace(prefix, '')}")
    seen = users_of(replies[-2])
    return {
        name: replace(seen[f"{prefix}{name}"], name=name, enabled=user.enabled, hashes=user.hashes)
        for name, user in wanted.items()
    }


def loadable(text: str | None) -> Users | None:
    """Return the users of an ACL file; None where there is none, or one that is not to stay."""
    if text is None:
        return None
    try:
        users: Users = parse_file(text)
        return users
    except AclError:
        # Redis would not load it, or it holds passwords in the clear.
        return None
