"""The session of a request: by a cookie whose value only its client knows."""

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from litestar.datastructures import Cookie
from litestar.exceptions import NotAuthorizedException

from quantdesk.database.sessions import Session
from quantdesk.redis.bus import SESSION_ENDED
from quantdesk.redis.keys import DELETED
from quantdesk.redis.reads import Outcome
from quantdesk.services import Services
from quantdesk.web.errors import COMMON_ERRORS, AnyRequest, error_spec

# In production a browser sends the first one only as this host has set it, over TLS and for all
# paths: no other host of the domain can give it another value.
HOST_COOKIE: Final = "__Host-session"
COOKIE: Final = "session"

# What `new_id` makes; anything else is no session, and reaches neither Redis nor the database.
_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)

# What every route that needs a session may answer with.
SESSION_ERRORS: Final = {401: error_spec("There is no session"), **COMMON_ERRORS}

_decoder = msgspec.json.Decoder(Session)


class LoginRequired(NotAuthorizedException):
    """The request comes without a session, or with one that has ended (401)."""

    def __init__(self) -> None:
        super().__init__(
            "A session is required",
            headers={"WWW-Authenticate": f'Cookie realm="quantdesk", cookie-name={COOKIE}'},
        )


def new_id() -> str:
    """Return a session's id: 256 random bits, in characters that a cookie may have."""
    return secrets.token_urlsafe(32)


def key_name(session_id: str) -> str:
    """Return what a session is called in Redis, whose keys are in backups and in others' sight."""
    return hashlib.sha256(session_id.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Found:
    """The session of a request, its id, and where it came from."""

    id: str
    session: Session
    outcome: Outcome


async def current_session(request: AnyRequest, services: Services) -> Session:
    """Return the session that the request comes with.

    Raises:
        LoginRequired: there is none, or it has ended.
    """
    return (await find_session(request.cookies, services)).session


async def find_session(cookies: Mapping[str, str], services: Services) -> Found:
    """Return the session that a request's cookies name.

    Raises:
        LoginRequired: there is none, or it has ended.
    """
    for session_id, old in _named(cookies, services):
        found = await _find(session_id, services, old=old)
        if found is not None:
            return found
    raise LoginRequired


async def find_all(cookies: Mapping[str, str], services: Services) -> list[Found]:
    """Return all sessions that a request's cookies name."""
    named = [await _find(value, services, old=old) for value, old in _named(cookies, services)]
    return [found for found in named if found is not None]


def _named(cookies: Mapping[str, str], services: Services) -> list[tuple[str, bool]]:
    """Return ids in cookies, the one that counts first, and which are of a release before."""
    names = [(_cookie_name(services), False)]
    if services.settings.production:
        # Of a release that knew no other; there are fewer and fewer of those.
        names.append((COOKIE, True))
    values = [(cookies.get(name, ""), old) for name, old in names]
    return [(value, old) for value, old in values if _ID.fullmatch(value)]


async def _find(session_id: str, services: Services, *, old: bool) -> Found | None:
    """Return a session; with `old`, only one of a release that knew no other cookie."""
    database = services.database
    if old or database.sessions.mixed_releases:
        # Another release may end it, and would not remove it from where this one keeps it.
        loaded = await database.sessions.read(session_id, old=old)
        return None if loaded is None else Found(session_id, loaded.value, Outcome.MISS)
    lookup = await services.state_cache.read(
        "session", key_name(session_id), _decoder, lambda: database.sessions.read(session_id)
    )
    # Whole seconds are all that the cache counts in, and it may be away when one ends.
    if lookup.value is None or lookup.value.expires_at <= dt.datetime.now(dt.UTC):
        return None
    return Found(session_id, lookup.value, lookup.outcome)


async def forget(session_id: str, services: Services) -> None:
    """Remove a session that was ended from Redis, and end its WebSockets on every instance."""
    name = key_name(session_id)
    await services.state_cache.invalidate("session", name, DELETED)
    if services.database.sessions.mixed_releases:
        await services.state_cache.invalidate("session", session_id, DELETED)
    services.hub.end_session(name)
    services.bus.announce(SESSION_ENDED, name.encode())


def _cookie_name(services: Services) -> str:
    return HOST_COOKIE if services.settings.production else COOKIE


def session_cookies(services: Services, value: str, seconds: int) -> list[Cookie]:
    production = services.settings.production
    names = [_cookie_name(services)]
    if production and services.database.sessions.mixed_releases:
        # For instances of the release before, which know no other. This one ignores it.
        names.append(COOKIE)
    return [
        Cookie(name, "/", value, seconds, secure=production, httponly=True, samesite="strict")
        for name in names
    ]
