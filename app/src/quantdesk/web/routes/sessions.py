"""Sessions over HTTP: who a client is, by a cookie whose value nobody else knows.

A session begins with a signed assertion of who the user is (see `assertions`). There are no
passwords here. For development, a setting lets users name themselves.
"""

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from litestar import Response, delete, get, post
from litestar.datastructures import Cookie
from litestar.exceptions import NotAuthorizedException
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType
from msgspec import UNSET, UnsetType

from quantdesk.authentication.assertions import MAX_ASSERTION, AssertionRefused, Identity
from quantdesk.database.sessions import AssertionUsed, Session
from quantdesk.redis.bus import SESSION_ENDED
from quantdesk.redis.cache import DELETED, Outcome
from quantdesk.services import Services, State
from quantdesk.web.bodies import decode_body, describe_body
from quantdesk.web.errors import (
    BODY_ERRORS,
    COMMON_ERRORS,
    ORIGIN_ERRORS,
    AnyRequest,
    Unprocessable,
    error_spec,
)

# In production a browser sends the first one only as this host has set it, over TLS and for all
# paths: no other host of the domain can give it another value.
HOST_COOKIE: Final = "__Host-session"
COOKIE: Final = "session"
USER: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}", re.ASCII)

# What `new_id` makes; anything else is no session, and reaches neither Redis nor the database.
_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class SessionRequest(msgspec.Struct):
    """The body that begins a session."""

    assertion: str | UnsetType = UNSET
    user: str | UnsetType = UNSET


class SessionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A session."""

    success: bool = True
    data: Session


class Ended(msgspec.Struct, frozen=True):
    """The answer of a session's end."""

    success: bool = True


class LoginRequired(NotAuthorizedException):
    """The request comes without a session, or with one that has ended (401)."""

    def __init__(self) -> None:
        super().__init__(
            "A session is required",
            headers={"WWW-Authenticate": f'Cookie realm="quantdesk", cookie-name={COOKIE}'},
        )


class AssertionRequired(NotAuthorizedException):
    """A session can't begin, for want of an assertion that proves who the user is (401)."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Assertion realm="quantdesk"'})


USER_SCHEMA: Final = Schema(
    type=OpenAPIType.STRING, pattern=f"^{USER.pattern}$", description="A user's name"
)
_REQUEST_SCHEMA: Final = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "assertion": Schema(
            type=OpenAPIType.STRING,
            max_length=MAX_ASSERTION,
            description="A signed assertion of who the user is: a JWT of the configured issuer",
        ),
        "user": USER_SCHEMA,
    },
    # Which of the two counted would be a matter of who reads it.
    schema_not=Schema(required=["assertion", "user"]),
)

_request_decoder = msgspec.json.Decoder(SessionRequest)
_decoder = msgspec.json.Decoder(Session)


def optional_text(pattern: re.Pattern[str]) -> dict[str, Any]:
    """Return what the schema of a parameter that may be left out says: text, and never null."""
    return {"one_of": None, "type": OpenAPIType.STRING, "pattern": f"^{pattern.pattern}$"}


# What every route that needs a session may answer with.
SESSION_ERRORS: Final = {401: error_spec("There is no session"), **COMMON_ERRORS}


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


async def current_session(request: AnyRequest, services: State) -> Session:
    """Return the session that the request comes with.

    Raises:
        LoginRequired: there is none, or it has ended.
    """
    return (await find_session(request.cookies, services)).session


async def find_session(cookies: Mapping[str, str], services: State) -> Found:
    """Return the session that a request's cookies name.

    Raises:
        LoginRequired: there is none, or it has ended.
    """
    for session_id, old in _named(cookies, services):
        found = await _find(session_id, services, old=old)
        if found is not None:
            return found
    raise LoginRequired


async def _find_all(cookies: Mapping[str, str], services: State) -> list[Found]:
    """Return all sessions that a request's cookies name."""
    named = [await _find(value, services, old=old) for value, old in _named(cookies, services)]
    return [found for found in named if found is not None]


def _named(cookies: Mapping[str, str], services: State) -> list[tuple[str, bool]]:
    """Return ids in cookies, the one that counts first, and which are of a release before."""
    names = [(_cookie_name(services), False)]
    if services.settings.production:
        # Of a release that knew no other; there are fewer and fewer of those.
        names.append((COOKIE, True))
    values = [(cookies.get(name, ""), old) for name, old in names]
    return [(value, old) for value, old in values if _ID.fullmatch(value)]


async def _find(session_id: str, services: State, *, old: bool) -> Found | None:
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


