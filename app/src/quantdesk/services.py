"""The services of one process: made from the settings, opened and closed together."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

from quantdesk.authentication.assertions import Authenticator
from quantdesk.database.database import Database
from quantdesk.redis.bus import RESET_STATS, SESSION_ENDED, Bus
from quantdesk.redis.cache import Cache
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.limits import Limiter
from quantdesk.redis.statistics import Stats
from quantdesk.settings import Settings
from quantdesk.web.hub import Hub

# Seconds that the start waits for Redis, so that a healthy one serves the first request.
START_PATIENCE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Services:
    """The services of one process. Made without input or output; `running` opens them.

    `cache` and `bus` are on the Redis that may evict; sessions, presence and rate limits are on the
    one for state, which is the same unless a second one is configured.
    """

    settings: Settings
    instance: str
    database: Database
    gateway: Gateway
    state_gateway: Gateway
    hub: Hub
    bus: Bus
    stats: Stats
    cache: Cache
    state_cache: Cache
    limiter: Limiter
    # Of handshakes of WebSockets, by session and by address.
    session_sockets: Limiter
    address_sockets: Limiter
    authenticator: Authenticator | None

    @classmethod
    def build(cls, settings: Settings) -> Self:
        """Wire the services together."""
        env_name = settings.env_name
        gateway = Gateway(settings.redis, env_name)
        state_gateway = gateway
        if settings.redis_state is not None:
            state_gateway = Gateway(settings.redis_state, env_name)
        hub = Hub()
        bus = Bus(gateway, hub, env_name)
        stats = Stats()
        bus.listen(RESET_STATS, lambda _: stats.reset())
        bus.listen(SESSION_ENDED, lambda name: hub.end_session(name.decode("latin-1")))
        return cls(
            settings=settings,
            instance=f"{socket.gethostname()}:{settings.port}",
            database=Database(settings.database_url),
            gateway=gateway,
            state_gateway=state_gateway,
            hub=hub,
            bus=bus,
            stats=stats,
            cache=Cache(gateway, env_name, settings.ttl, stats),
            state_cache=Cache(state_gateway, env_name, settings.ttl, stats),
            limiter=Limiter(state_gateway, env_name, settings.rate_limit),
            session_sockets=Limiter(
                state_gateway, env_name, settings.socket_rate_limit, "socket-session"
            ),
            address_sockets=Limiter(
                state_gateway, env_name, settings.socket_address_rate_limit, "socket-address"
            ),
            authenticator=None if settings.auth is None else Authenticator(settings.auth),
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
            for cache in (self.cache, self.state_cache):
                stack.push_async_callback(cache.finish)
            gateways = {self.gateway, self.state_gateway}
            for gateway in gateways:
                stack.push_async_callback(gateway.stop)
            await asyncio.gather(*(gateway.start(START_PATIENCE) for gateway in gateways))
            stack.push_async_callback(self.bus.stop)
            await self.bus.start()
            yield
