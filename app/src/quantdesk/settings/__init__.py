"""Settings: read from the environment once, checked as a whole, then immutable."""

from quantdesk.settings.load import load_settings
from quantdesk.settings.model import (
    AppEnv,
    AuthSettings,
    CacheTtls,
    LogFormat,
    LogLevel,
    RateLimit,
    RedisSettings,
    Settings,
    TlsSettings,
)
from quantdesk.settings.reader import SettingsError
from quantdesk.settings.secret import Secret

__all__ = [
    "AppEnv",
    "AuthSettings",
    "CacheTtls",
    "LogFormat",
    "LogLevel",
    "RateLimit",
    "RedisSettings",
    "Secret",
    "Settings",
    "SettingsError",
    "TlsSettings",
    "load_settings",
]
