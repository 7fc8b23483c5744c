"""WebSockets: what a client may say, and what it is answered."""

import re
from typing import Any, Final, Literal, cast

import msgspec
from litestar.types import Receive, Scope, Send

from quantdesk.errors import ErrorBody, ErrorDetail
from quantdesk.hub import Frames, Hub, Subscriber
from quantdesk.prices import SYMBOL

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


class Sockets:
    """The route `/ws`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._clients: dict[str, int] = {}

    async def serve(self, scope: Scope, receive: Receive, send: Send, client: str) -> None:
        """Serve one connection of `client`, from its handshake to its end."""
        if self._hub.open >= MAX_OPEN or self._clients.get(client, 0) >= MAX_PER_CLIENT:
            await refuse(send, 429, "too_many_requests", "Too many WebSockets are open")
            return
        self._hub.open += 1
        self._clients[client] = self._clients.get(client, 0) + 1
        frames = cast("dict[str, Frames]", scope["extensions"])[FRAMES]
        subscriber = Subscriber(frames)
        try:
            await receive()
            await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
            while (message := cast("dict[str, Any]", await receive()))["type"] == (
                "websocket.receive"
            ):
                self._hear(subscriber, message.get("text"))
        finally:
            self._hub.leave(subscriber)
            self._hub.open -= 1
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    def _hear(self, subscriber: Subscriber, text: str | None) -> None:
        refusal = self._obey(subscriber, text)
        if refusal is not None:
            self._hub.answer(subscriber, msgspec.json.encode(ErrorBody(error=refusal)))

    def _obey(self, subscriber: Subscriber, text: str | None) -> ErrorDetail | None:
        """Do what a message asks for; return why not."""
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


async def refuse(send: Send, status: Literal[404, 429], code: str, text: str) -> None:
    """Answer a handshake with an error in place of a WebSocket."""
    body = msgspec.json.encode(ErrorBody(error=ErrorDetail(code, text)))
    headers = [(b"content-type", b"application/json")]
    if status == 429:
        headers.append((b"retry-after", b"60"))
    await send(
        cast("Any", {"type": "websocket.http.response.start", "status": status, "headers": headers})
    )
    await send(
        cast("Any", {"type": "websocket.http.response.body", "body": body, "more_body": False})
    )