async def _forget(session_id: str, services: State) -> None:
    """Remove a session that was ended from Redis, and end its WebSockets on every instance."""
    name = key_name(session_id)
    await services.state_cache.invalidate("session", name, DELETED)
    if services.database.sessions.mixed_releases:
        await services.state_cache.invalidate("session", session_id, DELETED)
    services.hub.end_session(name)
    services.bus.announce(SESSION_ENDED, name.encode())


def _cookie_name(services: State) -> str:
    return HOST_COOKIE if services.settings.production else COOKIE


def _cookies(services: State, value: str, seconds: int) -> list[Cookie]:
    production = services.settings.production
    names = [_cookie_name(services)]
    if production and services.database.sessions.mixed_releases:
        # For instances of the release before, which know no other. This one ignores it.
        names.append(COOKIE)
    return [
        Cookie(name, "/", value, seconds, secure=production, httponly=True, samesite="strict")
        for name in names
    ]


def _identify(body: SessionRequest, services: State) -> Identity | str:
    """Return who begins a session: by an assertion, or in development by a name alone.

    Raises:
        AssertionRequired: nothing proves it (401).
        Unprocessable: it is nobody's name (422).
    """
    who: Identity | str
    if body.assertion is not UNSET and body.user is not UNSET:
        raise Unprocessable("One of `assertion` and `user` must be left out")
    if body.assertion is not UNSET and services.authenticator is not None:
        if len(body.assertion) > MAX_ASSERTION:
            raise Unprocessable(f"The assertion must have at most {MAX_ASSERTION} characters")
        try:
            who = services.authenticator.check(body.assertion)
        except AssertionRefused as error:
            raise AssertionRequired(str(error)) from None
    elif body.assertion is UNSET and services.settings.development_users:
        who = f"guest-{secrets.token_hex(8)}" if body.user is UNSET else body.user
    elif services.authenticator is not None:
        raise AssertionRequired("A signed assertion of who the user is, is required")
    else:
        raise AssertionRequired("No session can begin: no authenticator is configured (AUTH_KEYS)")
    if not USER.fullmatch(who if isinstance(who, str) else who.user):
        raise Unprocessable(f"The user must match {USER.pattern}")
    return who


@post(
    "/api/sessions",
    operation_class=describe_body(_REQUEST_SCHEMA, required=False),
    responses={
        **BODY_ERRORS,
        401: error_spec("Nothing proves who the user is"),
        422: error_spec("The user is not one"),
        **COMMON_ERRORS,
    },
)
async def begin_session(request: AnyRequest, services: Services) -> Response[SessionAnswer]:
    """Begin a session under a new id, and end the one that came along."""
    who = _identify(await decode_body(request, _request_decoder), services)
    if isinstance(who, Identity):
        user, assertion = who.user, (who.digest, who.forget_after)
    else:
        user, assertion = who, None
    former = [found.id for found in await _find_all(request.cookies, services)]
    session_id = new_id()
    try:
        begun = await services.database.sessions.create(
            session_id,
            user,
            services.settings.ttl.session,
            replaced=former,
            assertion=assertion,
        )
    except AssertionUsed:
        raise AssertionRequired("The assertion has begun a session before") from None
    for ended in former:
        await _forget(ended, services)
    if not services.database.sessions.mixed_releases:
        await services.state_cache.put("session", key_name(session_id), begun)
    cookies = _cookies(services, session_id, services.settings.ttl.session)
    return Response(SessionAnswer(data=begun.value), cookies=cookies)


@get("/api/sessions/current", responses=SESSION_ERRORS)
async def read_session(request: AnyRequest, services: Services) -> Response[SessionAnswer]:
    """Answer with the session of the request."""
    found = await find_session(request.cookies, services)
    return Response(SessionAnswer(data=found.session), headers={"X-Cache": found.outcome.value})


@delete(
    "/api/sessions/current",
    responses={**SESSION_ERRORS, **ORIGIN_ERRORS},
    status_code=200,
)
async def end_session(request: AnyRequest, services: Services) -> Response[Ended]:
    """End the session of the request, everywhere and at once."""
    all_found = await _find_all(request.cookies, services)
    if not all_found:
        raise LoginRequired
    for found in all_found:
        try:
            await services.database.sessions.delete(found.id)
        finally:
            # Also where it is not known whether the database did: it is asked anew then.
            await _forget(found.id, services)
    return Response(Ended(), cookies=_cookies(services, "", 0))


handlers: Final[list[Any]] = [begin_session, read_session, end_session]
