"""Signed assertions: who a user is, by the word of an issuer whose public keys are configured.

An assertion is a JWT, such as an OpenID Connect ID token. What it is signed with is decided by the
configured key, never by the assertion: a key has one algorithm, and headers that name or bring a
key of their own are not looked at.
"""

import base64
import datetime as dt
import hashlib
import json
import logging
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

log = logging.getLogger(__name__)

# Characters of an assertion, and what a file of keys may have.
MAX_ASSERTION: Final = 8 * 1024
MAX_KEYS: Final = 64 * 1024
MIN_RSA_BITS: Final = 2048
# Seconds that a used assertion is remembered after it has become useless: clocks of hosts differ.
MARGIN: Final = 300

KEYS_FORM: Final = (
    "public keys as a JWKS, or one public key in PEM form, for RS256 (of 2048 bits or more), ES256 "
    "or EdDSA (Ed25519)"
)
_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----([A-Za-z0-9+/=\s]*)-----END \1-----")
_PEM_BEGIN: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----")
# Members of a JWK that make it a private or a shared key.
_SECRET_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class KeysError(Exception):
    """A text holds no acceptable public keys; the message says what was found instead."""


class AssertionRefused(Exception):
    """The assertion proves nothing. The text is for the caller, and holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of the issuer, for one algorithm. Without an id, it is the only one.

    `public` is one of cryptography's classes: the framework looks through the annotations of all
    services, and knows no unions of classes.
    """

    id: str | None
    algorithm: str
    public: Any


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Whose assertions count. `max_age` and `leeway` in seconds; with a file, `keys` are its."""

    issuer: str
    audience: str
    keys: tuple[Key, ...]
    keys_file: Path | None
    user_claim: str
    max_age: int
    leeway: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an assertion says the user is, and what it is known by until it has become useless."""

    user: str
    digest: bytes
    forget_after: dt.datetime


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
    # What is for encryption, or for another algorithm, is the issuer's business with others.
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


class Authenticator:
    """Checks assertions. A file of keys that was replaced is read again with the next one."""

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings
        self._keys = settings.keys
        self._seen: tuple[int, int, int] | None = None

    def check(self, assertion: str) -> Identity:
        """Return whom an assertion is about. Whether it was used before is not known here.

        Raises:
            AssertionRefused: it proves nothing.
        """
        if len(assertion) > MAX_ASSERTION:
            raise AssertionRefused("The assertion is too long")
        settings = self._settings
        try:
            key = self._key(jwt.get_unverified_header(assertion))
            claims = jwt.decode(
                assertion,
                key.public,
                algorithms=[key.algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway,
                options={"require": ["aud", "exp", "iat", "iss", settings.user_claim]},
            )
            issued, expires = float(claims["iat"]), float(claims["exp"])
            useless = min(expires, issued + settings.max_age) + settings.leeway
            forget_after = dt.datetime.fromtimestamp(useless + MARGIN, dt.UTC)
        except jwt.ExpiredSignatureError:
            raise AssertionRefused("The assertion has expired") from None
        except jwt.ImmatureSignatureError:
            raise AssertionRefused("The assertion is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise AssertionRefused("The assertion is for another audience") from None
        except jwt.InvalidIssuerError:
            raise AssertionRefused("The assertion is of another issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise AssertionRefused(f"The assertion lacks the claim {error.claim}") from None
        except jwt.InvalidSignatureError:
            raise AssertionRefused("The assertion's signature is wrong") from None
        except (jwt.PyJWTError, ArithmeticError, ValueError, TypeError, OSError, RecursionError):
            raise AssertionRefused("The assertion is malformed") from None
        if claims["aud"] not in (settings.audience, [settings.audience]):
            # What another party may show as well, that party could use here.
            raise AssertionRefused("The assertion is for other audiences, too")
        if useless <= dt.datetime.now(dt.UTC).timestamp():
            raise AssertionRefused(f"The assertion is older than {settings.max_age} s")
        user = claims[settings.user_claim]
        if not isinstance(user, str):
            raise AssertionRefused(f"The assertion's claim {settings.user_claim} is no text")
        # By what is signed, not by the whole: some signatures can be written in another way.
        signed = assertion.rpartition(".")[0]
        return Identity(user, hashlib.sha256(signed.encode()).digest(), forget_after)

    def _key(self, header: dict[str, Any]) -> Key:
        """Return the key that an assertion must be signed with."""
        if "crit" in header or str(header.get("typ", "JWT")).upper() != "JWT":
            raise AssertionRefused("The assertion is of a kind that is not accepted")
        self._reload()
        named = header.get("kid")
        for key in self._keys:
            # The only key needs no name, and then any name will do: the signature decides.
            if key.id == named or (len(self._keys) == 1 and None in (key.id, named)):
                break
        else:
            raise AssertionRefused("The assertion is signed with a key that is not known")
        if header.get("alg") != key.algorithm:
            raise AssertionRefused("The assertion is signed with another algorithm than its key's")
        return key

    def _reload(self) -> None:
        path = self._settings.keys_file
        if path is None:
            return
        try:
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen == self._seen:
                return
            self._keys = read_keys(path)
            self._seen = seen
        except (OSError, KeysError) as error:
            # The keys from before go on counting: logins must not end with a half-written file.
            log.error("The issuer's keys could not be read again", extra={"reason": str(error)})
