"""The rule by which an order is filled, apart from where orders are kept."""

from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec

from quantdesk.decimals import EXACT, INTEGER_DIGITS

Side = Literal["buy", "sell"]
OrderStatus = Literal["filled", "cancelled"]


class OrderRequest(msgspec.Struct, frozen=True):
    """An order to be carried out at the latest price, or, with a limit, at none worse than that."""

    symbol: str
    side: Side
    quantity: Decimal
    limit: Decimal | None


class OrderRefused(Exception):
    """The order can't be placed; nothing was changed. The text is for the caller."""


class UnknownSymbol(OrderRefused):
    """The symbol has no price."""


class PositionRefused(OrderRefused):
    """The user would hold less than nothing, or more than can be counted."""


class KeyReused(OrderRefused):
    """The idempotency key belongs to another order."""


class Execution(NamedTuple):
    """What becomes of an order: at which price, and the quantity that the user holds after it."""

    status: OrderStatus
    price: Decimal
    held: Decimal


def execute(order: OrderRequest, latest: Decimal | None, held: Decimal) -> Execution:
    """Fill an order at the latest price, or cancel it if its limit is not met.

    `held` is the quantity that the user holds before it.

    Raises:
        UnknownSymbol: there is no latest price.
        PositionRefused: more is sold than held, or the position would get too large. Also where the
            limit is not met: an order is checked before prices are compared.
    """
    if latest is None:
        raise UnknownSymbol("The symbol has no price")
    change = order.quantity if order.side == "buy" else -order.quantity
    after = EXACT.add(held, change)
    if after < 0:
        raise PositionRefused("More is sold than held")
    if after >= Decimal(10) ** INTEGER_DIGITS:
        raise PositionRefused(f"A position has at most {INTEGER_DIGITS} digits before the point")
    if order.limit is None or _meets(order.side, order.limit, latest):
        return Execution("filled", latest, after)
    return Execution("cancelled", order.limit, held)


def _meets(side: Side, limit: Decimal, latest: Decimal) -> bool:
    return latest <= limit if side == "buy" else latest >= limit
