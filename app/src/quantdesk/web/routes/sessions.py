"""Sessions over HTTP: how one begins and ends.

A session begins with a signed assertion of the user's identity (see `assertions`). There are no
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
    """A session can't begin, without an assertion that proves the user's identity (401)."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Assertion realm="quantdesk"'})


_REQUEST_SCHEMA: Final = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "assertion": Schema(
            type=OpenAPIType.STRING,
            max_length=MAX_ASSERTION,
            description="A signed assertion of the user's identity: a JWT of the configured issuer",
        ),
        "user": USER_SCHEMA,
    },
    # With both, readers could disagree on which one counts.
    schema_not=Schema(required=["assertion", "user"]),
)

_request_decoder = msgspec.json.Decoder(SessionRequest)


def _identify(body: SessionRequest, services: Services) -> Identity | str:
    """Return the user of a new session: by an assertion, or in development by a name alone.

    Raises:
        AssertionRequired: the identity is not proved (401).
        Unprocessable: the name is malformed (422).
    """
    user: Identity | str
    if body.assertion is not UNSET and body.user is not UNSET:
        raise Unprocessable("One of `assertion` and `user` must be left out")
    if body.assertion is not UNSET and services.authenticator is not None:
        if len(body.assertion) > MAX_ASSERTION:
            raise Unprocessable(f"The assertion must have at most {MAX_ASSERTION} characters")
        try:
            user = services.authenticator.check(body.assertion)
        except AssertionRefused as error:
            raise AssertionRequired(str(error)) from None
    elif body.assertion is UNSET and services.settings.development_users:
        user = f"guest-{secrets.token_hex(8)}" if body.user is UNSET else body.user
    elif services.authenticator is not None:
        raise AssertionRequired("A signed assertion of the user's identity is required")
    else:
        raise AssertionRequired("No session can begin: no authenticator is configured (AUTH_KEYS)")
    if not USER.fullmatch(user if isinstance(user, str) else user.user):
        raise Unprocessable(f"The user must match {USER.pattern}")
    return user


@post(
    "/api/sessions",
    operation_class=describe_body(_REQUEST_SCHEMA, required=False),
    responses={
        **BODY_ERRORS,
        401: error_spec("The user's identity is not proved"),
        422: error_spec("The user's name is malformed"),
        **COMMON_ERRORS,
    },
)
async def begin_session(request: AnyRequest, services: InjectedServices) -> Response[SessionAnswer]:
    """Begin a session under a new id, and end the one that came along."""
    identity = _identify(await decode_body(request, _request_decoder), services)
    if isinstance(identity, Identity):
        user, assertion = identity.user, (identity.digest, identity.forget_after)
    else:
        user, assertion = identity, None
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
            # Also if the database failed and may have deleted it: the next request queries it.
            await forget(found.id, services)
    return Response(Ended(), cookies=session_cookies(services, "", 0))


handlers: Final[list[Any]] = [begin_session, read_session, end_session]
