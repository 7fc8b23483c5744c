"""What concerns every user of the cache: statistics, clearing, and who may do so."""

import ipaddress
import re
import secrets
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec
from litestar import get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.handlers import BaseRouteHandler
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType

from quantdesk.redis.bus import RESET_STATS
from quantdesk.redis.gateway import Gateway, RedisRefused, RedisUnavailable, Status
from quantdesk.services import Services, State
from quantdesk.settings import Settings
from quantdesk.web.bodies import decode_body, describe_body
from quantdesk.web.errors import BODY_ERRORS, LIMIT_ERRORS, AnyRequest, Unprocessable, error_spec

MAX_PATTERN: Final = 256


class ClearRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`pattern` is a glob on what follows the environment's prefix, such as `price:*`."""

    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATTERN)]


class Cleared(msgspec.Struct, frozen=True):
    """How many entries of the cache kinds the pattern removed."""

    pattern: str
    cleared: int


class ClearAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a clear."""

    success: bool = True
    data: Cleared


class Done(msgspec.Struct, frozen=True):
    """The answer of an operation that has nothing to tell."""

    success: bool = True


class CacheStats(msgspec.Struct, frozen=True, rename="camel"):
    """Counts since the start or the last reset. `hit_ratio` in percent, 0 before any read."""

    hits: int
    misses: int
    errors: int
    sets: int
    hit_ratio: float
    total_requests: int


class RedisStats(msgspec.Struct, frozen=True, rename="camel"):
    """`latency` in milliseconds, memory in bytes; null where Redis does not tell."""

    status: Status
    latency: float | None
    available: bool
    used_memory: int | None
    max_memory: int | None


class StatsData(msgspec.Struct, frozen=True):
    """The statistics of one instance."""

    instance: str
    cache: CacheStats
    redis: RedisStats


class StatsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of the statistics route."""

    success: bool = True
    data: StatsData


_clear_decoder = msgspec.json.Decoder(ClearRequest)

# The characters of C0 and C1, which nobody means by a pattern.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_CLEAR_SCHEMA: Final = Schema(
    type=OpenAPIType.OBJECT,
    required=["pattern"],
    properties={
        "pattern": Schema(
            type=OpenAPIType.STRING,
            min_length=1,
            max_length=MAX_PATTERN,
            pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$",
            description="A glob on the keys of prices, portfolios and orders, such as price:*",
        )
    },
    additional_properties=False,
)
# What every route may answer with that needs the admin token.
ADMIN_ERRORS: Final = {
    401: error_spec("The token is missing or wrong"),
    403: error_spec(
        "No token is configured and the caller is not local, or is a page of another origin"
    ),
    **LIMIT_ERRORS,
}


def require_admin(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Let pass whoever shows the admin token; without one configured, local callers only.

    Raises:
        NotAuthorizedException: the token is missing or wrong (401).
        PermissionDeniedException: none is configured, and the caller is not local or this is
            production (403).
    """
    services: State = connection.app.state.services
    settings: Settings = services.settings
    if settings.admin_token is None:
        if settings.production or not _is_local(connection):
            raise PermissionDeniedException("No admin token is configured")
        return
    if not admin_token_shown(connection.scope["headers"], settings):
        raise NotAuthorizedException(
            "A valid admin token is required", headers={"WWW-Authenticate": "Bearer"}
        )


def admin_token_shown(headers: Iterable[tuple[bytes, bytes]], settings: Settings) -> bool:
    """Tell whether a request's headers hold the admin token; never, if none is configured."""
    if settings.admin_token is None:
        return False
    expected = settings.admin_token.reveal().encode()
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            # In constant time, so that the time of an answer tells nothing about the token.
            return scheme.lower() == b"bearer" and secrets.compare_digest(token.strip(), expected)
    return False


def _is_local(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    # Behind a proxy on this host every caller seems local.
    if {"forwarded", "x-forwarded-for", "x-real-ip"} & set(connection.headers.keys()):
        return False
    if connection.client is None:
        return False
    try:
        return ipaddress.ip_address(connection.client.host).is_loopback
    except ValueError:
        return False


@get("/api/redis/stats", responses=LIMIT_ERRORS)
async def stats(services: Services) -> StatsAnswer:
    """Answer with this instance's counts and Redis' memory."""
    counts = services.stats.current
    used, limit = await _memory(services.gateway)
    health = services.gateway.health
    return StatsAnswer(
        data=StatsData(
            instance=services.instance,
            cache=CacheStats(
                hits=counts.hits,
                misses=counts.misses,
                errors=counts.errors,
                sets=counts.sets,
                hit_ratio=round(100 * (counts.ratio or 0.0), 2),
                total_requests=counts.requests,
            ),
            redis=RedisStats(health.status, health.latency, health.available, used, limit),
        )
    )


@post(
    "/api/redis/clear",
    guards=[require_admin],
    operation_class=describe_body(_CLEAR_SCHEMA),
    responses={
        **BODY_ERRORS,
        **ADMIN_ERRORS,
        422: error_spec("The pattern is not one"),
        503: error_spec("Redis is not available"),
    },
    status_code=200,
)
async def clear(request: AnyRequest, services: Services) -> ClearAnswer:
    """Remove the cached prices, portfolios and orders that a pattern matches, nothing else."""
    pattern = (await decode_body(request, _clear_decoder)).pattern
    if _CONTROL.search(pattern):
        raise Unprocessable("The pattern must not contain control characters")
    return ClearAnswer(data=Cleared(pattern, await services.cache.clear(pattern)))


@post("/api/redis/reset-stats", guards=[require_admin], responses=ADMIN_ERRORS, status_code=200)
async def reset_stats(services: Services) -> Done:
    """Count anew here, and on the other instances as far as Redis reaches them."""
    services.stats.reset()
    services.bus.announce(RESET_STATS)
    return Done()


async def _memory(gateway: Gateway) -> tuple[int | None, int | None]:
    try:
        text = (await gateway.call("INFO", "memory")).decode()
    except (RedisUnavailable, RedisRefused):
        return None, None
    memory = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(memory["used_memory"]), int(memory["maxmemory"])


handlers: Final[list[Any]] = [stats, clear, reset_stats]
