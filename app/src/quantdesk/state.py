"""What the application holds while it runs."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

from litestar.di import NamedDependency

from quantdesk.bus import Bus
from quantdesk.cache import Cache
from quantdesk.database import Database
from quantdesk.gateway import Gateway
from quantdesk.settings import Settings

# Seconds that the start waits for Redis, so that a healthy one serves the first request.
START_PATIENCE: Final = 1.0


@dataclass(frozen=True, slots=True)
class State:
    """The services of one process. Made without input or output; `running` opens them."""

    settings: Settings
    instance: str
    database: Database
    gateway: Gateway
    bus: Bus
    cache: Cache

    @classmethod
    def build(cls, settings: Settings) -> Self:
        """Wire the services together."""
        gateway = Gateway(settings.redis, settings.env_name)
        bus = Bus(gateway, settings.env_name)
        return cls(
            settings=settings,
            instance=f"{socket.gethostname()}:{settings.port}",
            database=Database(settings.database_url),
            gateway=gateway,
            bus=bus,
            cache=Cache(gateway, bus, settings.env_name),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the services, and close them in the reverse order.

        Raises:
            SQLAlchemyError: the database can't be opened.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.database.close)
            await self.database.open()
            stack.push_async_callback(self.gateway.stop)
            await self.gateway.start(START_PATIENCE)
            stack.push_async_callback(self.bus.stop)
            await self.bus.start()
            yield


# What a route's parameter `services` is annotated with.
Services: TypeAlias = NamedDependency[State]
