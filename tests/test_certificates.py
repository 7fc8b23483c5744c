"""What the role certificates tells of an authority, of what a host trusts, and of files that the user brings."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from conftest import load

filters = load("plugins/filter/certificates.py")

PASSPHRASE = "correct-horse-battery"
NOW = dt.datetime.now(dt.UTC)
YEAR = dt.timedelta(days=365)


@dataclass
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def crt(self) -> str:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def pem(self, passphrase: str = "") -> str:
        """Return the key in PEM."""
        lock = (
            serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
        )
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, form, lock).decode()


LOOPBACK = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


def issue(
    name: str,
    issuer: Pair | None = None,
    begin: dt.datetime = NOW - YEAR,
    years: int = 3,
    names: Sequence[x509.GeneralName] = LOOPBACK,
) -> Pair:
    """Return a new certificate, by an authority or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + years * YEAR)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    return Pair(certificate, key)


CA = issue("Ours")
OTHER = issue("Other")
YOUNGER = issue("Younger", begin=NOW - dt.timedelta(days=1))
HOST = issue("redis1", CA)
MIDDLE = issue("Middle", CA)
BELOW = issue("redis2", MIDDLE)
ENDED = issue("old", CA, begin=NOW - 4 * YEAR)
LATER = issue("later", CA, begin=NOW + YEAR)


def folder(path: Path, **files: str) -> Path:
    """Write files such as ca_crt, and return the folder."""
    (path / "hosts").mkdir()
    for name, text in files.items():
        (path / name.replace("__", "/").replace("_", ".")).write_text(text)
    return path


def test_an_empty_folder_has_no_authority_and_nothing_is_wrong(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        assert filters.authority(str(place)) == {"text": "", "name": "", "fault": ""}


@pytest.mark.parametrize(
    ("files", "passphrase", "fault"),
    [
        ({"ca_crt": CA.crt, "ca_key": CA.pem()}, "", ""),
        ({"ca_crt": CA.crt, "ca_key": CA.pem()}, None, ""),
        ({"ca_crt": CA.crt, "ca_key": CA.pem(PASSPHRASE)}, PASSPHRASE, ""),
        # A run that was interrupted before the certificate.
        ({"ca_key": CA.pem(PASSPHRASE)}, PASSPHRASE, ""),
        ({"ca_key": CA.pem(PASSPHRASE)}, PASSPHRASE[::-1], "the passphrase does not open ca.key"),
        ({"ca_crt": CA.crt}, "", "ca.crt without ca.key"),
        ({"ca_crt": CA.crt, "ca_key": OTHER.pem()}, "", "ca.key is not the key of ca.crt"),
        ({"ca_crt": CA.crt, "ca_key": CA.pem(PASSPHRASE)}, "", "the key is encrypted"),
        ({"ca_crt": CA.crt, "ca_key": CA.pem()}, PASSPHRASE, "the key is not encrypted"),
        ({"ca_crt": CA.crt, "ca_key": "no key"}, "", "ca.key is no private key in PEM"),
        ({"ca_crt": "nothing", "ca_key": CA.pem()}, "", "ca.crt is no certificate in PEM"),
        ({"ca_crt": ENDED.crt, "ca_key": ENDED.pem()}, "", "ca.crt ended on "),
        ({"ca_crt": LATER.crt, "ca_key": LATER.pem()}, "", "on only"),
    ],
)
def test_an_authority_that_cannot_sign_is_named(
    tmp_path: Path, files: dict[str, str], passphrase: str | None, fault: str
) -> None:
    found = filters.authority(str(folder(tmp_path, **files)), passphrase)["fault"]
    assert fault in found
    assert bool(fault) == bool(found)


def test_it_is_told_by_name_fingerprint_and_end(tmp_path: Path) -> None:
    name = filters.authority(str(folder(tmp_path, ca_crt=CA.crt, ca_key=CA.pem())))["name"]
    assert name.startswith("Ours, SHA-256 ")
    assert CA.certificate.fingerprint(hashes.SHA256()).hex(":").upper()[:23] in name
    assert name.endswith(f"valid until {CA.certificate.not_valid_after_utc:%Y-%m-%d}")


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder(tmp_path, ca_crt=CA.crt, ca_key=CA.pem())))
    assert filters.authority("~")["name"].startswith("Ours")


