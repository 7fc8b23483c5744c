"""Settings: read from the environment once, checked as a whole, then immutable."""

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from quantdesk.authentication.assertions import (
    KEYS_FORM,
    AuthSettings,
    Key,
    KeysError,
    parse_keys,
    read_keys,
)
from quantdesk.database.postgres_address import FORM as POSTGRES_FORM
from quantdesk.database.postgres_address import (
    VERIFYING,
    AddressError,
    PostgresAddress,
    parse_address,
)

AppEnv = Literal["development", "test", "production"]
LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]

_Choice = TypeVar("_Choice", bound=str)

MIN_PRODUCTION_TOKEN: Final = 16
HIDDEN: Final = "(hidden)"

_APP_ENVS: Final[tuple[AppEnv, ...]] = ("development", "test", "production")
_LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("json", "text")
_LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("debug", "info", "warning", "error", "critical")
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_PERIODS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}

# A colon would let one environment's keys look like another's below `qd:`.
_ENV_NAME: Final = re.compile(r"[!-9;-~]{1,64}", re.ASCII)
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.?", re.ASCII)
_TOKEN: Final = re.compile(r"[!-~]+", re.ASCII)
_CLAIM: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}", re.ASCII)
_PORTS: Final = {"http": 80, "https": 443}
_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)", re.ASCII)


class Secret:
    """A string that shows itself only when asked to by name."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret in clear."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({HIDDEN!r})"

    def __str__(self) -> str:
        return HIDDEN


class SettingsError(Exception):
    """The environment does not make valid settings; its text lists every problem, no secret."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
        super().__init__(
            "\n".join([f"quantdesk cannot start, {count} wrong:", *(f"  {p}" for p in problems)])
        )


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Where Redis is and how to reach it. Timeouts in seconds.

    With `sentinels`, host and port are theirs to tell.
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
    """What the listener shows. Without `required` it takes plaintext on the same port as well."""

    cert_file: Path
    key_file: Path
    required: bool


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
    the listener takes plaintext alone, and `auth` where nobody's assertions count.
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


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read settings from `environ`, where an empty value counts as not set.

    Raises:
        SettingsError: with every problem at once.
    """
    reader = _Reader(environ)
    app_env = reader.choice(
        "APP_ENV" if reader.text("APP_ENV") else "NODE_ENV", "development", _APP_ENVS
    )
    redis, redis_state = _redis(reader)
    settings = Settings(
        redis=redis,
        redis_state=redis_state,
        env_name=reader.matching(
            "ENV_NAME", "development", _ENV_NAME, "1 to 64 visible ASCII characters without a colon"
        ),
        app_env=app_env,
        host=_host(reader),
        port=reader.integer("PORT", 3002, 1, 65535),
        tls=_listener_tls(reader),
        database_url=_database_url(reader, app_env),
        admin_token=_admin_token(reader, app_env),
        auth=_auth(reader),
        development_users=_development_users(reader, app_env),
        allowed_origins=_allowed_origins(reader),
        ttl=CacheTtls(
            price=_ttl(reader, "PRICE", 1),
            portfolio=_ttl(reader, "PORTFOLIO", 5),
            order=_ttl(reader, "ORDER", 2),
            session=_ttl(reader, "SESSION", 3600),
            presence=_ttl(reader, "PRESENCE", 65),
        ),
        rate_limit=_rate_limit(reader, "RATE_LIMIT", "100/minute"),
        socket_rate_limit=_rate_limit(reader, "SOCKET_RATE_LIMIT", "60/minute"),
        socket_address_rate_limit=_rate_limit(reader, "SOCKET_ADDRESS_RATE_LIMIT", "1200/minute"),
        sockets_per_session=reader.integer("SOCKETS_PER_SESSION", 16, 1, 512),
        trusted_proxies=_trusted_proxies(reader),
        log_level=reader.choice("LOG_LEVEL", "info", _LOG_LEVELS),
        log_format=reader.choice(
            "LOG_FORMAT", "json" if app_env == "production" else "text", _LOG_FORMATS
        ),
    )
    if settings.production:
        for name, server in (("REDIS_URL", redis), ("REDIS_STATE_URL", redis_state)):
            if server is not None:
                _check_production_redis(reader, name, server)
    if reader.problems:
        raise SettingsError(reader.problems)
    return settings


class _Reader:
    """Takes values from the environment and collects what is wrong with them.

    After a problem a stand-in is returned, so that the remaining values are still checked.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def problem(self, name: str, found: str, expected: str) -> None:
        self.problems.append(f"{name}: found {found}, expected {expected}")

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def choice(self, name: str, default: _Choice, choices: tuple[_Choice, ...]) -> _Choice:
        value = self.text(name)
        if value is None:
            return default
        for choice in choices:
            if value == choice:
                return choice
        self.problem(name, _shown(value), f"one of {', '.join(choices)}")
        return default

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        if value.isascii() and value.isdigit() and len(value) < 12 and low <= int(value) <= high:
            return int(value)
        self.problem(name, _shown(value), f"a whole number from {low} to {high}")
        return default

    def matching(self, name: str, default: str, pattern: re.Pattern[str], expected: str) -> str:
        value = self.text(name)
        if value is None:
            return default
        if pattern.fullmatch(value):
            return value
        self.problem(name, _shown(value), expected)
        return default

    def boolean(self, name: str, default: bool) -> bool:
        value = self.text(name)
        if value is None:
            return default
        if value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        self.problem(name, _shown(value), "true or false")
        return default

    def secret(self, name: str) -> Secret | None:
        """Read a secret from `name`, or from the file that `name`_FILE names."""
        value = self._environ.get(name) or None
        file_name = f"{name}_FILE"
        path = self.text(file_name)
        if path is None:
            return None if value is None else Secret(value)
        if value is not None:
            self.problem(file_name, _shown(path), f"only one of {name} and {file_name}")
            return Secret(value)
        try:
            content = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            self.problem(file_name, f"{_shown(path)} ({_why(error)})", "a readable UTF-8 file")
            return None
        if not content:
            self.problem(file_name, f"{_shown(path)} (empty)", "a file that holds the secret")
            return None
        return Secret(content)

    def file(self, name: str) -> Path | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            with Path(value).open("rb"):
                return Path(value)
        except (OSError, ValueError) as error:
            self.problem(name, f"{_shown(value)} ({_why(error)})", "a readable file")
            return None


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else f"{value[:77]}...")


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _ttl(reader: _Reader, kind: str, default: int) -> int:
    return reader.integer(f"CACHE_TTL_{kind}", default, 1, 31_536_000)


