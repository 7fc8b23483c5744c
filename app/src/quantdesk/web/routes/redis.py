"""Redis over HTTP: statistics of the cache, and clearing it."""

import re
from typing import Annotated, Any, Final

import msgspec
from litestar import get, post
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType

from quantdesk.redis.availability import Status
from quantdesk.redis.bus import RESET_STATS
from quantdesk.redis.errors import RedisRefused, RedisUnavailable
from quantdesk.redis.gateway import Gateway
from quantdesk.web.admin_token import ADMIN_ERRORS, require_admin
from quantdesk.web.bodies import decode_body, describe_body
from quantdesk.web.dependencies import InjectedServices
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
    """The answer of an operation without a result."""

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
    """`latency` in milliseconds, memory in bytes; null where Redis does not report it."""

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

# The characters of C0 and C1, which no useful pattern has.
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


@get("/api/redis/stats", responses=LIMIT_ERRORS)
async def stats(services: InjectedServices) -> StatsAnswer:
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
        422: error_spec("The pattern is malformed"),
        503: error_spec("Redis is not available"),
    },
    status_code=200,
)
async def clear(request: AnyRequest, services: InjectedServices) -> ClearAnswer:
    """Remove the cached prices, portfolios and orders that a pattern matches, nothing else."""
    pattern = (await decode_body(request, _clear_decoder)).pattern
    if _CONTROL.search(pattern):
        raise Unprocessable("The pattern must not contain control characters")
    return ClearAnswer(data=Cleared(pattern, await services.cache.clear(pattern)))


@post("/api/redis/reset-stats", guards=[require_admin], responses=ADMIN_ERRORS, status_code=200)
async def reset_stats(services: InjectedServices) -> Done:
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
