"""What instances tell each other: in order, once, and with every loss told."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from conftest import Running, Server, Start, command, subscribers, until
from frames import frames
from quantdesk.redis import bus as buses
from quantdesk.redis.bus import Bus
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.wire import Subscription
from quantdesk.web.hub import Hub, Subscriber

CHANNEL = "price:A"


class Ear:
    """A subscriber, and all that it was sent."""

    def __init__(self, hub: Hub, channel: str = CHANNEL) -> None:
        self.got: list[Any] = []
        hub.open += 1
        hub.subscribe(Subscriber(self), channel)

    def write(self, data: bytes) -> None:
        self.got += [json.loads(content) for _, content in frames(data)]

    def waiting(self) -> int:
        return 0

    def abort(self) -> None:
        raise AssertionError("dropped")

    @property
    def gaps(self) -> list[int | None]:
        """How many messages were missed, each time that this was told."""
        return [message["data"]["missed"] for message in self.got if message.get("event") == "gap"]

    @property
    def data(self) -> list[Any]:
        """What the messages said."""
        return [message["data"] for message in self.got if "event" not in message]


def publish(app: Running, *values: object) -> None:
    for value in values:
        text = json.dumps({"channel": CHANNEL, "data": value})
        app.services.bus.publish(CHANNEL, text.encode())


class Clock:
    """Stands in for the module `time`; its clock stands still where a test does not move it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def pass_silence(self, app: Running, times: float) -> None:
        """Let so many times the longest silence pass, in which an instance hears itself."""
        for _ in range(round(times / 0.25)):
            self.now += buses.SILENCE / 4
            await until(lambda: app.services.bus._echo >= self.now)


