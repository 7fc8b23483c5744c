"""Jinja filters of the role certificates: what an authority and its certificates are, and what is wrong with them."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

PASSPHRASE = "the passphrase does not open ca.key"


def now() -> dt.datetime:
    """Return the time."""
    return dt.datetime.now(dt.UTC)


def title(certificate: x509.Certificate) -> str:
    """Return a certificate's name, as people call it."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string() or "without a name"


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256, as openssl prints it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def describe(certificate: x509.Certificate) -> str:
    """Return in one line which certificate it is and until when it is valid."""
    end = certificate.not_valid_after_utc.date().isoformat()
    return f"{title(certificate)}, SHA-256 {fingerprint(certificate)[:23]}…, valid until {end}"


def certificates(text: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM text; raises ValueError where there is none."""
    return x509.load_pem_x509_certificates(text.encode())


def public(key: Any) -> bytes:
    """Return a public key in a form that can be compared."""
    der: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether a certificate is signed by the key of another one."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def validity(certificate: x509.Certificate) -> str:
    """Return what is wrong with a certificate's dates, or nothing."""
    if certificate.not_valid_after_utc < now():
        return f"ended on {certificate.not_valid_after_utc.date().isoformat()}"
    if certificate.not_valid_before_utc > now() + dt.timedelta(hours=1):
        return f"is valid from {certificate.not_valid_before_utc.date().isoformat()} on only"
    return ""


def read(path: Path) -> str | None:
    """Return a file's text; None where there is none. Raises OSError."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None


def key_fault(text: str, passphrase: str, certificate: x509.Certificate | None) -> str:
    """Return what is wrong with the authority's key, or nothing."""
    try:
        key = serialization.load_pem_private_key(text.encode(), passphrase.encode() or None)
    except TypeError:
        # It is encrypted and no passphrase is given, or the other way round.
        if not passphrase:
            return f"{PASSPHRASE}: there is none, and the key is encrypted"
        return f"{PASSPHRASE}: there is one, and the key is not encrypted"
    except (ValueError, UnsupportedAlgorithm):
        return PASSPHRASE if "ENCRYPTED" in text else "ca.key is no private key in PEM"
    if certificate and public(key.public_key()) != public(certificate.public_key()):
        return "ca.key is not the key of ca.crt"
    return ""


def authority(folder: str, passphrase: str | None = "") -> dict[str, str]:
    """Return what the folder of an authority has: its `text` and `name`, empty for none, and what is wrong with it.

    `fault` is empty where it can sign, or where there is nothing yet.
    """
    place = Path(str(folder)).expanduser()
    found = {"text": "", "name": "", "fault": ""}
    try:
        text, key = read(place / "ca.crt"), read(place / "ca.key")
        certificate = certificates(text)[0] if text is not None else None
    except OSError as error:
        return {**found, "fault": f"{error.filename}: {error.strerror}"}
    except ValueError:
        return {**found, "fault": "ca.crt is no certificate in PEM"}
    if certificate is not None:
        found |= {"text": text or "", "name": describe(certificate)}
        found["fault"] = f"ca.crt {fault}" if (fault := validity(certificate)) else ""
        if key is None:
            found["fault"] = "ca.crt without ca.key"
    if key is not None:
        found["fault"] = key_fault(key, str(passphrase or ""), certificate) or found["fault"]
    return found


def recorded(folder: str, host: str, own: bool) -> bool:
    """Return whether this authority is known to be the one that a host trusts, from an earlier run of this controller.

    It has issued the certificate of the host (`own`), or has noted the authority that it gave to a client.
    """
    place = Path(str(folder)).expanduser()
    try:
        issuer = certificates((place / "ca.crt").read_text(encoding="utf-8"))[0]
        if own:
            return signed_by(certificates((place / "hosts" / f"{host}.crt").read_text(encoding="utf-8"))[0], issuer)
        return (place / "hosts" / f"{host}.ca").read_text(encoding="utf-8").strip() == fingerprint(issuer)
    except (OSError, ValueError):
        return False


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return what a certificate is for: names and addresses."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def noted(folder: str, host: str) -> list[str]:
    """Return the names that a host had before, as they are noted for its certificate."""
    return (read(Path(str(folder)).expanduser() / "hosts" / f"{host}.former") or "").split()


def renamed(folder: str, host: str, held: str, hosts: Iterable[str]) -> dict[str, Any]:
    """Return what a host was before it was renamed, as `name`, and what its certificate is still to be for, as `names`.

    `held` has the digests of the certificate and the key on the host. They were issued to another name if this
    controller has the same two: any host can show another one's certificate, and only that one has the key. One of
    `hosts`, which are those of the inventory, is none: this host would be a copy of it.
    """
    place = Path(str(folder)).expanduser() / "hosts"
    sums = [line.split()[0] for line in str(held).splitlines() if line]
    for path in sorted(place.glob("*.crt")) if len(sums) == 2 else []:
        name = path.name.removesuffix(".crt")
        key = path.with_name(f"{name}.key")
        if name == host or name in hosts or not key.exists():
            continue
        if [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, key)] == sums:
            before = noted(folder, name)
            names = names_of(certificates(path.read_text(encoding="utf-8"))[0])
            return {"name": name, "names": [one for one in names if one not in before]}
    return {"name": "", "names": noted(folder, host)}


