"""The users of a server as inputs of the role redis: their rights, and the hashes of their passwords."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import redis_acl
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_built_in import BY_NAME
from ansible_collections.quantdesk.redis.plugins.test import inputs

from .defaults import default_text
from .model import Adopted, Input
from .survey import Server
from .words import one_line

# Users of the role's own whose old password stays accepted: it opens no more than it did.
KEPT_USERS = ("default", "app", "exporter")
CONTROLS_OF_OPEN_DEFAULT = (17,)


def rules_of(user: redis_acl.User, disabled: Sequence[str]) -> str:
    """Return a user's rights, as the role takes them; commands that the server had switched off are taken away."""
    channels = ["&*"] if user.channels == {"&*"} else ["resetchannels", *sorted(user.channels)]
    taken = [f"-{name.lower()}" for name in disabled]
    return " ".join([*(sorted(user.keys) or ["resetkeys"]), *channels, *user.commands, *taken])


def obstacle(name: str, user: redis_acl.User, rules: str) -> str:
    """Return why a user cannot be one of redis_extra_users, or nothing."""
    if user.selectors:
        return "it may do things by selectors, which the role does not have"
    if not inputs.is_acl_users([{"name": name, "password": "x", "rules": rules}]):
        return "its rules or its name are not what the role takes"
    return "" if user.hashes else "it has no password"


def default_user(user: redis_acl.User, rules: str) -> Adopted:
    """Return the inputs for the user default."""
    fails = CONTROLS_OF_OPEN_DEFAULT if user.open and user.enabled else ()
    found = Adopted([Input("default_user", user.enabled, default_text("default_user"), fails)])
    if not inputs.is_acl_rules(rules) or user.selectors:
        found.changes.append("user default: its rules are not what the role takes, so it gets the bundle's")
    else:
        found.inputs.append(Input("default_rules", rules, default_text("default_rules")))
    return found


def user_inputs(server: Server) -> Adopted:
    """Return the inputs for all users of a server."""
    found = Adopted()
    disabled = sorted(name for name, new in (server.get("renamed") or {}).items() if not new)
    if disabled:
        found.changes.append(
            f"{', '.join(map(one_line, disabled))}: switched off for everybody today (rename-command); from now on for"
            " the users below, while admin may"
        )
    disabled = [name for name in disabled if inputs.is_acl_command(name.lower())]
    hashes: dict[str, list[str]] = {}
    extra: list[dict[str, Any]] = []
    for item in server.get("users") or []:
        name, text = str(item.get("name")), str(item.get("rules"))
        shown = f"user {one_line(name)}"
        try:
            user = redis_acl.parse(text if text.startswith("user ") else f"user {name} {text}")
        except redis_acl.AclError:
            found.changes.append(f"{shown}: its rules are not understood, so it is left out")
            continue
        rules = rules_of(user, disabled)
        if user.open and user.enabled:
            found.changes.append(
                f"{shown}: logs in without a password today (control 17 fails), and needs one from now on. AUTH"
                f" {one_line(name)} PASSWORD is accepted today with any password: change the clients first"
            )
        if name == "default":
            found += default_user(user, rules)
        if name in KEPT_USERS and user.hashes:
            hashes[name] = sorted(user.hashes)
        if name in BY_NAME:
            if name != "default":
                kept = "its old password stays accepted" if name in hashes else "its old password is not accepted"
                found.changes.append(f"{shown}: the bundle has one of this name, with rights of its own; {kept}")
            continue
        if reason := obstacle(name, user, rules):
            found.changes.append(f"{shown}: left out, as {reason}")
            continue
        if user.unsanitized:
            found.changes.append(f"{shown}: what it sends with RESTORE is checked from now on")
        extra.append({"name": name, "password_hashes": sorted(user.hashes), "rules": rules})
        if not user.enabled:
            extra[-1]["enabled"] = False
    if hashes:
        note = "old passwords stay accepted beside the new ones"
        found.inputs.append(Input("previous_hashes", hashes, "none", note=note))
    if extra:
        found.inputs.append(Input("extra_users", extra, "none"))
    if not server.get("users"):
        found.changes.append(
            "its users are unknown, as it has no ACL LIST: where it has a password, make that redis_password for the"
            " first run"
        )
    return found
