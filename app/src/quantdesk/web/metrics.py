"""Prometheus' metrics: requests, and Redis under the names that the dashboards know."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from quantdesk.redis.bus import Bus
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.statistics import Stats
from quantdesk.web.hub import Hub

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BOUNDS: Final = (*(str(bound) for bound in BUCKETS), "+Inf")

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class RedisCollector(Collector):
    """Redis' metrics. The counts are untyped, because a counter's name would get `_total`."""

    def __init__(self, gateway: Gateway, stats: Stats) -> None:
        self._gateway = gateway
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield each family; NaN stands for what is not known."""
        health = self._gateway.health
        counts = self._stats.total
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


class SocketCollector(Collector):
    """WebSockets and what is sent to them."""

    def __init__(self, hub: Hub, bus: Bus) -> None:
        self._hub = hub
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        """Yield each family."""
        yield GaugeMetricFamily("websockets_open", "Open WebSockets", value=self._hub.open)
        for name, text, count in (
            ("websocket_messages", "Messages fanned out to subscribers", self._hub.delivered),
            ("websockets_dropped", "WebSockets dropped for reading too slowly", self._hub.dropped),
            ("bus_messages", "Messages received from other instances", self._bus.received),
            ("bus_gaps", "Times that messages of another instance were missing", self._bus.gaps),
        ):
            yield CounterMetricFamily(name, text, count)


class Requests(Collector):
    """Counts and durations of requests.

    The library's own counters take a lock and several calls for each request; here is one thread,
    and what a request costs is a look-up and two additions.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], int] = {}
        # For each method and route: requests per bucket, and last the sum of seconds.
        self._durations: dict[tuple[str, str], list[float]] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` must be a template, never a path that a caller chose."""
        if method not in _METHODS:
            method = "OTHER"
        key = (method, route, status)
        self._counts[key] = self._counts.get(key, 0) + 1
        durations = self._durations.get((method, route))
        if durations is None:
            durations = self._durations[method, route] = [0.0] * (len(_BOUNDS) + 1)
        durations[bisect_left(BUCKETS, seconds)] += 1
        durations[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield both families."""
        requests = CounterMetricFamily(
            "http_requests", "Requests answered", labels=("method", "route", "status")
        )
        for (method, route, status), count in self._counts.items():
            requests.add_metric((method, route, str(status)), count)
        yield requests
        durations = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Seconds from a request's arrival to the end of its response",
            labels=("method", "route"),
        )
        for labels, values in self._durations.items():
            total = 0.0
            buckets = []
            for bound, value in zip(_BOUNDS, values, strict=False):
                total += value
                buckets.append((bound, total))
            durations.add_metric(labels, buckets, values[-1])
        yield durations


class Metrics:
    """The registry of one application."""

    def __init__(self, gateway: Gateway, stats: Stats, hub: Hub, bus: Bus) -> None:
        self.registry: Final = CollectorRegistry(auto_describe=False)
        self.requests: Final = Requests()
        for collector in (
            RedisCollector(gateway, stats),
            SocketCollector(hub, bus),
            self.requests,
        ):
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)
