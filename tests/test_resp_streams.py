"""The small Redis client with servers that misbehave, and with bytes that are no text."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Server, load

resp = load("plugins/module_utils/resp.py")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where somebody listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_text_come_back_the_same(data: bytes) -> None:
    reply = resp.decode(io.BytesIO(b"$%d\r\n%b\r\n" % (len(data), data)))
    assert reply.encode(errors="surrogateescape") == data


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_replies_are_read_one_by_one_and_the_stream_stays_in_step(parts: list[bytes]) -> None:
    stream = io.BytesIO(b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts) + b"+END\r\n")
    assert [resp.decode(stream).encode(errors="surrogateescape") for _ in parts] == parts
    assert resp.decode(stream) == "END"


@given(st.binary(max_size=60).filter(lambda data: data[:1] not in b"+-:$*" or not data))
def test_nothing_but_replies_is_taken_for_one(data: bytes) -> None:
    with pytest.raises(resp.ProtocolError):
        resp.decode(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "reply"),
    [(b"*-1\r\n", None), (b"$-1\r\n", None), (b"*0\r\n", []), (b"$0\r\n\r\n", "")],
)
def test_nothing_and_emptiness_are_told_apart(data: bytes, reply: object) -> None:
    assert resp.decode(io.BytesIO(data)) == reply


def test_a_server_that_never_answers_is_given_up_after_the_timeout(silent_port: int) -> None:
    begin = time.monotonic()
    with resp.Client("127.0.0.1", silent_port, timeout=0.3) as client, pytest.raises(TimeoutError):
        client.call("PING")
    assert time.monotonic() - begin < 30


def test_a_tls_handshake_that_nobody_answers_is_given_up_after_the_timeout(silent_port: int, foreign_ca: str) -> None:
    with pytest.raises(OSError, match="timed out"):
        resp.Client("127.0.0.1", silent_port, ca_file=foreign_ca, timeout=0.3)


def test_a_server_that_hangs_up_within_a_reply_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"$10\r\nhalf")

        server = threading.Thread(target=answer)
        server.start()
        port = listener.getsockname()[1]
        with resp.Client("127.0.0.1", port) as client, pytest.raises(resp.ProtocolError, match="within a reply"):
            client.call("PING")
        server.join(5)


def test_plaintext_to_a_tls_port_gets_no_answer_that_counts(tls_server: Server) -> None:
    with resp.Client("127.0.0.1", tls_server.port) as client, pytest.raises((resp.ProtocolError, OSError)):
        client.call("PING")


def test_tls_to_a_plaintext_port_is_refused(redis_server: Server, foreign_ca: str) -> None:
    with pytest.raises(OSError, match=r"(?i)ssl|tls|timed out|reset"):
        resp.Client("127.0.0.1", redis_server.port, ca_file=foreign_ca, timeout=2)


def test_a_long_pipeline_keeps_its_order(redis_server: Server) -> None:
    words = [str(number) for number in range(2000)]
    with resp.Client("127.0.0.1", redis_server.port) as client:
        client.call("AUTH", redis_server.password)
        assert client.pipeline([["ECHO", word] for word in words]) == words


def test_a_text_that_is_longer_than_it_says_is_an_error() -> None:
    with pytest.raises(resp.ProtocolError, match="not a Redis reply"):
        resp.decode(io.BytesIO(b"$3\r\nabcXY"))
