"""The directives in redis.conf and on the running server: brought to what is declared, as redis_config documents it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import (
    SECRETS,
    ConfError,
    canonical,
    declared,
    mask,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_directives import Comparison
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import (
    OWNERSHIP,
    Candidate,
    Ownership,
    ownership_of,
    read,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_server import (
    SERVER_OPTIONS,
    Refused,
    connect,
    where,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_trial import TrialError, trial
from ansible_collections.quantdesk.redis.plugins.module_utils.resp import Client, ErrorReply, ProtocolError
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable

OPTIONS: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "directives": {"type": "dict", "required": True},
    "secrets": {"type": "dict", "no_log": True, "default": {}},
    "header": {"type": "str"},
    "server_binary": {"type": "path", "default": "/usr/bin/redis-server"},
    "reload_tls": {"type": "bool", "default": True},
    **OWNERSHIP,
    **SERVER_OPTIONS,
}
# ERR CONFIG SET failed (possibly related to argument 'io-threads') - can't set immutable config
NEEDS_RESTART = re.compile(r"related to argument '([^']+)'\) - (can't set (?:immutable|protected) config)")


class Broken(Exception):
    """The connection ended while the server was being changed; the message reports what is known."""


def sort_out(params: Mapping[str, Any], hide: Callable[[Iterable[str]], object]) -> dict[str, Any]:
    """Return all declared directives in one; raises ConfError for one that is in the wrong place.

    `hide` takes values that must not be shown.
    """
    directives, secrets = params["directives"], params["secrets"] or {}
    for name, value in directives.items():
        if canonical(name) in SECRETS:
            # Ansible shows the arguments of a module that failed.
            values = value if isinstance(value, list) else [value]
            hide(str(item) for item in values if item)
            raise ConfError(f"{name} is secret: put it in `secrets`")
    for name in secrets:
        if canonical(name) not in SECRETS:
            raise ConfError(f"{name} is no secret: put it in `directives`")
    return {**directives, **secrets}


def config_set(client: Client, values: dict[str, str], address: str) -> dict[str, str]:
    """Set all values at once and return those that need a restart, with the reason; raises ConfError or Broken.

    Redis 7 changes all of them or none.
    """
    left, refused = dict(values), dict[str, str]()
    while left:
        try:
            client.call("CONFIG", "SET", *[word for pair in left.items() for word in pair])
            break
        except ErrorReply as error:
            match = NEEDS_RESTART.search(str(error))
            name = canonical(match[1]) if match else ""
            if match is None or name not in left:
                named = re.search(r"'([^']+)'", str(error))
                raise ConfError(f"Redis refuses {named[1] if named else ', '.join(sorted(left))}: {error}") from error
            refused[name] = match[2]
            del left[name]
        except (OSError, ProtocolError) as error:
            raise Broken(
                f"the connection to {address} broke during CONFIG SET ({error}). The file was not changed; the server "
                "may have taken the new values until its next start. Run this again."
            ) from error
    return refused


class Run(Comparison):
    """One run: what is, what is wanted, and the way from one to the other."""

    def __init__(
        self, params: Mapping[str, Any], directives: dict[str, Any], client: Client | None, *, check_mode: bool
    ) -> None:
        self.params = params
        self.check_mode = check_mode
        self.ownership = Ownership.of(params, check_mode=check_mode)
        super().__init__(
            directives,
            params["path"],
            client,
            local=bool(self.params["server"]) and self.params["server"]["host"] in ("127.0.0.1", "::1", "localhost"),
            owner=self.params["owner"],
            header=self.params["header"] or "",
            pretend=check_mode,
            reload_tls=self.params["reload_tls"],
        )

    def rehearse(self) -> None:
        """Try the new file where the running server cannot judge it; raises TrialError."""
        blind = self.client is None or self.before is None or self.predict() or self.unseen
        if self.after != self.before and blind:
            trial(self.params["server_binary"], self.after, user=self.params["owner"])

    def write(self) -> dict[str, str]:
        """Write the file beside, change the server, put the file in place; return what needs a restart."""
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise ConfError(f"{folder} is no folder: Redis is not installed")
        self.rehearse()
        if self.after == self.before:
            return self.set()
        try:
            candidate = Candidate(self.path, self.after, self.ownership.over(ownership_of(self.path)).apply)
        except OSError as error:
            raise ConfError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            if read(self.path, "") != self.before:
                raise ConfError(f"{self.path} was changed by another program at the same moment: run this again")
            refused = self.set()
            if self.values.get("appendonly") == "yes":
                self.wait_for_log(refused)
            try:
                candidate.replace()
            except OSError as error:
                self.take_back(refused)
                raise ConfError(f"{self.path} cannot be replaced: {error.strerror}") from error
            return refused
        finally:
            candidate.discard()

    def set(self) -> dict[str, str]:
        """Change the running server, if there is one, and return what needs a restart."""
        return config_set(self.client, self.values, where(self.params["server"])) if self.client else {}

    def wait_for_log(self, refused: dict[str, str]) -> None:
        """Wait until an append-only file that was just switched on holds all data; sets all back when it does not.

        Redis writes it in the background. With `appendonly yes` in the file, a server that died before the end would
        start without its data.
        """
        assert self.client
        deadline = time.monotonic() + self.params["loading_timeout"]
        while True:
            info = str(self.client.call("INFO", "persistence"))
            if "aof_rewrite_in_progress:0" in info and "aof_rewrite_scheduled:0" in info:
                if "aof_last_bgrewrite_status:ok" in info:
                    return
                problem = "Redis could not write it; see its log"
                break
            if time.monotonic() > deadline:
                problem = f"it is not written after {self.params['loading_timeout']:g} s"
                break
            time.sleep(0.1)
        self.take_back(refused)
        raise ConfError(f"appendonly: no first append-only file: {problem}")

    def take_back(self, refused: dict[str, str]) -> None:
        """Set the running server's old values again."""
        if self.client:
            old = {name: self.live[name] for name in self.values if name not in refused}
            config_set(self.client, old, where(self.params["server"]))

    def converge(self) -> dict[str, Any]:
        """Do it all, or say in check mode what would be done; return the result."""
        role = self.client.call("ROLE") if self.client else None
        refused = self.predict() if self.check_mode else self.write()
        rewrite = self.after != self.before
        applied = sorted(self.values.keys() - refused.keys())
        changed = rewrite or bool(applied)
        changed = self.ownership.declare(self.path, pretend=self.check_mode) or changed
        return {
            "changed": changed,
            "applied": applied,
            "restart": self.restart(refused),
            "server": "none" if not self.params["server"] else "up" if self.client else "down",
            "role": role[0] if isinstance(role, list) else None,
            "backup": f"{self.path}.previous" if rewrite and self.before is not None else None,
            "tls_reloaded": self.tls_reloaded,
            "diff": {
                "before_header": self.path,
                "after_header": self.path,
                "before": mask(self.before or ""),
                "after": mask(self.after),
            },
        }


def converge(params: Mapping[str, Any], *, check_mode: bool, hide: Callable[[Iterable[str]], object]) -> dict[str, Any]:
    """Have the directives as declared, or say in check mode what would be done; `params` as in OPTIONS. Raises Failed.

    `hide` takes values that must not be shown.
    """
    client = None
    try:
        # Before anything else, so that a mistake is told even where the server cannot be reached.
        directives = sort_out(params, hide)
        declared(directives)
        client = connect(params) if params["server"] else None
        found: dict[str, Any] = sendable(Run(params, directives, client, check_mode=check_mode).converge())
        return found
    except Broken as error:
        raise Failed(str(error)) from error
    except (ConfError, Refused, TrialError, ErrorReply, ProtocolError, ValueError) as error:
        message = sendable(str(error))
        raise Failed(message, unchanged="Nothing was changed" not in message) from error
    except OSError as error:
        problem = f"{error.filename or params['path']}: {error.strerror or error}"
        raise Failed(problem, unchanged=True) from error
    finally:
        if client:
            client.close()
