"""The address of a PostgreSQL, as its URL gives it, in the words of libpq."""

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar, get_args
from urllib.parse import parse_qsl, unquote

SslMode = Literal["disable", "require", "verify-ca", "verify-full"]

SSL_MODES: Final[tuple[SslMode, ...]] = get_args(SslMode)
# Modes that verify the server's identity.
VERIFYING: Final[tuple[SslMode, ...]] = ("verify-ca", "verify-full")

FORM: Final = (
    "postgresql://[user[:password]@]host[:port]/database[?sslmode=…&sslrootcert=FILE], "
    "with special characters percent-encoded"
)
_QUERY: Final = f"sslmode ({', '.join(SSL_MODES)}) and sslrootcert alone, each once"

_TEXT: Final = r"[A-Za-z0-9._~!$&'()*+,;=%-]"
_URL: Final = re.compile(
    r"postgres(?:ql)?(?:\+asyncpg)?://"
    rf"(?:(?P<user>{_TEXT}+)(?::(?P<password>{_TEXT}*))?@)?"
    r"(?:\[(?P<address>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\]"
    r"|(?P<socket>%2[Ff][A-Za-z0-9._%-]*)"
    r"|(?P<host>[A-Za-z0-9._-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    rf"/(?P<database>{_TEXT}+)"
    r"(?:\?(?P<query>[!-~]*))?",
    re.ASCII,
)

T = TypeVar("T")


class AddressError(ValueError):
    """The URL is not acceptable. `expected` describes one that is; no part of the URL is shown."""

    def __init__(self, expected: str) -> None:
        self.expected: Final = expected
        super().__init__(expected)


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where PostgreSQL is and how to get in. `host` may be the folder of a unix socket.

    Without a `user`, it is that of the process. Without an `ssl_mode`, TLS is used where the server
    offers it, and proves nothing.
    """

    host: str
    port: int
    database: str
    user: str | None
    password: str | None = field(repr=False)
    ssl_mode: SslMode | None
    root_cert: str | None

    @property
    def local(self) -> bool:
        """Whether the connection is a unix socket's."""
        return self.host.startswith("/")

    def tls(self) -> ssl.SSLContext | Literal["prefer", False]:
        """Return what asyncpg takes for `ssl`.

        Raises:
            OSError: `root_cert` can't be read, or is not PEM (ssl.SSLError).
        """
        if self.ssl_mode is None:
            return "prefer"
        if self.ssl_mode == "disable":
            return False
        # Loads the system's roots when it is not given a file.
        context = ssl.create_default_context(cafile=self.root_cert)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.ssl_mode == "verify-full"
        if self.ssl_mode == "require":
            context.verify_mode = ssl.CERT_NONE
        return context


def parse_address(url: str) -> PostgresAddress | None:
    """Return the address in a URL of PostgreSQL's, None if it is one of another database.

    Raises:
        AddressError: the URL is not acceptable.
    """
    if not re.match(r"postgres(?:ql)?(?:\+[a-z0-9_]+)?:", url):
        return None
    match = _URL.fullmatch(url)
    if match is None:
        raise AddressError(FORM)
    port = int(match["port"] or 5432)
    if not 0 < port < 65536:
        raise AddressError("a port from 1 to 65535")
    words = _words(match["query"] or "")
    mode = words.get("sslmode")
    if mode is not None and mode not in SSL_MODES:
        raise AddressError(f"sslmode to be one of {', '.join(SSL_MODES)}")
    root_cert = words.get("sslrootcert")
    if root_cert is not None and mode not in VERIFYING:
        raise AddressError("sslmode=verify-full (or verify-ca), where sslrootcert is given")
    if mode == "verify-ca" and root_cert is None:
        # Any certificate of any public authority would do.
        raise AddressError("sslrootcert, where sslmode is verify-ca")
    return PostgresAddress(
        host=match["address"] or match["host"] or _text(match["socket"]),
        port=port,
        database=_text(match["database"]),
        user=_maybe(_text, match["user"]),
        password=_maybe(_text, match["password"]),
        ssl_mode=mode,
        root_cert=root_cert,
    )


def _words(query: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, strict_parsing=True, errors="strict")
    except ValueError:
        raise AddressError(_QUERY) from None
    words = dict(pairs)
    if len(words) != len(pairs) or not set(words) <= {"sslmode", "sslrootcert"}:
        raise AddressError(_QUERY)
    return words


def _text(quoted: str) -> str:
    try:
        text = unquote(quoted, errors="strict")
    except UnicodeDecodeError:
        raise AddressError(FORM) from None
    # A stray percent sign is a character that was not encoded; NUL ends strings on the wire.
    if "\0" in text or re.search(r"%(?![0-9A-Fa-f]{2})", quoted):
        raise AddressError(FORM)
    return text


def _maybe(function: Callable[[str], T], value: str | None) -> T | None:
    return None if value is None else function(value)
