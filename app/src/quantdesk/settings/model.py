"""Settings as the rest of the application reads them: immutable, and checked before."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from quantdesk.authentication.keys import Key
from quantdesk.settings.secret import Secret

AppEnv = Literal["development", "test", "production"]
LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Where Redis is and how to reach it. Timeouts in seconds.

    With `sentinels`, they name the host and port.
    """

    host: str
    port: int
    database: int
    username: str | None
    password: Secret | None
    tls: bool
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None
    connect_timeout: float
    command_timeout: float
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_master: str = ""
    sentinel_password: Secret | None = None


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The listener's certificate. Without `required` it takes plaintext on the same port, too."""

    cert_file: Path
    key_file: Path
    required: bool


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Whose assertions count. `max_age` and `leeway` in seconds; with a file, `keys` are its."""

    issuer: str
    audience: str
    keys: tuple[Key, ...]
    keys_file: Path | None
    user_claim: str
    max_age: int
    leeway: int


@dataclass(frozen=True, slots=True)
class CacheTtls:
    """How long an entry of each kind lives, in seconds."""

    price: int
    portfolio: int
    order: int
    session: int
    presence: int


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many requests a client may make in a period of so many seconds."""

    requests: int
    period: int


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the environment decides.

    `redis` is None when Redis is disabled, `redis_state` when there is no second one, `tls` when
    the listener takes plaintext alone, and `auth` when no issuer is configured.
    """

    redis: RedisSettings | None
    redis_state: RedisSettings | None
    env_name: str
    app_env: AppEnv
    host: str
    port: int
    tls: TlsSettings | None
    database_url: str = field(repr=False)
    admin_token: Secret | None
    auth: AuthSettings | None
    development_users: bool
    allowed_origins: tuple[str, ...]
    ttl: CacheTtls
    rate_limit: RateLimit
    socket_rate_limit: RateLimit
    socket_address_rate_limit: RateLimit
    sockets_per_session: int
    trusted_proxies: tuple[str, ...]
    log_level: LogLevel
    log_format: LogFormat

    @property
    def production(self) -> bool:
        """Whether unsafe settings are errors and answers are closed by default."""
        return self.app_env == "production"
