"""WebSockets, of two instances that share a Redis and a database."""

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from conftest import AUTH, HANG, Server, subscribers, until
from frames import close_code, frame, frames
from processes import HANDSHAKE, Answer, Client, Process, client, request
from quantdesk.web.hub import MAX_BEHIND
from quantdesk.web.server.websockets import FRAME_BURST, MAX_MESSAGE
from quantdesk.web.sockets import MAX_CHANNELS, MAX_PER_CLIENT

# Longer than a test waits: what ends before that has not waited for it.
ENDLESS = 10 * HANG
# What one client attempts beyond the sockets that it may have, and the seconds of processor time
# that this may cost the server.
ATTEMPTS = 1000
ATTEMPTS_COST = 2.0
# The same for a flood of frames, and for what of it comes before another client's turn.
FLOOD_COST = 1.5
TURN_COST = 0.5


class Pair(NamedTuple):
    """Two instances."""

    redis: Server
    one: Process
    two: Process


@pytest.fixture(scope="module")
def shared(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("sockets")
    redis = Server(redis_binary, folder)
    redis.start()
    try:
        with (
            Process(folder, REDIS_URL=redis.url) as one,
            Process(folder, REDIS_URL=redis.url) as two,
        ):
            yield Pair(redis, one, two)
    finally:
        redis.kill()


@pytest.fixture
async def pair(shared: Pair) -> AsyncIterator[Pair]:
    """Two instances that hear each other; neither may have logged an error when the test ends."""
    with shared.redis.client() as raw:
        await until(lambda: subscribers(raw) == 2)
    before = [app.complaints for app in (shared.one, shared.two)]
    yield shared
    assert [app.complaints for app in (shared.one, shared.two)] == before


@pytest.fixture
def raw(shared: Pair) -> Iterator[Redis]:
    with shared.redis.client() as connection:
        yield connection


async def say(connection: ClientConnection, action: str, channel: str) -> None:
    await connection.send(json.dumps({"action": action, "channel": channel}))


async def receive(connection: ClientConnection, seconds: float = HANG) -> Any:  # noqa: ANN401  # what JSON holds
    async with asyncio.timeout(seconds):
        message = await connection.recv()
    assert isinstance(message, str)
    return json.loads(message)


async def before(connection: ClientConnection, channel: str) -> list[Any]:
    """Return what comes before the next message of a channel."""
    came = []
    while (message := await receive(connection)).get("channel") != channel:
        came.append(message)
    return came


async def settled(connection: ClientConnection) -> list[Any]:
    """Wait until all that was said before is done; return what came before that."""
    await connection.send("no JSON")
    came = []
    while (message := await receive(connection)).get("success") is not False:
        came.append(message)
    return came


@asynccontextmanager
async def listening(
    app: Process, *channels: str, host: str = "127.0.0.1"
) -> AsyncIterator[ClientConnection]:
    """Open a WebSocket and subscribe to channels."""
    async with connect(
        f"ws://127.0.0.1:{app.port}/ws",
        additional_headers=AUTH,
        compression=None,
        local_addr=(host, 0),
        max_size=None,
        ping_interval=None,
        proxy=None,
    ) as connection:
        for channel in channels:
            await say(connection, "subscribe", channel)
        await settled(connection)
        yield connection


@asynccontextmanager
async def upgraded(app: Process, host: str = "127.0.0.1") -> AsyncIterator[Client]:
    """Open a WebSocket for frames as no library sends them."""
    async with client(app.port, host) as connection:
        assert (await connection.get("/ws", *HANDSHAKE)).status == 101
        yield connection


async def put(app: Process, symbol: str, price: str) -> Answer:
    """Write a price."""
    body = json.dumps({"price": price}).encode()
    authorization = f"Authorization: {AUTH['Authorization']}"
    async with client(app.port) as connection:
        await connection.send(request("PUT", f"/api/prices/{symbol}", authorization, body=body))
        answer = await connection.answer()
    assert answer.status == 200, answer.body
    return answer


async def metric(app: Process, name: str) -> float:
    async with client(app.port) as connection:
        text = (await connection.get("/metrics")).body.decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


async def until_metric(app: Process, name: str, value: float) -> None:
    async with asyncio.timeout(HANG):
        while await metric(app, name) != value:  # noqa: ASYNC110  # what is polled is another process
            await asyncio.sleep(0.05)


class Peer:
    """Another instance, as far as Redis shows it: it publishes messages of any size."""

    def __init__(self, raw: Redis, env_name: str = "development") -> None:
        self._raw = raw
        self._env_name = env_name
        self._source = os.urandom(8).hex()
        self._numbers = count(1)

    def publish(self, channel: str, size: int) -> None:
        body = json.dumps({"channel": channel, "data": "x" * size})
        message = f"{self._source} {next(self._numbers)} {body}"
        self._raw.publish(f"qd:{self._env_name}:ws:{channel}", message)


@asynccontextmanager
async def reading_nothing(app: Process, *channels: str) -> AsyncIterator[socket.socket]:
    """Open a WebSocket of a client that does not read."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(connection, ("127.0.0.1", app.port))
        await loop.sock_sendall(connection, request("GET", "/ws", *HANDSHAKE))
        # All the same: what comes before the handshake's answer need not be heeded.
        assert b" 101 " in await loop.sock_recv(connection, 1000)
        for channel in channels:
            text = json.dumps({"action": "subscribe", "channel": channel})
            await loop.sock_sendall(connection, frame(1, text.encode()))
        await loop.sock_sendall(connection, frame(1, b"no JSON"))
        assert b"bad_request" in await loop.sock_recv(connection, 1000)
        yield connection


def unread(app: Process, connection: socket.socket) -> int:
    """Return how many bytes the system keeps on the server's side for a client that may read."""
    ends = f":{app.port:04X} 0100007F:{connection.getsockname()[1]:04X} "
    lines = Path("/proc/net/tcp").read_text().splitlines()
    line = next(line for line in lines if ends in line)
    return int(line.split()[4].split(":")[0], 16)


async def stall(
    app: Process, connection: socket.socket, peer: Peer, channel: str, ear: ClientConnection
) -> None:
    """Send messages to a client that does not read, until some of them wait in the process.

    `ear` gets them, too, in the same turn.
    """
    kept: list[int] = []
    while len(kept) < 3 or len(set(kept[-3:])) > 1:
        peer.publish(channel, 100_000)
        assert len((await receive(ear))["data"]) == 100_000
        kept.append(unread(app, connection))
        assert len(kept) < 200
    assert kept[-1] > 0


@pytest.mark.parametrize("writer", [0, 1])
async def test_a_price_reaches_the_subscribers_of_every_instance_once(
    pair: Pair, writer: int
) -> None:
    apps, symbol = (pair.one, pair.two), f"ONCE-{writer}"
    channels = (f"price:{symbol}", f"price:{symbol}-END")
    async with AsyncExitStack() as stack:
        ears = [
            await stack.enter_async_context(listening(app, *channels)) for app in apps for _ in "12"
        ]
        written = await put(apps[writer], symbol, "50000.10")
        reads = []
        for app in apps:
            async with client(app.port) as connection:
                reads.append((await connection.get(f"/api/prices/{symbol}")).json["data"])
        assert reads == [written.json["data"]] * 2
        await put(apps[writer], f"{symbol}-END", "1")
        for ear in ears:
            assert await before(ear, channels[1]) == [{"channel": channels[0], "data": reads[0]}]


async def test_prices_come_in_the_order_of_their_writes(pair: Pair) -> None:
    async with (
        listening(pair.one, "price:ORDER") as here,
        listening(pair.two, "price:ORDER") as there,
    ):
        for price in range(1, 51):
            await put(pair.one, "ORDER", str(price))
        for ear in (here, there):
            got = [(await receive(ear))["data"]["price"] for _ in range(50)]
            assert got == [str(price) for price in range(1, 51)]


async def test_only_subscribers_of_the_channel_are_told(pair: Pair) -> None:
    async with (
        listening(pair.one, "price:OTHER", "price:OTHER-END") as ear,
        listening(pair.one) as mute,
    ):
        await put(pair.one, "OTHER-ONE", "1")
        await put(pair.one, "OTHER-END", "1")
        assert await before(ear, "price:OTHER-END") == []
        assert await settled(mute) == []


async def test_unsubscribing_ends_it(pair: Pair) -> None:
    async with listening(pair.one, "price:ENDS", "price:STAYS") as ear:
        await put(pair.one, "ENDS", "1")
        await say(ear, "unsubscribe", "price:ENDS")
        await settled(ear)
        await put(pair.one, "ENDS", "2")
        await put(pair.one, "STAYS", "1")
        assert await before(ear, "price:STAYS") == []


async def test_subscribing_twice_delivers_once_and_ends_at_once(pair: Pair) -> None:
    async with listening(pair.one, "price:TWICE", "price:TWICE", "price:TWICE-END") as ear:
        await put(pair.one, "TWICE", "1")
        await put(pair.one, "TWICE-END", "1")
        assert len(await before(ear, "price:TWICE-END")) == 1
        await say(ear, "unsubscribe", "price:TWICE")
        await settled(ear)
        await put(pair.one, "TWICE", "2")
        await put(pair.one, "TWICE-END", "2")
        assert await before(ear, "price:TWICE-END") == []


async def test_unsubscribing_from_what_was_not_subscribed_to_changes_nothing(pair: Pair) -> None:
    async with listening(pair.one, "price:KEPT") as ear:
        await say(ear, "unsubscribe", "price:NEVER")
        await say(ear, "unsubscribe", "price:NEVER")
        await put(pair.one, "KEPT", "1")
        assert await before(ear, "price:KEPT") == []


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('{"action": "shout", "channel": "price:LIVES"}', "unknown_action"),
        ('{"action": "", "channel": "price:LIVES"}', "unknown_action"),
        ('{"action": "Subscribe", "channel": "price:LIVES"}', "unknown_action"),
        ('{"action": "subscribe", "channel": "price:"}', "unknown_channel"),
        ('{"action": "subscribe", "channel": "price:btc"}', "unknown_channel"),
        ('{"action": "subscribe", "channel": "price:A\\n"}', "unknown_channel"),
        ('{"action": "subscribe", "channel": "price:*"}', "unknown_channel"),
        ('{"action": "unsubscribe", "channel": "control"}', "unknown_channel"),
        ('{"action": "subscribe"}', "unprocessable"),
        ('{"channel": "price:LIVES"}', "unprocessable"),
        ('{"action": 1, "channel": "price:LIVES"}', "unprocessable"),
        ('{"action": "subscribe", "channel": ["price:LIVES"]}', "unprocessable"),
        ('{"action": "subscribe", "channel": null}', "unprocessable"),
        ("[]", "unprocessable"),
        ("null", "unprocessable"),
        ("", "bad_request"),
        ("{", "bad_request"),
        ('{"action": "subscribe", "channel": "price:LIVES"} x', "bad_request"),
        ('{"action": "\\ud800", "channel": "price:LIVES"}', "bad_request"),
        ("[" * 60_000, "unprocessable"),
        ('{"action": "subscribe", "channel": "price:LIVES", "x": ' + "[" * 60_000, "bad_request"),
        (b'{"action": "subscribe", "channel": "price:LIVES"}', "bad_request"),
        (b"\xff\xfe", "bad_request"),
    ],
)
async def test_what_cannot_be_obeyed_is_answered_and_the_socket_lives_on(
    pair: Pair, message: str | bytes, code: str
) -> None:
    async with listening(pair.one) as connection:
        await connection.send(message)
        answer = await receive(connection)
        assert set(answer) == {"success", "error"}
        assert answer["success"] is False
        assert set(answer["error"]) == {"code", "message"}
        assert answer["error"]["code"] == code
        assert answer["error"]["message"]
        # It was subscribed to nothing by that, and still can be.
        await put(pair.one, "LIVES", "1")
        await say(connection, "subscribe", "price:LIVES")
        assert await settled(connection) == []
        await put(pair.one, "LIVES", "2")
        assert (await receive(connection))["data"]["price"] == "2"


