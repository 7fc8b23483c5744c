"""The server: what it takes from a client, for how long, and how it stops."""

import asyncio
import contextlib
import json
import socket
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conftest import AUTH, HANG, until
from processes import HANDSHAKE, Answer, Client, Process, client, request
from quantdesk.web.server.http import MAX_HEAD
from quantdesk.web.server.shutdown import DRAIN, GRACE, LAST_CALL
from quantdesk.web.server.systemd import notify

AUTHORIZATION = f"Authorization: {AUTH['Authorization']}"
# Longer than a test waits: what ends before that has not waited for it.
ENDLESS = 10 * HANG


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with Process(tmp_path_factory.mktemp("server"), LOG_LEVEL="debug") as process:
        yield process


@pytest.fixture
def app(shared: Process) -> Iterator[Process]:
    """A process, which may not have logged an error when the test ends."""
    before = shared.complaints
    yield shared
    assert shared.complaints == before


HASTE = {
    "web.server.http.HEAD_TIMEOUT": 2.0,
    "web.bodies.BODY_TIMEOUT": 2.0,
    "web.server.http.BODY_LIMIT": 4.0,
}


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A process that waits for requests as briefly as HASTE says."""
    with Process(tmp_path_factory.mktemp("hasty"), constants=HASTE) as process:
        yield process
        assert process.complaints == []


def write(price: str, *headers: str, size: int = 0) -> bytes:
    """Return a request that writes a price, its body padded to a size."""
    body = json.dumps({"price": price}).encode()
    body += b" " * (size - len(body))
    return request("PUT", "/api/prices/A", AUTHORIZATION, *headers, body=body)


def chunked(*chunks: bytes) -> bytes:
    """Return a request that writes a price, its body in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = request("PUT", "/api/prices/A", AUTHORIZATION, "Transfer-Encoding: chunked")
    return head + body + b"0\r\n\r\n"


# What a client sends.


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health FTP/1.1\r\n\r\n",
        b"BREW /health HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: test\r\n\r\n",
        b"CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request("GET", "/health", "no colon"),
        request("GET", "/health", "Name : x"),
        request("GET", "/health", "Na me: x"),
        request("GET", "/health", "Name: a\0b"),
        request("GET", "/health", "Name: a\rb"),
        request("GET", "/health", "Name: a\r\n folded"),
        request("PUT", "/api/prices/A", "Content-Length: -1"),
        request("PUT", "/api/prices/A", "Content-Length: 1", "Content-Length: 2"),
        request("PUT", "/api/prices/A", "Content-Length: 5", "Transfer-Encoding: chunked"),
        request("PUT", "/api/prices/A", "Transfer-Encoding: chunked") + b"no size\r\n",
    ],
)
async def test_what_is_no_request_is_answered_with_400(app: Process, sent: bytes) -> None:
    async with client(app.port) as connection:
        await connection.send(sent)
        answer = await connection.answer()
        assert (answer.status, answer.code) == (400, "bad_request")
        assert answer.headers["connection"] == "close"
        assert await connection.ended() == b""


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([request("GET", "/health", "X: " + "x" * 40_000)], id="at-once"),
        pytest.param([request("GET", "/" + "x" * 40_000)], id="long-path"),
        pytest.param([request("GET", "/" + "x" * 100_000)], id="longer-path"),
        pytest.param(
            [request("GET", "/health", *(f"X-{n}: {n}" for n in range(4000)))], id="many-headers"
        ),
        pytest.param([b"GET /health HTTP/1.1\r\nX: ", *[b"x" * 20_000] * 2], id="without-end"),
        pytest.param([b"GET /health HTTP/1.1\r\nX: " + b"x" * 8_000_000], id="in-full-flow"),
        pytest.param([b"GET /health HTTP/1.1\r\n", *[b"X: y\r\n" * 1000] * 6], id="in-pieces"),
    ],
)
async def test_a_large_head_is_answered_with_431(app: Process, pieces: list[bytes]) -> None:
    async with client(app.port) as connection:
        await connection.send(*pieces, pause=0.02)
        answer = await connection.answer()
        assert (answer.status, answer.code) == (431, "head_too_large")
        assert answer.headers["connection"] == "close"
        assert await connection.ended() == b""