def _rate_limit(reader: _Reader, name: str, default: str) -> RateLimit:
    value = reader.matching(
        name, default, _RATE, "a number, a slash and second, minute, hour or day"
    )
    requests, period = value.split("/")
    return RateLimit(int(requests), _PERIODS[period])


def _host(reader: _Reader) -> str:
    value = reader.text("HOST")
    if value is None:
        return "127.0.0.1"
    if _ip(value) is None and not _HOST_NAME.fullmatch(value):
        reader.problem("HOST", _shown(value), "an IP address or a host name to listen on")
    return value


def _admin_token(reader: _Reader, app_env: AppEnv) -> Secret | None:
    token = reader.secret("ADMIN_TOKEN")
    if token is None:
        return None
    if not _TOKEN.fullmatch(token.reveal()):
        reader.problem("ADMIN_TOKEN", HIDDEN, "visible ASCII characters without spaces")
    elif app_env == "production" and len(token.reveal()) < MIN_PRODUCTION_TOKEN:
        reader.problem(
            "ADMIN_TOKEN",
            f"{HIDDEN}, {len(token.reveal())} characters",
            f"at least {MIN_PRODUCTION_TOKEN} characters in production",
        )
    return token


def _auth(reader: _Reader) -> AuthSettings | None:
    keys_file = reader.text("AUTH_KEYS_FILE")
    named = reader.text("AUTH_ISSUER") or reader.text("AUTH_AUDIENCE")
    text = reader.text("AUTH_KEYS")
    settings = AuthSettings(
        issuer=reader.text("AUTH_ISSUER") or "",
        audience=reader.text("AUTH_AUDIENCE") or "",
        keys=_auth_keys(reader, text, keys_file),
        keys_file=Path(keys_file) if keys_file else None,
        user_claim=reader.matching("AUTH_USER_CLAIM", "sub", _CLAIM, "the name of a claim"),
        max_age=reader.integer("AUTH_MAX_AGE", 300, 1, 86_400),
        leeway=reader.integer("AUTH_LEEWAY", 30, 0, 300),
    )
    if text is None and keys_file is None:
        if named:
            reader.problem("AUTH_KEYS", "nothing", f"{KEYS_FORM}; or AUTH_KEYS_FILE")
        return None
    if not settings.issuer:
        reader.problem("AUTH_ISSUER", "nothing", "the claim `iss` of the assertions that count")
    if not settings.audience:
        reader.problem("AUTH_AUDIENCE", "nothing", "the claim `aud` of assertions for this desk")
    return settings


