"""Sessions for the tests of what needs one, and an issuer whose assertions begin them."""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from conftest import Running

ISSUER = "https://login.example.com"
AUDIENCE = "quantdesk"
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


class Issuer:
    """Signs assertions with a key of its own."""

    def __init__(self, kid: str = "one", key: PrivateKey | None = None) -> None:
        self.kid = kid
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        match self.key:
            case ec.EllipticCurvePrivateKey():
                self.algorithm = "ES256"
            case rsa.RSAPrivateKey():
                self.algorithm = "RS256"
            case _:
                self.algorithm = "EdDSA"

    @property
    def pem(self) -> str:
        """The public key."""
        public = self.key.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as a JWK."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        jwk = json.loads(algorithm.to_jwk(self.key.public_key()))
        return {**jwk, "kid": self.kid, "use": "sig"}

    @property
    def env(self) -> dict[str, str]:
        """What an application's environment says of it."""
        return {"AUTH_KEYS": jwks(self), "AUTH_ISSUER": ISSUER, "AUTH_AUDIENCE": AUDIENCE}

    def claims(self, user: str, **other: object) -> dict[str, Any]:
        """Return an assertion's claims; one that is None is left out."""
        now = time.time()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user,
            "iat": int(now),
            "exp": int(now) + 120,
            "jti": uuid.uuid4().hex,
            **other,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def sign(self, user: str, headers: Mapping[str, Any] | None = None, **other: object) -> str:
        """Return an assertion."""
        headers = {"kid": self.kid, **(headers or {})}
        return jwt.encode(self.claims(user, **other), self.key, self.algorithm, headers)


def jwks(*issuers: Issuer) -> str:
    return json.dumps({"keys": [issuer.jwk for issuer in issuers]})


async def log_in(app: Running, user: str | None = None) -> dict[str, str]:
    """Begin a session; return the headers that a client sends with it."""
    answer = await app.client.post("/api/sessions", json={"user": user} if user else {})
    assert answer.status_code == 201, answer.text
    session_id = answer.cookies["session"]
    # The client would send it along with every request, also with those of other users.
    app.client.cookies.clear()
    return {"Cookie": f"session={session_id}", "Content-Type": "application/json"}


def id_in(headers: dict[str, str]) -> str:
    return headers["Cookie"].removeprefix("session=")
