"""Rate limits: who is counted as one client, how many requests pass, and what a refusal costs."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from litestar.types import Scope
from redis import Redis

from conftest import AUTH, HANG, Running, Server, Start, command, expires_as_set, free_port
from quantdesk.redis import limits
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.limits import Decision, Limiter
from quantdesk.redis.scripts import TAKE
from quantdesk.redis.wire import Done, Word
from quantdesk.settings import RateLimit, load_settings
from quantdesk.web.clients import identifier

CLIENT = "192.0.2.1"
KEY = f"qd:development:ratelimit:{CLIENT}"
PRICE = "/api/prices/BTC-USD"
PORTFOLIO = "/api/portfolio"
# What an application sends without being asked anything.
UNASKED = {"cmdstat_ping", "cmdstat_unlink", "cmdstat_publish", "cmdstat_psubscribe"}


async def ask(
    app: Running,
    path: str,
    client: str = CLIENT,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    transport = httpx.ASGITransport(app.app, client=(client, 50000))  # type: ignore[arg-type]  # httpx' types know plain dicts only
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as caller:
        # As written: httpx would take what begins with // for a host.
        return await caller.request(method, f"http://test{path}", headers=headers)


async def ask_often(app: Running, path: str, times: int) -> list[httpx.Response]:
    return list(await asyncio.gather(*(ask(app, path) for _ in range(times))))


def passed(answers: list[httpx.Response]) -> int:
    return sum(answer.status_code != 429 for answer in answers)


def told(answer: httpx.Response) -> tuple[int, int, int]:
    names = ("Limit", "Remaining", "Reset")
    limit, remaining, reset = (int(answer.headers[f"RateLimit-{name}"]) for name in names)
    return limit, remaining, reset


class Clock:
    """Stands in for the module `time`; its clock stands still where a test does not move it."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which limits are kept in memory."""
    made = Clock()
    monkeypatch.setattr(limits, "time", made)
    return made


def seconds_left(window: int, since: float) -> range:
    """How many seconds may be told of a window that began after `since`, which is monotonic."""
    return range(window - math.ceil(time.monotonic() - since), window + 1)


@pytest.mark.parametrize("path", [PRICE, PORTFOLIO, "/api/nowhere"])
async def test_exactly_as_many_as_allowed_pass(
    start: Start, redis_server: Server, raw: Redis, path: str
) -> None:
    app = await start(redis_server, RATE_LIMIT="30/hour")
    began, moment = time.monotonic(), time.time()
    answers = await ask_often(app, path, 100)
    assert passed(answers) == 30
    remaining = [told(answer)[1] for answer in answers if answer.status_code != 429]
    assert sorted(remaining) == list(range(30))
    for answer in answers:
        limit, left, reset = told(answer)
        assert limit == 30
        assert reset in seconds_left(3600, began)
        assert left == 0 or answer.status_code != 429
    assert raw.get(KEY) == b"30"
    assert expires_as_set(raw, KEY, 3600, moment)


async def test_instances_count_together(start: Start, redis_server: Server) -> None:
    apps = [await start(redis_server, RATE_LIMIT="30/hour") for _ in range(2)]
    answers = await asyncio.gather(*(ask(apps[n % 2], PRICE) for n in range(80)))
    assert passed(answers) == 30
    remaining = sorted(told(answer)[1] for answer in answers if answer.status_code != 429)
    assert remaining == list(range(30))


async def test_refusal_has_the_shape_of_an_error_and_says_when_to_come_back(
    start: Start, redis_server: Server
) -> None:
    app = await start(redis_server, RATE_LIMIT="2/hour")
    for path in (PRICE, PORTFOLIO):
        assert (await ask(app, path)).status_code != 429
    for path in (PRICE, PORTFOLIO, "/api/nowhere"):
        refused = await ask(app, path)
        assert refused.status_code == 429
        assert refused.headers["Content-Type"] == "application/json"
        assert refused.headers["Retry-After"] == refused.headers["RateLimit-Reset"]
        assert told(refused)[:2] == (2, 0)
        body = refused.json()
        assert (body["success"], body["error"]["code"]) == (False, "too_many_requests")
        assert set(body["error"]) == {"code", "message"}
    families = (await ask(app, "/metrics")).text
    assert 'http_requests_total{method="GET",route="/api/prices/{symbol}",status="429"}' in families


