"""What every request passes first: its client, the limit, the metrics, and the hot path.

A cached price is read thousands of times for each time that anything else happens. That one route
is answered here, without the framework; whatever is unusual about a request goes the common way.
"""

import asyncio
import time
from typing import Final, cast

from litestar.exceptions import HTTPException, NotFoundException
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from quantdesk.redis.limits import Decision
from quantdesk.services import Services
from quantdesk.web.admin_token import has_admin_token
from quantdesk.web.clients import identifier
from quantdesk.web.errors import TooManyRequests, answer_to
from quantdesk.web.metrics import Metrics
from quantdesk.web.names import SYMBOL
from quantdesk.web.origins import SAFE, Origins
from quantdesk.web.routes.prices import ROUTE, NoPrice, start_read
from quantdesk.web.sockets import Sockets, refuse

Headers = list[tuple[bytes, bytes]]

PRICES: Final = "/api/prices/"
# Below it everything counts against the client's limit, except health checks.
API: Final = "/api/"
# What begins a session, without one that a foreign page would need.
LOGIN: Final = "/api/sessions"
UNLIMITED: Final = frozenset({"/api/redis/health"})

_JSON: Final = (b"content-type", b"application/json")
_CLOSE: Final = (b"connection", b"close")


class Front:
    """The outermost ASGI application."""

    def __init__(self, routes: ASGIApp, services: Services, metrics: Metrics) -> None:
        self._routes = routes
        self._services = services
        self._limiter = services.limiter
        self._requests = metrics.requests
        self._origins = Origins(services.settings)
        self._sockets = Sockets(services, self._origins)
        self._limit = (b"ratelimit-limit", b"%d" % services.limiter.limit)
        self._identify = identifier(services.settings.trusted_proxies)
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        kind: str = scope["type"]
        if kind == "http":
            await self._http(cast("HTTPScope", scope), receive, send)
        elif kind == "websocket":
            if scope["path"] == "/ws":
                await self._sockets.serve(scope, receive, send, self._identify(scope))
            else:
                await refuse(send, NotFoundException("There is no WebSocket here"))
        else:
            await self._routes(scope, receive, send)

    async def _http(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        path = scope["path"]
        status, route = 500, None
        try:
            # The framework takes several slashes for one.
            if path in UNLIMITED or not (path.startswith(API) or "//" in path):
                status = await self._common(scope, receive, send, [])
            elif (
                scope["method"] == "GET"
                and path.startswith(PRICES)
                and SYMBOL.fullmatch(path, len(PRICES))
            ):
                route = ROUTE
                status = await self._price(scope, send, path[len(PRICES) :])
            else:
                status = await self._limited(scope, receive, send)
        finally:
            self._requests.observe(
                scope["method"],
                route or cast("dict[str, str]", scope).get("path_template") or "unmatched",
                status,
                time.perf_counter() - started,
            )

    async def _price(self, scope: HTTPScope, send: Send, symbol: str) -> int:
        """Answer a read of a price; return the status."""
        limiting = self._limiting(scope)
        if isinstance(limiting, Decision):
            if not limiting.allowed:
                return await self._refuse(send, limiting)
            decision, reading = limiting, start_read(self._services, symbol)
        else:
            # Begun before the limit is known, so that one round trip does for both.
            reading = start_read(self._services, symbol)
            decision = await limiting
            if not decision.allowed:
                reading.cancel()
                return await self._refuse(send, decision)
        try:
            lookup = await reading
        except Exception as error:  # noqa: BLE001  # every error has its answer
            return await self._answer(send, *answer_to(error, "GET"), self._limit_headers(decision))
        self._services.cache.count(lookup)
        headers = self._limit_headers(decision)
        headers.append((b"x-cache", lookup.outcome.encode()))
        if lookup.data is None:
            return await self._answer(send, *answer_to(NoPrice(), "GET"), headers)
        return await self._answer(send, 200, b'{"success":true,"data":%b}' % lookup.data, headers)

    async def _limited(self, scope: HTTPScope, receive: Receive, send: Send) -> int:
        """Pass a request on if the client's limit allows it; return the status."""
        limiting = self._limiting(scope)
        decision = limiting if isinstance(limiting, Decision) else await limiting
        if not decision.allowed:
            return await self._refuse(send, decision)
        refusal = self._check_origin(scope)
        if refusal is not None:
            return await self._answer(
                send, *answer_to(refusal, scope["method"]), self._limit_headers(decision)
            )
        return await self._common(scope, receive, send, self._limit_headers(decision))

    def _check_origin(self, scope: HTTPScope) -> HTTPException | None:
        """Return the refusal of what a foreign page may have made a browser send."""
        # No browser sends the token by itself, as it would a cookie.
        if scope["method"] in SAFE or has_admin_token(scope["headers"], self._services.settings):
            return None
        return self._origins.check(scope["headers"], body=scope["path"] == LOGIN)

    def _limiting(self, scope: HTTPScope) -> "Decision | asyncio.Future[Decision]":
        client = self._identify(scope)
        if has_admin_token(scope["headers"], self._services.settings):
            # Its holder feeds the desk: the answer shows what is left, the request is not counted.
            return self._limiter.look(client)
        return self._limiter.take(client)

    async def _common(
        self, scope: HTTPScope, receive: Receive, send: Send, headers: Headers
    ) -> int:
        """Pass a request on to the framework, and add headers to its answer; return the status."""
        status = 500

        async def add(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *headers]
                if self.draining:
                    message["headers"] = [*message["headers"], _CLOSE]
            await send(message)

        await self._routes(scope, receive, add)
        return status

    async def _refuse(self, send: Send, decision: Decision) -> int:
        headers = self._limit_headers(decision)
        headers.append((b"retry-after", b"%d" % decision.reset))
        return await self._answer(send, *answer_to(TooManyRequests(), ""), headers)

    def _limit_headers(self, decision: Decision) -> Headers:
        return [
            self._limit,
            (b"ratelimit-remaining", b"%d" % decision.remaining),
            (b"ratelimit-reset", b"%d" % decision.reset),
        ]

    async def _answer(self, send: Send, status: int, body: bytes, headers: Headers) -> int:
        headers.append(_JSON)
        headers.append((b"content-length", b"%d" % len(body)))
        if self.draining:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return status