async def test_a_message_as_long_as_may_be_is_taken(pair: Pair) -> None:
    text = json.dumps({"action": "subscribe", "channel": "price:LONG"})
    text += " " * (MAX_MESSAGE - len(text))
    assert len(text) == 65536
    async with listening(pair.one) as whole, listening(pair.one) as parts:
        await whole.send(text)
        await parts.send([text[:20], text[20:30_000], text[30_000:], ""])
        assert await settled(whole) == await settled(parts) == []
        await put(pair.one, "LONG", "1")
        for connection in (whole, parts):
            assert (await receive(connection))["data"]["price"] == "1"


@pytest.mark.parametrize("size", [MAX_MESSAGE + 1, 8 * 1024 * 1024])
@pytest.mark.parametrize("parts", [1, 7])
async def test_a_longer_message_closes_with_1009(pair: Pair, size: int, parts: int) -> None:
    async with listening(pair.one) as connection:
        step = size // parts + 1
        pieces = ["x" * min(step, size - start) for start in range(0, size, step)]
        assert sum(len(piece) for piece in pieces) == size
        with suppress(ConnectionClosed):
            await connection.send(pieces)
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1009


@pytest.mark.parametrize(
    "sent",
    [
        frame(1, b"\xff"),
        frame(1, b'{"action": "subscribe', fin=False) + frame(0, b"\xc3\x28"),
        frame(1, b"\xed\xa0\x80"),
        frame(1, b"\xff") + frame(1, b"{}") * 50,
        frame(1, b"\xe2\x82"),
    ],
)
async def test_text_that_is_not_utf8_closes_with_1007(pair: Pair, sent: bytes) -> None:
    async with upgraded(pair.one) as connection:
        await connection.send(sent)
        assert close_code(await connection.ended()) == 1007


