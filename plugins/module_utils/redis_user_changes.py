"""The users in the ACL file and on the running server: brought to what is declared, as redis_users documents it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_acl import AclError, digest, hide, render_file
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_declared_users import (
    USERS,
    Users,
    compare,
    loadable,
    rehearse,
    users_of,
    wanted_users,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import OWNERSHIP, Candidate, Ownership, read
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_server import (
    SERVER_OPTIONS,
    Refused,
    Stale,
    connect,
    restart_stale,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_trial import TrialError, trial
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, ProtocolError
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable

OPTIONS: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "users": USERS,
    "credentials_user": {"type": "str"},
    "server_binary": {"type": "path", "default": "/usr/bin/redis-server"},
    **OWNERSHIP,
    **SERVER_OPTIONS,
}
Login = tuple[str, str]


class Partly(Exception):
    """A step failed after others were done; the message reports what holds now."""


def find_keeper(params: Mapping[str, Any], wanted: Users, user: str) -> Login:
    """Return a wanted login that may change users and that the next run will know; raises AclError without one.

    `user` is who this run is logged in as.
    """
    known = [(login["username"], login["password"]) for login in params["logins"]]
    if params["credentials_file"]:
        known += [(item["name"], item["password"]) for item in params["users"] if keeps(params, item)]
    for name, password in known:
        if password and name in wanted and wanted[name].may_change_users() and digest(password) in wanted[name].hashes:
            return name, password
    raise AclError(
        f"{user} would lock itself out: none of the declared users may run ACL and has a login that is among `logins` "
        "or left in `credentials_file`"
    )


def apply(client: Client, wanted: Users, changes: dict[str, list[str]], keeper: Login) -> None:
    """Change the running server, logged in as the keeper from then on. Raises ErrorReply.

    The keeper comes first: whoever this connection was, it may do all the rest, and the way back, too.
    """
    differs = changes["added"] + changes["updated"]
    for name in sorted(differs, key=lambda name: name != keeper[0]):
        client.call("ACL", "SETUSER", name, "reset", *wanted[name].rules())
        if name == keeper[0]:
            client.call("AUTH", *keeper)
    if changes["removed"]:
        # One of them may be who came in.
        client.call("AUTH", *keeper)
        client.call("ACL", "DELUSER", *changes["removed"])


def take_back(client: Client, now: Users, changes: dict[str, list[str]], keeper: Login) -> None:
    """Put the users back as they were, the one of this connection last. Raises what the connection raises."""
    changed = changes["updated"] + changes["removed"] + changes["added"]
    for name in sorted(changed, key=lambda name: name == keeper[0]):
        if name in now:
            client.call("ACL", "SETUSER", name, "reset", *now[name].rules())
        else:
            client.call("ACL", "DELUSER", name)


def keeps(params: Mapping[str, Any], item: dict[str, Any]) -> bool:
    """Return whether a declared user is the one of the credentials file."""
    return bool(item["name"] == params["credentials_user"])


def credentials_text(params: Mapping[str, Any]) -> str | None:
    """Return what the credentials file is to hold; None when it is not asked for. Raises AclError."""
    if not params["credentials_file"] or not params["credentials_user"]:
        return None
    for item in params["users"]:
        if keeps(params, item) and item["password"]:
            # The file has a line for it.
            if not item["password"].isprintable():
                raise AclError(f"user {item['name']}: found a password with a line break; expected one line")
            return f"REDISCLI_USER={item['name']}\nREDISCLI_AUTH={item['password']}\n"
    raise AclError(f"credentials_user {params['credentials_user']} is not declared, or has no password")


def describe(error: OSError, path: str) -> str:
    """Return the system's report on a file, with the name of the error."""
    code = errno.errorcode.get(error.errno or 0, "error")
    return f"{error.filename or path}: {error.strerror or error} ({code})"


