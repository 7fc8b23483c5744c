"""An instance of Redis as a whole: its users, directives, files and unit, brought to what is declared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import (
    redis_directive_changes,
    redis_unit,
    redis_user_changes,
    text_files,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_directives import restart_reason
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import OWNERSHIP
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_server import SERVER_OPTIONS

# What the steps have in common; each of them gets all of it.
SHARED: dict[str, Any] = {
    "server_binary": redis_directive_changes.OPTIONS["server_binary"],
    **OWNERSHIP,
    **SERVER_OPTIONS,
}


def own(options: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """Return the options of a step that the others do not have; `known` are those that the steps tell one another."""
    return {name: option for name, option in options.items() if name not in {*SHARED, *known}}


OPTIONS: dict[str, Any] = {
    "users": {"type": "dict", "required": True, "options": own(redis_user_changes.OPTIONS)},
    "directives": {"type": "dict", "required": True, "options": own(redis_directive_changes.OPTIONS)},
    "files": {**text_files.OPTIONS["files"], "required": False, "default": []},
    "unit": {"type": "dict", "required": True, "options": own(redis_unit.OPTIONS, "user", "config_file")},
    **SHARED,
}


def converge(params: Mapping[str, Any], *, check_mode: bool, hide: Callable[[Iterable[str]], object]) -> dict[str, Any]:
    """Have it all as declared, or say in check mode what would be done; `params` as in OPTIONS.

    `hide` takes values that must not be shown. Raises Failed, which says what was changed before.
    """
    shared = {name: params[name] for name in SHARED}
    done: dict[str, dict[str, Any]] = {}
    try:
        done["users"] = redis_user_changes.converge({**shared, **params["users"]}, check_mode=check_mode)
        done["directives"] = redis_directive_changes.converge(
            {**shared, **params["directives"]}, check_mode=check_mode, hide=hide
        )
        # Folders that it makes are for all to enter, whatever the login's umask.
        before = os.umask(0o022)
        try:
            done["files"] = text_files.converge(params, check_mode=check_mode)
        finally:
            os.umask(before)
        reasons = [*params["unit"]["restart_for"], *map(restart_reason, done["directives"]["restart"])]
        told = {"restart_for": reasons, "user": params["owner"], "config_file": params["directives"]["path"]}
        # By now it must show the certificate that its files hold.
        told["trusted_unit"] = None
        done["unit"] = redis_unit.converge({**shared, **params["unit"], **told}, check_mode=check_mode)
    except Failed as error:
        changed = [name for name, result in done.items() if result["changed"]]
        if not changed:
            raise
        problem = f"{error.problem.rstrip('.')}." if error.unchanged else str(error)
        earlier = f"Before that, these were changed as declared: {', '.join(changed)}."
        raise Failed(f"{problem} {earlier}", **{**error.result, "changed": True}) from error
    diffs: list[Any] = []
    for result in done.values():
        part = result.pop("diff", [])
        diffs += part if isinstance(part, list) else [part]
    return {
        "changed": any(result["changed"] for result in done.values()),
        "diff": [diff for diff in diffs if diff["before"] != diff["after"]],
        **done,
    }
