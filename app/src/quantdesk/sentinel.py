"""Which server is the primary now, asked of Sentinel."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Final

from quantdesk.settings import RedisSettings
from quantdesk.wire import Reply, Wire, Word, open_wire

# Seconds for one Sentinel to answer; all are asked at once.
PATIENCE: Final = 1.0


class NoPrimary(Exception):
    """No Sentinel that answered knows the primary."""


@dataclass(frozen=True, slots=True)
class Primary:
    """An address, and the configuration epoch in which it became the primary."""

    host: str
    port: int
    epoch: int


async def find_primary(settings: RedisSettings, tls: ssl.SSLContext | None) -> Primary:
    """Ask every Sentinel, and believe the one that saw the latest failover.

    A Sentinel cut off from the others goes on naming the primary of before: the first answer alone
    would lead back to it.

    Raises:
        NoPrimary: none answered, or none knows the name.
    """
    answers = await asyncio.gather(
        *(_ask(host, port, settings, tls) for host, port in settings.sentinels),
        return_exceptions=True,
    )
    known = [answer for answer in answers if isinstance(answer, Primary)]
    if not known:
        raise NoPrimary
    return max(known, key=lambda primary: primary.epoch)


async def _ask(
    host: str, port: int, settings: RedisSettings, tls: ssl.SSLContext | None
) -> Primary:
    password = settings.sentinel_password
    greetings: list[tuple[Word, ...]] = [("AUTH", password.reveal())] if password else []
    within = min(PATIENCE, settings.connect_timeout)
    wire = await open_wire(Wire, host, port, tls=tls, within=within, greetings=greetings)
    try:
        async with asyncio.timeout(within):
            return _read(await wire.call("SENTINEL", "MASTER", settings.sentinel_master))
    finally:
        wire.close()


def _read(reply: Reply) -> Primary:
    """Read SENTINEL MASTER's answer, a flat list of names and values."""
    try:
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        return Primary(fields[b"ip"].decode(), int(fields[b"port"]), int(fields[b"config-epoch"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoPrimary from error
