"""The ASGI application."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError

from quantdesk import __version__
from quantdesk.services import Services
from quantdesk.settings import Settings
from quantdesk.web.bodies import MAX_BODY
from quantdesk.web.errors import handle_error
from quantdesk.web.front import Front
from quantdesk.web.metrics import Metrics
from quantdesk.web.routes import (
    health,
    metrics,
    orders,
    portfolio,
    presence,
    prices,
    redis,
    sessions,
)

log = logging.getLogger(__name__)


class Application:
    """The ASGI callable, and the services behind it."""

    def __init__(self, settings: Settings) -> None:
        self.services = Services.build(settings)
        services = self.services
        registered = Metrics(services.gateway, services.stats, services.hub, services.bus)

        def provide_services() -> Services:
            return services

        def provide_registry() -> CollectorRegistry:
            return registered.registry

        @asynccontextmanager
        async def lifespan(_: Litestar) -> AsyncIterator[None]:
            async with AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(services.running())
                except SQLAlchemyError as error:
                    log.critical("The database cannot be opened", extra={"reason": str(error.args)})
                    raise
                except Exception:
                    log.critical("The start failed", exc_info=True)
                    raise
                yield

        routes = Litestar(
            [
                *health.handlers,
                *redis.handlers,
                *metrics.handlers,
                *prices.handlers,
                *sessions.handlers,
                *portfolio.handlers,
                *orders.handlers,
                *presence.handlers,
            ],
            dependencies={
                "services": Provide(provide_services, sync_to_thread=False),
                "registry": Provide(provide_registry, sync_to_thread=False),
            },
            exception_handlers={Exception: handle_error},
            lifespan=[lifespan],
            logging_config=None,
            openapi_config=OpenAPIConfig(
                title="QuantDesk",
                version=__version__,
                path="/schema",
                render_plugins=[JsonRenderPlugin()],
            ),
            request_max_body_size=MAX_BODY,
        )
        routes.state.services = services
        self._front = Front(routes, services, registered)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        # Litestar's types leave the lifespan's scope and messages out.
        kind: str = scope["type"]
        await self._front(scope, receive, _terse(send) if kind == "lifespan" else send)

    def drain(self) -> None:
        """From now on, tell every connection with its next response to close."""
        self._front.draining = True


def _terse(send: Send) -> Send:
    """Drop the traceback that a failed start is reported with: its cause is in the log."""

    async def pass_on(message: Message) -> None:
        fields = cast("dict[str, object]", message)
        if fields["type"] == "lifespan.startup.failed":
            fields["message"] = ""
        await send(message)

    return pass_on


def create_app(settings: Settings) -> Application:
    """Return the application; it opens its connections when its lifespan starts."""
    return Application(settings)