async def beats(number: int) -> None:
    """Let so many heartbeats pass."""
    await asyncio.sleep(number * buses.HEARTBEAT)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Have heartbeats come often, and no silence last long unless a test says so."""
    clock = Clock()
    monkeypatch.setattr(buses, "time", clock)
    monkeypatch.setattr(buses, "HEARTBEAT", 0.2)
    return clock


@pytest.fixture
def without_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buses, "HEARTBEAT", 60.0)


@pytest.fixture
async def pair(start: Start, redis_server: Server, raw: Redis) -> tuple[Running, Running]:
    """Two instances that have heard each other."""
    one, two = await start(redis_server), await start(redis_server)
    await heard(raw, one, two)
    return one, two


async def subscribed(raw: Redis, *apps: Running) -> None:
    """Wait until instances are subscribed, and know it: before that, nobody may begin to listen."""
    await until(lambda: subscribers(raw) == len(apps))
    await until(lambda: all(app.services.bus.subscribed for app in apps))


async def heard(raw: Redis, *apps: Running) -> None:
    """Wait until instances know each other."""
    await subscribed(raw, *apps)
    ears = [Ear(app.services.hub, "price:HELLO") for app in apps]
    for app in apps:
        app.services.bus.publish("price:HELLO", b'{"data": 0}')
    await until(lambda: all(len(ear.got) == len(apps) for ear in ears))


def deafen(raw: Redis) -> None:
    """End the subscriptions of all instances, which have not noticed when this returns."""
    command(raw, "CLIENT", "KILL", "TYPE", "pubsub")


def cut_off(raw: Redis) -> None:
    """End the other connections of all instances, which have not noticed when this returns."""
    command(raw, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_messages_come_once_in_each_publishers_order(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    apps = [await start(redis_server) for _ in range(3)]
    await heard(raw, *apps)
    ears = [Ear(app.services.hub) for app in apps]
    for number in range(500):
        for index, app in enumerate(apps):
            publish(app, [index, number])
        if number % 10 == 0:
            await asyncio.sleep(0)
    await until(lambda: all(len(ear.got) >= 1500 for ear in ears))
    await asyncio.sleep(0.1)
    for ear in ears:
        for index in range(3):
            assert [n for i, n in ear.data if i == index] == list(range(500))
    assert [app.services.bus.gaps for app in apps] == [0, 0, 0]
    assert [app.services.bus.received for app in apps] == [1002, 1002, 1002]


@pytest.mark.usefixtures("quick")
async def test_what_a_lost_subscription_missed_is_told_once_with_its_number(
    pair: tuple[Running, Running], raw: Redis
) -> None:
    one, two = pair
    here, there = Ear(one.services.hub), Ear(two.services.hub)
    deafen(raw)
    publish(one, 1, 2, 3)
    await until(lambda: there.gaps == [3])
    publish(one, 4)
    await until(lambda: there.data == [4])
    await beats(4)
    assert there.gaps == [3]
    # Of the other nothing was missed.
    assert (here.gaps, here.data) == ([], [1, 2, 3, 4])
    deafen(raw)
    publish(one, 5)
    publish(two, 6)
    await until(lambda: there.gaps == [3, 1] and here.gaps == [1])


@pytest.mark.usefixtures("without_heartbeats")
async def test_the_next_message_tells_as_well_and_comes_after_that(
    pair: tuple[Running, Running], raw: Redis
) -> None:
    one, two = pair
    ear = Ear(two.services.hub)
    deafen(raw)
    publish(one, 1, 2)
    await until(lambda: subscribers(raw) == 2)
    publish(one, 3)
    await until(lambda: ear.data == [3])
    assert ear.got == [
        {"channel": CHANNEL, "event": "gap", "data": {"missed": 2}},
        {"channel": CHANNEL, "data": 3},
    ]


@pytest.mark.usefixtures("quick")
async def test_a_lost_subscription_that_missed_nothing_is_no_gap(
    pair: tuple[Running, Running], raw: Redis
) -> None:
    one, two = pair
    ears = [Ear(app.services.hub) for app in pair]
    for number in range(2):
        deafen(raw)
        await until(lambda: subscribers(raw) == 2)
        # A heartbeat of each has told the other that nothing was missed.
        peers = [peer for app in pair for peer in app.services.bus._peers.values()]
        await until(lambda peers=peers: all(peer.certain for peer in peers))  # type: ignore[misc]
        publish(one, number)
        publish(two, number)
        await until(lambda n=number: all(len(ear.got) == 2 * (n + 1) for ear in ears))  # type: ignore[misc]
    await beats(2)
    for ear in ears:
        assert len(ear.got) == 4
    assert [app.services.bus.gaps for app in pair] == [0, 0]


@pytest.mark.usefixtures("quick")
async def test_what_the_publishers_lost_connection_swallowed_is_told_by_a_heartbeat(
    pair: tuple[Running, Running], raw: Redis
) -> None:
    one, two = pair
    here, there = Ear(one.services.hub), Ear(two.services.hub)
    cut_off(raw)
    publish(one, 1, 2)
    await until(lambda: there.gaps == [2])
    await beats(4)
    assert (there.gaps, there.data) == ([2], [])
    assert (here.gaps, here.data) == ([], [1, 2])


async def test_what_was_said_while_redis_was_down_is_told_by_a_heartbeat_after_its_return(
    pair: tuple[Running, Running], redis_server: Server
) -> None:
    assert buses.HEARTBEAT + buses.RESUBSCRIBE_DELAY < 2.0
    one, two = pair
    here, there = Ear(one.services.hub), Ear(two.services.hub)
    redis_server.kill()
    publish(one, 1)
    await one.until_available(False)
    publish(one, 2, 3)
    redis_server.start()
    await asyncio.gather(one.until_available(True), two.until_available(True))
    await until(lambda: there.gaps == [3])
    assert here.data == [1, 2, 3]
    assert here.gaps == []


async def test_an_instance_that_died_after_it_spoke_unheard_is_told_of(
    quick: Clock, pair: tuple[Running, Running], raw: Redis
) -> None:
    one, two = pair
    ear = Ear(two.services.hub)
    deafen(raw)
    publish(one, 1)
    await one.services.gateway.call("PING")  # behind the message
    await one.services.bus.stop()
    await one.services.gateway.stop()
    await until(lambda: not two.services.bus.subscribed)
    await until(lambda: two.services.bus.subscribed)
    await quick.pass_silence(two, 0.75)
    await beats(2)
    assert ear.gaps == []
    await quick.pass_silence(two, 0.5)
    await until(lambda: ear.gaps == [None])
    await quick.pass_silence(two, 2)
    await beats(2)
    assert ear.gaps == [None]


async def test_an_instance_that_dies_heard_by_all_is_no_gap(
    quick: Clock, pair: tuple[Running, Running]
) -> None:
    one, two = pair
    ear = Ear(two.services.hub)
    publish(one, 1)
    await until(lambda: ear.data == [1])
    await one.services.bus.stop()
    await one.services.gateway.stop()
    await quick.pass_silence(two, 2)
    await beats(2)
    assert ear.gaps == []


@pytest.mark.usefixtures("quick")
async def test_the_numbers_of_two_publishers_do_not_mix(
    pair: tuple[Running, Running], start: Start, redis_server: Server, raw: Redis
) -> None:
    one, two = pair
    publish(one, *range(50))
    others = {entry["id"] for entry in raw.client_list(_type="pubsub")}
    three = await start(redis_server)
    await heard(raw, one, two, three)
    ear = Ear(three.services.hub)
    (its_own,) = {entry["id"] for entry in raw.client_list(_type="pubsub")} - others
    command(raw, "CLIENT", "KILL", "ID", its_own)
    publish(one, 1, 2, 3, 4, 5)
    publish(two, 1, 2)
    await until(lambda: len(ear.gaps) == 2)
    assert set(ear.gaps) == {5, 2}
    publish(one, 6)
    publish(two, 3)
    await until(lambda: len(ear.data) == 2)
    assert len(ear.gaps) == 2
    assert [app.services.bus.gaps for app in pair] == [0, 0]


@pytest.mark.usefixtures("quick")
async def test_a_newcomer_is_not_told_of_what_was_before_it(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    one = await start(redis_server)
    await until(lambda: subscribers(raw) == 1)
    publish(one, *range(20))
    two = await start(redis_server)
    await subscribed(raw, one, two)
    ear = Ear(two.services.hub)
    await until(lambda: len(two.services.bus._peers) == 1)
    publish(one, 20)
    await until(lambda: ear.data == [20])
    assert ear.gaps == []


@pytest.mark.usefixtures("quick")
async def test_who_listened_before_the_first_subscription_is_told(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    """Both began while Redis was away, so neither has ever heard of the other."""
    redis_server.kill()
    one, two = await start(redis_server), await start(redis_server)
    ear = Ear(two.services.hub)
    publish(one, 1, 2)
    redis_server.start()
    await until(lambda: ear.gaps == [None])
    await beats(4)
    assert ear.gaps == [None]


@pytest.mark.usefixtures("quick")
async def test_a_newcomer_that_spoke_while_nobody_heard_it_is_told_of(
    start: Start, redis_server: Server, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start(redis_server)
    await subscribed(raw, one)
    ear = Ear(one.services.hub)
    listens = asyncio.Event()
    subscription = one.services.gateway.subscription

    async def later(heard: Callable[[list[Any]], None]) -> Subscription:
        await listens.wait()
        return await subscription(heard)

    monkeypatch.setattr(one.services.gateway, "subscription", later)
    deafen(raw)
    await until(lambda: not one.services.bus.subscribed)
    two = await start(redis_server)
    publish(two, 1)
    await two.services.gateway.call("PING")  # behind the message
    assert not one.services.bus.subscribed
    listens.set()
    await until(lambda: ear.gaps == [None])
    publish(two, 2)
    await until(lambda: ear.data == [2])
    assert ear.gaps == [None]


@pytest.mark.usefixtures("quick")
async def test_junk_on_the_channels_does_no_harm(
    pair: tuple[Running, Running], raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair
    ear = Ear(two.services.hub)
    received = two.services.bus.received
    source = b"0123456789abcdef"
    for junk in (
        b"",
        b" ",
        b"   ",
        b"\xff\xfe \xff",
        b"price",
        # What releases before sent.
        b'{"source":"0123456789abcdef0123456789abcdef","topic":"invalidate","key":"qd:x"}',
        b'{"source": "0123456789abcdef", "topic": "reset-stats", "key": ""}',
        source,
        source + b" 5",
        source + b" 5 ",
        source + b" -5 x",
        source + b" 5.0 x",
        source + b" \xd9\xa5 x",
        source + b"  5 x",
        source + b" " + b"9" * 19 + b" x",
        source + b" " + b"9" * 5000 + b" x",
        source.upper() + b" 5 x",
        source + b"0 5 x",
        b"me 5 x",
    ):
        for channel in ("control", f"ws:{CHANNEL}", "ws:", "ws", "price:A", "ws:\xff"):
            raw.publish(f"qd:development:{channel}", junk)
    # Well formed, but about nothing that is known here.
    raw.publish("qd:development:control", source + b" 1 no-such-topic")
    raw.publish("qd:development:nowhere", source + b" 2 x")
    publish(one, 1)
    await until(lambda: ear.got != [])
    assert ear.got == [{"channel": CHANNEL, "data": 1}]
    assert two.services.bus.received == received + 3
    assert [app.services.bus.gaps for app in pair] == [0, 0]
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


class Proxy:
    """A way to Redis that can stop passing on what belongs to the subscriptions it has."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._subscriptions: set[asyncio.StreamWriter] = set()
        self._frozen: set[asyncio.StreamWriter] = set()
        self.subscriptions = 0

    def freeze(self) -> None:
        self._frozen |= self._subscriptions

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                if b"PSUBSCRIBE" in data:
                    self._subscriptions.add(writer)
                    self.subscriptions += 1
                if writer not in self._frozen:
                    sink.write(data)
            sink.close()

        pumps = (pump(reader, redis_writer), pump(redis_reader, writer))
        await asyncio.gather(*pumps, return_exceptions=True)