async def test_a_character_may_be_spread_over_fragments(pair: Pair) -> None:
    async with upgraded(pair.one) as connection:
        await connection.send(frame(1, b'"\xe2\x82', fin=False) + frame(0, b'\xac"'))
        ((opcode, answer),) = frames(await connection.until(b"}}"))
        assert (opcode, json.loads(answer)["error"]["code"]) == (1, "unprocessable")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frame(1, b"x", reserved=0x40), id="reserved-bit-1"),
        pytest.param(frame(1, b"x", reserved=0x10), id="reserved-bit-3"),
        pytest.param(frame(1, b"x", masked=False), id="unmasked"),
        pytest.param(frame(3, b"x"), id="unknown-opcode"),
        pytest.param(frame(0, b"x"), id="continues-nothing"),
        pytest.param(frame(1, b"x", fin=False) + frame(1, b"x"), id="begins-in-between"),
        pytest.param(frame(9, b"x" * 126), id="long-ping"),
        pytest.param(frame(9, b"x", fin=False), id="fragmented-ping"),
        pytest.param(frame(8, b"x"), id="half-a-close-code"),
        pytest.param(frame(8, (1005).to_bytes(2, "big")), id="reserved-close-code"),
    ],
)
async def test_frames_against_the_protocol_close_with_1002(pair: Pair, sent: bytes) -> None:
    async with upgraded(pair.one) as connection:
        await connection.send(sent)
        assert close_code(await connection.ended()) == 1002


