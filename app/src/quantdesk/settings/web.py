"""The settings of HTTP: where to listen, which callers are permitted, and how often."""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from quantdesk.settings.certificates import read_certificate
from quantdesk.settings.hosts import is_host
from quantdesk.settings.model import AppEnv, RateLimit, TlsSettings
from quantdesk.settings.reader import Reader, shown
from quantdesk.settings.secret import HIDDEN, Secret

MIN_PRODUCTION_TOKEN: Final = 16

_TOKEN: Final = re.compile(r"[!-~]+", re.ASCII)
_PORTS: Final = {"http": 80, "https": 443}
_PERIODS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)", re.ASCII)


def read_host(reader: Reader) -> str:
    value = reader.text("HOST")
    if value is None:
        return "127.0.0.1"
    if not is_host(value):
        reader.problem("HOST", shown(value), "an IP address or a host name to listen on")
    return value


def read_admin_token(reader: Reader, app_env: AppEnv) -> Secret | None:
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


def read_listener_tls(reader: Reader) -> TlsSettings | None:
    cert_file, key_file = read_certificate(reader, "TLS_CERT_FILE", "TLS_KEY_FILE")
    required = reader.boolean("TLS_REQUIRED", True)
    if cert_file is None or key_file is None:
        return None
    return TlsSettings(cert_file, key_file, required)


def read_allowed_origins(reader: Reader) -> tuple[str, ...]:
    value = reader.text("ALLOWED_ORIGINS")
    if value is None:
        return ()
    origins = tuple(item.strip() for item in value.split(","))
    if not all(map(_is_origin, origins)):
        reader.problem(
            "ALLOWED_ORIGINS",
            shown(value),
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


def read_trusted_proxies(reader: Reader) -> tuple[str, ...]:
    value = reader.text("TRUSTED_PROXIES")
    if value is None:
        return ()
    try:
        return tuple(str(ipaddress.ip_network(item.strip())) for item in value.split(","))
    except ValueError:
        expected = "addresses or networks with commas between them, such as 10.0.0.5,10.1.0.0/24"
        reader.problem("TRUSTED_PROXIES", shown(value), expected)
        return ()


def read_rate_limit(reader: Reader, name: str, default: str) -> RateLimit:
    value = reader.matching(
        name, default, _RATE, "a number, a slash and second, minute, hour or day"
    )
    requests, period = value.split("/")
    return RateLimit(int(requests), _PERIODS[period])
