"""What the role redis has prepared for an adoption, as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from databackup.errors import Failed

# With the old server's data, or without.
KEEP, REPLACE = "keep", "replace"


@dataclass
class Plan:
    """What the role has prepared; the values of `old` are those of the module redis_survey."""

    name: str
    mode: str
    # As a source of kind redis: unit, command, config_file, data, user, server and so on.
    options: dict[str, Any]
    # {staged, path, owner, group, mode} of each file of the new server, its unit last.
    files: list[dict[str, str]]
    old: dict[str, Any]
    # Tried in this order, each {username, password}; none at all is tried first.
    logins: list[dict[str, str]] = field(default_factory=list)
    # digest, or count.
    verify: str = "digest"

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read it; raises Failed."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise Failed(f"{path}: {error}; the role redis writes it") from None
