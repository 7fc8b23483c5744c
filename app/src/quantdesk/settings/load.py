"""Reading all settings at once: every problem is reported with one start."""

import re
from collections.abc import Mapping
from typing import Final

from quantdesk.settings.authentication import read_auth, read_development_users
from quantdesk.settings.database import read_database_url
from quantdesk.settings.model import AppEnv, CacheTtls, LogFormat, LogLevel, Settings
from quantdesk.settings.reader import Reader, SettingsError
from quantdesk.settings.redis import check_production_redis, read_redis
from quantdesk.settings.web import (
    read_admin_token,
    read_allowed_origins,
    read_host,
    read_listener_tls,
    read_rate_limit,
    read_trusted_proxies,
)

_APP_ENVS: Final[tuple[AppEnv, ...]] = ("development", "test", "production")
_LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("json", "text")
_LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("debug", "info", "warning", "error", "critical")

# A colon would let one environment's keys look like another's below `qd:`.
_ENV_NAME: Final = re.compile(r"[!-9;-~]{1,64}", re.ASCII)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read settings from `environ`, where an empty value counts as not set.

    Raises:
        SettingsError: with every problem at once.
    """
    reader = Reader(environ)
    app_env = reader.choice(
        "APP_ENV" if reader.text("APP_ENV") else "NODE_ENV", "development", _APP_ENVS
    )
    redis, redis_state = read_redis(reader)
    settings = Settings(
        redis=redis,
        redis_state=redis_state,
        env_name=reader.matching(
            "ENV_NAME", "development", _ENV_NAME, "1 to 64 visible ASCII characters without a colon"
        ),
        app_env=app_env,
        host=read_host(reader),
        port=reader.integer("PORT", 3002, 1, 65535),
        tls=read_listener_tls(reader),
        database_url=read_database_url(reader, app_env),
        admin_token=read_admin_token(reader, app_env),
        auth=read_auth(reader),
        development_users=read_development_users(reader, app_env),
        allowed_origins=read_allowed_origins(reader),
        ttl=CacheTtls(
            price=_ttl(reader, "PRICE", 1),
            portfolio=_ttl(reader, "PORTFOLIO", 5),
            order=_ttl(reader, "ORDER", 2),
            session=_ttl(reader, "SESSION", 3600),
            presence=_ttl(reader, "PRESENCE", 65),
        ),
        rate_limit=read_rate_limit(reader, "RATE_LIMIT", "100/minute"),
        socket_rate_limit=read_rate_limit(reader, "SOCKET_RATE_LIMIT", "60/minute"),
        socket_address_rate_limit=read_rate_limit(
            reader, "SOCKET_ADDRESS_RATE_LIMIT", "1200/minute"
        ),
        sockets_per_session=reader.integer("SOCKETS_PER_SESSION", 16, 1, 512),
        trusted_proxies=read_trusted_proxies(reader),
        log_level=reader.choice("LOG_LEVEL", "info", _LOG_LEVELS),
        log_format=reader.choice(
            "LOG_FORMAT", "json" if app_env == "production" else "text", _LOG_FORMATS
        ),
    )
    if settings.production:
        for name, server in (("REDIS_URL", redis), ("REDIS_STATE_URL", redis_state)):
            if server is not None:
                check_production_redis(reader, name, server)
    if reader.problems:
        raise SettingsError(reader.problems)
    return settings


def _ttl(reader: Reader, kind: str, default: int) -> int:
    return reader.integer(f"CACHE_TTL_{kind}", default, 1, 31_536_000)
