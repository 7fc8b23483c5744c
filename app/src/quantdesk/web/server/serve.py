"""Serving the application until a signal."""

import contextlib
import resource
from collections.abc import Callable

import uvicorn
from litestar.types import ASGIApp

from quantdesk.settings import Settings
from quantdesk.web.server import shutdown, websockets
from quantdesk.web.server.http import LimitedHttp
from quantdesk.web.server.shutdown import Server
from quantdesk.web.server.systemd import passed_sockets
from quantdesk.web.server.tls import TlsServer
from quantdesk.web.server.websockets import DirectFrames


def serve(app: ASGIApp, settings: Settings, drain: Callable[[], None]) -> bool:
    """Serve until a signal; return whether it got as far as serving."""
    _raise_open_files()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=LimitedHttp,
        ws=DirectFrames,
        ws_max_size=websockets.MAX_MESSAGE,
        ws_ping_interval=websockets.PING_INTERVAL,
        ws_ping_timeout=websockets.PING_TIMEOUT,
        # A frame goes to many sockets: compressing it for each would cost more than it saves.
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        # web/clients.py decides whose word on a client's address counts.
        proxy_headers=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=shutdown.GRACE,
        backlog=2048,
    )
    server = Server(config, drain)
    if settings.tls is not None:
        server = TlsServer(config, drain, settings.tls)
    server.run(sockets=passed_sockets())
    return server.started


def _raise_open_files() -> None:
    """Allow as many open sockets as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
