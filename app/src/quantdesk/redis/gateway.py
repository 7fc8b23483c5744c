"""The one way to a Redis: its connection, whether it is usable, and the probe that finds out."""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import msgspec

from quantdesk.redis.sentinel import NoPrimary, find_primary
from quantdesk.redis.wire import (
    Done,
    Reply,
    ReplyError,
    Subscription,
    Wire,
    WireFull,
    WireLost,
    Word,
    open_wire,
    pack,
)
from quantdesk.settings import RedisSettings

log = logging.getLogger(__name__)

Status = Literal["healthy", "unhealthy", "disabled"]

PROBE_INTERVAL_UP: Final = 1.0
PROBE_INTERVAL_DOWN: Final = 0.25
# Connection attempts overlap while Redis is down: the first packet of each may be dropped, and
# waiting for one attempt's timeout would make the return of Redis go unnoticed for that long.
MAX_ATTEMPTS: Final = 12
# Seconds without a sign of life while a reply is due, after which Redis counts as down (or sooner,
# as the command timeout says): a cached answer is not worth waiting longer for.
STALL: Final = 0.5
STALL_CHECK: Final = 0.05
# Seconds between two questions to Sentinel whether the primary is still the same.
SENTINEL_INTERVAL: Final = 2.0

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
_ERRORS: Final = (OSError, TimeoutError, ReplyError, WireLost, WireFull, NoPrimary)


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
    """A Redis, and the state that decides whether a request may use it.

    A probe in the background pings Redis and owns the state. A connection that ends or stalls, and
    a reply that says so, mark Redis down; from then on nothing touches it until the probe has found
    it well again.
    """

    def __init__(self, settings: RedisSettings | None, env_name: str) -> None:
        self._settings = settings
        # UNLINK of a key that never exists writes nothing, but is refused by a replica, a full
        # disk or a missing right, where PING alone would promise a cache that can't be written.
        self._probe = (("PING",), ("UNLINK", f"qd:{env_name}:probe"))
        self._tls = None if settings is None or not settings.tls else tls_context(settings)
        self._wire: Wire | None = None
        self._address: tuple[str, int] | None = None
        self._up = False
        self._known = asyncio.Event()
        self._connected = asyncio.Event()
        self._latency: float | None = None
        # Digests of the scripts that were sent on the connection in use.
        self.scripts: Final[set[str]] = set()
        # How many connections there have been. What Redis knew on an earlier one may be lost.
        self.connections = 0
        self._refusals: set[str] = set()
        self._recover: list[Callable[[Wire], Awaitable[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def enabled(self) -> bool:
        """Whether a Redis is configured at all."""
        return self._settings is not None

    @property
    def available(self) -> bool:
        """Whether commands reach Redis now."""
        return self._up

    @property
    def health(self) -> Health:
        """What the latest probe or command found; costs no round trip."""
        if self._settings is None:
            return Health("disabled", None, False)
        if not self._up:
            return Health("unhealthy", None, False)
        return Health("healthy", self._latency, True)

    def on_recovery(self, hook: Callable[[Wire], Awaitable[None]]) -> None:
        """Have `hook` run on each new connection, before any other command uses it.

        What `hook` raises from Redis makes the connection count as failed.
        """
        self._recover.append(hook)

    async def start(self, patience: float) -> None:
        """Start the probe and wait up to `patience` seconds for its first finding."""
        if self._settings is None:
            return
        self._tasks = [
            asyncio.create_task(self._supervise(self._settings), name="redis-probe"),
            asyncio.create_task(self._watch_for_stalls(self._settings), name="redis-stalls"),
        ]
        if self._settings.sentinels:
            self._tasks.append(
                asyncio.create_task(self._follow(self._settings), name="redis-sentinel")
            )
        try:
            async with asyncio.timeout(patience):
                await self._known.wait()
        except TimeoutError:
            log.info("Redis has not answered yet, serving without it meanwhile")

    async def stop(self) -> None:
        """End the probe and close the connection."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._wire is not None:
            self._wire.close()

    def submit(self, packed: bytes, done: Done) -> None:
        """Send a packed command without waiting; `done` gets its reply, as by `Wire.send`.

        `done` hands the reply to `judge` when it is an exception.

        Raises:
            RedisUnavailable: nothing was sent.
        """
        wire = self._wire
        if wire is None:
            raise RedisUnavailable(attempted=False)
        try:
            wire.send(packed, done)
        except (WireLost, WireFull):
            raise RedisUnavailable(attempted=False) from None

    def judge(self, error: Exception) -> RedisUnavailable | RedisRefused:
        """Draw the consequences of a reply that is an exception; return what callers are told."""
        if not isinstance(error, ReplyError):
            return RedisUnavailable(attempted=True)
        if error.code in _DOWN_REPLIES:
            self._mark_down(error.code)
            if self._wire is not None:
                self._wire.close(error.code)
            return RedisUnavailable(attempted=True)
        if error.code not in self._refusals:
            # Once per code and connection: a full Redis refuses every request's SET.
            self._refusals.add(error.code)
            log.warning("Redis refuses commands", extra={"reason": error.code})
        return RedisRefused(error.code)

    async def call(self, *words: Word) -> Reply:
        """Send one command and return its reply.

        Raises:
            RedisUnavailable: Redis is disabled or down, or went down meanwhile.
            RedisRefused: Redis answered with an error that concerns this command alone.
        """
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def done(reply: Reply) -> None:
            outcome = self.judge(reply) if isinstance(reply, Exception) else reply
            if answer.done():
                return
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        self.submit(pack(*words), done)
        return await answer

    async def connected(self) -> Wire:
        """Wait until Redis is usable; return its connection, whose `ended` tells until when."""
        while True:
            await self._connected.wait()
            if self._wire is not None and self._wire.usable:
                return self._wire
            await asyncio.sleep(STALL_CHECK)

    async def subscription(self, heard: Callable[[list[Reply]], None]) -> Subscription:
        """Open a connection of its own to the server in use, for a subscriber.

        Raises:
            OSError, TimeoutError, ReplyError, WireLost, NoPrimary: there is none to be had.
        """
        if self._settings is None or self._address is None:
            raise NoPrimary
        wire = await self._open(self._settings, lambda: Subscription(heard), self._address)
        assert isinstance(wire, Subscription)  # noqa: S101  # what the factory made
        return wire

    # The state.

    def _mark_down(self, reason: str) -> None:
        if self._known.is_set() and not self._up:
            return
        self._up = False
        self._latency = None
        self._connected.clear()
        self._known.set()
        log.warning(
            "Redis connection failed, continuing without Redis",
            extra={"reason": reason, **self._where()},
        )

    def _mark_up(self, wire: Wire, latency: float) -> None:
        self._wire = wire
        self.connections += 1
        self._latency = latency
        self._refusals.clear()
        self.scripts.clear()
        self._connected.set()
        if self._up:
            # The connection was replaced before anybody could call Redis down.
            return
        self._up = True
        self._known.set()
        log.info("Redis connected", extra={"latency_ms": latency, **self._where()})

    def _where(self) -> dict[str, str]:
        if self._address is None:
            return {}
        return {"redis": f"{self._address[0]}:{self._address[1]}"}

    # The probe.

    async def _supervise(self, settings: RedisSettings) -> None:
        while True:
            wire = await self._reach(settings)
            try:
                await self._ping_on(wire)
            finally:
                self._wire = None
                self._connected.clear()
                wire.close()

    async def _reach(self, settings: RedisSettings) -> Wire:
        """Try until Redis answers and the recovery hooks are through; return the connection in use.

        A first attempt that fails marks Redis down; so does one that takes too long.
        """
        loop = asyncio.get_running_loop()
        attempts: set[asyncio.Task[tuple[Wire, float]]] = set()
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
                            wire, latency = attempt.result()
                        except _ERRORS as error:
                            self._mark_down(describe(error))
                            continue
                        if await self._recovered(settings, wire):
                            self._mark_up(wire, latency)
                            return wire
                if self._known.is_set():
                    self._mark_down("no answer")
                await asyncio.sleep(max(0.0, turn_ends - loop.time()))
        finally:
            for attempt in attempts:
                attempt.cancel()
            for outcome in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(outcome, tuple):
                    outcome[0].close()

    async def _attempt(self, settings: RedisSettings) -> tuple[Wire, float]:
        address = await self._locate(settings)
        wire = await self._open(settings, Wire, address)
        try:
            async with asyncio.timeout(settings.command_timeout):
                latency = await self._ask(wire)
        except BaseException:
            wire.close()
            raise
        self._address = address
        return wire, latency

    async def _locate(self, settings: RedisSettings) -> tuple[str, int]:
        if not settings.sentinels:
            self._address = self._address or (settings.host, settings.port)
            return settings.host, settings.port
        primary = await find_primary(settings, self._tls)
        return primary.host, primary.port

    async def _open(
        self, settings: RedisSettings, make: Callable[[], Wire], address: tuple[str, int]
    ) -> Wire:
        greetings: list[tuple[Word, ...]] = []
        if settings.password is not None:
            user = () if settings.username is None else (settings.username,)
            greetings.append(("AUTH", *user, settings.password.reveal()))
        if settings.database:
            greetings.append(("SELECT", settings.database))
        return await open_wire(
            make, *address, tls=self._tls, within=settings.connect_timeout, greetings=greetings
        )

    async def _recovered(self, settings: RedisSettings, wire: Wire) -> bool:
        try:
            async with asyncio.timeout(settings.command_timeout):
                for hook in self._recover:
                    await hook(wire)
        except _ERRORS as error:
            wire.close()
            self._mark_down(describe(error))
            return False
        except BaseException:
            wire.close()
            raise
        return True

    async def _ping_on(self, wire: Wire) -> None:
        """Ping until the connection ends, whoever ended it."""
        while True:
            await asyncio.wait({wire.ended}, timeout=PROBE_INTERVAL_UP)
            if wire.ended.done():
                return
            try:
                # No timeout: a reply that does not come is a stall, which ends the connection.
                self._latency = await self._ask(wire)
            except ReplyError as error:
                self._mark_down(error.code)
                return
            except (WireLost, WireFull):
                if wire.ended.done():
                    return

    async def _watch_for_stalls(self, settings: RedisSettings) -> None:
        limit = min(settings.command_timeout, STALL)
        suspect: Wire | None = None
        while True:
            await asyncio.sleep(STALL_CHECK)
            wire = self._wire
            if wire is None or wire.stalled < limit:
                suspect = None
            elif wire is not suspect:
                # Once more round the loop: it may be this process that stood still, with the reply
                # waiting in the socket.
                suspect = wire
            else:
                self._mark_down("no answer")
                wire.close("no answer")

    async def _follow(self, settings: RedisSettings) -> None:
        """Leave a primary that is none any more, though it may still answer."""
        while True:
            await asyncio.sleep(SENTINEL_INTERVAL)
            wire, address = self._wire, self._address
            try:
                primary = await find_primary(settings, self._tls)
            except NoPrimary:
                continue
            if wire is not None and wire is self._wire and address != (primary.host, primary.port):
                log.info("Sentinel names another primary", extra={"redis": primary.host})
                wire.close("Sentinel names another primary")

    async def _ask(self, wire: Wire) -> float:
        """Return how many milliseconds a PING took, with a write tried in its wake."""
        # Not the loop's clock: uvloop's counts whole milliseconds.
        started = time.perf_counter()
        ping, write = (asyncio.ensure_future(wire.call(*words)) for words in self._probe)
        try:
            await ping
            latency = round((time.perf_counter() - started) * 1000, 3)
            await write
        finally:
            for answer in (ping, write):
                answer.cancel()
            await asyncio.gather(ping, write, return_exceptions=True)
        return latency


def tls_context(settings: RedisSettings) -> ssl.SSLContext:
    """Return what TLS connections are made with: TLS 1.2 or later, everything verified."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ca_file is not None:
        context.load_verify_locations(cafile=settings.ca_file)
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    return context


def describe(error: BaseException) -> str:
    """Say what went wrong without repeating a server's words, which may quote a password.

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
