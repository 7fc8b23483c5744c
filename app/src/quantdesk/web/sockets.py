"""WebSockets: which clients may open one, and the messages that they may send."""

import asyncio
import datetime as dt
import re
from contextlib import suppress
from typing import Any, Final, cast

import msgspec
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send

from quantdesk.database.sessions import Session
from quantdesk.redis.limits import Decision, Limiter
from quantdesk.services import Services
from quantdesk.web.admin_token import has_admin_token
from quantdesk.web.errors import ErrorBody, ErrorDetail, TooManyRequests, answer_to
from quantdesk.web.hub import Frames, Hub, Subscriber
from quantdesk.web.names import SYMBOL
from quantdesk.web.origins import Origins
from quantdesk.web.sessions import LoginRequired, find_session, key_name

# How many sockets one client may have open, and this process in all.
MAX_PER_CLIENT: Final = 512
MAX_OPEN: Final = 10_000
# How many channels one socket may subscribe to.
MAX_CHANNELS: Final = 1_000

CHANNEL: Final = re.compile(rf"price:{SYMBOL.pattern}", re.ASCII)

# The extension of ASGI by which this package's server hands over a socket's own transport.
FRAMES: Final = "quantdesk.frames"


class Request(msgspec.Struct):
    """What a client sends."""

    action: str
    channel: str


_decoder = msgspec.json.Decoder(Request)


class TooManySockets(TooManyRequests):
    """The client, the session or this process has as many WebSockets as it may have (429)."""

    detail = "Too many WebSockets are open"


class TooManyHandshakes(TooManyRequests):
    """The client or the session opens WebSockets too often (429)."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(headers={"Retry-After": str(decision.reset)})


class Sockets:
    """The route `/ws`. It is for sessions, and for clients with the admin token."""

    def __init__(self, services: Services, origins: Origins) -> None:
        self._services = services
        self._hub: Final[Hub] = services.hub
        self._origins = origins
        self._clients: dict[str, int] = {}

    async def serve(self, scope: Scope, receive: Receive, send: Send, client: str) -> None:
        """Serve one connection of `client`, from its handshake to its end."""
        try:
            with self._hub.collect_ended() as ended:
                name, session = await self._admit(scope, client, ended)
        except Exception as error:  # noqa: BLE001  # every error has its answer
            await refuse(send, error)
            return
        await self._serve(scope, receive, send, client, name, session)

    async def _admit(
        self, scope: Scope, client: str, ended: set[str]
    ) -> tuple[str, Session | None]:
        """Return a session and its name, or neither for a client with the admin token.

        `ended` has the names of sessions that have ended meanwhile.

        Raises:
            HTTPException: no WebSocket may be opened (401, 403, 429).
            SQLAlchemyError: whether there is a session is not known.
        """
        services = self._services
        admin = has_admin_token(scope["headers"], services.settings)
        # The cheapest refusals first: a flood of handshakes reaches neither Redis nor the database.
        self._check_room(client)
        if not admin:
            await _count(services.address_sockets, client)
        foreign = self._origins.check(scope["headers"], body=False)
        if foreign is not None:
            raise foreign
        if admin:
            self._check_room(client)
            return "", None
        connection: ASGIConnection[Any, Any, Any, Any] = ASGIConnection(scope)
        found = await find_session(connection.cookies, services)
        name = key_name(found.id)
        await _count(services.session_sockets, name)
        # Last, so that of several that come at once none gets past it.
        self._check_room(client)
        if len(self._hub.sessions.get(name, ())) >= services.settings.sockets_per_session:
            raise TooManySockets
        # It may have ended since it was looked up. From here to where the socket joins it, nothing
        # else runs.
        if name in ended:
            raise LoginRequired
        return name, found.session

    def _check_room(self, client: str) -> None:
        if self._hub.open >= MAX_OPEN or self._clients.get(client, 0) >= MAX_PER_CLIENT:
            raise TooManySockets

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        client: str,
        name: str,
        session: Session | None,
    ) -> None:
        frames = cast("dict[str, Frames]", scope["extensions"])[FRAMES]
        # A socket ends with its session, however that ends.
        life = asyncio.timeout(None if session is None else _left(session))

        def end() -> None:
            # Unless it is ending already.
            with suppress(RuntimeError):
                life.reschedule(asyncio.get_running_loop().time())

        subscriber = Subscriber(frames, end)
        self._hub.open += 1
        self._clients[client] = self._clients.get(client, 0) + 1
        try:
            async with life:
                if session is not None:
                    self._hub.join_session(subscriber, name)
                await receive()
                await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
                while (message := cast("dict[str, Any]", await receive()))["type"] == (
                    "websocket.receive"
                ):
                    self._receive(subscriber, message.get("text"))
        except TimeoutError:
            # Unless the client has left in this moment.
            with suppress(RuntimeError):
                await send(
                    {"type": "websocket.close", "code": 1008, "reason": "the session has ended"}
                )
        finally:
            self._hub.leave(subscriber)
            if session is not None:
                self._hub.leave_session(subscriber, name)
            self._hub.open -= 1
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    def _receive(self, subscriber: Subscriber, text: str | None) -> None:
        refusal = self._execute(subscriber, text)
        if refusal is not None:
            self._hub.answer(subscriber, msgspec.json.encode(ErrorBody(error=refusal)))

    def _execute(self, subscriber: Subscriber, text: str | None) -> ErrorDetail | None:
        """Carry out a message; return the error if it is refused."""
        if text is None:
            return ErrorDetail("bad_request", "Messages must be text")
        try:
            request = _decoder.decode(text)
        except msgspec.ValidationError as error:
            return ErrorDetail("unprocessable", str(error))
        except (msgspec.DecodeError, RecursionError):
            return ErrorDetail("bad_request", "The message is not valid JSON")
        if request.action not in ("subscribe", "unsubscribe"):
            return ErrorDetail("unknown_action", "The action must be subscribe or unsubscribe")
        if not CHANNEL.fullmatch(request.channel):
            return ErrorDetail("unknown_channel", "A channel looks like price:BTC-USD")
        if request.action == "unsubscribe":
            self._hub.unsubscribe(subscriber, request.channel)
        elif request.channel in subscriber.channels:
            pass
        elif len(subscriber.channels) >= MAX_CHANNELS:
            return ErrorDetail("too_many_channels", f"At most {MAX_CHANNELS} channels a socket")
        else:
            self._hub.subscribe(subscriber, request.channel)
        return None


async def _count(limiter: Limiter, client: str) -> None:
    """Count one handshake; raises TooManyHandshakes."""
    limiting = limiter.take(client)
    decision = limiting if isinstance(limiting, Decision) else await limiting
    if not decision.allowed:
        raise TooManyHandshakes(decision)


def _left(session: Session) -> float:
    return (session.expires_at - dt.datetime.now(dt.UTC)).total_seconds()


async def refuse(send: Send, error: Exception) -> None:
    """Answer a handshake with an error in place of a WebSocket."""
    status, body = answer_to(error, "GET")
    headers = [(b"content-type", b"application/json")]
    if isinstance(error, HTTPException):
        headers += [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()]
    if status == 429 and len(headers) == 1:
        headers.append((b"retry-after", b"60"))
    await send(
        cast("Any", {"type": "websocket.http.response.start", "status": status, "headers": headers})
    )
    await send(
        cast("Any", {"type": "websocket.http.response.body", "body": body, "more_body": False})
    )
