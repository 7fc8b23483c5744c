"""Sessions over HTTP: who a client is, by a cookie whose value nobody else knows.

There are no passwords here: a session says who somebody claims to be. What stands in front of
`POST /api/sessions` decides who may claim what.
"""

import datetime as dt
import re
import secrets
from typing import Any, Final

import msgspec
from litestar import Response, delete, get, post
from litestar.exceptions import NotAuthorizedException
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType
from msgspec import UNSET, UnsetType

from quantdesk.bodies import decode_body, describe_body
from quantdesk.cache import DELETED, Outcome
from quantdesk.database import Session
from quantdesk.errors import BODY_ERRORS, COMMON_ERRORS, AnyRequest, Unprocessable, error_spec
from quantdesk.state import Services, State

COOKIE: Final = "session"
USER: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}", re.ASCII)

# What `new_id` makes; anything else is no session, and reaches neither Redis nor the database.
_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class SessionRequest(msgspec.Struct):
    """The body that begins a session."""

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


USER_SCHEMA: Final = Schema(
    type=OpenAPIType.STRING, pattern=f"^{USER.pattern}$", description="A user's name"
)
_REQUEST_SCHEMA: Final = Schema(type=OpenAPIType.OBJECT, properties={"user": USER_SCHEMA})

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


async def current_session(request: AnyRequest, services: State) -> Session:
    """Return the session that the request comes with.

    Raises:
        LoginRequired: there is none, or it has ended.
    """
    session, _ = await _find(_cookie(request), services)
    return session


async def _find(session_id: str | None, services: State) -> tuple[Session, Outcome]:
    """Return a session, and where it came from.

    Raises:
        LoginRequired: there is no such session, or it has ended.
    """
    if session_id is None:
        raise LoginRequired
    lookup = await services.state_cache.read(
        "session", session_id, _decoder, lambda: services.database.session(session_id)
    )
    # Whole seconds are all that the cache counts in, and it may be away when one ends.
    if lookup.value is None or lookup.value.expires_at <= dt.datetime.now(dt.UTC):
        raise LoginRequired
    return lookup.value, lookup.outcome


def _cookie(request: AnyRequest) -> str | None:
    """Return the session's id that the request comes with, if it has the form of one."""
    value = request.cookies.get(COOKIE, "")
    return value if _ID.fullmatch(value) else None


def _cookie_header(services: State, value: str, seconds: int) -> dict[str, str]:
    secure = "; Secure" if services.settings.production else ""
    attributes = f"HttpOnly; SameSite=Lax; Path=/; Max-Age={seconds}{secure}"
    return {"Set-Cookie": f"{COOKIE}={value}; {attributes}"}


@post(
    "/api/sessions",
    operation_class=describe_body(_REQUEST_SCHEMA, required=False),
    responses={**BODY_ERRORS, 422: error_spec("The user is not one"), **COMMON_ERRORS},
)
async def begin_session(request: AnyRequest, services: Services) -> Response[SessionAnswer]:
    """Begin a session under a new id, and end the one that came along."""
    user = (await decode_body(request, _request_decoder)).user
    if user is UNSET:
        user = f"guest-{secrets.token_hex(8)}"
    if not USER.fullmatch(user):
        raise Unprocessable(f"The user must match {USER.pattern}")
    former = _cookie(request)
    try:
        await _find(former, services)
    except LoginRequired:
        former = None
    session_id = new_id()
    begun = await services.database.create_session(
        session_id, user, services.settings.ttl.session, replaced=former
    )
    if former is not None:
        await services.state_cache.invalidate("session", former, DELETED)
    await services.state_cache.put("session", session_id, begun)
    headers = _cookie_header(services, session_id, services.settings.ttl.session)
    return Response(SessionAnswer(data=begun.value), headers=headers)


@get("/api/sessions/current", responses=SESSION_ERRORS)
async def read_session(request: AnyRequest, services: Services) -> Response[SessionAnswer]:
    """Answer with the session of the request."""
    session, outcome = await _find(_cookie(request), services)
    return Response(SessionAnswer(data=session), headers={"X-Cache": outcome.value})


@delete("/api/sessions/current", responses=SESSION_ERRORS, status_code=200)
async def end_session(request: AnyRequest, services: Services) -> Response[Ended]:
    """End the session of the request, everywhere and at once."""
    session_id = _cookie(request)
    await _find(session_id, services)
    assert session_id is not None  # noqa: S101  # `_find` has raised otherwise
    try:
        await services.database.delete_session(session_id)
    finally:
        # Also where it is not known whether the database did: it is asked anew then.
        await services.state_cache.invalidate("session", session_id, DELETED)
    return Response(Ended(), headers=_cookie_header(services, "", 0))


handlers: Final[list[Any]] = [begin_session, read_session, end_session]
