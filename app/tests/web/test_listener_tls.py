"""The listener over TLS: what it shows, what it refuses, and how a certificate is replaced."""

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from cryptography import x509

from authority import LOOPBACK, Authority
from conftest import until
from processes import HANDSHAKE, Client, Process, client, request
from quantdesk.settings import TlsSettings
from quantdesk.web.server.tls import TlsListener, TlsServer, tls_context

NAME = x509.DNSName("app1")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("listener") / "authority")


def trusting(ca: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca.ca_file))


@asynccontextmanager
async def tls_client(port: int, context: ssl.SSLContext) -> AsyncIterator[Client]:
    """Connect as the balancer does, which expects the name app1."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="app1"
    )
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def shown(port: int, context: ssl.SSLContext, name: str = "app1") -> bytes:
    """Return the certificate that a new connection is shown; an address is no name to ask for."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        certificate = tls.getpeercert(True)
        assert certificate is not None
        return certificate


Serve = Callable[..., Process]


@pytest.fixture
def serve(ca: Authority, tmp_path: Path) -> Iterator[Serve]:
    """Start a process with the files host.crt and host.key of a folder of its own."""
    processes: list[Process] = []

    def start(listener: socket.socket | None = None, **env: str) -> Process:
        renew(ca, tmp_path)
        process = Process(
            tmp_path,
            listener=listener,
            constants=None,
            TLS_CERT_FILE=str(tmp_path / "host.crt"),
            TLS_KEY_FILE=str(tmp_path / "host.key"),
            **env,
        )
        process.__enter__()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.__exit__(None, None, None)


def renew(ca: Authority, folder: Path, kind: str = "EC") -> None:
    """Put a new certificate and its key in place, each as Ansible does."""
    for source, target in zip(
        ca.issue("app1", NAME, LOOPBACK, kind=kind), ("host.crt", "host.key"), strict=True
    ):
        source.rename(folder / target)


async def load(process: Process) -> None:
    """Have a process load its certificate."""
    before = process.log.count("Certificate loaded")
    process.popen.send_signal(signal.SIGHUP)
    await until(lambda: process.log.count("Certificate loaded") > before)


async def test_serves_over_tls_with_the_name_of_its_host_and_refuses_plaintext(
    serve: Serve, ca: Authority
) -> None:
    process = serve()
    async with tls_client(process.port, trusting(ca)) as connection:
        assert (await connection.get("/health")).status == 200
        assert (await connection.get("/health")).status == 200
    async with client(process.port) as plain:
        await plain.send(request("GET", "/health"))
        assert b"HTTP" not in await plain.cut()
    assert process.complaints == []


async def test_a_websocket_and_refusals_work_over_tls(serve: Serve, ca: Authority) -> None:
    process = serve()
    async with tls_client(process.port, trusting(ca)) as connection:
        await connection.send(request("GET", "/ws", *HANDSHAKE))
        assert b" 101 " in await connection.until(b"\r\n\r\n")
        # Not masked, as a client must: the server says so and ends it.
        await connection.send(b"\x81\x02hi")
        # 1002, a protocol error.
        assert b"\x03\xea" in await connection.cut()
    async with tls_client(process.port, trusting(ca)) as connection:
        await connection.send(b"GET /health HTTP/1.1\r\nX: " + b"x" * 40_000)
        assert (await connection.answer()).status == 431
        await connection.cut()
    assert process.complaints == []


async def test_a_new_certificate_is_shown_after_a_reload_and_drops_no_connection(
    serve: Serve, ca: Authority, tmp_path: Path
) -> None:
    process, trust = serve(), trusting(ca)
    before = shown(process.port, trust)
    async with tls_client(process.port, trust) as connection:
        assert (await connection.get("/health")).status == 200
        renew(ca, tmp_path)
        # Nobody has told it yet.
        assert shown(process.port, trust) == before
        process.popen.send_signal(signal.SIGHUP)
        await until(lambda: "Certificate loaded" in process.log)
        assert shown(process.port, trust) != before
        assert (await connection.get("/health")).status == 200
    assert process.popen.poll() is None
    assert process.complaints == []