class Run:
    """One run: what there is, what is wanted, and the way from one to the other."""

    def __init__(self, params: Mapping[str, Any], *, check_mode: bool) -> None:
        self.params = params
        self.check_mode = check_mode
        self.path: str = self.params["path"]
        self.ownership = Ownership.of(self.params, check_mode=check_mode)
        # Root's alone, or this user's where that is not root.
        self.secret = Ownership(0, 0, 0o600) if os.geteuid() == 0 else Ownership(mode=0o600)

    def converge(self) -> dict[str, Any]:
        """Compare, judge, write beside, apply, put in place; return the result."""
        wanted = wanted_users(self.params["users"])
        secret = credentials_text(self.params)
        client, restarted = self.reach()
        text = read(self.path)
        before = loadable(text)
        now = users_of(client.call("ACL", "LIST")) if client else before or {}
        spoken = rehearse(client, wanted) if client else wanted
        changes = compare(now, spoken)
        # ACL SAVE writes the server's own words.
        rewrite = before not in (wanted, spoken)
        keeper = None
        if client:
            keeper = find_keeper(self.params, wanted, str(client.call("ACL", "WHOAMI")))
        elif rewrite:
            trial(self.params["server_binary"], "", render_file(wanted.values()), user=self.params["owner"])
        if not self.check_mode:
            self.write(client, now, wanted, changes, rewrite, keeper)
        changed = any(changes.values()) or rewrite or restarted
        if not rewrite:
            changed = self.ownership.declare(self.path, pretend=self.check_mode) or changed
        if secret is not None:
            changed = self.leave(secret) or changed
        return {
            "changed": changed,
            "restarted": restarted,
            "server": "none" if not self.params["server"] else "up" if client else "down",
            "diff": sendable(self.diff(text, now, wanted, changes if client else {}, rewrite)),
            **changes,
        }

    def reach(self) -> tuple[Client | None, bool]:
        """Return a connection, where a server is asked for and there, and whether it had to be restarted for that."""
        if not self.params["server"]:
            return None, False
        try:
            return connect(self.params), False
        except Stale:
            if self.check_mode:
                raise
            return restart_stale(self.params, self.params["loading_timeout"]), True

    def diff(
        self, text: str | None, now: Users, wanted: Users, changes: dict[str, list[str]], rewrite: bool
    ) -> list[dict[str, str]]:
        """Return what changes in the file and on the server, without hashes."""
        parts = []
        if rewrite:
            parts.append((self.path, text or "", render_file(wanted.values())))
        names = {name for part in changes.values() for name in part}
        if names:
            parts.append(
                (
                    "running server",
                    render_file(user for name, user in now.items() if name in names),
                    render_file(user for name, user in wanted.items() if name in names),
                )
            )
        return [
            {"before_header": header, "after_header": header, "before": hide(before), "after": hide(after)}
            for header, before, after in parts
        ]

    def leave(self, secret: str) -> bool:
        """Leave the login in the credentials file; return whether that changes it. Raises Partly."""
        path = self.params["credentials_file"]
        try:
            if read(path) == secret:
                return bool(self.secret.declare(path, pretend=self.check_mode))
            if not self.check_mode:
                candidate = Candidate(path, secret, self.secret.apply)
                try:
                    candidate.replace(keep=False)
                finally:
                    candidate.discard()
        except OSError as error:
            raise Partly(
                f"{describe(error, path)}. The users are as declared; their credentials file is not"
            ) from error
        return True

    def write(
        self,
        client: Client | None,
        now: Users,
        wanted: Users,
        changes: dict[str, list[str]],
        rewrite: bool,
        keeper: Login | None,
    ) -> None:
        """Write the file beside, change the server, put the file in place; undo it all when a step fails."""
        if not os.path.isdir(os.path.dirname(self.path)):
            raise AclError(f"{os.path.dirname(self.path)} is no folder: Redis is not installed")
        candidate = Candidate(self.path, render_file(wanted.values()), self.ownership.apply) if rewrite else None
        try:
            if client and keeper:
                try:
                    apply(client, wanted, changes, keeper)
                    if candidate:
                        candidate.replace()
                except (ErrorReply, ProtocolError, OSError) as error:
                    self.undo(client, now, changes, keeper, error)
                    raise
            elif candidate:
                candidate.replace()
        finally:
            if candidate:
                candidate.discard()

    def undo(self, client: Client, now: Users, changes: dict[str, list[str]], keeper: Login, cause: Exception) -> None:
        """Put the server's users back; raises Partly where that fails, too."""
        try:
            take_back(client, now, changes, keeper)
        except (ErrorReply, ProtocolError, OSError) as error:
            raise Partly(
                f"{cause}; and its users could not be put back: {error}. {self.path} is as it was: run this again"
            ) from error


def converge(params: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Have the users as declared, or say in check mode what would be done; `params` as in OPTIONS. Raises Failed."""
    try:
        return Run(params, check_mode=check_mode).converge()
    except Partly as error:
        raise Failed(f"{error}.") from error
    except (AclError, Refused, TrialError, ErrorReply, ProtocolError, ValueError) as error:
        raise Failed(str(error), unchanged=True) from error
    except OSError as error:
        raise Failed(describe(error, params["path"]), unchanged=True) from error