async def test_a_head_as_large_as_may_be_is_taken(app: Process) -> None:
    sent = request("GET", "/health", "X: " + "x" * (MAX_HEAD - 200))
    async with client(app.port) as connection:
        for pieces in ([sent], [sent[:20_000], sent[20_000:]], [sent[:-2], sent[-2:]]):
            await connection.send(*pieces, pause=0.02)
            assert (await connection.answer()).status == 200


async def test_a_head_is_measured_by_itself(app: Process) -> None:
    """Neither the body before it counts, nor requests that came in the same piece."""
    async with client(app.port) as connection:
        writes = write("1", size=60_000) + write("2", size=60_000)
        await connection.send(writes + request("GET", "/"))
        assert [(await connection.answer()).status for _ in range(3)] == [200, 200, 404]
        await connection.send(request("GET", "/api/prices/A", "X: " + "x" * 150) * 200)
        assert {(await connection.answer()).status for _ in range(200)} == {200}


async def test_a_body_in_many_pieces_is_followed_by_other_requests(app: Process) -> None:
    sent = write("7", size=64_000) + request("GET", "/api/prices/A") + write("8", size=64_000)
    async with client(app.port) as connection:
        await connection.send(
            *(sent[start : start + 1500] for start in range(0, len(sent), 1500)), pause=0.001
        )
        assert (await connection.answer()).json["data"]["price"] == "7"
        assert (await connection.answer()).json["data"]["price"] == "7"
        assert (await connection.answer()).json["data"]["price"] == "8"
        assert (await connection.get("/health")).status == 200


async def test_requests_sent_without_waiting_are_answered_in_their_order(app: Process) -> None:
    async with client(app.port) as connection:
        await connection.send(
            b"".join(
                write(str(number)) + request("GET", "/api/prices/A") + request("GET", "/nowhere")
                for number in range(1, 31)
            )
        )
        for number in range(1, 31):
            answers = [await connection.answer() for _ in range(3)]
            assert [answer.status for answer in answers] == [200, 200, 404]
            assert [answer.json["data"]["price"] for answer in answers[:2]] == [str(number)] * 2


async def test_a_request_may_come_byte_by_byte(app: Process) -> None:
    async with client(app.port) as connection:
        for sent in (write("3"), chunked(b'{"price"', b": 4}")):
            await connection.send(*(sent[i : i + 1] for i in range(len(sent))))
        assert (await connection.answer()).json["data"]["price"] == "3"
        assert (await connection.answer()).json["data"]["price"] == "4"


async def test_a_body_in_chunks_is_put_together(app: Process) -> None:
    body = b'{"price": "50000.10"}'
    sent = chunked(*(body[i : i + 1] for i in range(len(body))), b" " * 40_000)
    trailer = sent.removesuffix(b"\r\n") + b"X-Trailer: y\r\n\r\n"
    async with client(app.port) as connection:
        await connection.send(sent + trailer + request("GET", "/api/prices/A"))
        for _ in range(3):
            assert (await connection.answer()).json["data"]["price"] == "50000.10"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(write("1", size=65_537), id="announced"),
        pytest.param(write("1", size=8_000_000), id="huge"),
        pytest.param(chunked(b'{"price": 1}', b" " * 65_536), id="in-chunks"),
        pytest.param(chunked(*[b" " * 100_000] * 80), id="huge-in-chunks"),
    ],
)
async def test_a_large_body_is_answered_with_413_and_the_connection_goes_on(
    app: Process, sent: bytes
) -> None:
    async with client(app.port) as connection:
        rest = asyncio.create_task(connection.send(sent))
        answer = await connection.answer()
        assert (answer.status, answer.code) == (413, "payload_too_large")
        await rest
        assert (await connection.get("/health")).status == 200


