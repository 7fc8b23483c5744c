"""Jinja filters for sizes as Redis writes them."""

from __future__ import annotations

from collections.abc import Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.quantdesk.redis.plugins.module_utils import redis_text


def redis_bytes(size: str | int, otherwise: int | None = None) -> int:
    """Return a size such as `512mb` in bytes, and `otherwise` for what Redis would not read.

    Raises AnsibleFilterError where there is no `otherwise`.
    """
    count = redis_text.size(str(size))
    if count is None and otherwise is not None:
        return otherwise
    if count is None:
        raise AnsibleFilterError(f"{size!r} is no size such as 512mb")
    return count


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., int]]:
        """Return the filters by the names that templates use."""
        return {"redis_bytes": redis_bytes}