async def test_pings_are_answered_between_fragments(pair: Pair) -> None:
    async with upgraded(pair.one) as connection:
        await connection.send(frame(1, b"{", fin=False) + frame(9, b"there?") + frame(0, b"}"))
        pong, answer = frames(await connection.until(b"}}"))
        assert pong == (10, b"there?")
        assert json.loads(answer[1])["error"]["code"] == "unprocessable"


@pytest.mark.parametrize(
    "path", ["/", "/ws/", "/ws2", "/api/prices/A", "/%77s%00", "/ws%0d%0aX:%20y"]
)
async def test_another_path_is_refused(pair: Pair, path: str) -> None:
    async with client(pair.one.port) as connection:
        answer = await connection.get(path, *HANDSHAKE)
        assert (answer.status, answer.code) == (404, "not_found")
        assert await connection.ended() == b""


@pytest.mark.parametrize(
    ("method", "headers", "status", "code"),
    [
        ("GET", HANDSHAKE[:3], 400, "bad_request"),
        ("GET", (*HANDSHAKE[:3], "Sec-WebSocket-Key: short"), 400, "bad_request"),
        ("GET", (*HANDSHAKE[:2], *HANDSHAKE[3:]), 400, "bad_request"),
        ("POST", HANDSHAKE, 405, "method_not_allowed"),
        ("GET", (*HANDSHAKE, "Cookie: " + "x" * 9000), 431, "head_too_large"),
        ("GET", (*HANDSHAKE, *(f"X-{n}: y" for n in range(200))), 431, "head_too_large"),
        ("GET", (*HANDSHAKE, "Transfer-Encoding: chunked\r\n\r\n0"), 400, "bad_request"),
        ("GET", (*HANDSHAKE, "Content-Length: 4"), 400, "bad_request"),
    ],
)
async def test_a_handshake_that_is_none_is_refused(
    pair: Pair, method: str, headers: tuple[str, ...], status: int, code: str
) -> None:
    opened = await metric(pair.one, "websockets_open")
    async with client(pair.one.port) as connection:
        await connection.send(request(method, "/ws", *headers) + b"body")
        answer = await connection.answer()
        assert (answer.status, answer.code) == (status, code)
        assert await connection.ended() == b""
    assert await metric(pair.one, "websockets_open") == opened


