import datetime as dt
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from conftest import Server, Start


@dataclass
class Authority:
    """A private CA, as the files that Redis and the application read."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        authority = cls(folder, key, certificate)
        authority.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return authority

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str, *subjects: x509.GeneralName, kind: str = "EC") -> tuple[Path, Path]:
        """Write a certificate and its key, of the kind EC or RSA; return their paths."""
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if kind == "EC":
            key = ec.generate_private_key(ec.SECP256R1())
        else:
            key = rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
    )


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
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