async def test_a_body_as_large_as_may_be_is_taken(app: Process) -> None:
    async with client(app.port) as connection:
        await connection.send(write("5", size=65_536))
        assert (await connection.answer()).status == 200


async def test_a_body_that_nobody_wants_is_passed_over(app: Process) -> None:
    async with client(app.port) as connection:
        await connection.send(request("GET", "/health", body=b"x" * 200_000))
        assert (await connection.answer()).status == 200
        await connection.send(request("POST", "/nowhere", body=b"GET / HTTP/1.1\r\n\r\n"))
        assert (await connection.answer()).status == 404
        assert (await connection.get("/health")).status == 200


async def test_who_asks_before_sending_a_body_is_told_to(app: Process) -> None:
    async with client(app.port) as connection:
        head, body = write("6", "Expect: 100-continue").split(b"\r\n\r\n")
        await connection.send(head + b"\r\n\r\n")
        assert (await connection.answer()).status == 100
        await connection.send(body)
        assert (await connection.answer()).json["data"]["price"] == "6"


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "CONNECT", "DELETE", "PROPFIND"])
async def test_another_method_is_not_allowed(app: Process, method: str) -> None:
    async with client(app.port) as connection:
        for path, allowed in (("/health", {"GET"}), ("/api/prices/A", {"GET", "PUT"})):
            await connection.send(request(method, path))
            answer = await connection.answer()
            assert (answer.status, answer.code) == (405, "method_not_allowed")
            assert set(answer.headers["allow"].split(", ")) == {*allowed, "OPTIONS"}


async def test_head_is_answered_without_a_body(app: Process) -> None:
    async with client(app.port) as connection:
        await connection.send(request("HEAD", "/health"))
        answer = await connection.answer("HEAD")
        assert answer.status == 405
        assert int(answer.headers["content-length"]) > 0
        # What would come after a body must be the next answer.
        assert (await connection.get("/health")).status == 200


async def test_options_tells_the_methods(app: Process) -> None:
    async with client(app.port) as connection:
        await connection.send(request("OPTIONS", "/health"))
        answer = await connection.answer()
        assert answer.status == 204
        assert set(answer.headers["allow"].split(", ")) == {"GET", "OPTIONS"}
        assert (await connection.get("/health")).status == 200


async def test_another_protocol_to_upgrade_to_is_passed_over(app: Process) -> None:
    async with client(app.port) as connection:
        answer = await connection.get("/health", "Connection: Upgrade", "Upgrade: h2c")
        assert answer.status == 200
        assert (await connection.get("/health")).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/%0d%0aX-Injected:%20y",
        "/api/prices/A%0d%0aX-Injected:%20y",
        "/api/prices/A%00",
        "/api/prices/%ff%fe",
        "/api/prices/A?%0d%0aX-Injected:%20y",
        "/api/orders/%0a2026-01-01T00:00:00Z%20INFO%20forged",
        "/%00%0a2026-01-01T00:00:00Z%20INFO%20forged",
    ],
)
async def test_what_a_path_holds_gets_into_no_header_and_no_line_of_the_log(
    app: Process, path: str
) -> None:
    logged = app.log
    headers = (
        "X-Forwarded-For: \xff, %0a, 1.2.3.4, ::%0d",
        "Cookie: session=\xff%0a; ;=",
        "Authorization: Bearer \xff\xfe%0a",
        "Idempotency-Key: %0a%00",
    )
    async with client(app.port) as connection:
        for method in ("GET", "PUT", "POST"):
            await connection.send(request(method, path, *headers, body=b'{"price": 1}'))
            answer = await connection.answer()
            assert 400 <= answer.status < 500 or (method, answer.status) == ("GET", 200)
            assert set(answer.headers) <= {
                "allow",
                "content-length",
                "content-type",
                "date",
                "ratelimit-limit",
                "ratelimit-remaining",
                "ratelimit-reset",
                "www-authenticate",
                "x-cache",
            }
    assert "forged" not in app.log.removeprefix(logged)


