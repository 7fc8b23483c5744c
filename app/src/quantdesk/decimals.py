"""Exact decimals: how many digits amounts have, and how they are written."""

from decimal import Context, Decimal
from typing import Final

INTEGER_DIGITS: Final = 20
FRACTION_DIGITS: Final = 18

# Enough digits for the exact product of two decimals as callers may send them, and for a sum of
# more of these than there are symbols.
EXACT: Final = Context(prec=200)


def plain(value: Decimal) -> str:
    """Return the decimal in plain notation, with the zeros at its end."""
    return format(value, "f")


def short(value: Decimal) -> str:
    """Return the decimal in plain notation, without zeros at its end."""
    return format(EXACT.normalize(value), "f")
