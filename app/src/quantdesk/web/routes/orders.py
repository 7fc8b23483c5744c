"""Orders over HTTP: each is carried out at once, or not at all."""

import re
from typing import Annotated, Any, Final

import msgspec
from litestar import Response, get, post
from litestar.exceptions import HTTPException, NotFoundException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import HeaderParameter, PathParameter

from quantdesk.database.orders import Order
from quantdesk.trading import KeyReused, OrderRequest, PositionRefused, Side, UnknownSymbol
from quantdesk.web.amounts import AMOUNT_SCHEMA, parse_amount
from quantdesk.web.bodies import decode_body, describe_body
from quantdesk.web.dependencies import InjectedServices
from quantdesk.web.errors import BODY_ERRORS, AnyRequest, Unprocessable, error_spec
from quantdesk.web.names import SYMBOL, optional_text
from quantdesk.web.sessions import SESSION_ERRORS, current_session

# One form for each id, so that one order has one entry in the cache.
ORDER_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
KEY: Final = re.compile(r"[!-~]{1,64}", re.ASCII)

# Described here, but checked below: the framework's own check would let a trailing newline pass.
_OrderPath = Annotated[
    str,
    PathParameter(description="An order's id", schema_extra={"pattern": f"^{ORDER_ID.pattern}$"}),
]
_KeyHeader = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="If the same order is sent again, the answer is the result of the first",
        schema_extra=optional_text(KEY),
    ),
]


class Conflict(HTTPException):
    """The request contradicts what there is (409)."""

    status_code = 409


# An unknown field is refused: a limit that is misspelt must not become an order without one.
class OrderBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an order. Amounts stay raw so that no float comes in between."""

    symbol: str
    side: Side
    quantity: msgspec.Raw
    price: msgspec.Raw = msgspec.Raw()


class OrderAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An order and its result."""

    success: bool = True
    data: Order


_BODY_SCHEMA: Final = Schema(
    type=OpenAPIType.OBJECT,
    required=["symbol", "side", "quantity"],
    properties={
        "symbol": Schema(type=OpenAPIType.STRING, pattern=f"^{SYMBOL.pattern}$"),
        "side": Schema(type=OpenAPIType.STRING, enum=["buy", "sell"]),
        "quantity": AMOUNT_SCHEMA,
        "price": AMOUNT_SCHEMA,
    },
    additional_properties=False,
    description="With a price, it is filled at the latest price or cancelled if that is worse",
)

_body_decoder = msgspec.json.Decoder(OrderBody)
_decoder = msgspec.json.Decoder(Order)


def _parse(body: OrderBody) -> OrderRequest:
    if not SYMBOL.fullmatch(body.symbol):
        raise Unprocessable(f"The symbol must match {SYMBOL.pattern}")
    limit = bytes(body.price)
    try:
        return OrderRequest(
            body.symbol,
            body.side,
            parse_amount(bytes(body.quantity), "quantity"),
            parse_amount(limit, "price") if limit else None,
        )
    except ValueError as error:
        raise Unprocessable(str(error)) from None


@post(
    "/api/orders",
    operation_class=describe_body(_BODY_SCHEMA),
    responses={
        200: ResponseSpec(
            OrderAnswer,
            generate_examples=False,
            description="The order that was placed before with this Idempotency-Key",
        ),
        **BODY_ERRORS,
        **SESSION_ERRORS,
        404: error_spec("The symbol has no price"),
        409: error_spec(
            "More is sold than held, the position would be too large, or the Idempotency-Key was "
            "used for another order"
        ),
        422: error_spec("The order is not acceptable"),
    },
)
async def place_order(
    request: AnyRequest, services: InjectedServices, idempotency_key: _KeyHeader = None
) -> Response[OrderAnswer]:
    """Carry an order out at the latest price, or cancel it if its limit forbids that."""
    session = await current_session(request, services)
    if idempotency_key is not None and not KEY.fullmatch(idempotency_key):
        raise Unprocessable("The Idempotency-Key must be 1 to 64 visible ASCII characters")
    order = _parse(await decode_body(request, _body_decoder))
    try:
        placed = await services.database.orders.place(session.user, order, idempotency_key)
    except UnknownSymbol as error:
        raise NotFoundException(str(error)) from None
    except (PositionRefused, KeyReused) as error:
        raise Conflict(str(error)) from None
    # Also for one that was placed before: the first attempt may have failed before this line.
    await services.cache.invalidate("portfolio", session.user, placed.version)
    return Response(OrderAnswer(data=placed.order), status_code=201 if placed.new else 200)


@get(
    "/api/orders/{order_id:str}",
    responses={
        **SESSION_ERRORS,
        404: error_spec("The user has no such order"),
        422: error_spec("The id is malformed"),
    },
)
async def read_order(
    order_id: _OrderPath, request: AnyRequest, services: InjectedServices
) -> Response[OrderAnswer]:
    """Answer with an order of the session's user."""
    session = await current_session(request, services)
    if not ORDER_ID.fullmatch(order_id):
        raise Unprocessable("The id must be a UUID in lower case")
    lookup = await services.cache.read(
        "order", order_id, _decoder, lambda: services.database.orders.read(order_id)
    )
    if lookup.value is None or lookup.value.user != session.user:
        # Without X-Cache, which would reveal whether another user has it.
        raise NotFoundException("There is no such order")
    return Response(OrderAnswer(data=lookup.value), headers={"X-Cache": lookup.outcome.value})


handlers: Final[list[Any]] = [place_order, read_order]
