"""Values and their versions: of two of the same thing, the higher version is the newer one."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A value of the database, and a version that grows with each committed change.

    `ttl` is how many seconds a cache may keep it, None for the time of its kind.
    """

    value: T
    version: int
    ttl: int | None = None
