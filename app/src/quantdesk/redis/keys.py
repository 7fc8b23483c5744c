"""The keys of cached entries, and how long entries are kept."""

import re
from typing import Any, Final, Literal

from quantdesk.database.versioned import Versioned
from quantdesk.settings import CacheTtls

Kind = Literal["price", "portfolio", "order", "session", "presence"]

# The kinds that an operator may clear. For their users, the others are not a cache.
CLEARABLE: Final[tuple[Kind, ...]] = ("price", "portfolio", "order")
# Seconds that a change guards its entry against reads that began before it.
GUARD: Final = 10
# The version of an entry that is gone for good. Lua's numbers are exact up to here.
DELETED: Final = 2**53 - 1


class Keys:
    """The keys of one environment, and the seconds that an entry of each kind is kept."""

    def __init__(self, env_name: str, ttl: CacheTtls) -> None:
        self.prefix: Final = f"qd:{env_name}:"
        self.clearable: Final = tuple(f"{self.prefix}{kind}:".encode() for kind in CLEARABLE)
        self.ttl: Final[dict[str, int]] = {
            "price": ttl.price,
            "portfolio": ttl.portfolio,
            "order": ttl.order,
            "session": ttl.session,
            "presence": ttl.presence,
        }

    def entry(self, kind: Kind, name: str) -> str:
        """Return the key of an entry."""
        return f"{self.prefix}{kind}:{name}"

    def guard(self, key: str) -> str:
        """Return the key of an entry's guard, which holds the version of its latest change."""
        # The braces keep it in the entry's slot, should Redis be a cluster one day.
        return f"{self.prefix}guard:{{{key}}}"

    def seconds(self, kind: Kind, loaded: Versioned[Any]) -> int:
        """Return how long a value may be kept."""
        longest = self.ttl[kind]
        return longest if loaded.ttl is None else max(1, min(longest, loaded.ttl))


def escape_glob(text: str) -> str:
    """Return a pattern that matches `text` and nothing else (the rules of Redis' KEYS and SCAN)."""
    return re.sub(r"([\\*?\[\]^-])", r"\\\1", text)
