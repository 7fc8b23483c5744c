"""Several small files: written as write_files documents it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.failed import Failed
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import Candidate, Ownership, text_of
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable

OPTIONS: dict[str, Any] = {
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0644"},
        },
    },
}


def write(file: Mapping[str, Any], *, check_mode: bool) -> tuple[bool, dict[str, str] | None]:
    """Write one file, or predict it; return whether anything changed, and the diff of its text if that did."""
    path = file["path"]
    before = text_of(path)
    if before == file["content"]:
        return Ownership.of(file, check_mode=check_mode).declare(path, pretend=check_mode), None
    if not check_mode:
        candidate = Candidate(path, file["content"], Ownership.of(file).apply)
        try:
            candidate.replace(keep=False)
        finally:
            candidate.discard()
    diff = {"before_header": path, "after_header": path, "before": before or "", "after": file["content"]}
    return True, diff


def converge(params: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Write the files, or say in check mode which would be written; `params` as in OPTIONS. Raises Failed."""
    changed = False
    diffs: list[dict[str, str]] = []
    written: list[str] = []
    for file in params["files"]:
        folder = os.path.dirname(file["path"])
        try:
            if not check_mode and not os.path.isdir(folder):
                os.mkdir(folder, 0o755)
            different, diff = write(file, check_mode=check_mode)
        except OSError as error:
            raise Failed(f"{error.filename or file['path']}: {error.strerror}", written=written) from error
        except ValueError as error:
            raise Failed(f"{file['path']}: {error}", written=written) from error
        changed = changed or different
        if diff:
            diffs.append(diff)
            written.append(file["path"])
    return {"changed": changed, "written": written, "diff": sendable(diffs)}
