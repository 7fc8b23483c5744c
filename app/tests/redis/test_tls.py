from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from authority import LOOPBACK, Authority
from conftest import Server, Start

MakeServer = Callable[..., Server]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "authority")


def serve(make_redis: MakeServer, ca: Authority, subject: x509.GeneralName, clients: str) -> Server:
    cert, key = ca.issue("server", subject)
    return make_redis(
        *("--tls-cert-file", str(cert)),
        *("--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(ca.ca_file)),
        *("--tls-auth-clients", clients),
        tls=True,
    )


@pytest.mark.parametrize(
    ("scheme", "tls"), [("rediss", "false"), ("redis", "true"), ("rediss", "true")]
)
async def test_certificate_for_an_address_is_accepted(
    start: Start, make_redis: MakeServer, authority: Authority, scheme: str, tls: str
) -> None:
    server = serve(make_redis, authority, LOOPBACK, "no")
    app = await start(
        f"{scheme}://127.0.0.1:{server.port}",
        REDIS_TLS=tls,
        REDIS_CA_FILE=str(authority.ca_file),
        CACHE_TTL_PRICE="30",
    )
    assert app.services.gateway.available
    await app.put_price("BTC-USD", 1)
    outcomes = [(await app.get("/api/prices/BTC-USD")).headers["X-Cache"] for _ in range(2)]
    assert outcomes == ["MISS", "HIT"]


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.reason for record in caplog.records if hasattr(record, "reason")]


async def test_certificate_of_another_authority_is_refused(
    start: Start,
    make_redis: MakeServer,
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(make_redis, authority, LOOPBACK, "no")
    other = Authority.make(tmp_path / "other")
    app = await start(f"rediss://127.0.0.1:{server.port}", REDIS_CA_FILE=str(other.ca_file))
    assert not app.services.gateway.available
    assert (await app.get("/health")).json()["status"] == "degraded"
    assert [reason.startswith("certificate refused") for reason in reasons(caplog)] == [True]


async def test_certificate_for_another_host_is_refused(
    start: Start,
    make_redis: MakeServer,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(make_redis, authority, x509.DNSName("elsewhere.example.net"), "no")
    app = await start(f"rediss://127.0.0.1:{server.port}", REDIS_CA_FILE=str(authority.ca_file))
    assert not app.services.gateway.available
    assert [reason.startswith("certificate refused") for reason in reasons(caplog)] == [True]


async def test_plaintext_to_a_tls_port_degrades(
    start: Start, make_redis: MakeServer, authority: Authority
) -> None:
    server = serve(make_redis, authority, LOOPBACK, "no")
    app = await start(f"redis://127.0.0.1:{server.port}")
    assert not app.services.gateway.available
    assert (await app.get("/health")).status_code == 200


async def test_client_certificate_opens_what_is_closed_without_one(
    start: Start, make_redis: MakeServer, authority: Authority
) -> None:
    server = serve(make_redis, authority, LOOPBACK, "yes")
    cert, key = authority.issue("client", x509.DNSName("client"))
    url, ca = f"rediss://127.0.0.1:{server.port}", str(authority.ca_file)
    without = await start(url, REDIS_CA_FILE=ca)
    assert not without.services.gateway.available
    app = await start(url, REDIS_CA_FILE=ca, REDIS_CERT_FILE=str(cert), REDIS_KEY_FILE=str(key))
    assert app.services.gateway.available
