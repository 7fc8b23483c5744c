"""Presence over HTTP: which users are online, by what they sent lately."""

import datetime as dt
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Response, get, put
from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import QueryParameter

from quantdesk.database.presences import Presence, PresenceStatus
from quantdesk.web.bodies import decode_body, describe_body
from quantdesk.web.dependencies import InjectedServices
from quantdesk.web.errors import BODY_ERRORS, AnyRequest, Unprocessable, error_spec
from quantdesk.web.names import USER, optional_text
from quantdesk.web.sessions import SESSION_ERRORS, current_session

_UserQuery = Annotated[
    str | None,
    QueryParameter(
        description="Whose, if not the session's user's",
        schema_extra=optional_text(USER),
    ),
]


class PresenceBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body that sets the user's status."""

    status: PresenceStatus = "online"


class PresenceView(msgspec.Struct, frozen=True, rename="camel"):
    """A user's presence as of now. `last_seen` is null for a user who never sent a status."""

    user: str
    status: Literal["online", "away", "offline"]
    last_seen: dt.datetime | None


class PresenceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A presence."""

    success: bool = True
    data: PresenceView


_BODY_SCHEMA: Final = Schema(
    type=OpenAPIType.OBJECT,
    properties={"status": Schema(type=OpenAPIType.STRING, enum=["online", "away"])},
    additional_properties=False,
)

_body_decoder = msgspec.json.Decoder(PresenceBody)
_decoder = msgspec.json.Decoder(Presence)


@put(
    "/api/presence",
    operation_class=describe_body(_BODY_SCHEMA, required=False),
    responses={
        **BODY_ERRORS,
        **SESSION_ERRORS,
        422: error_spec("The status is malformed"),
    },
)
async def write_presence(request: AnyRequest, services: InjectedServices) -> PresenceAnswer:
    """Set the status of the session's user."""
    session = await current_session(request, services)
    status = (await decode_body(request, _body_decoder)).status
    noted = await services.database.presences.write(session.user, status)
    await services.state_cache.put("presence", session.user, noted)
    return PresenceAnswer(data=PresenceView(session.user, status, noted.value.last_seen))


@get(
    "/api/presence",
    responses={**SESSION_ERRORS, 422: error_spec("The user's name is malformed")},
)
async def read_presence(
    request: AnyRequest, services: InjectedServices, user: _UserQuery = None
) -> Response[PresenceAnswer]:
    """Answer with a user's status. It is offline if none was sent for the presence's TTL."""
    session = await current_session(request, services)
    whose = session.user if user is None else user
    if not USER.fullmatch(whose):
        raise Unprocessable(f"The user must match {USER.pattern}")
    lookup = await services.state_cache.read(
        "presence", whose, _decoder, lambda: services.database.presences.read(whose)
    )
    found = lookup.value
    view = PresenceView(whose, "offline", None if found is None else found.last_seen)
    if found is not None:
        age = dt.datetime.now(dt.UTC) - found.last_seen
        if age < dt.timedelta(seconds=services.settings.ttl.presence):
            view = PresenceView(whose, found.status, found.last_seen)
    return Response(PresenceAnswer(data=view), headers={"X-Cache": lookup.outcome.value})


handlers: Final[list[Any]] = [write_presence, read_presence]