def _auth_keys(reader: _Reader, text: str | None, keys_file: str | None) -> tuple[Key, ...]:
    if text is not None and keys_file is not None:
        reader.problem("AUTH_KEYS_FILE", _shown(keys_file), "one of AUTH_KEYS and AUTH_KEYS_FILE")
        return ()
    # A text is not shown: somebody may have put a private key there.
    name, found = ("AUTH_KEYS", "") if keys_file is None else ("AUTH_KEYS_FILE", _shown(keys_file))
    try:
        if keys_file is not None:
            return read_keys(Path(keys_file))
        return () if text is None else parse_keys(text)
    except KeysError as error:
        reader.problem(name, f"{found} ({error})" if found else str(error), KEYS_FORM)
    except (OSError, ValueError) as error:
        reader.problem(name, f"{found} ({_why(error)})", "a readable file")
    return ()


def _development_users(reader: _Reader, app_env: AppEnv) -> bool:
    allowed = reader.boolean("AUTH_DEVELOPMENT_USERS", False)
    if allowed and app_env == "production":
        reader.problem(
            "AUTH_DEVELOPMENT_USERS",
            "true",
            "nothing in production, as with it anybody may begin a session as any user",
        )
    return allowed


def _allowed_origins(reader: _Reader) -> tuple[str, ...]:
    value = reader.text("ALLOWED_ORIGINS")
    if value is None:
        return ()
    origins = tuple(item.strip() for item in value.split(","))
    if not all(map(_is_origin, origins)):
        reader.problem(
            "ALLOWED_ORIGINS",
            _shown(value),
            "origins in small letters with commas between them, such as https://desk.example.com",
        )
    return origins


def _is_origin(text: str) -> bool:
    try:
        url = urlsplit(text)
        return (
            url.scheme in _PORTS
            and bool(url.hostname)
            and url.username is None
            and url.port not in (0, _PORTS[url.scheme])
            and text == f"{url.scheme}://{url.netloc}".lower()
        )
    except ValueError:
        return False


def _redis(reader: _Reader) -> tuple[RedisSettings | None, RedisSettings | None]:
    """Return the settings of Redis, and those of the second one for state, where there are any."""
    ca_file, cert_file, key_file = _tls_files(reader)
    sentinels = _sentinels(reader)
    base = RedisSettings(
        host="",
        port=0,
        database=0,
        username=reader.text("REDIS_USERNAME"),
        password=reader.secret("REDIS_PASSWORD"),
        tls=reader.boolean("REDIS_TLS", False),
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        connect_timeout=reader.integer("REDIS_CONNECT_TIMEOUT", 5000, 1, 60_000) / 1000,
        command_timeout=reader.integer("REDIS_COMMAND_TIMEOUT", 5000, 1, 60_000) / 1000,
    )
    redis = _server(reader, "REDIS_URL", base)
    if sentinels:
        # Who is the primary they tell; what the URL says besides its address holds for it.
        redis = replace(
            redis or base,
            host="",
            port=0,
            sentinels=sentinels,
            sentinel_master=reader.text("REDIS_SENTINEL_MASTER") or "",
            sentinel_password=reader.secret("REDIS_SENTINEL_PASSWORD"),
        )
    state = _server(reader, "REDIS_STATE_URL", base)
    if state is not None and redis is None and not reader.text("REDIS_URL"):
        reader.problem("REDIS_URL", "nothing", "a Redis, where REDIS_STATE_URL names a second one")
    for server in (redis, state):
        if server is not None and server.username is not None and server.password is None:
            reader.problem(
                "REDIS_PASSWORD", "nothing", "the password of the user that is configured"
            )
            break
    return redis, state


