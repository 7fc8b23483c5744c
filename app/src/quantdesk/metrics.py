"""Prometheus' metrics: requests, and Redis under the names that the dashboards know."""

import math
import time
from collections.abc import Iterator
from typing import Any, Final

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from quantdesk.cache import Cache
from quantdesk.gateway import Gateway

# A second series per counter, which tells when it was created, would only double their number.
disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in the library

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class RedisCollector(Collector):
    """Redis' metrics. The counts are untyped, because a counter's name would get `_total`."""

    def __init__(self, gateway: Gateway, cache: Cache) -> None:
        self._gateway = gateway
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """Yield each family; NaN stands for what is not known."""
        health = self._gateway.health
        counts = self._cache.stats.total
        yield GaugeMetricFamily(
            "redis_ping_ms",
            "Milliseconds that the latest PING took, NaN while Redis is not available",
            value=math.nan if health.latency is None else health.latency,
        )
        yield GaugeMetricFamily(
            "redis_connection_status",
            "1 while Redis is available, else 0",
            value=int(health.available),
        )
        for name, text, count in (
            ("hits", "Reads answered from Redis", counts.hits),
            ("misses", "Reads that Redis had no entry for", counts.misses),
            ("errors", "Operations that failed or that Redis refused", counts.errors),
            ("sets", "Entries written to Redis", counts.sets),
        ):
            yield UnknownMetricFamily(f"redis_cache_{name}", f"{text}, since the start", count)
        yield GaugeMetricFamily(
            "redis_cache_hit_ratio",
            "Hits among reads since the start, 0 to 1, NaN before the first read",
            value=math.nan if counts.ratio is None else counts.ratio,
        )


class Metrics:
    """The registry of one application."""

    def __init__(self, gateway: Gateway, cache: Cache) -> None:
        self.registry: Final = CollectorRegistry(auto_describe=False)
        self.registry.register(RedisCollector(gateway, cache))
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "http_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._durations = Histogram(
            "http_request_duration_seconds",
            "Seconds from a request's arrival to the end of its response",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` must be a template, never a path that a caller chose."""
        method = method if method in _METHODS else "OTHER"
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(method, route).observe(seconds)


class Measured:
    """Wraps an application so that every request counts, also those that match no route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and measure it."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, watch)
        finally:
            self._metrics.observe(
                scope["method"],
                scope.get("path_template") or "unmatched",
                status,
                time.perf_counter() - started,
            )


@get("/metrics", include_in_schema=False)
async def metrics(registry: NamedDependency[CollectorRegistry]) -> Response[bytes]:
    """Answer in Prometheus' text format."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


handlers: Final[list[Any]] = [metrics]
