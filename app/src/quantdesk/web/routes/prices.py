"""Prices over HTTP."""

import asyncio
from typing import Annotated, Any, Final

import msgspec
from litestar import Response, get, put
from litestar.exceptions import NotFoundException
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import PathParameter
from sqlalchemy.exc import SQLAlchemyError

from quantdesk.database.prices import Price
from quantdesk.redis.reads import Lookup
from quantdesk.services import Services
from quantdesk.web.admin_token import ADMIN_ERRORS, require_admin
from quantdesk.web.amounts import AMOUNT_SCHEMA, parse_amount
from quantdesk.web.bodies import decode_body, describe_body
from quantdesk.web.dependencies import InjectedServices
from quantdesk.web.errors import BODY_ERRORS, COMMON_ERRORS, AnyRequest, Unprocessable, error_spec
from quantdesk.web.names import SYMBOL

# Described here, but checked below: the framework's own check would let a trailing newline pass.
SymbolPath = Annotated[
    str,
    PathParameter(description="A symbol", schema_extra={"pattern": f"^{SYMBOL.pattern}$"}),
]


# The name of the route in the metrics.
ROUTE: Final = "/api/prices/{symbol}"


class NoPrice(NotFoundException):
    """The symbol has no price (404)."""

    detail = "The symbol has no price"


class PriceUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a price's write. The value stays raw so that no float comes in between."""

    price: msgspec.Raw


class PriceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A price, read or written."""

    success: bool = True
    data: Price


_update_decoder = msgspec.json.Decoder(PriceUpdate)
_price_decoder = msgspec.json.Decoder(Price)


_UPDATE_SCHEMA: Final = Schema(
    type=OpenAPIType.OBJECT,
    required=["price"],
    properties={"price": AMOUNT_SCHEMA},
    additional_properties=False,
)

_READ_ERRORS: Final = {
    404: error_spec("The symbol has no price"),
    422: error_spec("The symbol is malformed"),
    **COMMON_ERRORS,
}
_WRITE_ERRORS: Final = {
    **ADMIN_ERRORS,
    **BODY_ERRORS,
    422: error_spec("The symbol is malformed, or the price is not acceptable"),
    **COMMON_ERRORS,
}


def _checked(symbol: str) -> str:
    if not SYMBOL.fullmatch(symbol):
        raise Unprocessable(f"The symbol must match {SYMBOL.pattern}")
    return symbol


def start_read(services: Services, symbol: str) -> "asyncio.Future[Lookup[Price]]":
    """Begin to read a price through the cache, without waiting."""
    return services.cache.start(
        "price", symbol, _price_decoder, lambda: services.database.prices.read(symbol)
    )


@get("/api/prices/{symbol:str}", responses=_READ_ERRORS)
async def read_price(symbol: SymbolPath, services: InjectedServices) -> Response[PriceAnswer]:
    """Answer with the latest price; X-Cache shows whether it came from Redis.

    (The front answers a plain read of a price by itself.)
    """
    _checked(symbol)
    lookup = await start_read(services, symbol)
    services.cache.count(lookup)
    headers = {"X-Cache": lookup.outcome.value}
    if lookup.value is None:
        raise NoPrice(headers=headers)
    return Response(PriceAnswer(data=lookup.value), headers=headers)


@put(
    "/api/prices/{symbol:str}",
    guards=[require_admin],
    operation_class=describe_body(_UPDATE_SCHEMA),
    responses=_WRITE_ERRORS,
)
async def write_price(
    symbol: SymbolPath, request: AnyRequest, services: InjectedServices
) -> PriceAnswer:
    """Write a price: to the database first, then to subscribers; the cached entry is removed."""
    _checked(symbol)
    update = await decode_body(request, _update_decoder)
    try:
        value = parse_amount(bytes(update.price), "price")
    except ValueError as error:
        raise Unprocessable(str(error)) from None
    try:
        written = await services.database.prices.write(symbol, value)
    except SQLAlchemyError:
        # It may be committed all the same: the old price must not be read from the cache then.
        await services.cache.invalidate("price", symbol, 0)
        raise
    # At once: in the order of the commits, and before anything is waited for.
    channel = f"price:{symbol}"
    message = b'{"channel":"%b","data":%b}'
    services.bus.publish(channel, message % (channel.encode(), msgspec.json.encode(written.value)))
    await services.cache.invalidate("price", symbol, written.version)
    return PriceAnswer(data=written.value)


handlers: Final[list[Any]] = [read_price, write_price]
