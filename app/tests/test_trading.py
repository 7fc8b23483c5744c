"""The rule by which an order is filled: with numbers alone, without a database."""

from decimal import Decimal

import pytest

from quantdesk.trading import OrderRequest, PositionRefused, Side, UnknownSymbol, execute


def order(side: Side, quantity: str, limit: str | None = None) -> OrderRequest:
    return OrderRequest("A", side, Decimal(quantity), Decimal(limit) if limit else None)


@pytest.mark.parametrize(
    ("request_", "status", "price", "held"),
    [
        (order("buy", "1.5"), "filled", "10", "4.5"),
        (order("sell", "3"), "filled", "10", "0"),
        (order("buy", "1", "10"), "filled", "10", "4"),
        (order("buy", "1", "11"), "filled", "10", "4"),
        (order("sell", "1", "9"), "filled", "10", "2"),
        (order("buy", "1", "9.99"), "cancelled", "9.99", "3"),
        (order("sell", "1", "10.01"), "cancelled", "10.01", "3"),
    ],
)
def test_order_is_filled_at_the_latest_price_or_cancelled_at_its_limit(
    request_: OrderRequest, status: str, price: str, held: str
) -> None:
    execution = execute(request_, Decimal(10), Decimal(3))
    assert execution == (status, Decimal(price), Decimal(held))


@pytest.mark.parametrize("limit", [None, "1000"])
def test_more_than_is_held_is_refused_whatever_the_limit(limit: str | None) -> None:
    with pytest.raises(PositionRefused, match="More is sold than held"):
        execute(order("sell", "3.000000000000000001", limit), Decimal(10), Decimal(3))


def test_position_has_twenty_digits_at_most() -> None:
    largest = Decimal("99999999999999999998.999999999999999999")
    held = execute(order("buy", "1"), Decimal(10), largest).held
    assert held == Decimal("99999999999999999999.999999999999999999")
    with pytest.raises(PositionRefused, match="at most 20 digits"):
        execute(order("buy", "1.000000000000000001"), Decimal(10), largest)


def test_symbol_without_a_price_is_refused() -> None:
    with pytest.raises(UnknownSymbol, match="has no price"):
        execute(order("buy", "1"), None, Decimal(0))
