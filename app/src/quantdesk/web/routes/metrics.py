"""Metrics, for Prometheus."""

from typing import Any, Final

from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


@get("/metrics", include_in_schema=False)
async def metrics(registry: NamedDependency[CollectorRegistry]) -> Response[bytes]:
    """Answer in Prometheus' text format."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


handlers: Final[list[Any]] = [metrics]
