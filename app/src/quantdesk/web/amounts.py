"""Amounts in requests: exact decimals from JSON, never by way of a float."""

import re
from decimal import Decimal
from typing import Final

import msgspec
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType

from quantdesk.decimals import FRACTION_DIGITS, INTEGER_DIGITS

_PLAIN: Final = re.compile(r"[0-9]{1,64}(?:\.[0-9]{1,64})?", re.ASCII)
_JSON_NUMBER: Final = re.compile(r"-?[0-9]{1,64}(?:\.[0-9]{1,64})?(?:[eE][+-]?[0-9]{1,3})?")

# As exact as JSON Schema can be about decimals.
AMOUNT_SCHEMA: Final = Schema(
    one_of=[
        Schema(
            type=OpenAPIType.STRING,
            pattern=r"^[0-9]{1,20}(\.[0-9]{1,18})?$",
            schema_not=Schema(pattern=r"^[0.]*$"),
        ),
        Schema(
            type=OpenAPIType.NUMBER,
            exclusive_minimum=0,
            exclusive_maximum=10.0**INTEGER_DIGITS,
            multiple_of=10.0**-FRACTION_DIGITS,
        ),
    ],
    description="Greater than 0; at most 20 digits before and 18 behind the point",
)


def parse_amount(raw: bytes, name: str) -> Decimal:
    """Return the amount in a JSON value: a number, or a string in plain decimal notation.

    `name` is what the error's text calls it.

    Raises:
        ValueError: it is neither, not positive, or has more than INTEGER_DIGITS digits before
            or FRACTION_DIGITS behind the point.
    """
    if raw.startswith(b'"'):
        text, form = msgspec.json.decode(raw, type=str), _PLAIN
    else:
        text, form = raw.decode(), _JSON_NUMBER
    if not form.fullmatch(text):
        raise ValueError(f'The {name} must be a number, or a string such as "50000.10"')
    amount = Decimal(text)
    _, digits, exponent = amount.as_tuple()
    if amount <= 0 or not isinstance(exponent, int):
        raise ValueError(f"The {name} must be greater than 0")
    if -exponent > FRACTION_DIGITS:
        raise ValueError(f"The {name} must have at most {FRACTION_DIGITS} decimal places")
    # The zeros that a string may begin with count, too: the schema counts characters.
    written = len(text.partition(".")[0]) if raw.startswith(b'"') else 0
    if max(written, len(digits) + exponent) > INTEGER_DIGITS:
        raise ValueError(f"The {name} must have at most {INTEGER_DIGITS} digits before the point")
    return amount