async def test_a_plain_request_for_it_is_not_found(pair: Pair) -> None:
    async with client(pair.one.port) as connection:
        answer = await connection.get("/ws")
        assert (answer.status, answer.code) == (404, "not_found")


async def test_a_client_with_too_many_sockets_is_refused_while_they_go_on(pair: Pair) -> None:
    host, logged = "127.0.0.5", len(pair.one.log)
    gate = asyncio.Semaphore(50)

    async def attempt() -> None:
        async with gate, client(pair.one.port, host) as connection:
            answer = await connection.get("/ws", *HANDSHAKE)
            assert (answer.status, answer.code) == (429, "too_many_requests")
            assert int(answer.headers["retry-after"]) > 0
            assert await connection.ended() == b""

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(listening(pair.one, "price:MANY", host=host))
        for _ in range(MAX_PER_CLIENT - 2):
            await stack.enter_async_context(upgraded(pair.one, host))
        last = await stack.enter_async_context(listening(pair.one, "price:MANY", host=host))
        cost = pair.one.cpu
        async with asyncio.TaskGroup() as group:
            for _ in range(ATTEMPTS):
                group.create_task(attempt())
            await put(pair.one, "MANY", "1")
            for connection in (first, last):
                assert (await receive(connection))["data"]["price"] == "1"
            async with listening(pair.one, "price:MANY", host="127.0.0.6") as other:
                await put(pair.one, "MANY", "2")
                assert (await receive(other))["data"]["price"] == "2"
        assert pair.one.cpu - cost < ATTEMPTS_COST
        # Not a line for each.
        assert len(pair.one.log) - logged < 1000
    await until_metric(pair.one, "websockets_open", 0)
    async with listening(pair.one, host=host) as again:
        assert await settled(again) == []