def _server(reader: _Reader, name: str, base: RedisSettings) -> RedisSettings | None:
    """Complete `base` by what a URL says; None without that URL."""
    url = _redis_url(reader, name)
    if url is None or url.hostname is None:
        return None
    password = Secret(unquote(url.password)) if url.password else None
    username = unquote(url.username) if url.username else None
    if name == "REDIS_URL":
        # The variables beat the URL; a second server's URL may differ from them.
        username, password = base.username or username, base.password or password
    else:
        username, password = username or base.username, password or base.password
    return replace(
        base,
        host=url.hostname,
        port=url.port or 6379,
        database=int(url.path.strip("/") or 0),
        username=username,
        password=password,
        tls=base.tls or url.scheme == "rediss",
    )


def _sentinels(reader: _Reader) -> tuple[tuple[str, int], ...]:
    value = reader.text("REDIS_SENTINELS")
    if value is None:
        return ()
    sentinels = []
    for item in value.split(","):
        host, _, port = item.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        named = _ip(host) is not None or _HOST_NAME.fullmatch(host)
        numbered = port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536
        if not (named and numbered):
            reader.problem("REDIS_SENTINELS", _shown(value), "host:port,host:port,…")
            return ()
        sentinels.append((host, int(port)))
    if not reader.text("REDIS_SENTINEL_MASTER"):
        reader.problem("REDIS_SENTINEL_MASTER", "nothing", "the name that Sentinel knows it by")
    return tuple(sentinels)


def _redis_url(reader: _Reader, name: str) -> SplitResult | None:
    value = reader.text(name)
    if value is None:
        return None
    expected = (
        "redis:// or rediss://, then [user:password@]host[:port][/database], "
        "with special characters percent-encoded"
    )
    try:
        url = urlsplit(value)
        well_formed = (
            url.scheme in ("redis", "rediss")
            and value.isprintable()
            and " " not in value
            and bool(url.hostname)
            and (_ip(url.hostname or "") is not None or _HOST_NAME.fullmatch(url.hostname or ""))
            and url.port != 0
            and re.fullmatch(r"/?|/[0-9]{1,5}", url.path, re.ASCII)
            and not url.query
            and not url.fragment
        )
    except ValueError:
        well_formed = False
    if well_formed:
        return url
    # What is malformed can hold a password anywhere, so only a known scheme is repeated.
    scheme = re.match(r"(?:rediss?|https?|unix)://", value)
    reader.problem(name, f"{scheme.group() if scheme else ''}{HIDDEN}", expected)
    return None


def _trusted_proxies(reader: _Reader) -> tuple[str, ...]:
    value = reader.text("TRUSTED_PROXIES")
    if value is None:
        return ()
    try:
        return tuple(str(ipaddress.ip_network(item.strip())) for item in value.split(","))
    except ValueError:
        expected = "addresses or networks with commas between them, such as 10.0.0.5,10.1.0.0/24"
        reader.problem("TRUSTED_PROXIES", _shown(value), expected)
        return ()


def _tls_files(reader: _Reader) -> tuple[Path | None, Path | None, Path | None]:
    ca_file = reader.file("REDIS_CA_FILE")
    if ca_file is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca_file)
        except ssl.SSLError:
            reader.problem("REDIS_CA_FILE", _shown(str(ca_file)), "certificates in PEM form")
    return (ca_file, *_certificate(reader, "REDIS_CERT_FILE", "REDIS_KEY_FILE"))


def _listener_tls(reader: _Reader) -> TlsSettings | None:
    cert_file, key_file = _certificate(reader, "TLS_CERT_FILE", "TLS_KEY_FILE")
    required = reader.boolean("TLS_REQUIRED", True)
    if cert_file is None or key_file is None:
        return None
    return TlsSettings(cert_file, key_file, required)


