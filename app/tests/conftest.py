"""Real servers for the tests: Redis with and without TLS, and the application over HTTP."""

import asyncio
import datetime as dt
import functools
import logging
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from quantdesk.database.database import migrate_database
from quantdesk.settings import load_settings
from quantdesk.web.app import Application, create_app

pytest_plugins = ["postgres"]

TOKEN = "a-token-for-the-tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
BINARY_DEBIAN = Path("/usr/bin/redis-check-rdb")

# Seconds after which a test gives up on something. No test measures anything by it: a machine may
# be so busy that a process takes a minute to start, and only what never happens takes as long.
HANG = 300.0
# The limits after which the application takes a peer for dead or slow. Where a test is not about
# one of them, a server that waits for the processor must not cross it.
PATIENT = {
    "redis.bus.SILENCE": HANG,
    "database.engine.CONNECT_TIMEOUT": HANG,
    "database.engine.HEALTH_TIMEOUT": HANG,
    "database.engine.LOCK_TIMEOUT": HANG,
    "database.engine.OPERATION_TIMEOUT": HANG,
    "database.engine.STATEMENT_TIMEOUT": HANG,
    "redis.probe.STALL": HANG,
    "redis.sentinel.PATIENCE": HANG,
    "services.START_PATIENCE": HANG,
}
# Limits that a test which is not about them never meets.
LENIENT_ENV = {
    "RATE_LIMIT": "1000000/minute",
    "SOCKET_RATE_LIMIT": "1000000/minute",
    "SOCKET_ADDRESS_RATE_LIMIT": "1000000/minute",
    "SOCKETS_PER_SESSION": "512",
}
PATIENT_ENV = {"REDIS_CONNECT_TIMEOUT": "60000", "REDIS_COMMAND_TIMEOUT": "60000"}

# What a busy machine makes slow is no fault of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a port that is free now, and given to nobody else while the tests run.

    A socket stays bound to it, which does not listen: the system hands the port to no client, and
    a server that sets SO_REUSEADDR, as all of ours do, may listen there, end, and listen again.
    """
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _reserved.append(reserved)
    port: int = reserved.getsockname()[1]
    return port


def pytest_unconfigure() -> None:
    while _reserved:
        _reserved.pop().close()


@pytest.fixture(scope="session")
def redis_binary() -> Iterator[str]:
    found = shutil.which("redis-server")
    if found:
        yield found
        return
    if not BINARY_DEBIAN.exists():
        pytest.fail("no redis-server: install Debian's redis-server, or redis-tools, or Redis 7")
    with tempfile.TemporaryDirectory() as folder:
        # Redis' binaries are one file, which takes its role from the name it is run under.
        link = Path(folder) / "redis-server"
        link.symlink_to(BINARY_DEBIAN)
        yield str(link)


class Server:
    """A redis-server of its own on a loopback port, which tests may end and start again."""

    def __init__(self, binary: str, folder: Path, *options: str, tls: bool = False) -> None:
        self.port = free_port()
        self._binary = binary
        self._folder = folder
        self._options = options
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *options: str) -> None:
        ports = ["--tls-port" if self._tls else "--port", str(self.port)]
        if self._tls:
            ports += ["--port", "0"]
        self._process = subprocess.Popen(
            [self._binary, *ports, "--bind", "127.0.0.1", "--save", "", *self._options, *options],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError("redis-server did not start")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self, password: str | None = None) -> Redis:
        return Redis(port=self.port, password=password, retry=Retry(NoBackoff(), 0))


@pytest.fixture
def make_redis(redis_binary: str, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*options: str, tls: bool = False) -> Server:
        server = Server(redis_binary, tmp_path, *options, tls=tls)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def redis_server(make_redis: Callable[..., Server]) -> Server:
    return make_redis()


@pytest.fixture
def raw(redis_server: Server) -> Iterator[Redis]:
    with redis_server.client() as client:
        yield client


@functools.cache
def _migrated() -> bytes:
    """Return an empty SQLite database of this release."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "quantdesk.db"
        # In a thread: in this one, a test's loop may be running.
        with ThreadPoolExecutor(1) as thread:
            made = migrate_database(f"sqlite+aiosqlite:///{file}")
            thread.submit(asyncio.run, made).result()
        return file.read_bytes()