# How long it waits for a client.


@asynccontextmanager
async def sending(connection: Client, *pieces: bytes, more: bytes = b"") -> AsyncIterator[None]:
    """Send pieces, and after them one more every 0.1 s as long as the context lasts."""

    async def send() -> None:
        await connection.send(*pieces, pause=0.1)
        while more:
            await connection.send(more, pause=0.1)

    task = asyncio.create_task(send())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_head_that_does_not_come_is_not_waited_for(hasty: Process) -> None:
    async def come(*pieces: bytes, more: bytes = b"") -> None:
        started = time.monotonic()
        async with client(hasty.port) as connection:
            async with sending(connection, *pieces, more=more):
                assert await connection.cut() == b""
            assert time.monotonic() - started > 0.9 * HASTE["web.server.http.HEAD_TIMEOUT"]

    await asyncio.gather(
        come(),
        come(b"G"),
        come(b"GET /", more=b"x"),
        come(b"GET /health HTTP/1.1\r\n", more=b"X: y\r\n"),
        come(request("GET", "/health", *HANDSHAKE)[:-2], more=b"X: y\r\n"),
    )


async def test_the_next_head_may_be_long_in_coming_but_not_trickle(hasty: Process) -> None:
    async with client(hasty.port) as connection:
        assert (await connection.get("/health")).status == 200
        await asyncio.sleep(2 * HASTE["web.server.http.HEAD_TIMEOUT"])
        assert (await connection.get("/health")).status == 200
        started = time.monotonic()
        async with sending(connection, b"GET /", more=b"x"):
            assert await connection.cut() == b""
        assert time.monotonic() - started > 0.9 * HASTE["web.server.http.HEAD_TIMEOUT"]


async def test_a_body_that_does_not_end_is_answered_with_408(hasty: Process) -> None:
    async def come(*pieces: bytes, more: bytes = b"") -> None:
        started = time.monotonic()
        async with client(hasty.port) as connection:
            async with sending(connection, *pieces, more=more):
                answer = await connection.answer()
                assert (answer.status, answer.code) == (408, "request_timeout")
                assert answer.headers["connection"] == "close"
                assert await connection.cut() == b""
            assert time.monotonic() - started > 0.9 * HASTE["web.server.http.HEAD_TIMEOUT"]

    whole, last_chunk = write("1", size=1000), b"0\r\n\r\n"
    await asyncio.gather(
        come(whole[:-1]),
        come(whole[:-900], more=b" "),
        come(chunked(b'{"price": 1}').removesuffix(last_chunk)),
        come(chunked().removesuffix(last_chunk), more=b"1\r\n \r\n"),
    )


async def test_a_body_that_nobody_reads_is_not_waited_for_either(hasty: Process) -> None:
    async def come(head: bytes, status: int) -> None:
        started = time.monotonic()
        async with client(hasty.port) as connection:
            async with sending(connection, head, more=b" "):
                assert (await connection.answer()).status == status
                assert await connection.cut() == b""
            assert time.monotonic() - started > 0.9 * HASTE["web.server.http.BODY_LIMIT"]

    size = "Content-Length: 1000000"
    await asyncio.gather(
        come(request("POST", "/nowhere", size), 404),
        come(request("GET", "/health", size), 200),
        come(request("PUT", "/api/prices/A", "Content-Type: application/json", size), 401),
        come(request("PUT", "/api/prices/A", size), 415),
        come(request("PUT", "/api/prices/A", AUTHORIZATION, size), 413),
    )


async def test_a_slow_body_within_its_time_is_taken(hasty: Process) -> None:
    sent = write("9")
    async with client(hasty.port) as connection:
        await connection.send(sent[:-3], sent[-3:], pause=0.2)
        assert (await connection.answer()).status == 200
        # The time was that request's alone.
        await asyncio.sleep(1.3 * HASTE["web.server.http.BODY_LIMIT"])
        assert (await connection.get("/health")).status == 200


