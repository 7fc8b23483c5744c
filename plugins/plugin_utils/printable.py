"""Values as one line that is safe to print."""

from __future__ import annotations

from typing import Any


def clean(value: Any) -> str:
    """Return a value as one line that is safe to print: each control character is replaced by one sign."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))
