"""The one way to Redis: connections, whether it is usable now, and the probe that finds out."""

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from quantdesk.settings import RedisSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
Status = Literal["healthy", "unhealthy", "disabled"]
Operation = Callable[["Redis"], Awaitable[T]]

PROBE_INTERVAL_UP: Final = 1.0
PROBE_INTERVAL_DOWN: Final = 0.5
# Connection attempts overlap while Redis is down: the first packet of each may be dropped, and
# waiting for one attempt's timeout would make the return of Redis go unnoticed for that long.
MAX_ATTEMPTS: Final = 12
# How many operations may be under way at once; the others wait for their turn.
MAX_OPERATIONS: Final = 64

_ERRORS: Final = (RedisError, OSError, TimeoutError)
# Replies after which no other command would fare better, so that Redis counts as down.
_DOWN_REPLIES: Final = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOREPLICAS",
        "READONLY",
        "WRONGPASS",
    }
)


class RedisUnavailable(Exception):
    """Redis is not usable. `attempted` tells a try that failed from one that was not made."""

    def __init__(self, *, attempted: bool) -> None:
        self.attempted = attempted
        super().__init__("Redis is not available")


class RedisRefused(Exception):
    """Redis answered this command with an error, but stays usable. `code` is the reply's word."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"Redis refused a command: {code}")


class Health(msgspec.Struct, frozen=True):
    """What is known about Redis. `latency` in milliseconds, null unless available."""

    status: Status
    latency: float | None
    available: bool


class Gateway:
    """Redis' connections and the state that decides whether a request may use them.

    A probe in the background pings Redis and owns the state. An operation that fails reports
    it, and from then on none touches Redis until the probe has found it well again.
    """

    def __init__(self, settings: RedisSettings | None, env_name: str) -> None:
        self._settings = settings
        # UNLINK of a key that never exists writes nothing, but is refused by a replica, a full
        # disk or a missing right, where PING alone would promise a cache that can't be written.
        self._probe_key = f"qd:{env_name}:probe"
        self._redis = None if settings is None else Redis(connection_pool=_pool(settings))
        self._slots = asyncio.Semaphore(MAX_OPERATIONS)
        self._waits: set[asyncio.Timeout] = set()
        self._known = asyncio.Event()
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._wake = asyncio.Event()
        self._period = 0
        self._latency: float | None = None
        self._refusals: set[str] = set()
        self._recover: Callable[[Redis], Awaitable[None]] | None = None
        self._probe: asyncio.Task[None] | None = None

    @property
    def available(self) -> bool:
        """Whether operations reach Redis now."""
        return self._up.is_set()

    @property
    def health(self) -> Health:
        """What the latest probe or operation found; costs no round trip."""
        if self._settings is None:
            return Health("disabled", None, False)
        if not self.available:
            return Health("unhealthy", None, False)
        return Health("healthy", self._latency, True)

    def on_recovery(self, hook: Callable[[Redis], Awaitable[None]]) -> None:
        """Have `hook` run each time Redis answers again, before any operation reaches it.

        What `hook` raises from Redis makes the recovery fail and be tried again.
        """
        self._recover = hook

    async def start(self, patience: float) -> None:
        """Start the probe and wait up to `patience` seconds for its first finding."""
        if self._settings is None:
            return
        self._down.set()
        self._probe = asyncio.create_task(self._supervise(self._settings), name="redis-probe")
        try:
            async with asyncio.timeout(patience):
                await self._known.wait()
        except TimeoutError:
            log.info("Redis has not answered yet, serving without it meanwhile")

    async def stop(self) -> None:
        """End the probe and close the connections."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        if self._redis is not None:
            await self._redis.aclose()
            await self._redis.connection_pool.disconnect()

    async def wait_up(self) -> Redis:
        """Wait until Redis is usable; return the client."""
        await self._up.wait()
        return self._client()

    async def wait_down(self) -> None:
        """Wait until Redis is no longer usable."""
        await self._down.wait()

    def suspect(self) -> None:
        """Have the probe look now: something else that uses Redis has lost its connection."""
        self._wake.set()

    async def run(self, operation: Operation[T]) -> T:
        """Run `operation` on Redis, if Redis is usable.

        Raises:
            RedisUnavailable: Redis is disabled or down, or went down meanwhile.
            RedisRefused: Redis answered with an error that concerns this command alone.
        """
        if self._settings is None or not self.available:
            raise RedisUnavailable(attempted=False)
        period = self._period
        try:
            async with asyncio.timeout(self._longest(self._settings)) as wait:
                self._waits.add(wait)
                try:
                    async with self._slots:
                        return await operation(self._client())
                finally:
                    self._waits.discard(wait)
        except _ERRORS as error:
            code = _reply_code(error)
            if code is None or code in _DOWN_REPLIES:
                self._mark_down(error, period)
                raise RedisUnavailable(attempted=True) from None
            if code not in self._refusals:
                # Once per code and period: a full Redis refuses every request's SET.
                self._refusals.add(code)
                log.warning("Redis refuses commands", extra={"reason": code})
            raise RedisRefused(code) from None

    def _client(self) -> Redis:
        if self._redis is None:
            raise RedisUnavailable(attempted=False)
        return self._redis

    @staticmethod
    def _longest(settings: RedisSettings) -> float:
        return settings.connect_timeout + settings.command_timeout

    def _mark_down(self, error: BaseException, period: int) -> None:
        # An operation of an earlier period knows nothing about the present one.
        if period != self._period or (self._known.is_set() and not self.available):
            return
        self._period += 1
        self._latency = None
        self._up.clear()
        self._down.set()
        self._wake.set()
        self._known.set()
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            # Those that wait for the same dead Redis need not wait for their own timeout.
            if not wait.expired():
                wait.reschedule(now)
        log.warning(
            "Redis connection failed, continuing without Redis",
            extra={"reason": describe(error), **self._where()},
        )

    def _mark_up(self, latency: float) -> None:
        self._period += 1
        self._latency = latency
        self._refusals.clear()
        self._down.clear()
        self._up.set()
        self._known.set()
        log.info("Redis connected", extra={"latency_ms": latency, **self._where()})

    def _where(self) -> dict[str, str]:
        if self._settings is None:
            return {}
        return {"redis": f"{self._settings.host}:{self._settings.port}"}

    async def _supervise(self, settings: RedisSettings) -> None:
        while True:
            connection = await self._reach(settings)
            try:
                await self._watch(settings, connection)
            finally:
                await _close(connection)

    async def _reach(self, settings: RedisSettings) -> AbstractConnection:
        """Try until Redis answers, then recover and mark it up; return the probe's connection."""
        loop = asyncio.get_running_loop()
        attempts: set[asyncio.Task[tuple[AbstractConnection, float]]] = set()
        try:
            while True:
                if len(attempts) < MAX_ATTEMPTS:
                    attempts.add(asyncio.create_task(self._attempt(settings)))
                turn_ends = loop.time() + PROBE_INTERVAL_DOWN
                while attempts and (left := turn_ends - loop.time()) > 0:
                    done, _ = await asyncio.wait(
                        attempts, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
                    for attempt in done:
                        attempts.discard(attempt)
                        try:
                            connection, latency = attempt.result()
                        except _ERRORS as error:
                            self._mark_down(error, self._period)
                            continue
                        try:
                            recovered = await self._recovered(settings)
                        except BaseException:
                            await _close(connection)
                            raise
                        if recovered:
                            self._mark_up(latency)
                            return connection
                        await _close(connection)
                await asyncio.sleep(max(0.0, turn_ends - loop.time()))
        finally:
            for attempt in attempts:
                attempt.cancel()
            for outcome in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(outcome, tuple):
                    await _close(outcome[0])

    async def _attempt(self, settings: RedisSettings) -> tuple[AbstractConnection, float]:
        connection = _connection(settings)
        try:
            async with asyncio.timeout(self._longest(settings)):
                await connection.connect()  # type: ignore[no-untyped-call]  # untyped in redis-py
                return connection, await self._ping(connection)
        except BaseException:
            # Whatever ended the attempt, cancellation included: its socket must not stay open.
            await _close(connection)
            raise

    async def _recovered(self, settings: RedisSettings) -> bool:
        try:
            async with asyncio.timeout(self._longest(settings)):
                redis = self._client()
                # Connections from before the outage would fail one request each.
                await redis.connection_pool.disconnect()
                if self._recover is not None:
                    await self._recover(redis)
        except _ERRORS as error:
            self._mark_down(error, self._period)
            return False
        return True

    async def _watch(self, settings: RedisSettings, connection: AbstractConnection) -> None:
        """Ping until Redis is down, whoever finds that out."""
        while self._up.is_set():
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_INTERVAL_UP):
                    await self._wake.wait()
            if not self._up.is_set():
                return
            period = self._period
            try:
                async with asyncio.timeout(settings.command_timeout) as wait:
                    self._waits.add(wait)
                    try:
                        latency = await self._ping(connection)
                    finally:
                        self._waits.discard(wait)
            except _ERRORS as error:
                self._mark_down(error, period)
                return
            if self._up.is_set():
                self._latency = latency

    async def _ping(self, connection: AbstractConnection) -> float:
        """Return how many milliseconds a PING took, with a write tried in its wake."""
        # Not the loop's clock: uvloop's counts whole milliseconds.
        started = time.perf_counter()
        commands = connection.pack_commands([("PING",), ("UNLINK", self._probe_key)])
        await connection.send_packed_command(commands, check_health=False)
        await connection.read_response()
        latency = round((time.perf_counter() - started) * 1000, 3)
        await connection.read_response()
        return latency


