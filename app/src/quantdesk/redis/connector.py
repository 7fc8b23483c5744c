"""Opening connections to the server that the settings name, or that Sentinel names."""

import ssl
from collections.abc import Callable

from quantdesk.redis.sentinel import find_primary
from quantdesk.redis.wire import Wire, Word, open_wire
from quantdesk.settings import RedisSettings


class Connector:
    """Opens connections with the settings' TLS, user and database."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self._tls = tls_context(settings) if settings.tls else None

    async def locate(self) -> tuple[str, int]:
        """Return the server's host and port.

        Raises:
            NoPrimary: no Sentinel knows the primary.
        """
        if not self.settings.sentinels:
            return self.settings.host, self.settings.port
        primary = await find_primary(self.settings, self._tls)
        return primary.host, primary.port

    async def open(self, make: Callable[[], Wire], address: tuple[str, int]) -> Wire:
        """Connect and log in; errors as `open_wire`."""
        settings = self.settings
        greetings: list[tuple[Word, ...]] = []
        if settings.password is not None:
            user = () if settings.username is None else (settings.username,)
            greetings.append(("AUTH", *user, settings.password.reveal()))
        if settings.database:
            greetings.append(("SELECT", settings.database))
        return await open_wire(
            make, *address, tls=self._tls, within=settings.connect_timeout, greetings=greetings
        )


def tls_context(settings: RedisSettings) -> ssl.SSLContext:
    """Return what TLS connections are made with: TLS 1.2 or later, everything verified."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ca_file is not None:
        context.load_verify_locations(cafile=settings.ca_file)
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    return context
