"""Health, for load balancers and people."""

from typing import Any, Final, Literal

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec

from quantdesk import __version__
from quantdesk.redis.availability import Health
from quantdesk.web.dependencies import InjectedServices


class DatabaseHealth(msgspec.Struct, frozen=True):
    """Whether the source of truth answers."""

    status: Literal["healthy", "unhealthy"]


class Report(msgspec.Struct, frozen=True):
    """`degraded`: all works, but without the cache. `unhealthy`: the database does not answer."""

    status: Literal["healthy", "degraded", "unhealthy"]
    redis: Health
    database: DatabaseHealth
    version: str


@get(
    "/health",
    responses={503: ResponseSpec(Report, description="The database does not answer")},
)
async def health(services: InjectedServices) -> Response[Report]:
    """Answer 200 while the process can serve, be it without Redis."""
    redis = services.gateway.health
    if not await services.database.healthy():
        report = Report("unhealthy", redis, DatabaseHealth("unhealthy"), __version__)
        return Response(report, status_code=503)
    status: Literal["healthy", "degraded"] = (
        "degraded"
        if "unhealthy" in (redis.status, services.state_gateway.health.status)
        else "healthy"
    )
    return Response(Report(status, redis, DatabaseHealth("healthy"), __version__))


@get(
    "/api/redis/health",
    responses={503: ResponseSpec(Health, description="Redis is down or disabled")},
)
async def redis_health(services: InjectedServices) -> Response[Health]:
    """Answer 200 while Redis is usable, as the latest probe found."""
    redis = services.gateway.health
    return Response(redis, status_code=200 if redis.available else 503)


handlers: Final[list[Any]] = [health, redis_health]