def lay_database(folder: Path) -> None:
    """Put an empty database where a start would make one: migrating each takes a while."""
    file = folder / "quantdesk.db"
    if not file.exists():
        file.write_bytes(_migrated())


def development(env: dict[str, str]) -> dict[str, str]:
    """Let users name themselves, where a test's environment is none of production."""
    return {} if env.get("APP_ENV") == "production" else {"AUTH_DEVELOPMENT_USERS": "true"}


class Running:
    """The application, opened, with a client that calls it from a loopback address."""

    def __init__(self, app: Application, client: httpx.AsyncClient) -> None:
        self.app = app
        self.services = app.services
        self.client = client

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path)

    async def put_price(self, symbol: str, price: object) -> httpx.Response:
        return await self.client.put(f"/api/prices/{symbol}", json={"price": price}, headers=AUTH)

    async def until_available(self, available: bool) -> None:
        await until(lambda: self.services.gateway.available is available)


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start applications on one database; they are closed when the test ends."""
    stack: list[tuple[asyncio.Task[None], asyncio.Event]] = []

    async def run(opened: asyncio.Future[Running], end: asyncio.Event, **env: str) -> None:
        async with running(tmp_path, **env) as app:
            opened.set_result(app)
            await end.wait()

    async def make(redis: Server | str | None = None, **env: str) -> Running:
        if redis is not None:
            env["REDIS_URL"] = redis if isinstance(redis, str) else redis.url
        opened: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        end = asyncio.Event()
        task = asyncio.create_task(run(opened, end, **env))
        stack.append((task, end))
        waits: set[asyncio.Future[Any]] = {task, opened}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return opened.result()

    yield make
    for task, end in reversed(stack):
        end.set()
        await task


@asynccontextmanager
async def running(
    folder: Path, client_host: str = "127.0.0.1", **env: str
) -> AsyncIterator[Running]:
    lay_database(folder)
    loaded = load_settings(
        {
            "DATABASE_URL": f"sqlite+aiosqlite:///{folder}/quantdesk.db",
            "ADMIN_TOKEN": TOKEN,
            **LENIENT_ENV,
            **PATIENT_ENV,
            **development(env),
            **env,
        }
    )
    app = create_app(loaded)
    async with app.services.running():
        transport = httpx.ASGITransport(app, client=(client_host, 50000))  # type: ignore[arg-type]  # httpx' types know plain dicts only
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Running(app, client)


async def until(condition: Callable[[], bool]) -> None:
    """Poll until `condition` holds; fail where it never does."""
    try:
        async with asyncio.timeout(HANG):
            while not condition():  # noqa: ASYNC110  # what is polled is another process
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {HANG} s") from None


def expires_as_set(raw: Redis, key: str, seconds: int, since: float) -> bool:
    """Return whether an entry that was made after `since` was made to live for so many seconds.

    `since` is by the wall clock. However long ago the entry was made, its end stays where it was.
    """
    end = int(raw.pexpiretime(key)) / 1000
    # Both clocks are one; Redis' counts whole milliseconds.
    return since - 0.001 <= end - seconds <= time.time()


def command(client: Redis, *words: str) -> object:
    """Run a command that redis-py has no typed method for."""
    return client.execute_command(*words)  # type: ignore[no-untyped-call]  # untyped in redis-py


def subscribers(client: Redis) -> int:
    """How many connections of instances are subscribed."""
    return len(client.client_list(_type="pubsub"))


class Calendar:
    """Stands in for the module `datetime` where only `now` is asked, which a test may set."""

    UTC = dt.UTC
    timedelta = dt.timedelta

    def __init__(self) -> None:
        self.datetime = self
        self.moment: dt.datetime | None = None

    def now(self, zone: dt.timezone) -> dt.datetime:
        return self.moment or dt.datetime.now(zone)


def calls(client: Redis, name: str) -> int:
    """How often Redis has been sent a command."""
    stats = client.info("commandstats")
    return int(stats.get(f"cmdstat_{name}", {}).get("calls", 0))


def state_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says about changes between Redis' presence and absence."""
    changes = ("Redis connected", "Redis connection failed, continuing without Redis")
    return [r.getMessage() for r in caplog.records if r.getMessage() in changes]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PATIENT.items():
        monkeypatch.setattr(f"quantdesk.{name}", value)


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="quantdesk")
