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

from quantdesk import __version__, admin, health, metrics, prices
from quantdesk.bodies import MAX_BODY
from quantdesk.errors import handle_error
from quantdesk.settings import Settings
from quantdesk.state import State

log = logging.getLogger(__name__)


class Application:
    """The ASGI callable, and the services behind it."""

    def __init__(self, settings: Settings) -> None:
        self.services = State.build(settings)
        registered = metrics.Metrics(self.services.gateway, self.services.cache)

        def services() -> State:
            return self.services

        def registry() -> CollectorRegistry:
            return registered.registry

        @asynccontextmanager
        async def lifespan(_: Litestar) -> AsyncIterator[None]:
            async with AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(self.services.running())
                except SQLAlchemyError as error:
                    log.critical("The database cannot be opened", extra={"reason": str(error.args)})
                    raise
                except Exception:
                    log.critical("The start failed", exc_info=True)
                    raise
                yield

        routes = Litestar(
            [*health.handlers, *admin.handlers, *metrics.handlers, *prices.handlers],
            dependencies={
                "services": Provide(services, sync_to_thread=False),
                "registry": Provide(registry, sync_to_thread=False),
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
        routes.state.services = self.services
        self._app = metrics.Measured(routes, registered)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        # Litestar's types leave the lifespan's scope and messages out.
        kind: str = scope["type"]
        await self._app(scope, receive, _terse(send) if kind == "lifespan" else send)


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
