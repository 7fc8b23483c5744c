"""Who may open a WebSocket, how many and how often, and when it ends."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from conftest import HANG, TOKEN, Server, Start
from processes import ANONYMOUS_HANDSHAKE, HANDSHAKE, Answer, Process, client
from quantdesk.redis.limits import Limiter
from quantdesk.web.origins import Origins
from quantdesk.web.sockets import FRAMES, Sockets


def log_in(app: Process, user: str = "alice", **headers: str) -> str:
    """Begin a session; return its cookie."""
    answer = httpx.post(
        f"{app.url}/api/sessions", json={"user": user}, headers=headers, timeout=HANG
    )
    assert answer.status_code == 201, answer.text
    return f"session={answer.cookies['session']}"


def log_out(app: Process, cookie: str) -> None:
    url = f"{app.url}/api/sessions/current"
    assert httpx.delete(url, headers={"Cookie": cookie}, timeout=HANG).status_code == 200


async def shake(app: Process, *headers: str, host: str = "127.0.0.1") -> Answer:
    """Request a WebSocket, which ends at once if there is one."""
    async with client(app.port, host) as connection:
        return await connection.get("/ws", *ANONYMOUS_HANDSHAKE, *headers)


@asynccontextmanager
async def opened(
    app: Process, cookie: str, host: str = "127.0.0.1"
) -> AsyncIterator[ClientConnection]:
    async with connect(
        f"ws://127.0.0.1:{app.port}/ws",
        additional_headers={"Cookie": cookie},
        compression=None,
        local_addr=(host, 0),
        ping_interval=None,
        proxy=None,
    ) as connection:
        yield connection


async def answers(connection: ClientConnection) -> None:
    await connection.send("no JSON")
    async with asyncio.timeout(HANG):
        assert "bad_request" in str(await connection.recv())


async def ended(connection: ClientConnection) -> tuple[int, str]:
    """Wait for the end of a WebSocket; return its code and reason."""
    async with asyncio.timeout(HANG):
        with pytest.raises(ConnectionClosed) as caught:
            await connection.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


@pytest.fixture(scope="module")
def redis(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(redis_binary, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def app(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with Process(tmp_path_factory.mktemp("app"), REDIS_URL=redis.url) as process:
        yield process
    assert process.complaints == []


async def test_session_or_the_admin_token_opens_a_websocket(app: Process) -> None:
    assert (await shake(app, f"Cookie: {log_in(app)}")).status == 101
    assert (await shake(app, f"Authorization: Bearer {TOKEN}")).status == 101
    async with opened(app, log_in(app)) as connection:
        await answers(connection)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Cookie: session="],
        ["Cookie: session=x"],
        [f"Cookie: session={'A' * 43}"],
        [f"Cookie: __Host-session={'A' * 43}"],
        ["Authorization: Bearer"],
        ["Authorization: Bearer wrong"],
        [f"Authorization: Basic {TOKEN}"],
    ],
)
async def test_without_either_there_is_none(app: Process, headers: list[str]) -> None:
    answer = await shake(app, *headers)
    assert (answer.status, answer.code) == (401, "unauthorized")


async def test_session_that_has_ended_opens_none(app: Process) -> None:
    cookie = log_in(app)
    log_out(app, cookie)
    assert (await shake(app, f"Cookie: {cookie}")).status == 401


@pytest.mark.parametrize(
    "foreign",
    [
        "Origin: https://evil.example",
        "Origin: null",
        "Origin: http://127.0.0.1.evil.example",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ],
)
async def test_foreign_page_opens_none_with_the_users_cookie(app: Process, foreign: str) -> None:
    """Cross-site WebSocket hijacking: a browser sends cookies along, and asks nobody first."""
    for right in (f"Cookie: {log_in(app)}", f"Authorization: Bearer {TOKEN}"):
        answer = await shake(app, right, foreign)
        assert (answer.status, answer.code) == (403, "forbidden")
    assert (await shake(app, f"Cookie: {log_in(app)}", "Origin: http://test")).status == 101


@pytest.mark.parametrize("where", [0, 1])
async def test_websocket_ends_with_its_session_on_whichever_instance(
    app: Process, redis: Server, where: int
) -> None:
    database = f"sqlite+aiosqlite:///{app.folder}/quantdesk.db"
    with Process(app.folder, REDIS_URL=redis.url, DATABASE_URL=database) as other:
        cookie, bystander = log_in(app), log_in(app)
        async with AsyncExitStack() as stack:
            ending = [
                await stack.enter_async_context(opened(one, cookie))
                for one in (app, other)
                for _ in "12"
            ]
            staying = [
                await stack.enter_async_context(opened(one, bystander)) for one in (app, other)
            ]
            for connection in (*ending, *staying):
                await answers(connection)
            ends = (app, other)[where]
            log_out(ends, cookie)
            for connection in ending:
                assert await ended(connection) == (1008, "the session has ended")
            # So it does when another session takes its place.
            log_in((app, other)[1 - where], Cookie=bystander)
            for connection in staying:
                assert await ended(connection) == (1008, "the session has ended")


async def test_websocket_ends_when_its_session_expires(
    redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Process(
        tmp_path_factory.mktemp("app"), REDIS_URL=redis.url, CACHE_TTL_SESSION="3"
    ) as short:
        async with opened(short, log_in(short)) as connection:
            await answers(connection)
            assert await ended(connection) == (1008, "the session has ended")
        assert short.complaints == []


async def test_session_has_so_many_websockets_and_no_more(
    redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("app")
    with Process(folder, REDIS_URL=redis.url, SOCKETS_PER_SESSION="3") as few:
        cookie, other = log_in(few), log_in(few)
        async with AsyncExitStack() as stack:
            for number in range(3):
                # From whichever address.
                await stack.enter_async_context(opened(few, cookie, f"127.0.1.{number + 1}"))
            # Nor when they come at once.
            for answer in await asyncio.gather(*(shake(few, f"Cookie: {cookie}") for _ in "12345")):
                assert (answer.status, answer.code) == (429, "too_many_requests")
                assert "Too many WebSockets" in answer.json["error"]["message"]
            await stack.enter_async_context(opened(few, other))
        # There is room again once they have gone.
        statuses: list[int] = []
        while statuses[-1:] != [101]:
            statuses.append((await shake(few, f"Cookie: {cookie}")).status)
            assert len(statuses) < 1000
        cookie = log_in(few)
        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(client(few.port)) for _ in range(12)]
            asked = (
                one.get("/ws", *ANONYMOUS_HANDSHAKE, f"Cookie: {cookie}") for one in connections
            )
            assert sorted([a.status for a in await asyncio.gather(*asked)]) == [101] * 3 + [429] * 9
        assert few.complaints == []


async def test_session_opens_them_so_often_and_no_more_on_all_instances(
    redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("app")
    limits: dict[str, Any] = {"SOCKET_RATE_LIMIT": "5/hour", "ENV_NAME": "often"}
    with (
        Process(folder, REDIS_URL=redis.url, **limits) as one,
        Process(folder, REDIS_URL=redis.url, **limits) as two,
    ):
        cookie, other = log_in(one), log_in(one)
        found = [
            await shake(app, f"Cookie: {cookie}", host=f"127.0.2.{number + 1}")
            for number, app in enumerate([one, two] * 4)
        ]
        assert [answer.status for answer in found] == [101] * 5 + [429] * 3
        assert 0 < int(found[-1].headers["retry-after"]) <= 3600
        assert (await shake(one, f"Cookie: {other}")).status == 101
        # What is counted is known by a name that opens nothing.
        with redis.client() as raw:
            keys = [key.decode() for key in raw.scan_iter("qd:often:*")]
        assert [key for key in keys if key.startswith("qd:often:ratelimit:socket-session:")]
        for value in (cookie, other):
            assert [key for key in keys if value.removeprefix("session=") in key] == []


async def test_address_opens_them_so_often_and_no_more(
    redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A flood of handshakes, with sessions and without, is bounded before anything is asked."""
    folder = tmp_path_factory.mktemp("app")
    limits: dict[str, Any] = {"SOCKET_ADDRESS_RATE_LIMIT": "20/hour", "ENV_NAME": "address"}
    with Process(folder, REDIS_URL=redis.url, **limits) as app, redis.client() as raw:
        cookie = log_in(app)
        for _ in range(10):
            assert (await shake(app)).status == 401
            assert (await shake(app, f"Cookie: {cookie}")).status == 101
        before = dict(raw.info("commandstats"))
        cost = app.cpu
        for _ in range(500):
            answer = await shake(app, f"Cookie: session={'A' * 43}")
            assert (answer.status, answer.code) == (429, "too_many_requests")
        after = dict(raw.info("commandstats"))
        # Whoever is refused costs Redis nothing, and this process little.
        for name in ("cmdstat_get", "cmdstat_evalsha"):
            grown = after[name]["calls"] - before[name]["calls"]
            assert grown < 50, name
        assert app.cpu - cost < 3
        # Others are not concerned, nor is who holds the token.
        assert (await shake(app, f"Cookie: {cookie}", host="127.0.3.1")).status == 101
        async with client(app.port) as connection:
            assert (await connection.get("/ws", *HANDSHAKE)).status == 101
        assert app.complaints == []


