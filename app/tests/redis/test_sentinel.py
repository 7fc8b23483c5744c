"""Redis behind Sentinel: the primary is found, and followed wherever it goes."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis import Redis, RedisError

from authority import LOOPBACK, Authority
from conftest import HANG, Running, Server, Start, command, free_port, state_messages, until
from quantdesk.redis import probe
from quantdesk.redis import sentinel as sentinels
from quantdesk.redis.bus import RESET_STATS
from quantdesk.redis.sentinel import NoPrimary, Primary, find_primary
from quantdesk.settings import load_settings

MASTER = "quantdesk"
READERS = 4
REDIS_PASSWORD = "redis-password"
SENTINEL_PASSWORD = "sentinel-password"
UP = "Redis connected"
DOWN = "Redis connection failed, continuing without Redis"
PRICE = "/api/prices/BTC-USD"
KEY = "qd:development:price:BTC-USD"
# Milliseconds that a Sentinel waits for a server.
PATIENCE = int(HANG * 1000)


class Sentinel:
    """A Sentinel of its own, which is Redis' server run with a configuration of its own."""

    def __init__(self, binary: str, folder: Path, primary: int, *settings: str) -> None:
        self.port = free_port()
        self._binary = binary
        self._file = folder / f"sentinel-{self.port}.conf"
        self._file.write_text(
            "\n".join(
                [
                    *(settings or (f"port {self.port}",)),
                    "bind 127.0.0.1",
                    f"requirepass {SENTINEL_PASSWORD}",
                    f"sentinel sentinel-pass {SENTINEL_PASSWORD}",
                    f"sentinel monitor {MASTER} 127.0.0.1 {primary} 2",
                    f"sentinel auth-pass {MASTER} {REDIS_PASSWORD}",
                    # No server is down just because it waits for the processor.
                    f"sentinel down-after-milliseconds {MASTER} {PATIENCE}",
                    f"sentinel failover-timeout {MASTER} {PATIENCE}",
                    "",
                ]
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._binary, str(self._file), "--sentinel"],
            cwd=self._file.parent,
            stdout=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def until_answering(self) -> None:
        deadline = time.monotonic() + HANG
        while True:
            try:
                self.ask("MYID")
            except RedisError:
                assert time.monotonic() < deadline, "the Sentinel does not start"
                time.sleep(0.05)
            else:
                return

    def ask(self, *words: str) -> Any:  # noqa: ANN401  # as various as Redis' answers
        with Redis(port=self.port, password=SENTINEL_PASSWORD, decode_responses=True) as client:
            return command(client, "SENTINEL", *words)

    def about(self) -> dict[str, str]:
        """What it knows of the primary."""
        reply = self.ask("MASTER", MASTER)
        return reply if isinstance(reply, dict) else dict(zip(*[iter(reply)] * 2, strict=True))


class Cluster:
    """A primary, a replica and three Sentinels."""

    def __init__(self, binary: str, folder: Path) -> None:
        # Fast, and with a login for everybody.
        options = ["--requirepass", REDIS_PASSWORD, "--masterauth", REDIS_PASSWORD]
        options += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        self.servers = []
        for number in range(2):
            home = folder / f"redis-{number}"
            home.mkdir()
            self.servers.append(Server(binary, home, *options))
        primary = self.servers[0].port
        self.sentinels = [Sentinel(binary, folder, primary) for _ in range(3)]

    def start(self) -> None:
        self.servers[0].start()
        self.servers[1].start("--replicaof", f"127.0.0.1 {self.servers[0].port}")
        for sentinel in self.sentinels:
            sentinel.start()
        for sentinel in self.sentinels:
            sentinel.until_answering()
            # They look round every ten seconds otherwise; and one that stood still for two does
            # nothing for thirty. For how long they let a server be that is not what they believe,
            # stays as it is: with less, a slow one undoes what another has just done.
            sentinel.ask("DEBUG", "INFO-PERIOD", "200", "TILT-TRIGGER", str(PATIENCE))
        self.until_whole()

    def stop(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
        for server in self.servers:
            server.kill()

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Have one Sentinel notice soon that the primary is down, and the others vote for it.

        With more than one, each might vote for itself, and nothing happens for a long time. And a
        replica that was without its primary for ten times as long is not promoted.
        """
        first = self.sentinels[0]
        first.ask("SET", MASTER, "quorum", "1", "down-after-milliseconds", "5000")
        try:
            yield
        finally:
            first.ask("SET", MASTER, "quorum", "2", "down-after-milliseconds", str(PATIENCE))

    @contextmanager
    def switching(self) -> Iterator[None]:
        """Have one Sentinel promote the replica while the primary is well.

        It refuses to where it has not looked at the replica for three of its periods.
        """
        first = self.sentinels[0]
        first.ask("DEBUG", "INFO-PERIOD", str(PATIENCE))
        try:
            first.ask("FAILOVER", MASTER)
            yield
        finally:
            first.ask("DEBUG", "INFO-PERIOD", "200")

    @property
    def primary(self) -> Server:
        port = int(self.sentinels[0].about()["port"])
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> Server:
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def until_whole(self) -> None:
        """Wait until a failover can follow."""
        deadline = time.monotonic() + HANG
        while not self._whole():
            assert time.monotonic() < deadline, "the cluster does not get whole"
            time.sleep(0.1)

    def _whole(self) -> bool:
        try:
            states = [sentinel.about() for sentinel in self.sentinels]
            seen = {
                (state["port"], state["flags"], state["num-slaves"], state["num-other-sentinels"])
                for state in states
            }
            if seen != {(states[0]["port"], "master", "1", "2")}:
                return False
            with self.replica.client(REDIS_PASSWORD) as client:
                found = client.info("replication")
            return bool(found["role"] == "slave" and found["master_link_status"] == "up")
        except (RedisError, KeyError):
            return False

    @property
    def environment(self) -> dict[str, str]:
        return {
            "REDIS_SENTINELS": ",".join(f"127.0.0.1:{s.port}" for s in self.sentinels),
            "REDIS_SENTINEL_MASTER": MASTER,
            "REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD,
            "REDIS_PASSWORD": REDIS_PASSWORD,
            "CACHE_TTL_PRICE": "3600",
        }


@pytest.fixture(scope="module")
def shared_cluster(
    redis_binary: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    cluster = Cluster(redis_binary, tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    shared_cluster.until_whole()
    with shared_cluster.primary.client(REDIS_PASSWORD) as client:
        client.flushall()
    return shared_cluster


class Traffic:
    """Readers and a writer that go on all the time. `failures` is what they must not see."""

    def __init__(self, app: Running) -> None:
        self.failures: list[str] = []
        self.requests = 0
        self._app = app
        self._written = 0

    async def goes_on(self, requests: int = 50) -> None:
        """Wait until so many requests that begin now are answered."""
        # Those under way are no more than the readers.
        least = self.requests + READERS + requests
        await until(lambda: self.requests >= least)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        await self._app.put_price("BTC-USD", 1)
        self._written = 1
        tasks = [asyncio.create_task(self._read()) for _ in range(READERS)]
        tasks.append(asyncio.create_task(self._write()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            assert task.cancelled(), task.exception()

    async def _read(self) -> None:
        while True:
            least = self._written
            answer = await self._app.get(PRICE)
            self.requests += 1
            if answer.status_code != 200:
                self.failures.append(answer.text)
            elif int(answer.json()["data"]["price"]) < least:
                self.failures.append(f"read {answer.text} after {least} was written")
            await asyncio.sleep(0.002)

    async def _write(self) -> None:
        while True:
            answer = await self._app.put_price("BTC-USD", self._written + 1)
            if answer.status_code != 200:
                self.failures.append(answer.text)
            self._written += 1
            await asyncio.sleep(0.02)


def listeners(raw: Redis) -> int:
    """How many instances are subscribed; each Sentinel is, too, but not to a pattern."""
    return sum(int(client["psub"]) for client in raw.client_list(_type="pubsub"))


def deserted(server: Server) -> bool:
    """Whether no instance is subscribed there. (A failover's old primary hangs up on everybody.)"""
    try:
        with server.client(REDIS_PASSWORD) as raw:
            return listeners(raw) == 0
    except RedisError:
        return False


async def hears(sender: Running, receiver: Running) -> None:
    """Wait until an announcement of one instance reaches the other."""
    deadline = time.monotonic() + HANG
    receiver.services.stats.total.hits += 1
    while receiver.services.stats.current.hits:
        assert time.monotonic() < deadline, "the announcement was not heard"
        sender.services.bus.announce(RESET_STATS)
        await asyncio.sleep(0.02)


async def test_the_primary_is_found_and_used(start: Start, cluster: Cluster) -> None:
    app = await start(**cluster.environment)
    assert app.services.gateway.available
    await app.put_price("BTC-USD", 1)
    outcomes = [(await app.get(PRICE)).headers["X-Cache"] for _ in range(2)]
    assert outcomes == ["MISS", "HIT"]
    with cluster.primary.client(REDIS_PASSWORD) as raw:
        assert raw.exists(KEY)
        await until(lambda: listeners(raw) == 1)


async def test_killed_primary_is_followed_by_the_next(
    start: Start, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    app, other = await start(**cluster.environment), await start(**cluster.environment)
    old, new = cluster.primary, cluster.replica
    traffic = Traffic(app)
    async with traffic.flowing():
        await traffic.goes_on()
        old.kill()
        await app.until_available(False)
        # No request waits for another primary.
        await traffic.goes_on()
        with cluster.noticing():
            await until(lambda: cluster.primary is new)
        await app.until_available(True)
        await traffic.goes_on()
    assert traffic.failures == []
    assert state_messages(caplog).count(DOWN) == state_messages(caplog).count(UP) / 2 == 2
    with new.client(REDIS_PASSWORD) as raw:
        await app.get(PRICE)
        assert (await app.get(PRICE)).headers["X-Cache"] == "HIT"
        assert raw.exists(KEY)
        await until(lambda: listeners(raw) == 2)
    await hears(app, other)
    await hears(other, app)
    old.start()


async def test_planned_failover_is_followed(start: Start, cluster: Cluster) -> None:
    app, other = await start(**cluster.environment), await start(**cluster.environment)
    old, new = cluster.primary, cluster.replica
    traffic = Traffic(app)
    async with traffic.flowing():
        await traffic.goes_on()
        with cluster.switching():
            await until(lambda: cluster.primary is new)
        with new.client(REDIS_PASSWORD) as raw:
            await until(lambda: listeners(raw) == 2)
            await until(lambda: bool(raw.exists(KEY)))
        await traffic.goes_on()
    assert traffic.failures == []
    await until(lambda: deserted(old))
    await hears(app, other)


async def test_a_dead_sentinel_is_done_without(start: Start, cluster: Cluster) -> None:
    cluster.sentinels[0].kill()
    try:
        app = await start(**cluster.environment)
        assert app.services.gateway.available
    finally:
        cluster.sentinels[0].start()


async def test_wrong_sentinel_password_degrades_and_says_so(
    start: Start, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(**cluster.environment | {"REDIS_SENTINEL_PASSWORD": "wrong-password"})
    await app.put_price("BTC-USD", 1)
    answer = await app.get(PRICE)
    assert (answer.status_code, answer.headers["X-Cache"]) == (200, "BYPASS")
    assert (await app.get("/health")).json()["status"] == "degraded"
    assert state_messages(caplog) == [DOWN]
    reasons = [vars(r)["reason"] for r in caplog.records if r.getMessage() == DOWN]
    assert reasons == ["no Sentinel knows the primary (WRONGPASS)"]
    assert "wrong-password" not in caplog.text


async def test_unknown_name_degrades_and_says_so(
    start: Start, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(**cluster.environment | {"REDIS_SENTINEL_MASTER": "another"})
    assert not app.services.gateway.available
    assert state_messages(caplog) == [DOWN]


async def test_sentinel_and_redis_are_asked_over_tls(
    start: Start, redis_binary: str, make_redis: Callable[..., Server], tmp_path: Path
) -> None:
    authority = Authority.make(tmp_path / "authority")
    cert, key = authority.issue("server", LOOPBACK)
    files = {"cert": cert, "key": key, "ca-cert": authority.ca_file}
    options = [word for name, path in files.items() for word in (f"--tls-{name}-file", str(path))]
    options += ["--tls-auth-clients", "no", "--requirepass", REDIS_PASSWORD]
    server = make_redis(*options, tls=True)
    port = free_port()
    settings = [f"tls-{name}-file {path}" for name, path in files.items()]
    settings += [f"tls-port {port}", "port 0", "tls-auth-clients no", "tls-replication yes"]
    sentinel = Sentinel(redis_binary, tmp_path, server.port, *settings)
    sentinel.start()
    environment = {
        "REDIS_SENTINELS": f"127.0.0.1:{port}",
        "REDIS_SENTINEL_MASTER": MASTER,
        "REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD,
        "REDIS_PASSWORD": REDIS_PASSWORD,
        "REDIS_CA_FILE": str(authority.ca_file),
        "REDIS_TLS": "true",
    }
    try:
        app = await start(**environment)
        await app.until_available(True)
        other = Authority.make(tmp_path / "other")
        distrusting = await start(**environment | {"REDIS_CA_FILE": str(other.ca_file)})
        assert not distrusting.services.gateway.available
    finally:
        sentinel.kill()


# Sentinels that say what a test has them say.

Said = Callable[[], object]
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def encode(reply: object) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case Exception():
            return b"-%b\r\n" % str(reply).encode()
        case int():
            return b":%d\r\n" % reply
        case str() | bytes():
            data = reply.encode() if isinstance(reply, str) else reply
            return b"$%d\r\n%b\r\n" % (len(data), data)
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(encode, reply))
    raise AssertionError(reply)


def names(server: Server, epoch: int, **others: object) -> list[object]:
    """What a Sentinel answers that knows this primary."""
    fields = {"name": MASTER, "ip": "127.0.0.1", "port": str(server.port), "flags": "master"}
    fields |= {"config-epoch": str(epoch)}
    return [part for field in (fields | others).items() for part in field]


@asynccontextmanager
async def scripted(*sayings: Said) -> AsyncIterator[dict[str, str]]:
    """Sentinels on loopback; yield the settings that name them, in their order."""

    def peer(said: Said) -> Peer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            parser = hiredis.Reader()
            try:
                while data := await reader.read(4096):
                    parser.feed(data)
                    while words := parser.gets():
                        assert isinstance(words, list)
                        assert words[:2] == [b"SENTINEL", b"MASTER"]
                        answer = said()
                        if answer is HANGS:
                            await reader.read()
                            return
                        writer.write(answer if isinstance(answer, bytes) else encode(answer))
            finally:
                writer.close()

        return serve

    async with AsyncExitStack() as stack:
        ports = []
        for said in sayings:
            server = await asyncio.start_server(peer(said), "127.0.0.1", 0)
            await stack.enter_async_context(server)
            ports.append(server.sockets[0].getsockname()[1])
        yield {
            "REDIS_SENTINELS": ",".join(f"127.0.0.1:{port}" for port in ports),
            "REDIS_SENTINEL_MASTER": MASTER,
        }


HANGS = object()


def uses(app: Running, server: Server) -> bool:
    """Whether the application's connection goes there."""
    with server.client() as client:
        return len(client.client_list(_type="normal")) > 1


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Sentinel asked more often than usual."""
    monkeypatch.setattr(probe, "SENTINEL_INTERVAL", 0.2)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.usefixtures("often")
async def test_a_sentinel_that_missed_a_failover_is_not_followed(
    start: Start, make_redis: Callable[..., Server], position: int
) -> None:
    old, new = make_redis(), make_redis()
    asked = 0

    def late() -> object:
        nonlocal asked
        asked += 1
        return names(old, 1)

    sayings: list[Said] = [lambda: names(new, 2), lambda: names(new, 2)]
    sayings.insert(position, late)
    async with scripted(*sayings) as environment:
        app = await start(**environment)
        assert uses(app, new)
        seen = asked
        await until(lambda: asked >= seen + 3)
        assert app.services.gateway.available
        assert (uses(app, new), uses(app, old)) == (True, False)


@pytest.mark.usefixtures("often")
async def test_a_primary_of_before_is_left_though_it_still_answers(
    start: Start,
    make_redis: Callable[..., Server],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The connection that follows may take its time.
    monkeypatch.setattr(probe, "PROBE_INTERVAL_DOWN", HANG)
    old, new = make_redis(), make_redis()
    epoch = 1
    async with scripted(*[lambda: names(new if epoch > 1 else old, epoch)] * 3) as environment:
        app, other = await start(**environment), await start(**environment)
        assert uses(app, old)
        epoch = 2
        with new.client() as raw:
            await until(lambda: listeners(raw) == 2)
        await until(lambda: not uses(app, old))
        await hears(app, other)
        # The change took no time in which there was no Redis.
        assert state_messages(caplog) == [UP, UP]


@pytest.mark.usefixtures("often")
async def test_a_change_that_the_next_primary_has_not_received_is_not_undone(
    start: Start, make_redis: Callable[..., Server]
) -> None:
    old, new = make_redis(), make_redis()
    epoch = 1
    async with scripted(*[lambda: names(new if epoch > 1 else old, epoch)] * 3) as environment:
        app = await start(**environment, CACHE_TTL_PRICE="3600")
        await app.put_price("BTC-USD", 1)
        await app.get(PRICE)
        with old.client() as one, new.client() as other:
            entry = one.get(KEY)
            assert isinstance(entry, bytes)
            # So far it got; of what comes now, the old primary alone is told.
            other.set(KEY, entry)
            await app.put_price("BTC-USD", 2)
            assert not one.exists(KEY)
            epoch = 2
            await until(lambda: listeners(other) == 1)
        assert (await app.get(PRICE)).json()["data"]["price"] == "2"


NONSENSE = [
    [],
    ["ip"],
    "text",
    7,
    None,
    [["ip"], "127.0.0.1"],
    Exception("ERR No such master with that name"),
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    {"port": "0"},
    {"port": "99999"},
    {"port": "-1"},
    {"port": ""},
    {"ip": ""},
    {"ip": "a" * 300},
    {"ip": "a" * 100},
    {"ip": "a..b"},
    {"ip": "not a host"},
    {"ip": "\x00"},
    {"ip": b"\xff"},
    {"ip": None},
    {"config-epoch": "latest"},
    {"config-epoch": "9" * 5000},
]


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_is_not_followed(
    start: Start, redis_server: Server, nonsense: object
) -> None:
    # Also where it claims to know of a later failover than all others.
    said = names(redis_server, 9, **nonsense) if isinstance(nonsense, dict) else nonsense
    async with scripted(lambda: said, lambda: names(redis_server, 1)) as environment:
        redis = load_settings(environment | {"DATABASE_URL": "sqlite:////tmp/unused.db"}).redis
        assert redis is not None
        assert await find_primary(redis, None) == Primary("127.0.0.1", redis_server.port, 1)
    async with scripted(lambda: said) as environment:
        redis = load_settings(environment | {"DATABASE_URL": "sqlite:////tmp/unused.db"}).redis
        assert redis is not None
        with pytest.raises(NoPrimary):
            await find_primary(redis, None)


@pytest.mark.parametrize("nonsense", [{"port": "99999"}, {"ip": "a" * 100}, "text"])
async def test_a_confused_sentinel_is_believed_again_when_it_is_not(
    start: Start, redis_server: Server, nonsense: object
) -> None:
    said: object = names(redis_server, 1, **nonsense) if isinstance(nonsense, dict) else nonsense
    async with scripted(lambda: said) as environment:
        app = await start(**environment)
        assert not app.services.gateway.available
        said = names(redis_server, 1)
        await app.until_available(True)


@pytest.mark.usefixtures("often")
async def test_a_sentinel_that_hangs_delays_but_does_not_prevent(
    start: Start, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    monkeypatch.setattr(sentinels, "PATIENCE", 1.0)

    def hang() -> object:
        return HANGS

    def answer() -> object:
        nonlocal asked
        asked += 1
        return names(redis_server, 1)

    async with scripted(hang, answer, hang) as environment:
        app = await start(**environment)
        await app.until_available(True)
        # And once more, when it is looked whether that is still so.
        seen = asked
        await until(lambda: asked > seen + 1)
        assert app.services.gateway.available


@pytest.mark.usefixtures("often")
async def test_a_connection_outlives_all_sentinels(
    start: Start, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted(*[lambda: names(redis_server, 1)] * 2) as environment:
        app = await start(**environment, CACHE_TTL_PRICE="3600")
    await asyncio.sleep(0.7)
    await app.put_price("BTC-USD", 1)
    assert [(await app.get(PRICE)).headers["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
    assert state_messages(caplog) == [UP]


async def test_a_sentinels_primary_that_is_not_there_degrades(
    start: Start, make_redis: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = make_redis()
    async with scripted(lambda: names(server, 1)) as environment:
        server.kill()
        app = await start(**environment)
        assert not app.services.gateway.available
        assert state_messages(caplog) == [DOWN]
        server.start()
        await app.until_available(True)
