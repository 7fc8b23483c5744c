"""The connection that pipelines by itself, against real Redis and against peers that misbehave."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from conftest import HANG, Server, command, until
from quantdesk.redis import wire as wires
from quantdesk.redis.wire import ReplyError, Subscription, Wire, WireFull, WireLost, open_wire, pack

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def connect(port: int, *greetings: tuple[str, ...], make: Callable[[], Wire] = Wire) -> Wire:
    return await open_wire(
        make, "127.0.0.1", port, tls=None, within=HANG, greetings=list(greetings)
    )


@asynccontextmanager
async def peer(serve: Peer) -> AsyncIterator[int]:
    """A server on loopback that speaks as a test says."""

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_replies_come_in_the_order_of_the_commands(redis_server: Server) -> None:
    wire = await connect(redis_server.port)
    answers = await asyncio.gather(*(wire.call("ECHO", str(number)) for number in range(5000)))
    assert answers == [str(number).encode() for number in range(5000)]
    wire.close()


async def test_what_one_turn_asks_for_leaves_in_one_write() -> None:
    chunks: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks.append(await reader.read(100_000))
        writer.write(b"+PONG\r\n" * chunks[0].count(b"PING"))
        await reader.read(1)

    async with peer(serve) as port:
        wire = await connect(port)
        assert await asyncio.gather(*(wire.call("PING") for _ in range(50))) == [b"PONG"] * 50
        wire.close()
    assert len(chunks) == 1


async def test_an_error_in_the_middle_concerns_its_command_alone(redis_server: Server) -> None:
    wire = await connect(redis_server.port)
    answers = await asyncio.gather(
        wire.call("SET", "list-not", "1"),
        wire.call("LPUSH", "list-not", "1"),
        wire.call("GET", "list-not"),
        wire.call("NO-SUCH-COMMAND"),
        wire.call("EVAL", "return {1, {redis.error_reply('ODD inner')}, 'x'}", 0),
        wire.call("PING"),
        return_exceptions=True,
    )
    assert answers[0] == b"OK"
    assert isinstance(answers[1], ReplyError)
    assert answers[1].code == "WRONGTYPE"
    assert answers[2] == b"1"
    assert isinstance(answers[3], ReplyError)
    assert answers[3].code == "ERR"
    assert isinstance(answers[4], list)
    assert answers[4][0] == 1
    assert isinstance(answers[4][1][0], ReplyError)
    assert answers[5] == b"PONG"
    wire.close()


async def test_a_caller_that_gives_up_shifts_nobodys_reply(redis_server: Server) -> None:
    wire = await connect(redis_server.port)
    tasks = [asyncio.create_task(wire.call("ECHO", str(number))) for number in range(200)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 3:
            assert answer == str(number).encode()
        else:
            assert isinstance(answer, asyncio.CancelledError)
    assert await wire.call("ECHO", "after") == b"after"
    wire.close()


async def test_a_failing_callback_shifts_nobodys_reply(redis_server: Server) -> None:
    wire = await connect(redis_server.port)
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))

    def fail(_: object) -> None:
        raise ValueError("on purpose")

    wire.send(pack("ECHO", "one"), fail)
    assert await wire.call("ECHO", "two") == b"two"
    assert [str(complaint["exception"]) for complaint in complaints] == ["on purpose"]
    wire.close()


async def test_a_killed_connection_tells_everyone_at_once(redis_server: Server, raw: Redis) -> None:
    wire = await connect(redis_server.port)
    blocked = [asyncio.create_task(wire.call("BLPOP", "nothing", "0")) for _ in range(3)]
    await asyncio.sleep(0.05)
    command(raw, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    answers = await asyncio.wait_for(asyncio.gather(*blocked, return_exceptions=True), HANG)
    assert [type(answer) for answer in answers] == [WireLost] * 3
    assert not wire.usable
    assert await wire.ended
    with pytest.raises(WireLost):
        await wire.call("PING")


async def test_silence_counts_from_the_last_sign_of_life() -> None:
    answers = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        await answers.wait()
        writer.write(b"+ONE\r\n")
        await reader.read(1)

    async with peer(serve) as port:
        wire = await connect(port)
        assert wire.stalled == 0
        loop = asyncio.get_running_loop()
        asked = loop.time()
        first, second = (asyncio.create_task(wire.call("PING")) for _ in range(2))
        await asyncio.sleep(0.1)
        assert 0.09 < wire.stalled <= loop.time() - asked
        answered = loop.time()
        answers.set()
        assert await first == b"ONE"
        assert wire.stalled <= loop.time() - answered
        wire.close("enough")
        with pytest.raises(WireLost, match="enough"):
            await second


async def test_a_peer_that_does_not_read_on_is_not_buffered_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()

    monkeypatch.setattr(wires, "MAX_UNSENT", 1_000_000)
    async with peer(serve) as port:
        wire = await connect(port)
        sent = 0

        async def send_on() -> None:
            nonlocal sent
            while True:
                wire.send(pack("SET", "key", "x" * 10_000), lambda _: None)
                sent += 1
                await asyncio.sleep(0)

        with pytest.raises(WireFull):
            await asyncio.wait_for(send_on(), HANG)
        # The socket's buffers, and then no more than the limit.
        assert 100 < sent < 2000
        wire.close()
        over.set()


async def test_too_many_commands_under_way_are_refused(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "MAX_PENDING", 10)
    wire = await connect(redis_server.port)
    calls = [asyncio.create_task(wire.call("ECHO", str(number))) for number in range(12)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[:10] == [str(number).encode() for number in range(10)]
    assert [type(answer) for answer in answers[10:]] == [WireFull] * 2
    assert await wire.call("PING") == b"PONG"
    wire.close()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not the protocol of Redis"),
        (b"+OK\r\n+unasked\r\n", "a reply that nobody asked for"),
        (b"*1\r\n*99999999999\r\n", "not the protocol of Redis"),
        (b"", "connection closed by Redis"),
    ],
)
async def test_a_peer_that_is_no_redis_is_left(said: bytes, reason: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(said)
        await writer.drain()

    async with peer(serve) as port:
        wire = await connect(port)
        try:
            await wire.call("PING")
        except WireLost as lost:
            assert str(lost) == reason  # noqa: PT017  # with "+OK" the call itself succeeds
        assert await asyncio.wait_for(asyncio.shield(wire.ended), HANG) == reason


async def test_a_refused_greeting_ends_the_attempt(make_redis: Callable[..., Server]) -> None:
    server = make_redis("--requirepass", "right")
    with pytest.raises(ReplyError) as refused:
        await connect(server.port, ("AUTH", "wrong-password"), ("SELECT", "1"))
    assert refused.value.code == "WRONGPASS"
    assert "wrong-password" not in str(refused.value)
    wire = await connect(server.port, ("AUTH", "right"), ("SELECT", "1"))
    assert await wire.call("SET", "k", "v") == b"OK"
    wire.close()
    with server.client("right") as client:
        assert client.get("k") is None
        # An attempt that failed leaves no socket behind.
        await until(lambda: len(client.client_list()) == 1)


async def test_an_attempt_takes_no_longer_than_allowed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(serve) as port:
        with pytest.raises(TimeoutError):
            await open_wire(
                Wire, "127.0.0.1", port, tls=None, within=0.1, greetings=[("AUTH", "x")]
            )


async def test_a_subscription_hears_everything_in_order(redis_server: Server, raw: Redis) -> None:
    heard: list[list[Any]] = []
    wire = await connect(redis_server.port, make=lambda: Subscription(heard.append))
    assert isinstance(wire, Subscription)
    wire.subscribe("PSUBSCRIBE", "news:*")
    await until(lambda: heard != [])
    with raw.pipeline(transaction=False) as pipeline:
        for number in range(2000):
            pipeline.publish("news:x", str(number))
        pipeline.execute()
    await until(lambda: len(heard) >= 2001)
    assert heard[0] == [b"psubscribe", b"news:*", 1]
    assert [message[3] for message in heard[1:]] == [str(n).encode() for n in range(2000)]
    wire.close()


async def test_a_refused_subscription_says_why(redis_server: Server, raw: Redis) -> None:
    command(raw, "ACL", "SETUSER", "deaf", "on", ">pw", "+psubscribe", "resetchannels")
    wire = await connect(
        redis_server.port, ("AUTH", "deaf", "pw"), make=lambda: Subscription(lambda _: None)
    )
    assert isinstance(wire, Subscription)
    wire.subscribe("PSUBSCRIBE", "*")
    assert await asyncio.wait_for(wire.ended, HANG) == "NOPERM"


# Replies of every type, nested, and how they look in Python.
_leaves = st.one_of(
    st.none(), st.integers(-(2**62), 2**62), st.binary(max_size=60), st.just(b"x" * 20_000)
)
_replies = st.recursive(_leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


def _encode(reply: object) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(_encode, reply))
    raise AssertionError(reply)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(replies=st.lists(_replies, min_size=1, max_size=20), data=st.data())
async def test_replies_survive_being_cut_anywhere(replies: list[Any], data: st.DataObject) -> None:
    stream = b"".join(map(_encode, replies))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    wire = Wire()
    heard: list[Any] = []
    for _ in replies:
        wire.send(pack("ANY"), heard.append)
    for piece in pieces:
        wire.data_received(piece)
    assert heard == replies
    assert wire.stalled == 0


@given(
    st.lists(
        st.one_of(st.binary(max_size=200), st.text(max_size=50), st.integers(-(2**63), 2**63)),
        min_size=1,
        max_size=10,
    )
)
def test_a_packed_command_is_read_back_as_it_was(words: list[Any]) -> None:
    reader = hiredis.Reader()
    reader.feed(pack(*words))
    expected = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    assert reader.gets() == expected
