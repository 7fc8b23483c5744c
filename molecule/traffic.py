"""Requests at a steady rate through the balancer, each answer counted, while a test does something to the hosts."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import ssl
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.message import Message
from types import TracebackType
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect

from conftest import LAB, assertion, published

ADDRESS, PORT = "127.0.0.1", published(3443)

Answer = TypeVar("Answer")


def trust() -> ssl.SSLContext:
    """Return what a client of the lab trusts: its authority alone."""
    return ssl.create_default_context(cafile=str(LAB / "pki/ca.crt"))


@dataclass
class Request:
    """What a client sends."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def closed(connection: http.client.HTTPSConnection) -> bool:
    """Tell whether a kept connection has been closed at the other end since its last answer, as clients with a pool do.

    A server may close an idle connection at any time; http.client alone would send the next request into it.
    """
    return connection.sock is not None and bool(select.select([connection.sock], [], [], 0)[0])


class Traffic:
    """`rate` requests a second from `clients` connections that are kept, until the block ends."""

    def __init__(self, requests: list[Request], rate: int = 200, clients: int = 20) -> None:
        self.requests = requests
        self.pause = clients / rate
        self.answers: Counter[str] = Counter()
        self.slowest = 0.0
        self.problems: list[str] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    @property
    def count(self) -> int:
        """How many requests were answered or failed."""
        return sum(self.answers.values())

    def __enter__(self) -> Traffic:
        """Start the clients."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let each client finish its request, and end."""
        self._over.set()
        for thread in self._threads:
            thread.join(120)

    def _client(self, number: int) -> None:
        connection = http.client.HTTPSConnection(ADDRESS, PORT, timeout=90, context=trust())
        due = time.monotonic() + number * self.pause / len(self._threads)
        turn = number
        while not self._over.wait(max(due - time.monotonic(), 0)):
            request = self.requests[turn % len(self.requests)]
            turn, due = turn + 1, due + self.pause
            began = time.monotonic()
            try:
                if closed(connection):
                    connection.close()
                outcome = self._answer(connection, request)
            except (OSError, http.client.HTTPException) as error:
                outcome = f"{request.method} {type(error).__name__}: {error}"
                connection.close()
            self._count(request, outcome, time.monotonic() - began)
        connection.close()

    def _answer(self, connection: http.client.HTTPSConnection, request: Request) -> str:
        """Return the status of the answer; raises what http.client raises.

        A server may close a kept connection just as a request comes. GET and PUT are sent once more then, on a new one:
        https://www.rfc-editor.org/rfc/rfc9112#section-9.3.1
        """
        kept = connection.sock is not None
        try:
            connection.request(request.method, request.path, request.body, request.headers)
            answer = connection.getresponse()
        except ConnectionError:
            if not kept:
                raise
            connection.close()
            connection.request(request.method, request.path, request.body, request.headers)
            answer = connection.getresponse()
        answer.read()
        return str(answer.status)

    def _count(self, request: Request, outcome: str, seconds: float) -> None:
        with self._lock:
            self.answers[outcome] += 1
            self.slowest = max(self.slowest, seconds)
            if not outcome.startswith("2"):
                self.problems.append(f"{request.method} {request.path}: {outcome} after {seconds:.2f} s")


def writes(token: str, symbol: str = "TRAFFIC") -> Request:
    """Return a write of a price."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return Request("PUT", f"/api/prices/{symbol}", json.dumps({"price": "1.5"}).encode(), headers)


def reads(symbol: str = "TRAFFIC") -> Request:
    """Return a read of a price."""
    return Request("GET", f"/api/prices/{symbol}")


def ask(
    method: str, path: str, body: Any = None, token: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Message, Any]:
    """Return status, headers and JSON body of an answer through the balancer, on a connection of its own."""
    connection = http.client.HTTPSConnection(ADDRESS, PORT, timeout=10, context=trust())
    sent = {"Connection": "close", "Content-Type": "application/json", **(headers or {})}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, answer.headers, json.loads(text) if text else None
    finally:
        connection.close()


def log_in(user: str) -> str:
    """Begin a session through the balancer; return its cookie."""
    status, headers, body = ask("POST", "/api/sessions", {"assertion": assertion(user)})
    assert status == 201, body
    return headers["Set-Cookie"].split(";")[0]


class Listener:
    """A WebSocket for tests that wait, of a user with a session.

    All of them live on one event loop: of two threads at one TLS connection, as the library's own blocking client has
    them, one can break what the other writes.
    """

    _loop = asyncio.new_event_loop()
    _thread: threading.Thread | None = None

    def __init__(self) -> None:
        if Listener._thread is None:
            Listener._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            Listener._thread.start()
        url = f"wss://{ADDRESS}:{PORT}/ws"
        cookie = log_in("listener")

        async def opened() -> ClientConnection:
            headers = {"Cookie": cookie}
            return await connect(url, additional_headers=headers, ssl=trust(), open_timeout=10, close_timeout=2)

        self._socket = self._wait(opened(), 15)

    def send(self, message: dict[str, str]) -> None:
        """Send a message as JSON."""
        self._wait(self._socket.send(json.dumps(message)), 5)

    def recv(self, seconds: float) -> Any:
        """Return the next message, which must come within so many seconds."""
        return json.loads(self._wait(self._socket.recv(), seconds))

    def close(self) -> None:
        """End it."""
        self._wait(self._socket.close(), 5)

    def _wait(self, work: Coroutine[Any, Any, Answer], seconds: float) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)


@contextmanager
def listen(channel: str) -> Iterator[Listener]:
    """Return a WebSocket through the balancer that has subscribed to a channel."""
    with closing(Listener()) as websocket:
        websocket.send({"action": "subscribe", "channel": channel})
        # An answer to something wrong comes after what was right has been done.
        websocket.send({"action": "nothing", "channel": channel})
        assert websocket.recv(5)["success"] is False
        yield websocket