@pytest.mark.parametrize(
    ("theirs", "own", "foreign"),
    [
        # A bare host, and the usual one.
        ("", "", False),
        ("", CA.crt, False),
        (CA.crt, CA.crt, False),
        # A second controller: without an authority, or with one that it made later, or with somebody else's.
        (CA.crt, "", True),
        (CA.crt, YOUNGER.crt, True),
        (OTHER.crt, CA.crt, True),
        # What that controller has left: the one that was there first puts the host right.
        (YOUNGER.crt, CA.crt, False),
        # Both are trusted.
        (CA.crt + OTHER.crt, CA.crt, False),
        (YOUNGER.crt + OTHER.crt, CA.crt, True),
        ("nothing", CA.crt, False),
        ("nothing", "", False),
    ],
)
def test_another_authority_than_the_host_trusts_is_foreign(theirs: str, own: str, foreign: bool) -> None:
    assert filters.foreign(theirs, own) is foreign


def test_a_host_is_recorded_by_its_certificate_or_by_a_note(tmp_path: Path) -> None:
    note = f"{filters.fingerprint_of(CA.crt)}\n"
    place = str(
        folder(
            tmp_path,
            ca_crt=CA.crt,
            ca_key=CA.pem(),
            hosts__redis1_crt=HOST.crt,
            hosts__moved_crt=issue("moved", OTHER).crt,
            hosts__app1_ca=note,
            hosts__app2_ca=filters.fingerprint_of(OTHER.crt),
            hosts__broken_crt="",
        )
    )
    hosts = ("redis1", "moved", "app1", "app2", "broken", "missing")
    assert [host for host in hosts if filters.recorded(place, host, True)] == ["redis1"]
    assert [host for host in hosts if filters.recorded(place, host, False)] == ["app1"]
    (tmp_path / "ca.crt").write_text(OTHER.crt)
    assert [host for host in hosts if filters.recorded(place, host, True)] == ["moved"]


@pytest.mark.parametrize(
    ("ca", "key", "fits"),
    [
        (CA.crt, HOST.pem(), True),
        (CA.crt, OTHER.pem(), False),
        (OTHER.crt, HOST.pem(), False),
        (CA.crt, "", False),
        ("", HOST.pem(), False),
    ],
    ids=["whole", "another key", "another authority", "no key", "no authority"],
)
def test_what_was_issued_is_told_from_what_was_cut_off(tmp_path: Path, ca: str, key: str, fits: bool) -> None:
    place = folder(tmp_path, ca_crt=ca, hosts__redis1_crt=HOST.crt, hosts__redis1_key=key)
    assert filters.fits(str(place), "redis1") is fits
    assert not filters.fits(str(place), "redis2")


@pytest.mark.parametrize(
    ("ca", "cert", "key", "fault"),
    [
        (CA.crt, HOST.crt, HOST.pem(), ""),
        (OTHER.crt + CA.crt, HOST.crt, HOST.pem(), ""),
        (CA.crt, BELOW.crt + MIDDLE.crt, BELOW.pem(), ""),
        # A certificate that is trusted itself.
        (HOST.crt, HOST.crt, HOST.pem(), ""),
        (MIDDLE.crt, BELOW.crt, BELOW.pem(), ""),
        (CA.crt, BELOW.crt, BELOW.pem(), "cert (redis2) is not signed by ca (Ours)"),
        (OTHER.crt, HOST.crt, HOST.pem(), "cert (redis1) is not signed by ca (Other)"),
        (CA.crt, BELOW.crt + OTHER.crt, BELOW.pem(), "is not signed by"),
        (CA.crt, HOST.crt, OTHER.pem(), "key is not the key of cert"),
        (CA.crt, HOST.crt, HOST.pem(PASSPHRASE), "key is encrypted"),
        (CA.crt, HOST.crt, "no key", "key is no private key in PEM"),
        (CA.crt, ENDED.crt, ENDED.pem(), "cert (old) ended on "),
        (CA.crt, LATER.crt, LATER.pem(), "cert (later) is valid from "),
        (CA.crt, "no certificate", HOST.pem(), "cert is no certificate in PEM"),
        ("no certificate", HOST.crt, HOST.pem(), "ca is no certificate in PEM"),
    ],
)
def test_files_that_do_not_belong_together_are_named(ca: str, cert: str, key: str, fault: str) -> None:
    found = filters.files_fault(ca, cert, key)
    assert fault in found
    assert bool(fault) == bool(found)


def test_an_authority_for_clients_must_be_valid() -> None:
    assert filters.ca_fault(CA.crt) == ""
    assert filters.ca_fault(ENDED.crt + CA.crt) == ""
    assert "ended on" in filters.ca_fault(ENDED.crt)
    assert "no certificate" in filters.ca_fault("")