# How it stops, and makes room for the next.


async def test_a_stop_under_load_fails_no_request_and_tells_each_connection(
    tmp_path: Path,
) -> None:
    """Those that ask once a second are told as well, and when all are, it is over."""
    with Process(tmp_path, constants={"web.server.shutdown.DRAIN": ENDLESS}) as app:
        under_way = asyncio.Event()

        async def ask(pause: float) -> list[Answer]:
            answers: list[Answer] = []
            async with client(app.port) as connection:
                while not answers or "connection" not in answers[-1].headers:
                    path = ("/health", "/api/prices/A", "/nowhere")[len(answers) % 3]
                    answers.append(await connection.get(path))
                    if len(answers) > 3:
                        under_way.set()
                    await asyncio.sleep(pause)
                assert await connection.ended() == b""
            return answers

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask(pause)) for pause in (*[0.1] * 20, *[1.0] * 5)]
            await under_way.wait()
            stopping = group.create_task(asyncio.to_thread(app.stop))
        assert stopping.result() == 0
        assert all(task.result()[-1].headers["connection"] == "close" for task in asking)
        answers = [answer for task in asking for answer in task.result()]
        assert {answer.status for answer in answers} == {200, 404}
        assert app.complaints == []


async def until_refused(port: int) -> None:
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            async with client(port):
                await asyncio.sleep(0.02)


async def test_a_stop_answers_those_who_came_last_and_closes_those_who_say_nothing(
    tmp_path: Path,
) -> None:
    drain = 0.8
    limits = {
        "web.server.shutdown.DRAIN": drain,
        "web.server.shutdown.LAST_CALL": 5.0,
        "web.server.shutdown.GRACE": ENDLESS,
    }
    with Process(tmp_path, constants=limits) as app:
        async with client(app.port) as idle, client(app.port) as last:
            assert (await idle.get("/health")).status == 200
            started = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(app.stop))
            await until_refused(app.port)
            assert time.monotonic() - started >= drain
            answer = await last.get("/health")
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await last.ended() == await idle.ended() == b""
        assert await stopping == 0
        assert app.complaints == []


async def test_a_stop_without_connections_takes_no_time(tmp_path: Path) -> None:
    limits = {f"web.server.shutdown.{name}": ENDLESS for name in ("DRAIN", "LAST_CALL", "GRACE")}
    with Process(tmp_path, constants=limits) as app:
        assert await asyncio.to_thread(app.stop) == 0


async def test_requests_under_way_are_finished_by_a_stop(tmp_path: Path) -> None:
    """One whose body comes slowly, and one that waits for the database."""
    drain = 0.4
    limits = {"web.server.shutdown.DRAIN": drain, "web.server.shutdown.GRACE": ENDLESS}
    limits |= {"web.bodies.BODY_TIMEOUT": ENDLESS, "web.server.http.BODY_LIMIT": ENDLESS}
    with (
        Process(tmp_path, constants=limits) as app,
        contextlib.closing(sqlite3.connect(tmp_path / "quantdesk.db")) as database,
    ):
        database.execute("BEGIN IMMEDIATE")
        sent = write("2")
        async with client(app.port) as slow, client(app.port) as waiting:
            await slow.send(sent[:-3])
            await waiting.send(write("1"))
            await asyncio.sleep(0.3)
            stopping = asyncio.create_task(asyncio.to_thread(app.stop))
            await asyncio.sleep(1.0)
            database.rollback()
            first = await waiting.answer()
            assert (first.status, first.headers["connection"]) == (200, "close")
            await asyncio.sleep(drain + LAST_CALL)
            assert not stopping.done()
            await slow.send(sent[-3:])
            second = await slow.answer()
            assert (second.status, second.json["data"]["price"]) == (200, "2")
            assert await slow.ended() == b""
        assert await stopping == 0
        assert app.complaints == []