def fits(folder: str, host: str) -> bool:
    """Return whether what was issued to a host is of this authority, and its key belongs to it.

    It does not where a run was interrupted between both, or the authority took another one's place.
    """
    place = Path(str(folder)).expanduser()
    try:
        issuer = certificates((place / "ca.crt").read_text(encoding="utf-8"))[0]
        own = certificates((place / "hosts" / f"{host}.crt").read_text(encoding="utf-8"))[0]
        return signed_by(own, issuer) and not key_fault(
            (place / "hosts" / f"{host}.key").read_text(encoding="utf-8"), "", own
        )
    except (OSError, ValueError):
        return False


def alternative_names(names: list[Any]) -> list[str]:
    """Return what a certificate is for, as OpenSSL writes it: a name may be an address, in any spelling."""
    found = []
    for name in map(str, names):
        try:
            found.append(f"IP:{ipaddress.ip_address(name).compressed}")
        except ValueError:
            found.append(f"DNS:{name.lower()}")
    return sorted(set(found))


def trusted(text: str) -> str:
    """Return which authority a host trusts, from its ca.crt."""
    try:
        return " and ".join(map(describe, certificates(text)))
    except ValueError:
        return "a file that is no certificate in PEM"


def foreign(text: str, own: str) -> bool:
    """Return whether a host trusts another authority than `own`, and not one that came in its place.

    One that is younger than `own` was made by a controller that did not have the folder: the host is put right.
    """
    if not text.strip():
        return False
    try:
        theirs = certificates(text)
    except ValueError:
        # Nothing trusts that.
        return False
    if not own:
        return True
    mine = certificates(own)[0]
    return mine not in theirs and not all(mine.not_valid_before_utc < other.not_valid_before_utc for other in theirs)


def fingerprint_of(text: str) -> str:
    """Return the SHA-256 of the first certificate of a PEM text; empty where there is none."""
    try:
        return fingerprint(certificates(text)[0])
    except ValueError:
        return ""


def chain_fault(ca: str, cert: str) -> str:
    """Return what is wrong with a certificate and what is between it and its authority, or nothing."""
    try:
        roots = certificates(ca)
    except ValueError:
        return "ca is no certificate in PEM"
    try:
        leaf, *between = certificates(cert)
    except ValueError:
        return "cert is no certificate in PEM"
    for name, one in [("cert", leaf), *(("a certificate in cert", one) for one in between)]:
        if fault := validity(one):
            return f"{name} ({title(one)}) {fault}"
    at, left = leaf, list(between)
    while not any(at == root or (signed_by(at, root) and not validity(root)) for root in roots):
        above = next((one for one in left if signed_by(at, one)), None)
        if above is None:
            return f"cert ({title(leaf)}) is not signed by ca ({title(roots[0])}), nor by another certificate in cert"
        left.remove(above)
        at = above
    return ""


def files_fault(ca: str, cert: str, key: str) -> str:
    """Return what is wrong with the files of a host's certificate, or nothing."""
    if fault := chain_fault(ca, cert):
        return fault
    try:
        own = serialization.load_pem_private_key(key.encode(), None)
    except TypeError:
        return "key is encrypted, and services have no passphrase"
    except (ValueError, UnsupportedAlgorithm):
        return "key is no private key in PEM"
    if public(own.public_key()) != public(certificates(cert)[0].public_key()):
        return "key is not the key of cert"
    return ""


def ca_fault(ca: str) -> str:
    """Return what is wrong with the file of authorities that a host is to trust, or nothing."""
    try:
        faults = [validity(one) for one in certificates(ca)]
    except ValueError:
        return "ca is no certificate in PEM"
    return "" if "" in faults else f"ca {faults[0]}"


def wanted_files(install: Iterable[Mapping[str, str]], folder: str, group: str) -> list[dict[str, str]]:
    """Return the files of a host for `as_surveyed`; without a content where the controller has no such file."""
    found = []
    for file in install:
        wanted = {"path": f"{folder}/{file['name']}", "mode": file["mode"]}
        wanted["group"] = group if file["name"] == "host.key" else "root"
        path = Path(file["src"])
        wanted["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
        found.append(wanted)
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "certificates_alternative_names": alternative_names,
            "certificates_authority": authority,
            "certificates_recorded": recorded,
            "certificates_fits": fits,
            "certificates_renamed": renamed,
            "certificates_trusted": trusted,
            "certificates_foreign": foreign,
            "certificates_fingerprint": fingerprint_of,
            "certificates_ca_fault": ca_fault,
            "certificates_files_fault": files_fault,
            "certificates_wanted_files": wanted_files,
        }