def describe(error: BaseException) -> str:
    """Say what went wrong without repeating a server's words, which may quote a password.

    (A server that does not know AUTH answers with the arguments that it was given.)
    """
    code = _reply_code(error)
    if code is not None:
        return code
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate refused: {cause.verify_message}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(error).__name__


def _reply_code(error: BaseException) -> str | None:
    """Return the word that an error reply began with, or None if it was no such reply."""
    code = getattr(error, "status_code", None)
    if not isinstance(code, str):
        code = str(error).split(" ", 1)[0] if isinstance(error, ResponseError) else None
    if code is None:
        return None
    return code if re.fullmatch(r"[A-Z]{2,32}", code) else "ERR"


def _arguments(settings: RedisSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "db": settings.database,
        "username": settings.username,
        "password": settings.password.reveal() if settings.password else None,
        "socket_connect_timeout": settings.connect_timeout,
        "socket_timeout": settings.command_timeout,
        "socket_keepalive": True,
        # The library's own default keeps a request waiting for seconds.
        "retry": Retry(NoBackoff(), 0),
        # RESP2 and no CLIENT SETINFO: a user without rights to CLIENT connects without a refusal.
        "protocol": 2,
        "driver_info": None,
    }
    if settings.tls:
        arguments |= {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
            "ssl_ca_certs": _text(settings.ca_file),
            "ssl_certfile": _text(settings.cert_file),
            "ssl_keyfile": _text(settings.key_file),
        }
    return arguments


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def _connection(settings: RedisSettings) -> AbstractConnection:
    kind: Callable[..., AbstractConnection] = SSLConnection if settings.tls else Connection
    return kind(**_arguments(settings))


def _pool(settings: RedisSettings) -> ConnectionPool:
    kind = SSLConnection if settings.tls else Connection
    # Room beside the operations for the subscription.
    return ConnectionPool(
        connection_class=kind, max_connections=MAX_OPERATIONS + 8, **_arguments(settings)
    )


async def _close(connection: AbstractConnection) -> None:
    try:
        await connection.disconnect(nowait=True)
    except _ERRORS:
        log.debug("A connection to Redis did not close cleanly")