async def test_too_many_channels_are_refused(pair: Pair) -> None:
    async with listening(pair.one) as connection:
        for number in range(MAX_CHANNELS + 1):
            await say(connection, "subscribe", f"price:C{number}")
        refused = await receive(connection)
        assert refused["error"]["code"] == "too_many_channels"
        # Those that it has, it may ask for again, or leave for others.
        await say(connection, "subscribe", "price:C0")
        await say(connection, "unsubscribe", "price:C1")
        await say(connection, "subscribe", f"price:C{MAX_CHANNELS}")
        assert await settled(connection) == []
        for number in (1, 0, MAX_CHANNELS):
            await put(pair.one, f"C{number}", "1")
        assert (await receive(connection))["channel"] == "price:C0"
        assert (await receive(connection))["channel"] == f"price:C{MAX_CHANNELS}"


async def test_a_reader_that_does_not_read_is_dropped_while_others_get_everything(
    pair: Pair, raw: Redis
) -> None:
    dropped = await metric(pair.two, "websockets_dropped_total")
    peer, messages, size = Peer(raw), 300, 50_000
    async with AsyncExitStack() as stack:
        ears = [await stack.enter_async_context(listening(pair.two, "price:SLOW")) for _ in "12"]
        await stack.enter_async_context(reading_nothing(pair.two, "price:SLOW"))
        opened = await metric(pair.two, "websockets_open")
        memory = most = pair.two.memory
        for _ in range(messages):
            peer.publish("price:SLOW", size)
            for ear in ears:
                assert len((await receive(ear))["data"]) == size
            most = max(most, pair.two.memory)
        assert await metric(pair.two, "websockets_dropped_total") == dropped + 1
        assert await metric(pair.two, "websockets_open") == opened - 1
        # 15 MB were sent to it.
        assert most - memory < MAX_BEHIND + 4 * 1024 * 1024
        assert [await settled(ear) for ear in ears] == [[], []]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frame(1) * 40_000, id="messages"),
        pytest.param(frame(9, b"x" * 125) * 2_000, id="pings"),
        pytest.param(frame(1, fin=False) + frame(0, fin=False) * 40_000, id="fragments"),
    ],
)
async def test_a_flood_ends_and_keeps_nobody_waiting(pair: Pair, sent: bytes) -> None:
    """256 KiB at a time is what the server reads at once."""
    memory, cost = pair.one.memory, pair.one.cpu

    async def flood() -> None:
        async with upgraded(pair.one, "127.0.0.8") as connection:
            try:
                for _ in range(40):
                    await connection.send(sent)
            except ConnectionError:
                return  # so quick that not even the reason could be read
            assert close_code(await connection.cut()) == 1008

    async with client(pair.one.port) as other, asyncio.TaskGroup() as group:
        floods = [group.create_task(flood()) for _ in range(4)]
        turns = []
        while not all(task.done() for task in floods):
            before = pair.one.cpu
            assert (await other.get("/health")).status == 200
            turns.append(pair.one.cpu - before)
            await asyncio.sleep(0.01)
    assert max(turns) < TURN_COST
    assert pair.one.cpu - cost < FLOOD_COST
    assert pair.one.memory - memory < 16 * 1024 * 1024


