"""Sessions over HTTP: how one begins and ends.

A session begins with a signed assertion of who the user is (see `assertions`). There are no
passwords here. For development, a setting lets users name themselves.
"""

import secrets
from typing import Any, Final

import msgspec
from litestar import Response, delete, get, post
from litestar.exceptions import NotAuthorizedException
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType
from msgspec import UNSET, UnsetType

from quantdesk.authentication.assertions import MAX_ASSERTION, AssertionRefused, Identity
from quantdesk.database.sessions import AssertionUsed, Session
from quantdesk.services import Services
from quantdesk.web.bodies import decode_body, describe_body
from quantdesk.web.dependencies import InjectedServices
from quantdesk.web.errors import (
    BODY_ERRORS,
    COMMON_ERRORS,
    ORIGIN_ERRORS,
    AnyRequest,
    Unprocessable,
    error_spec,
)
from quantdesk.web.names import USER, USER_SCHEMA
from quantdesk.web.sessions import (
    SESSION_ERRORS,
    LoginRequired,
    find_all,
    find_session,
    forget,
    key_name,
    new_id,
    session_cookies,
)


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


class AssertionRequired(NotAuthorizedException):
    """A session can't begin, for want of an assertion that proves who the user is (401)."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Assertion realm="quantdesk"'})


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


def _identify(body: SessionRequest, services: Services) -> Identity | str:
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
async def begin_session(request: AnyRequest, services: InjectedServices) -> Response[SessionAnswer]:
    """Begin a session under a new id, and end the one that came along."""
    who = _identify(await decode_body(request, _request_decoder), services)
    if isinstance(who, Identity):
        user, assertion = who.user, (who.digest, who.forget_after)
    else:
        user, assertion = who, None
    former = [found.id for found in await find_all(request.cookies, services)]
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
        await forget(ended, services)
    if not services.database.sessions.mixed_releases:
        await services.state_cache.put("session", key_name(session_id), begun)
    cookies = session_cookies(services, session_id, services.settings.ttl.session)
    return Response(SessionAnswer(data=begun.value), cookies=cookies)


@get("/api/sessions/current", responses=SESSION_ERRORS)
async def read_session(request: AnyRequest, services: InjectedServices) -> Response[SessionAnswer]:
    """Answer with the session of the request."""
    found = await find_session(request.cookies, services)
    return Response(SessionAnswer(data=found.session), headers={"X-Cache": found.outcome.value})


@delete(
    "/api/sessions/current",
    responses={**SESSION_ERRORS, **ORIGIN_ERRORS},
    status_code=200,
)
async def end_session(request: AnyRequest, services: InjectedServices) -> Response[Ended]:
    """End the session of the request, everywhere and at once."""
    all_found = await find_all(request.cookies, services)
    if not all_found:
        raise LoginRequired
    for found in all_found:
        try:
            await services.database.sessions.delete(found.id)
        finally:
            # Also where it is not known whether the database did: it is asked anew then.
            await forget(found.id, services)
    return Response(Ended(), cookies=session_cookies(services, "", 0))


handlers: Final[list[Any]] = [begin_session, read_session, end_session]