def _certificate(reader: _Reader, cert_name: str, key_name: str) -> tuple[Path | None, Path | None]:
    """Return the files of a certificate and of its key, which are set together."""
    cert_file, key_file = reader.file(cert_name), reader.file(key_name)
    has_cert, has_key = reader.text(cert_name), reader.text(key_name)
    if has_cert and not has_key:
        reader.problem(key_name, "nothing", f"the key of the certificate in {cert_name}")
    if has_key and not has_cert:
        reader.problem(cert_name, "nothing", f"the certificate of the key in {key_name}")
    if cert_file is not None and key_file is not None:
        try:
            # An empty passphrase: an encrypted key must fail here, not ask on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                cert_file, key_file, password=""
            )
        except ssl.SSLError:
            reader.problem(
                cert_name,
                _shown(str(cert_file)),
                f"a PEM certificate whose unencrypted key is in {key_name}",
            )
    return cert_file, key_file


def _check_production_redis(reader: _Reader, name: str, redis: RedisSettings) -> None:
    if not redis.sentinels and _is_loopback(redis.host):
        return
    if not redis.tls:
        reader.problem(
            name,
            f"redis://{HIDDEN}@{redis.host}" if redis.password else f"redis://{redis.host}",
            "rediss:// (or REDIS_TLS=true) in production, unless Redis is on this host",
        )
    if redis.password is None and redis.cert_file is None:
        reader.problem(
            "REDIS_PASSWORD",
            "nothing",
            "a password or a client certificate in production, unless Redis is on this host",
        )


def _database_url(reader: _Reader, app_env: AppEnv) -> str:
    prefix = "sqlite+aiosqlite:///"
    value = reader.text("DATABASE_URL")
    if value is None:
        path = _state_directory(reader) / "quantdesk.db"
        return f"{prefix}{path}"
    # What is malformed can hold a password anywhere, so only a known scheme is repeated.
    scheme = re.match(r"(?:sqlite|postgresql|postgres|mysql)(?:\+[a-z0-9]+)?://", value)
    hidden = f"{scheme.group() if scheme else ''}{HIDDEN}"
    try:
        address = parse_address(value)
    except AddressError as error:
        reader.problem("DATABASE_URL", hidden, error.expected)
        return value
    if address is not None:
        _check_postgres(reader, address, hidden, app_env)
        return value
    match = re.fullmatch(r"sqlite(?:\+aiosqlite)?:///([^?#]+)", value)
    if match is None:
        reader.problem("DATABASE_URL", hidden, f"sqlite+aiosqlite:///FILE or {POSTGRES_FORM}")
        return value
    path = Path(match.group(1))
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        reader.problem("DATABASE_URL", _shown(value), "a file in a folder that can be written to")
    return f"{prefix}{path}"


def _check_postgres(
    reader: _Reader, address: PostgresAddress, hidden: str, app_env: AppEnv
) -> None:
    if not address.local and _ip(address.host) is None and not _HOST_NAME.fullmatch(address.host):
        reader.problem("DATABASE_URL", hidden, "an IP address or a host name")
    try:
        address.tls()
    except (OSError, ValueError) as error:
        reader.problem(
            "DATABASE_URL",
            f"sslrootcert {_shown(address.root_cert or '')} ({_why(error)})",
            "a readable file of certificates in PEM form",
        )
    elsewhere = not address.local and not _is_loopback(address.host)
    if app_env == "production" and elsewhere and address.ssl_mode not in VERIFYING:
        reader.problem(
            "DATABASE_URL",
            f"{hidden}, sslmode={address.ssl_mode or 'prefer'}",
            "sslmode=verify-full (or verify-ca) in production, unless PostgreSQL is on this host",
        )


def _state_directory(reader: _Reader) -> Path:
    # systemd separates several state directories with colons; the first is the unit's own.
    systemd = (reader.text("STATE_DIRECTORY") or "").split(":")[0]
    name = "STATE_DIRECTORY" if systemd else "DATABASE_URL"
    base = reader.text("XDG_STATE_HOME")
    path = Path()
    try:
        path = Path(systemd) if systemd else _user_state(base)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except (OSError, RuntimeError) as error:
        reader.problem(name, f"{_shown(str(path))} ({_why(error)})", "a folder to keep data in")
        return path
    if not writable:
        reader.problem(name, f"{_shown(str(path))} (not writable)", "a folder to keep data in")
    return path


def _user_state(base: str | None) -> Path:
    return (Path(base) if base else Path.home() / ".local" / "state") / "quantdesk"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _ip(host)
    return host == "localhost" if address is None else address.is_loopback
