"""The small Redis client, against its own bytes and against real servers."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port

from conftest import Server, load

resp = load("plugins/module_utils/resp.py")

TEXT = st.text(st.characters(codec="utf-8"))
REPLIES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | TEXT, lambda inner: st.lists(inner, max_size=4), max_leaves=12
)


def as_server(reply: object) -> bytes:
    """Write a reply as a server does."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(as_server, reply))
    data = str(reply).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


@given(REPLIES)
def test_reads_whatever_a_server_writes(reply: object) -> None:
    assert resp.decode(io.BytesIO(as_server(reply))) == reply


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_writes_commands_that_read_back_the_same(words: list[str]) -> None:
    assert resp.decode(io.BytesIO(resp.encode(*words))) == words


@given(REPLIES, st.data())
def test_a_reply_that_is_cut_short_is_an_error(reply: object, data: st.DataObject) -> None:
    whole = as_server(reply)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(resp.ProtocolError):
        resp.decode(io.BytesIO(whole[:cut]))


@pytest.mark.parametrize("junk", [b"HTTP/1.1 400 Bad Request\r\n", b"*x\r\n", b"\x15\x03\x03\x00\x02\r\n"])
def test_another_protocol_is_an_error(junk: bytes) -> None:
    with pytest.raises(resp.ProtocolError, match="not a Redis reply"):
        resp.decode(io.BytesIO(junk))


def test_an_error_in_the_middle_of_a_pipeline_stays_in_its_place(redis_server: Server) -> None:
    with resp.Client("127.0.0.1", redis_server.port) as client:
        client.call("AUTH", redis_server.password)
        replies = client.pipeline([["SET", "a b", "1\r\n2"], ["HGET", "a b", "x"], ["GET", "a b"]])
    assert replies[0] == "OK"
    assert isinstance(replies[1], resp.ErrorReply)
    assert str(replies[1]).startswith("WRONGTYPE")
    assert replies[2] == "1\r\n2"


def test_a_refusal_is_raised(redis_server: Server) -> None:
    with resp.Client("127.0.0.1", redis_server.port) as client:
        with pytest.raises(resp.ErrorReply, match="NOAUTH"):
            client.call("PING")
        with pytest.raises(resp.ErrorReply, match="WRONGPASS"):
            client.call("AUTH", "wrong")


def test_speaks_tls_to_a_server_that_it_can_verify(tls_server: Server) -> None:
    with resp.Client("127.0.0.1", tls_server.port, ca_file=tls_server.ca_file) as client:
        client.call("AUTH", tls_server.password)
        assert client.call("PING") == "PONG"


def test_refuses_a_server_of_another_authority(tls_server: Server, foreign_ca: str) -> None:
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        resp.Client("127.0.0.1", tls_server.port, ca_file=foreign_ca)


def test_refuses_a_certificate_for_another_name(tls_server: Server) -> None:
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        resp.Client("localhost", tls_server.port, ca_file=tls_server.ca_file)


def test_refuses_a_certificate_that_does_not_name_what_is_asked_for(tls_server: Server) -> None:
    arguments = {"ca_file": tls_server.ca_file, "server_name": "another"}
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        resp.Client("127.0.0.1", tls_server.port, **arguments)


def test_takes_a_certificate_that_names_the_server_whatever_the_address(tls_server: Server) -> None:
    with resp.Client("localhost", tls_server.port, ca_file=tls_server.ca_file, server_name="127.0.0.1") as client:
        assert isinstance(client.pipeline([["PING"]])[0], resp.ErrorReply)


def test_nobody_there_is_an_error_at_once() -> None:
    with pytest.raises(ConnectionRefusedError):
        resp.Client("127.0.0.1", free_port())
