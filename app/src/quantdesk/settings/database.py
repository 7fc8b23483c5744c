"""The database's URL: DATABASE_URL, or a file in the state directory."""

import os
import re
from pathlib import Path

from quantdesk.database.postgres_address import FORM as POSTGRES_FORM
from quantdesk.database.postgres_address import (
    VERIFYING,
    AddressError,
    PostgresAddress,
    parse_address,
)
from quantdesk.settings.hosts import is_host, is_loopback
from quantdesk.settings.model import AppEnv
from quantdesk.settings.reader import Reader, shown, why
from quantdesk.settings.secret import HIDDEN


def read_database_url(reader: Reader, app_env: AppEnv) -> str:
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
        reader.problem("DATABASE_URL", shown(value), "a file in a folder that can be written to")
    return f"{prefix}{path}"


def _check_postgres(reader: Reader, address: PostgresAddress, hidden: str, app_env: AppEnv) -> None:
    if not address.local and not is_host(address.host):
        reader.problem("DATABASE_URL", hidden, "an IP address or a host name")
    try:
        address.tls()
    except (OSError, ValueError) as error:
        reader.problem(
            "DATABASE_URL",
            f"sslrootcert {shown(address.root_cert or '')} ({why(error)})",
            "a readable file of certificates in PEM form",
        )
    elsewhere = not address.local and not is_loopback(address.host)
    if app_env == "production" and elsewhere and address.ssl_mode not in VERIFYING:
        reader.problem(
            "DATABASE_URL",
            f"{hidden}, sslmode={address.ssl_mode or 'prefer'}",
            "sslmode=verify-full (or verify-ca) in production, unless PostgreSQL is on this host",
        )


def _state_directory(reader: Reader) -> Path:
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
        reader.problem(name, f"{shown(str(path))} ({why(error)})", "a folder to keep data in")
        return path
    if not writable:
        reader.problem(name, f"{shown(str(path))} (not writable)", "a folder to keep data in")
    return path


def _user_state(base: str | None) -> Path:
    return (Path(base) if base else Path.home() / ".local" / "state") / "quantdesk"