async def test_a_request_that_does_not_end_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    assert GRACE + DRAIN + LAST_CALL < 15  # systemd's patience, and the README's word
    limits = {"web.server.shutdown.GRACE": 0.5, "web.server.shutdown.DRAIN": 0.2}
    limits |= {"web.bodies.BODY_TIMEOUT": ENDLESS, "web.server.http.BODY_LIMIT": ENDLESS}
    with Process(tmp_path, constants=limits) as app:
        async with client(app.port) as connection:
            await connection.send(write("1")[:-1])
            await asyncio.sleep(0.2)
            assert await asyncio.to_thread(app.stop) == 0


async def test_processes_that_follow_each_other_on_a_passed_socket_fail_no_request(
    tmp_path: Path,
) -> None:
    """One after the other, as systemd restarts it, and then two for a while, as an update may."""
    answers: list[Answer] = []
    stopped = asyncio.Event()
    # So long that a client whose turn comes only now and then asks once more in it.
    limits = {"web.server.shutdown.DRAIN": 5.0, "web.server.shutdown.LAST_CALL": 5.0}

    async def stay(port: int) -> None:
        while not stopped.is_set():
            async with client(port) as connection:
                told = False
                while not told and not stopped.is_set():
                    await connection.send(request("GET", "/api/prices/A"))
                    answers.append(await connection.answer())
                    told = answers[-1].headers.get("connection") == "close"
                    await asyncio.sleep(0.1)

    async def come_and_go(port: int) -> None:
        while not stopped.is_set():
            async with client(port) as connection:
                await connection.send(request("GET", "/health"))
                answers.append(await connection.answer())
            await asyncio.sleep(0.02)

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        port = listener.getsockname()[1]
        first = stack.enter_context(Process(tmp_path, listener=listener, constants=limits))
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(stay(port))
            for _ in range(3):
                group.create_task(come_and_go(port))
            await until(lambda: len(answers) > 20)

            assert await asyncio.to_thread(first.stop) == 0
            before = len(answers)
            second = await asyncio.to_thread(
                stack.enter_context, Process(tmp_path, listener=listener, constants=limits)
            )
            await until(lambda: len(answers) > before + 20)

            third = await asyncio.to_thread(
                stack.enter_context, Process(tmp_path, listener=listener, constants=limits)
            )
            assert await asyncio.to_thread(second.stop) == 0
            before = len(answers)
            await until(lambda: len(answers) > before + 20)
            stopped.set()
        assert {answer.status for answer in answers} == {200, 404}
        assert await asyncio.to_thread(third.stop) == 0
        for process in (first, second, third):
            assert process.complaints == []


async def test_systemd_is_told_of_the_start_and_of_the_stop(tmp_path: Path) -> None:
    """Sockets that are passed to another process are not its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(HANG)
        address = str(tmp_path / "notify")
        app = Process(tmp_path, NOTIFY_SOCKET=address, LISTEN_PID="1", LISTEN_FDS="1")
        assert await asyncio.to_thread(notified.recv, 100) == b"READY=1"
        with app:
            async with client(app.port) as connection:
                assert (await connection.get("/health")).status == 200
            notified.settimeout(0.1)
            with pytest.raises(TimeoutError):
                notified.recv(100)
            notified.settimeout(HANG)
            assert await asyncio.to_thread(app.stop) == 0
            assert notified.recv(100) == b"STOPPING=1"


def test_systemd_may_listen_on_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"quantdesk-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(f"\0{name}")
        notified.settimeout(HANG)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert notified.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@", "relative"])
def test_nobody_to_tell_is_no_failure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


async def test_a_port_that_is_taken_stops_the_start(app: Process, tmp_path: Path) -> None:
    second = Process(tmp_path, PORT=str(app.port))
    assert await asyncio.to_thread(second.popen.wait, HANG) == 3
    assert f"('127.0.0.1', {app.port}): address already in use" in second.log
    assert "Traceback" not in second.log
    assert "Serving" not in second.log
    async with client(app.port) as connection:
        assert (await connection.get("/health")).status == 200
