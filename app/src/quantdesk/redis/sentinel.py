"""Which server is the primary now, by a query of the Sentinels."""

import asyncio
import ipaddress
import re
import ssl
from dataclasses import dataclass
from typing import Final

from quantdesk.redis.wire import Reply, Wire, Word, open_wire
from quantdesk.settings import RedisSettings

# Seconds for one Sentinel to answer; all are queried at once.
PATIENCE: Final = 1.0

_NAME: Final = re.compile(r"(?=.{1,253}\Z)[\w-]{1,63}(?:\.[\w-]{1,63})*\.?", re.ASCII)


class NoAddress(Exception):
    """A Sentinel's answer holds no address of a primary."""


class NoPrimary(Exception):
    """No Sentinel knows the primary. `causes` are why not, one of each."""

    def __init__(self, *causes: BaseException) -> None:
        self.causes = causes
        super().__init__(*causes)


@dataclass(frozen=True, slots=True)
class Primary:
    """An address, and the configuration epoch in which it became the primary."""

    host: str
    port: int
    epoch: int


async def find_primary(settings: RedisSettings, tls: ssl.SSLContext | None) -> Primary:
    """Query every Sentinel, and trust the one that saw the latest failover.

    A Sentinel cut off from the others goes on naming the primary of before: the first answer alone
    would lead back to it.

    Raises:
        NoPrimary: none answered, or none knows the name.
    """
    answers = await asyncio.gather(
        *(_query(host, port, settings, tls) for host, port in settings.sentinels),
        return_exceptions=True,
    )
    known = [answer for answer in answers if isinstance(answer, Primary)]
    if not known:
        raise NoPrimary(*(answer for answer in answers if isinstance(answer, BaseException)))
    return max(known, key=lambda primary: primary.epoch)


async def _query(
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
        host, port = fields[b"ip"].decode(), int(fields[b"port"])
        primary = Primary(host, port, int(fields[b"config-epoch"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoAddress from error
    # No server can be there, whatever the epoch: it must not beat the others' answers.
    if not (0 < port < 65536 and _is_host(host)):
        raise NoAddress
    return primary


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _NAME.fullmatch(text) is not None
    return True
