"""The public keys of the issuer whose assertions count: a JWKS, or one key in PEM form."""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

# Characters that a text of keys may have.
MAX_KEYS: Final = 64 * 1024
MIN_RSA_BITS: Final = 2048

KEYS_FORM: Final = (
    "public keys as a JWKS, or one public key in PEM form, for RS256 (of 2048 bits or more), ES256 "
    "or EdDSA (Ed25519)"
)
_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----([A-Za-z0-9+/=\s]*)-----END \1-----")
_PEM_BEGIN: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----")
# Members of a JWK that make it a private or a shared key.
_SECRET_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class KeysError(Exception):
    """A text holds no acceptable public keys; the message names what was found instead."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of the issuer, for one algorithm. Without an id, it is the only one.

    `public` is one of cryptography's classes: the framework looks through the annotations of all
    services, and knows no unions of classes.
    """

    id: str | None
    algorithm: str
    public: Any


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return the keys in a file.

    Raises:
        OSError: it can't be read.
        KeysError: it holds no acceptable keys.
    """
    with path.open("rb") as file:
        text = file.read(MAX_KEYS + 1)
    try:
        return parse_keys(text.decode())
    except UnicodeDecodeError:
        raise KeysError("no text") from None


def parse_keys(text: str) -> tuple[Key, ...]:
    """Return the keys of a JWKS or of a PEM text.

    Raises:
        KeysError: it holds none, one is private, or one of several can't be told apart.
    """
    if len(text) > MAX_KEYS:
        raise KeysError(f"more than {MAX_KEYS} characters")
    keys = (_pem_key(text),) if "-----BEGIN" in text else _jwks(text)
    ids = [key.id for key in keys]
    if len(keys) > 1 and (None in ids or len(set(ids)) < len(ids)):
        raise KeysError("several keys without a `kid` of their own")
    return keys


def _pem_key(text: str) -> Key:
    kinds = _PEM_BEGIN.findall(text)
    if kinds != ["PUBLIC KEY"]:
        raise KeysError(f"{len(kinds)} PEM blocks" if len(kinds) != 1 else f"a PEM {kinds[0]}")
    block = _PEM.fullmatch(text.strip())
    try:
        # An environment file has no lines in a value: blanks do in their place.
        encoded = "".join(block[2].split()) if block else ""
        found = load_der_public_key(base64.b64decode(encoded, validate=True))
    except (ValueError, UnsupportedAlgorithm):
        raise KeysError("a damaged PEM block") from None
    key = _usable(None, found)
    if key is None:
        raise KeysError("a key of another kind")
    return key


def _jwks(text: str) -> tuple[Key, ...]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise KeysError("neither JSON nor PEM") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise KeysError("JSON that is no JWKS")
    if any(member.get("kty") == "oct" or _SECRET_MEMBERS & set(member) for member in members):
        raise KeysError("a private or a shared key")
    # Keys for encryption or another algorithm are of no use here.
    keys = [key for member in members if (key := _jwk(member)) is not None]
    if not keys:
        raise KeysError("a JWKS without a usable key")
    return tuple(keys)


def _jwk(member: dict[str, Any]) -> Key | None:
    if member.get("use", "sig") != "sig" or "verify" not in member.get("key_ops", ["verify"]):
        return None
    name = member.get("kid")
    if name is not None and not isinstance(name, str):
        raise KeysError("a `kid` that is no text")
    try:
        key = _usable(name, jwt.PyJWK(member).key)
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError):
        return None
    if key is None or member.get("alg", key.algorithm) != key.algorithm:
        return None
    return key


def _usable(name: str | None, public: object) -> Key | None:
    match public:
        case RSAPublicKey() if public.key_size >= MIN_RSA_BITS:
            return Key(name, "RS256", public)
        case EllipticCurvePublicKey() if isinstance(public.curve, SECP256R1):
            return Key(name, "ES256", public)
        case Ed25519PublicKey():
            return Key(name, "EdDSA", public)
    return None