async def test_as_many_messages_as_a_client_has_use_for_are_taken_at_once(pair: Pair) -> None:
    async with listening(pair.one) as connection:
        for _ in range(FRAME_BURST // 2 - 10):
            await say(connection, "subscribe", "price:BUSY")
            await say(connection, "unsubscribe", "price:BUSY")
        assert await settled(connection) == []


async def test_metrics_tell_of_sockets_and_messages(pair: Pair) -> None:
    await until_metric(pair.one, "websockets_open", 0)
    fanned_out = await metric(pair.one, "websocket_messages_total")
    from_others = await metric(pair.one, "bus_messages_total")
    async with (
        listening(pair.one, "price:METRIC"),
        listening(pair.one, "price:METRIC") as ear,
        listening(pair.one),
    ):
        assert await metric(pair.one, "websockets_open") == 3
        await put(pair.one, "METRIC", "1")
        await put(pair.two, "METRIC", "2")
        await put(pair.two, "METRIC-NOBODYS", "2")
        await until_metric(pair.one, "bus_messages_total", from_others + 2)
        assert await settled(ear) != []
        assert await metric(pair.one, "websocket_messages_total") == fanned_out + 4
    await until_metric(pair.one, "websockets_open", 0)


async def test_without_redis_subscribers_of_the_instance_go_on_and_others_are_told_of_the_gap(
    pair: Pair,
) -> None:
    async with listening(pair.one, "price:GAP") as here, listening(pair.two, "price:GAP") as there:
        pair.redis.kill()
        for price in ("1", "2", "3"):
            await put(pair.one, "GAP", price)
            assert (await receive(here))["data"]["price"] == price
        assert await settled(there) == []
        pair.redis.start()
        assert await receive(there) == {
            "channel": "price:GAP",
            "event": "gap",
            "data": {"missed": 3},
        }
        await put(pair.one, "GAP", "4")
        assert (await receive(there))["data"]["price"] == "4"
        await put(pair.two, "GAP", "5")
        assert [(await receive(here))["data"]["price"] for _ in "45"] == ["4", "5"]
        assert await settled(there) != []  # the 5, and not the gap again
        assert await settled(here) == []


async def test_sigterm_closes_with_1012_at_once(tmp_path: Path) -> None:
    limits = {f"web.server.shutdown.{name}": ENDLESS for name in ("DRAIN", "LAST_CALL", "GRACE")}
    with Process(tmp_path, constants=limits) as app:
        async with listening(app, "price:A") as one, listening(app) as two:
            assert await asyncio.to_thread(app.stop) == 0
            for connection in (one, two):
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
                assert connection.close_code == 1012
        assert app.complaints == []


async def test_sigterm_does_not_wait_for_those_who_do_not_read(
    shared: Pair, raw: Redis, tmp_path: Path
) -> None:
    """One has said that it closes; uvicorn would fail there, and leave the others open."""
    limits = {"web.server.transport.LINGER": 1.0, "web.server.shutdown.GRACE": ENDLESS}
    with Process(tmp_path, REDIS_URL=shared.redis.url, ENV_NAME="stalled", constants=limits) as app:
        peer = Peer(raw, "stalled")
        async with (
            reading_nothing(app, "price:A") as one,
            reading_nothing(app, "price:A") as two,
            listening(app, "price:A") as ear,
        ):
            await stall(app, one, peer, "price:A", ear)
            await stall(app, two, peer, "price:A", ear)
            await asyncio.get_running_loop().sock_sendall(two, frame(8, b"\x03\xe8"))
            await asyncio.sleep(0.1)
            assert await metric(app, "websockets_dropped_total") == 0
            assert await asyncio.to_thread(app.stop) == 0
            with pytest.raises(ConnectionClosed):
                await ear.recv()
            assert ear.close_code == 1012
        assert app.complaints == []


async def test_a_socket_outlives_the_limits_of_a_request(tmp_path: Path) -> None:
    limits = {"web.server.http.HEAD_TIMEOUT": 2.0, "web.server.http.BODY_LIMIT": 2.0}
    with Process(tmp_path, constants=limits) as app:
        async with listening(app, "price:A") as connection:
            await asyncio.sleep(2.5)
            await put(app, "A", "1")
            assert (await receive(connection))["data"]["price"] == "1"


async def test_who_does_not_answer_pings_any_more_is_gone_soon(
    shared: Pair, raw: Redis, tmp_path: Path
) -> None:
    """Also with something left to be read, for which a close would wait for ever."""
    limits = {
        "web.server.websockets.PING_INTERVAL": 3.0,
        "web.server.websockets.PING_TIMEOUT": 3.0,
        "web.server.transport.LINGER": 0.3,
    }
    with Process(tmp_path, REDIS_URL=shared.redis.url, ENV_NAME="mute", constants=limits) as app:
        async with reading_nothing(app, "price:A") as mute, listening(app, "price:A") as ear:
            # Sooner than the pings, or else it is dropped for that.
            await stall(app, mute, Peer(raw, "mute"), "price:A", ear)
            await until_metric(app, "websockets_open", 1)
            assert await settled(ear) == []
