"""Signed assertions: an issuer, whose public keys are configured, vouches for a user's identity.

An assertion is a JWT, such as an OpenID Connect ID token. What it is signed with is decided by the
configured key, never by the assertion: a key has one algorithm, and headers that name or bring a
key of their own are not looked at.
"""

import datetime as dt
import hashlib
import logging
from dataclasses import dataclass
from typing import Any, Final

import jwt

from quantdesk.authentication.keys import Key, KeysError, read_keys
from quantdesk.settings import AuthSettings

log = logging.getLogger(__name__)

# Characters of an assertion.
MAX_ASSERTION: Final = 8 * 1024
# Seconds that a used assertion is remembered after it has become useless: clocks of hosts differ.
MARGIN: Final = 300


class AssertionRefused(Exception):
    """The assertion proves nothing. The text is for the caller, and holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The user of an assertion, and the digest that it is remembered by until it is useless."""

    user: str
    digest: bytes
    forget_after: dt.datetime


class Authenticator:
    """Checks assertions. A file of keys that was replaced is read again with the next one."""

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings
        self._keys = settings.keys
        self._seen: tuple[int, int, int] | None = None

    def check(self, assertion: str) -> Identity:
        """Return the identity in an assertion. Whether it was used before is not known here.

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
            # Another audience could use it here, too.
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
