"""Portfolios over HTTP: what a user's orders amount to, at the latest prices."""

from typing import Any, Final

import msgspec
from litestar import Response, get

from quantdesk.database.portfolios import Portfolio
from quantdesk.web.dependencies import InjectedServices
from quantdesk.web.errors import AnyRequest
from quantdesk.web.sessions import SESSION_ERRORS, current_session


class PortfolioAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A portfolio."""

    success: bool = True
    data: Portfolio


_decoder = msgspec.json.Decoder(Portfolio)


@get("/api/portfolio", responses=SESSION_ERRORS)
async def read_portfolio(
    request: AnyRequest, services: InjectedServices
) -> Response[PortfolioAnswer]:
    """Answer with what the session's user holds.

    Prices in it are as old as the entry in the cache; orders are in it at once.
    """
    user = (await current_session(request, services)).user
    lookup = await services.cache.read(
        "portfolio", user, _decoder, lambda: services.database.portfolios.read(user)
    )
    assert lookup.value is not None  # noqa: S101  # every user has a portfolio, if an empty one
    return Response(PortfolioAnswer(data=lookup.value), headers={"X-Cache": lookup.outcome.value})


handlers: Final[list[Any]] = [read_portfolio]