@asynccontextmanager
async def proxy(redis: Server) -> AsyncIterator[tuple[Proxy, str]]:
    made = Proxy(redis.port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        yield made, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_subscription_that_died_in_silence_is_renewed_and_its_losses_told(
    quick: Clock, start: Start, redis_server: Server, raw: Redis
) -> None:
    async with proxy(redis_server) as (way, url):
        one, two = await start(redis_server), await start(url)
        await heard(raw, one, two)
        ear = Ear(two.services.hub)
        way.freeze()
        publish(one, 1, 2)
        await quick.pass_silence(one, 0.75)
        await beats(2)
        assert (ear.gaps, way.subscriptions) == ([], 1)
        await quick.pass_silence(one, 0.5)
        await until(lambda: ear.gaps == [2])
        publish(one, 3)
        await until(lambda: ear.data == [3])
        assert two.services.gateway.available
        assert way.subscriptions == 2
        await one.services.bus.stop()
        await two.services.bus.stop()
        await two.services.gateway.stop()


async def test_a_subscription_that_lives_is_kept(
    quick: Clock, pair: tuple[Running, Running], raw: Redis
) -> None:
    before = {entry["id"] for entry in raw.client_list(_type="pubsub")}
    one, two = pair
    for _ in range(8):
        await quick.pass_silence(one, 0.25)
        await until(lambda: two.services.bus._echo >= quick.now)
    assert {entry["id"] for entry in raw.client_list(_type="pubsub")} == before


class Heard:
    """A bus that listens, to one other instance that has said hello, and what it told of it."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.ear = Ear(self.hub)
        self._bus = Bus(Gateway(None, "test"), self.hub, "test")
        self._bus._handle([b"psubscribe", b"qd:test:*", 1])

    def hear(self, source: bytes, number: int, body: bytes) -> None:
        channel = b"qd:test:control" if body == b"beat" else b"qd:test:ws:price:A"
        message = b"%b %d %b" % (source, number, body)
        self._bus._handle([b"pmessage", b"qd:test:*", channel, message])

    def forget(self) -> None:
        """Lose the subscription, and have it again."""
        self._bus._interrupted()
        self._bus._handle([b"psubscribe", b"qd:test:*", 1])


# What one of two instances does: speak or only beat; and whether it is heard. Or a break.
_EVENT = st.tuples(st.sampled_from((b"a" * 16, b"b" * 16)), st.booleans(), st.booleans())


@given(st.lists(st.one_of(_EVENT, st.none()), max_size=60))
@settings(deadline=None)
async def test_a_gap_is_told_if_and_only_if_something_was_lost(
    events: list[tuple[bytes, bool, bool] | None],
) -> None:
    heard = Heard()
    numbers: dict[bytes, int] = {}
    lost: dict[bytes, int] = {}
    told: list[int | None] = []
    for source in (b"a" * 16, b"b" * 16):
        heard.hear(source, 0, b"beat")
        numbers[source] = lost[source] = 0
    body = b'{"data": 0}'
    for event in events:
        if event is None:
            heard.forget()
            continue
        source, speaks, arrives = event
        numbers[source] += speaks
        if arrives:
            heard.hear(source, numbers[source], body if speaks else b"beat")
            if lost[source]:
                told.append(lost[source])
            lost[source] = 0
        else:
            lost[source] += speaks
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert heard.ear.gaps == told
    arrived = sum(1 for event in events if event and event[1] and event[2])
    assert len(heard.ear.data) == arrived
