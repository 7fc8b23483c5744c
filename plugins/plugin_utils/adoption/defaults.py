"""The defaults of the role redis, by the names that an instance has for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .yaml_lines import flow

FILE = Path(__file__).resolve().parents[3] / "roles/redis/defaults/main.yml"
# Defaults that are expressions, in words.
IN_WORDS = {
    "bind": "127.0.0.1 and private_address",
    "default_rules": "this environment's keys and channels, no scripts",
}


@cache
def role_defaults() -> dict[str, Any]:
    """Return the role's defaults."""
    values = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name.removeprefix("redis_"): value for name, value in values.items()}


def default_text(name: str) -> str:
    """Return the default of an input, in words."""
    value = role_defaults().get(name)
    if name in IN_WORDS:
        return IN_WORDS[name]
    if value == 0 and name.endswith("port"):
        return "0 (off)"
    return flow(value) if value != [] else "none"