async def test_without_redis_each_instance_limits_by_itself(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Process(tmp_path_factory.mktemp("app"), SOCKET_RATE_LIMIT="3/hour") as alone:
        cookie = log_in(alone)
        statuses = [(await shake(alone, f"Cookie: {cookie}")).status for _ in range(5)]
        assert statuses == [101] * 3 + [429] * 2


async def test_database_that_is_away_opens_none_and_is_no_failure(
    redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("app")
    with Process(folder) as app:
        cookie = log_in(app)
        with closing(sqlite3.connect(folder / "quantdesk.db")) as database:
            database.execute("DROP TABLE sessions")
            database.commit()
        answer = await shake(app, f"Cookie: {cookie}")
        assert (answer.status, answer.code) == (503, "unavailable")


class _Frames:
    """What a socket's frames go to; nothing is sent to this one."""

    def write(self, data: bytes) -> None:
        """Send frames."""

    def waiting(self) -> int:
        return 0

    def abort(self) -> None:
        """Cut the connection."""


async def test_session_that_ends_during_the_handshake_opens_none(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look-up of the session and the moment in which the socket would end with it."""
    running = await start()
    begun = await running.client.post("/api/sessions", json={"user": "alice"})
    cookie = f"session={begun.cookies['session']}"
    sockets = Sockets(running.services, Origins(running.services.settings))

    async def count(_limiter: Limiter, who: str) -> None:
        if who != "192.0.2.1":
            answer = await running.client.delete(
                "/api/sessions/current", headers={"Cookie": cookie}
            )
            assert answer.status_code == 200

    monkeypatch.setattr("quantdesk.web.sockets._count", count)
    sent: list[dict[str, Any]] = []
    scope: Any = {
        "type": "websocket",
        "headers": [(b"cookie", cookie.encode()), (b"host", b"test")],
        "extensions": {FRAMES: _Frames()},
    }

    async def receive() -> Any:  # noqa: ANN401  # a message of ASGI
        return {"type": "websocket.connect" if not sent else "websocket.disconnect"}

    async def send(message: Any) -> None:  # noqa: ANN401  # likewise
        sent.append(message)

    await sockets.serve(scope, receive, send, "192.0.2.1")
    assert [(message["type"], message.get("status")) for message in sent] == [
        ("websocket.http.response.start", 401),
        ("websocket.http.response.body", None),
    ]
