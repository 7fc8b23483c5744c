"""The command `quantdesk`: one process that serves until a signal stops it."""

import argparse
import asyncio
import logging
import os
import sys
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from quantdesk import __version__
from quantdesk.database.database import migrate_database
from quantdesk.logging import configure_logging
from quantdesk.settings import Settings, SettingsError, load_settings
from quantdesk.web.app import create_app
from quantdesk.web.server.serve import serve

log = logging.getLogger(__name__)

START_FAILED: Final = 3


def main() -> int:
    """Serve, or check the settings, or migrate the database.

    Returns:
        0 after a stop, 78 (EX_CONFIG) when settings are wrong, 3 when the start failed.
    """
    parser = argparse.ArgumentParser(prog="quantdesk", description="Serve QuantDesk over HTTP.")
    parser.add_argument("--version", action="version", version=__version__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="check the settings and exit")
    action.add_argument(
        "--migrate", action="store_true", help="bring the database to this release's schema, exit"
    )
    arguments = parser.parse_args()
    try:
        settings = load_settings(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    if arguments.check:
        return 0
    configure_logging(settings.log_level, settings.log_format)
    if arguments.migrate:
        return migrate(settings)
    app = create_app(settings)
    return 0 if serve(app, settings, app.drain) else START_FAILED


def migrate(settings: Settings) -> int:
    """Migrate the database, which every start does as well; return the exit code."""
    try:
        asyncio.run(migrate_database(settings.database_url))
    except SQLAlchemyError as error:
        log.critical("The database cannot be migrated", extra={"reason": str(error.args[0])})
        return START_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
