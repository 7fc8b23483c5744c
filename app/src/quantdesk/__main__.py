"""The command `quantdesk`: one process that serves until it is told to stop."""

import argparse
import os
import signal
import sys
from types import FrameType

import uvicorn

from quantdesk import __version__
from quantdesk.app import create_app
from quantdesk.logging import configure_logging
from quantdesk.settings import SettingsError, load_settings

# Seconds that requests under way get to finish after SIGTERM.
GRACE = 10
START_FAILED = 3


def main() -> int:
    """Serve, or check the settings.

    Returns:
        0 after a stop, 78 (EX_CONFIG) when settings are wrong, 3 when the start failed.
    """
    parser = argparse.ArgumentParser(prog="quantdesk", description="Serve QuantDesk over HTTP.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--check", action="store_true", help="check the settings and exit")
    arguments = parser.parse_args()
    try:
        settings = load_settings(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    if arguments.check:
        return 0
    configure_logging(settings.log_level, settings.log_format)
    # uvicorn raises the signal once more when it has stopped: that is a success, not a death.
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            log_config=None,
            access_log=False,
            server_header=False,
            # No proxy is trusted: who is local decides who may write in development.
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE,
        )
    )
    server.run()
    return 0 if server.started else START_FAILED


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
