"""How Redis fails callers, and how that is described."""

import ssl
from typing import Final

from quantdesk.redis.sentinel import NoPrimary
from quantdesk.redis.wire import ReplyError, WireFull, WireLost

# What connecting to Redis, and what a command on a connection of one's own, may raise.
CONNECTION_ERRORS: Final = (OSError, TimeoutError, ReplyError, WireLost, WireFull, NoPrimary)


class RedisUnavailable(Exception):
    """Redis is not usable. `attempted` is false if no command was sent."""

    def __init__(self, *, attempted: bool) -> None:
        self.attempted = attempted
        super().__init__("Redis is not available")


class RedisRefused(Exception):
    """Redis answered this command with an error, but stays usable. `code` is the reply's word."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"Redis refused a command: {code}")


def describe(error: BaseException) -> str:
    """Report what went wrong without repeating a server's words, which may quote a password.

    (A server that does not know AUTH answers with the arguments that it was given.)
    """
    match error:
        case ReplyError():
            return error.code
        case WireLost():
            return str(error) or "connection lost"
        case NoPrimary():
            causes = sorted({describe(cause) for cause in error.causes})
            return f"no Sentinel knows the primary ({', '.join(causes)})"
        case ssl.SSLCertVerificationError():
            return f"certificate refused: {error.verify_message}"
        case OSError() if error.strerror:
            return error.strerror
        case TimeoutError():
            return "no answer"
        case _:
            return type(error).__name__
