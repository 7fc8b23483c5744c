"""The settings of Redis: REDIS_*."""

import re
import ssl
from dataclasses import replace
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from quantdesk.settings.certificates import read_certificate
from quantdesk.settings.hosts import is_host, is_loopback
from quantdesk.settings.model import RedisSettings
from quantdesk.settings.reader import Reader, shown
from quantdesk.settings.secret import HIDDEN, Secret


def read_redis(reader: Reader) -> tuple[RedisSettings | None, RedisSettings | None]:
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
        # They name the primary; the rest of the URL applies to it.
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


def _server(reader: Reader, name: str, base: RedisSettings) -> RedisSettings | None:
    """Complete `base` by a URL; None without that URL."""
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


def _sentinels(reader: Reader) -> tuple[tuple[str, int], ...]:
    value = reader.text("REDIS_SENTINELS")
    if value is None:
        return ()
    sentinels = []
    for item in value.split(","):
        host, _, port = item.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        named = is_host(host)
        numbered = port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536
        if not (named and numbered):
            reader.problem("REDIS_SENTINELS", shown(value), "host:port,host:port,…")
            return ()
        sentinels.append((host, int(port)))
    if not reader.text("REDIS_SENTINEL_MASTER"):
        reader.problem("REDIS_SENTINEL_MASTER", "nothing", "the name that Sentinel knows it by")
    return tuple(sentinels)


def _redis_url(reader: Reader, name: str) -> SplitResult | None:
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
            and is_host(url.hostname or "")
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


def check_production_redis(reader: Reader, name: str, redis: RedisSettings) -> None:
    if not redis.sentinels and is_loopback(redis.host):
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


def _tls_files(reader: Reader) -> tuple[Path | None, Path | None, Path | None]:
    ca_file = reader.file("REDIS_CA_FILE")
    if ca_file is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca_file)
        except ssl.SSLError:
            reader.problem("REDIS_CA_FILE", shown(str(ca_file)), "certificates in PEM form")
    return (ca_file, *read_certificate(reader, "REDIS_CERT_FILE", "REDIS_KEY_FILE"))
