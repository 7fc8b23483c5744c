"""Jinja filters for sizes as Redis writes them."""

from __future__ import annotations

import re
from collections.abc import Callable

from ansible.errors import AnsibleFilterError

# Redis counts k, m and g in powers of 1000, and kb, mb and gb in powers of 1024.
FACTORS = {"": 1, "b": 1, "k": 10**3, "kb": 2**10, "m": 10**6, "mb": 2**20, "g": 10**9, "gb": 2**30}


def redis_bytes(size: str | int) -> int:
    """Return a size such as `512mb` in bytes; raises AnsibleFilterError for what Redis would not read.

    Units after https://redis.io/docs/latest/operate/oss_and_stack/management/config-file/
    """
    match = re.fullmatch(r"([0-9]+)([a-z]*)", str(size).lower())
    if match is None or match[2] not in FACTORS:
        raise AnsibleFilterError(f"{size!r} is no size such as 512mb")
    return int(match[1]) * FACTORS[match[2]]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., int]]:
        """Return the filters by the names that templates use."""
        return {"redis_bytes": redis_bytes}