@pytest.mark.parametrize("required", ["true", "false"])
async def test_a_certificate_with_a_key_of_another_kind_takes_the_place_of_the_old_one(
    serve: Serve, ca: Authority, tmp_path: Path, required: str
) -> None:
    process, trust = serve(TLS_REQUIRED=required), trusting(ca)
    for kind in ("RSA", "EC"):
        renew(ca, tmp_path, kind)
        new = ssl.PEM_cert_to_DER_cert((tmp_path / "host.crt").read_text())
        assert shown(process.port, trust) != new
        await load(process)
        # By its name, and by an address, for which a client names nobody.
        assert shown(process.port, trust) == shown(process.port, trust, "127.0.0.1") == new
    async with tls_client(process.port, trust) as connection:
        assert (await connection.get("/health")).status == 200


async def test_a_certificate_that_does_not_fit_leaves_the_old_one(
    serve: Serve, ca: Authority, tmp_path: Path
) -> None:
    process, trust = serve(), trusting(ca)
    before = shown(process.port, trust)
    ca.issue("app1", NAME, LOOPBACK)[0].rename(tmp_path / "host.crt")
    process.popen.send_signal(signal.SIGHUP)
    await until(lambda: "the old one stays" in process.log)
    assert shown(process.port, trust) == before


async def test_old_tls_is_refused(serve: Serve, ca: Authority) -> None:
    process, old = serve(), trusting(ca)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shown(process.port, old)


@pytest.mark.parametrize("passed", [True, False], ids=["of-systemd", "its-own"])
async def test_both_are_taken_while_a_balancer_is_changed_over(
    serve: Serve, ca: Authority, passed: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = serve(listener if passed else None, TLS_REQUIRED="false")
    async with (
        client(process.port) as silent,
        client(process.port) as plain,
        tls_client(process.port, trusting(ca)) as connection,
    ):
        for _ in range(2):
            assert (await connection.get("/health")).status == 200
            assert (await plain.get("/health")).status == 200
        # One that says nothing keeps nobody waiting, and may still begin.
        assert (await silent.get("/health")).status == 200
    assert process.stop() == 0
    assert process.complaints == []


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"TLS_KEY_FILE": ""}, "TLS_KEY_FILE: found nothing"),
        ({"TLS_CERT_FILE": ""}, "TLS_CERT_FILE: found nothing"),
        ({"TLS_CERT_FILE": "/nonexistent"}, "TLS_CERT_FILE: found '/nonexistent'"),
        ({"TLS_CERT_FILE": "/etc/hostname"}, "expected a PEM certificate whose unencrypted key"),
        ({"TLS_REQUIRED": "perhaps"}, "TLS_REQUIRED: found 'perhaps'"),
    ],
)
def test_what_cannot_be_served_with_is_refused_at_the_start(
    ca: Authority, tmp_path: Path, env: dict[str, str], problem: str
) -> None:
    renew(ca, tmp_path)
    files = {
        "TLS_CERT_FILE": str(tmp_path / "host.crt"),
        "TLS_KEY_FILE": str(tmp_path / "host.key"),
    }
    with pytest.raises(AssertionError, match=problem):
        serve_with(tmp_path, files | env)


def serve_with(folder: Path, env: dict[str, str]) -> None:
    process = Process(folder, listener=None, constants=None, **env)
    code = process.popen.wait()
    assert code != os.EX_CONFIG, process.log


@pytest.mark.parametrize("required", [True, False])
async def test_a_stop_waits_for_who_is_in_the_middle_of_a_handshake(
    ca: Authority, required: bool
) -> None:
    certificate, key = ca.issue("app1", NAME, LOOPBACK)
    settings = TlsSettings(certificate, key, required)
    server = TlsServer(uvicorn.Config(lambda: None), lambda: None, settings)
    listening = socket.create_server(("127.0.0.1", 0))
    listener = TlsListener(listening, asyncio.Protocol, tls_context(settings), required)
    server.listeners.append(listener)
    _, writer = await asyncio.open_connection(*listening.getsockname())
    # The first byte of a handshake, and then nothing.
    writer.write(b"\x16")
    await until(lambda: bool(listener.beginning))
    stop = asyncio.create_task(server.until_closed(60))
    await asyncio.sleep(0.1)
    assert not stop.done()
    writer.close()
    await stop
    listener.close()
    await listener.wait_closed()