async def test_nobody_is_told_to_come_back_after_no_time_at_all(
    start: Start, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:

    class LastMoment:
        """The count is real; 0 ms, as in a window's last millisecond, are put in."""

        def submit(self, gateway: Gateway, done: Done, *arguments: Word) -> None:
            TAKE.submit(gateway, lambda reply: done([*reply[:2], 0]), *arguments)

    monkeypatch.setattr(limits, "TAKE", LastMoment())
    app = await start(redis_server, RATE_LIMIT="2/hour")
    answers = [await ask(app, PRICE) for _ in range(3)]
    assert passed(answers) == 2
    assert answers[-1].headers["Retry-After"] == "1"
    assert [told(answer)[2] for answer in answers] == [1, 1, 1]


async def test_refused_requests_do_not_prolong_the_window(
    start: Start, redis_server: Server, raw: Redis, clock: Clock
) -> None:
    apps = [await start(redis_server, RATE_LIMIT="3/hour") for _ in range(2)]
    began = clock.now
    statuses = [(await ask(apps[n % 2], PRICE)).status_code for n in range(3)]
    assert statuses == [404] * 3
    end = raw.pexpiretime(KEY)
    for number in range(30):
        # (Each has been refused once before.)
        clock.now += 100 if number > 1 else 0
        assert (await ask(apps[number % 2], PRICE)).status_code == 429
    assert raw.pexpiretime(KEY) == end
    # Neither did they in the memory of an instance: once Redis' window has ended, so have theirs.
    raw.delete(KEY)
    assert (await ask(apps[0], PRICE)).status_code == 429
    clock.now = began + 3601
    moment = time.time()
    assert passed([await ask(app, PRICE) for app in apps]) == 2
    # Those were the first of a whole window.
    assert passed(await ask_often(apps[0], PRICE, 10)) == 1
    assert expires_as_set(raw, KEY, 3600, moment)


async def test_window_ends_by_itself(start: Start, redis_server: Server) -> None:
    app = await start(redis_server, RATE_LIMIT="3/second")
    began = time.monotonic()
    assert passed(await ask_often(app, PRICE, 10)) >= 3
    while (await ask(app, PRICE)).status_code == 429:  # noqa: ASYNC110  # what is polled is the limit
        await asyncio.sleep(0.005)
    assert time.monotonic() - began > 0.99


@pytest.mark.parametrize("path", [PRICE, PORTFOLIO])
async def test_flood_of_a_refused_client_costs_redis_nothing(
    start: Start, redis_server: Server, raw: Redis, path: str
) -> None:
    app = await start(redis_server, RATE_LIMIT="5/hour")
    assert passed(await ask_often(app, path, 10)) == 5
    raw.config_resetstat()
    assert passed(await ask_often(app, path, 200)) == 0
    used = set(raw.info("commandstats")) - UNASKED
    assert used <= {"cmdstat_config|resetstat", "cmdstat_info"}


@pytest.mark.parametrize("path", ["/health", "/metrics", "/api/redis/health"])
async def test_those_who_ask_after_health_are_not_limited(
    start: Start, redis_server: Server, raw: Redis, path: str
) -> None:
    app = await start(redis_server, RATE_LIMIT="1/hour")
    answers = [await ask(app, path) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert "RateLimit-Limit" not in answers[0].headers
    assert not raw.exists(KEY)
    # Nor does a client that has used up its limit lose sight of the health.
    assert passed(await ask_often(app, PRICE, 3)) == 1
    assert (await ask(app, path)).status_code == 200


@pytest.mark.parametrize("path", [f"/{PRICE}", f"/{PORTFOLIO}", "/api//portfolio", f"{PRICE}/"])
async def test_no_spelling_of_a_path_gets_round_the_limit(
    start: Start, redis_server: Server, path: str
) -> None:
    app = await start(redis_server, RATE_LIMIT="2/hour")
    answers = await ask_often(app, path, 5)
    assert passed(answers) == 2
    assert (await ask(app, PRICE)).status_code == 429


@pytest.mark.parametrize(("method", "path"), [("PUT", PRICE), ("GET", PRICE), ("GET", PORTFOLIO)])
async def test_who_shows_the_admin_token_is_told_but_not_counted(
    start: Start, redis_server: Server, method: str, path: str
) -> None:
    app = await start(redis_server, RATE_LIMIT="3/hour")
    for _ in range(5):
        answer = await ask(app, path, method=method, headers=AUTH)
        assert answer.status_code != 429
        assert told(answer)[:2] == (3, 3)
    assert told(await ask(app, PRICE))[1] == 2
    assert told(await ask(app, path, method=method, headers=AUTH))[1] == 2
    assert passed(await ask_often(app, PRICE, 5)) == 2
    answer = await ask(app, path, method=method, headers=AUTH)
    assert (answer.status_code == 429, told(answer)[1]) == (False, 0)


async def test_a_wrong_token_is_counted(start: Start, redis_server: Server) -> None:
    app = await start(redis_server, RATE_LIMIT="3/hour")
    wrong = {"Authorization": "Bearer wrong"}
    answers = [await ask(app, PRICE, method="PUT", headers=wrong) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 2
    assert [told(answer)[1] for answer in answers] == [2, 1, 0, 0, 0]


async def test_without_redis_each_instance_counts_by_itself(
    start: Start, redis_server: Server
) -> None:
    apps = [await start(redis_server, RATE_LIMIT="10/hour") for _ in range(2)]
    redis_server.kill()
    for app in apps:
        began = time.monotonic()
        answers = await ask_often(app, PRICE, 30)
        assert passed(answers) == 10
        remaining = sorted(told(answer)[1] for answer in answers if answer.status_code != 429)
        assert remaining == list(range(10))
        refused = await ask(app, PORTFOLIO)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) in seconds_left(3600, began)


async def test_window_without_redis_ends_too(start: Start, clock: Clock) -> None:
    app = await start(RATE_LIMIT="3/second")
    for _ in range(2):
        assert passed(await ask_often(app, PRICE, 10)) == 3
        clock.now += 0.99
        assert passed(await ask_often(app, PRICE, 10)) == 0
        clock.now += 0.01


async def test_counting_costs_nothing_while_redis_is_away(start: Start) -> None:
    app = await start(f"redis://127.0.0.1:{free_port()}", RATE_LIMIT="1000000/hour")
    limiter = app.services.limiter
    started = time.thread_time()
    decisions = [limiter.take(CLIENT) for _ in range(2000)]
    assert (time.thread_time() - started) / 2000 < 0.0005
    # Not even a turn of the event loop.
    assert all(isinstance(decision, Decision) for decision in decisions)


async def test_redis_counts_again_when_it_is_back(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    apps = [await start(redis_server, RATE_LIMIT="10/hour") for _ in range(2)]
    redis_server.kill()
    for app in apps:
        assert passed(await ask_often(app, PRICE, 4)) == 4
    redis_server.start()
    for app in apps:
        await app.until_available(True)
    answers = await asyncio.gather(*(ask(apps[n % 2], PRICE) for n in range(30)))
    assert passed(answers) == 10
    assert raw.get(KEY) == b"10"


async def test_where_redis_refuses_scripts_the_instance_counts(
    start: Start, redis_server: Server, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    rules = "~qd:* &qd:* +ping +get +unlink +publish +psubscribe"
    command(raw, "ACL", "SETUSER", "app", "on", ">pw", *rules.split())
    url = f"redis://app:pw@127.0.0.1:{redis_server.port}"
    app = await start(url, RATE_LIMIT="10/hour")
    answers = await ask_often(app, PORTFOLIO, 15) + [await ask(app, PORTFOLIO) for _ in range(3)]
    assert passed(answers) == 10
    assert app.services.gateway.available
    refusals = [r for r in caplog.records if r.getMessage() == "Redis refuses commands"]
    assert len(refusals) == 1
    assert vars(refusals[0])["reason"] == "NOPERM"


async def test_scripts_that_redis_forgot_are_sent_again(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, RATE_LIMIT="20/hour")
    answers = []
    for _ in range(6):
        answers += await ask_often(app, PRICE, 5)
        raw.script_flush()
    assert passed(answers) == 20
    remaining = sorted(told(answer)[1] for answer in answers if answer.status_code != 429)
    assert remaining == list(range(20))
    assert raw.get(KEY) == b"20"


@pytest.mark.parametrize("seconds", [None, 60])
async def test_junk_in_place_of_a_counter_lets_nobody_through(
    start: Start, redis_server: Server, raw: Redis, seconds: int | None
) -> None:
    app = await start(redis_server, RATE_LIMIT="5/hour")
    raw.set(KEY, "junk", ex=seconds)
    assert passed(await ask_often(app, PRICE, 20)) == 5
    assert app.services.gateway.available


async def test_counter_that_would_never_expire_begins_anew(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, RATE_LIMIT="5/hour")
    raw.set(KEY, "5")
    assert passed(await ask_often(app, PRICE, 20)) == 5
    assert int(raw.pttl(KEY)) > 0


async def test_many_clients_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CLIENTS", 100)
    limiter = Limiter(Gateway(None, "test"), "test", RateLimit(1, 60))

    def allowed(number: int) -> bool:
        decision = limiter.take(str(number))
        assert isinstance(decision, Decision)
        return decision.allowed

    assert all(allowed(number) for number in range(150))
    assert not any(allowed(number) for number in range(50, 150))
    assert allowed(0)
    # Which made room for itself: no more than a hundred are ever known.
    assert [allowed(51), allowed(50)] == [False, True]


async def test_flood_of_clients_stays_cheap() -> None:
    limiter = Limiter(Gateway(None, "test"), "test", RateLimit(1, 3600))
    for number in range(limits.MAX_CLIENTS):
        limiter.take(str(number))
    started = time.thread_time()
    for number in range(2000):
        limiter.take(f"another-{number}")
    assert (time.thread_time() - started) / 2000 < 0.0005


def scope(peer: str | None, *forwarded: str) -> Scope:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    client = None if peer is None else (peer, 50000)
    made: Scope = {"type": "http", "client": client, "headers": headers}  # type: ignore[assignment]  # what is read of it
    return made


PROXIES = ("10.0.0.0/8", "2001:db8:ffff::/48", "127.0.0.1/32")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        # Nobody else is believed.
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        ("11.0.0.1", ["203.0.113.9"], "11.0.0.1"),
        # A proxy is.
        ("10.0.0.5", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:10.0.0.5", ["203.0.113.9"], "203.0.113.9"),
        ("2001:db8:ffff::1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.5", [], "10.0.0.5"),
        ("10.0.0.5", [""], "10.0.0.5"),
        ("10.0.0.5", [" , ,"], "10.0.0.5"),
        # The last hop that is none of ours, whatever the client wrote before it.
        ("10.0.0.5", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.5", ["1.1.1.1, 203.0.113.9, 10.0.0.7"], "203.0.113.9"),
        ("10.0.0.5", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.5", ["10.0.0.9, 203.0.113.9,10.1.1.1 ,10.0.0.7"], "203.0.113.9"),
        ("10.0.0.5", [", ".join(["1.1.1.1"] * 500) + ", 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.5", ["10.0.0.8, 10.0.0.7"], "10.0.0.8"),
        # Some proxies add the client's port.
        ("10.0.0.5", ["203.0.113.7:4711"], "203.0.113.7"),
        ("10.0.0.5", ["[2001:db8::7]:4711"], "2001:db8::"),
        ("10.0.0.5", ["[2001:db8::7]"], "2001:db8::"),
        ("10.0.0.5", ["203.0.113.9:1, 10.0.0.7:2"], "203.0.113.9"),
        ("10.0.0.5", ["203.0.113.9, [2001:db8:ffff::9]:2"], "203.0.113.9"),
        ("10.0.0.5", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("10.0.0.5", ["203.0.113.7:"], "unknown"),
        ("10.0.0.5", ["203.0.113.7:http"], "unknown"),
        ("10.0.0.5", ["[2001:db8::7"], "unknown"),
        ("10.0.0.5", ["[2001:db8::7]x"], "unknown"),
        # What is no address does not stand for the one before it.
        ("10.0.0.5", ["203.0.113.9, garbage"], "unknown"),
        ("10.0.0.5", ["203.0.113.9, 203.0.113.300"], "unknown"),
        ("10.0.0.5", ["203.0.113.9, \xff\x01"], "unknown"),
        ("10.0.0.5", ["203.0.113.9, garbage, 10.0.0.7"], "unknown"),
        ("10.0.0.5", ["garbage, 203.0.113.9"], "203.0.113.9"),
        # One network is one client, one address in two spellings too.
        ("2001:db8:0:1::1", [], "2001:db8:0:1::"),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", [], "2001:db8:0:1::"),
        ("2001:db8:0:2::1", [], "2001:db8:0:2::"),
        ("10.0.0.5", ["2001:DB8:0:1::1"], "2001:db8:0:1::"),
        ("fe80::1%eth0", [], "fe80::"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        # A socket without addresses.
        (None, [], "unknown"),
        (None, ["203.0.113.9"], "unknown"),
    ],
)
def test_who_the_client_is(peer: str | None, forwarded: list[str], expected: str) -> None:
    assert identifier(PROXIES)(scope(peer, *forwarded)) == expected


@given(
    st.lists(st.one_of(st.text(max_size=50), st.ip_addresses().map(str)), max_size=30),
    st.ip_addresses(v=4, network="203.0.113.0/24"),
    st.lists(st.ip_addresses(v=4, network="10.0.0.0/8").map(str), max_size=5),
)
def test_nothing_that_a_client_writes_changes_who_it_is(
    claimed: list[str], address: object, proxies: list[str]
) -> None:
    header = ",".join([*claimed, str(address), *proxies])
    value = header.encode("utf-8", "surrogatepass").decode("latin-1")
    assert identifier(PROXIES)(scope("10.0.0.5", value)) == str(address)


async def test_without_trusted_proxies_no_header_makes_another_client(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, RATE_LIMIT="5/hour")
    names = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP")
    answers = [
        await ask(app, PRICE, headers={name: f"203.0.113.{number}"})
        for number in range(3)
        for name in names
    ]
    assert passed(answers) == 5
    assert raw.keys("*ratelimit*") == [KEY.encode()]


async def test_clients_behind_a_trusted_proxy_are_counted_apart(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, RATE_LIMIT="2/hour", TRUSTED_PROXIES=CLIENT)
    passes: dict[str, int] = {}
    for number in range(5):
        for client in ("203.0.113.1", "203.0.113.2"):
            header = {"X-Forwarded-For": f"198.51.100.{number}, {client}"}
            answer = await ask(app, PRICE, headers=header)
            passes[client] = passes.get(client, 0) + (answer.status_code != 429)
    assert passes == {"203.0.113.1": 2, "203.0.113.2": 2}
    assert raw.dbsize() == 2


async def test_addresses_of_one_ipv6_network_are_one_client(
    start: Start, redis_server: Server
) -> None:
    app = await start(redis_server, RATE_LIMIT="5/hour")
    one = [await ask(app, PRICE, f"2001:db8::{number:x}") for number in range(1, 10)]
    other = [await ask(app, PRICE, f"2001:db8:0:1::{number:x}") for number in range(1, 10)]
    assert (passed(one), passed(other)) == (5, 5)


@asynccontextmanager
async def limiters(server: Server, limit: RateLimit) -> AsyncIterator[list[Limiter]]:
    """Two instances' limiters on one Redis, as two processes have them."""
    redis = load_settings({"REDIS_URL": server.url, "DATABASE_URL": "sqlite:////tmp/x.db"}).redis
    gateways = [Gateway(redis, "test") for _ in range(2)]
    for gateway in gateways:
        await gateway.start(HANG)
    try:
        yield [Limiter(gateway, "test", limit) for gateway in gateways]
    finally:
        for gateway in gateways:
            await gateway.stop()


async def take(limiter: Limiter, client: str) -> Decision:
    decision = limiter.take(client)
    return decision if isinstance(decision, Decision) else await decision


LIMIT = 5
_clients = count()
# Bursts of one client: when each comes, and which of two instances each request of it goes to.
_bursts = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.01, 0.3, 0.9, 1.1, 1.5, 2.0, 2.2]),
        st.lists(st.integers(0, 1), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=8,
).map(sorted)


def window(raw: Redis, key: str) -> tuple[float, int]:
    """When a window ends, by the wall clock and below zero where there is none; and its count."""
    with raw.pipeline(transaction=True) as pipeline:
        pipeline.pexpiretime(key)
        pipeline.get(key)
        end, count = pipeline.execute()
    return int(end) / 1000, int(count or 0)


async def arrive(
    instances: list[Limiter], raw: Redis, bursts: list[tuple[float, list[int]]]
) -> None:
    client = f"client-{next(_clients)}"
    key = f"qd:test:ratelimit:{client}"
    began = time.monotonic()
    passes: list[tuple[float, float]] = []
    # Until when an instance may believe in a window: by as much longer than it lasts as the
    # instance took to hear of it.
    believed: dict[float, float] = {}
    for moment, burst in bursts:
        await asyncio.sleep(began + moment - time.monotonic())
        before = window(raw, key)
        asked, asked_at = time.monotonic(), time.time()
        decisions = await asyncio.gather(*(take(instances[n], client) for n in burst))
        answered = time.monotonic()
        after = window(raw, key)
        allowed = sum(decision.allowed for decision in decisions)
        passes += [(asked, answered)] * allowed
        assert after[1] <= LIMIT
        for decision in decisions:
            assert 0 <= decision.remaining < LIMIT
            assert decision.reset <= 1
        earlier = [until for end, until in believed.items() if end != after[0]]
        if all(until < asked_at for until in earlier):
            if before[0] > 0 and after[0] == before[0]:
                # All of it in one window: whoever fits in passes, and nobody else.
                assert allowed == min(len(burst), LIMIT - before[1])
                assert after[1] == before[1] + allowed
            elif before[0] < 0 < after[0] < asked_at + 1.9:
                # All of it in a new window, and that is not the second since.
                assert allowed == min(len(burst), LIMIT)
                assert after[1] == allowed
        for end in (before[0], after[0]):
            believed[end] = max(believed.get(end, 0.0), end + answered - asked + 0.01)
    # Two windows' worth and one more can't come within less time than one window takes.
    for first, last in zip(passes, passes[2 * LIMIT :], strict=False):
        assert last[1] - first[0] >= 0.99


@settings(
    max_examples=3,
    deadline=None,
    # Not made smaller: it takes long, and what happens depends on the moment as well.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(clients=st.lists(_bursts, min_size=20, max_size=30))
async def test_no_arrival_pattern_gets_more_through_a_window_than_allowed(
    redis_server: Server, raw: Redis, clients: list[list[tuple[float, list[int]]]]
) -> None:
    async with limiters(redis_server, RateLimit(LIMIT, 1)) as instances:
        await asyncio.gather(*(arrive(instances, raw, bursts) for bursts in clients))


async def test_what_is_used_up_stays_so_when_redis_goes_away(redis_server: Server) -> None:
    async with limiters(redis_server, RateLimit(LIMIT, 3600)) as instances:
        for instance in instances:
            await asyncio.gather(*(take(instance, CLIENT) for _ in range(LIMIT + 1)))
        redis_server.kill()
        for instance in instances:
            decisions = await asyncio.gather(*(take(instance, CLIENT) for _ in range(10)))
            assert not any(decision.allowed for decision in decisions)
