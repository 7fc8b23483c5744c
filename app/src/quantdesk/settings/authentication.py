"""The settings of logins: AUTH_*."""

import re
from pathlib import Path
from typing import Final

from quantdesk.authentication.keys import KEYS_FORM, Key, KeysError, parse_keys, read_keys
from quantdesk.settings.model import AppEnv, AuthSettings
from quantdesk.settings.reader import Reader, shown, why

_CLAIM: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}", re.ASCII)


def read_auth(reader: Reader) -> AuthSettings | None:
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


def _auth_keys(reader: Reader, text: str | None, keys_file: str | None) -> tuple[Key, ...]:
    if text is not None and keys_file is not None:
        reader.problem("AUTH_KEYS_FILE", shown(keys_file), "one of AUTH_KEYS and AUTH_KEYS_FILE")
        return ()
    # A text is not shown: it may hold a private key by mistake.
    name, found = ("AUTH_KEYS", "") if keys_file is None else ("AUTH_KEYS_FILE", shown(keys_file))
    try:
        if keys_file is not None:
            return read_keys(Path(keys_file))
        return () if text is None else parse_keys(text)
    except KeysError as error:
        reader.problem(name, f"{found} ({error})" if found else str(error), KEYS_FORM)
    except (OSError, ValueError) as error:
        reader.problem(name, f"{found} ({why(error)})", "a readable file")
    return ()


def read_development_users(reader: Reader, app_env: AppEnv) -> bool:
    allowed = reader.boolean("AUTH_DEVELOPMENT_USERS", False)
    if allowed and app_env == "production":
        reader.problem(
            "AUTH_DEVELOPMENT_USERS",
            "true",
            "nothing in production, as with it anybody may begin a session as any user",
        )
    return allowed
