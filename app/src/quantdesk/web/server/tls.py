"""The listener's TLS: a certificate that may be replaced, and plaintext beside it for a while."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Final

import uvicorn

from quantdesk.settings import TlsSettings
from quantdesk.web.server import http
from quantdesk.web.server.http import LimitedHttp
from quantdesk.web.server.shutdown import Server

log = logging.getLogger(__name__)

# The first byte of a TLS connection: a record of a handshake.
HANDSHAKE: Final = b"\x16"
# Ciphers of TLS 1.2, as Redis and the balancer offer them.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return the context of the listener: TLS 1.2 or newer, HTTP/1.1.

    Raises:
        OSError: a file cannot be read, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    return context


class Certificate:
    """The certificate that handshakes show: the one that was loaded last."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        # The listener's context, which hands each handshake over to the current one.
        self.context = self._current = tls_context(settings)
        self.context.sni_callback = self._show

    def reload(self) -> None:
        """Load a new certificate, for connections to come; open connections go on."""
        try:
            # In a context of its own: one keeps a certificate for each kind of key, and would go on
            # showing one of another kind; and half of a new pair must not replace the old one.
            self._current = tls_context(self._settings)
        except OSError as error:
            log.error(
                "The certificate cannot be loaded, the old one stays", extra={"reason": str(error)}
            )
        else:
            log.info("Certificate loaded", extra={"file": str(self._settings.cert_file)})

    def _show(self, connection: ssl.SSLObject, _name: str | None, first: ssl.SSLContext) -> None:
        """Have a handshake show the current certificate, whatever name it asks for."""
        if self._current is not first:
            connection.context = self._current


class TlsListener:
    """Takes TLS on a socket, and plaintext as well for as long as a balancer is being changed over.

    asyncio's own server does not list connections whose handshake is under way, and a stop has to
    wait for those, too: their client sends a request as soon as it can.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext,
        required: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._required = required
        self.beginning: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self._accepting, *self.beginning, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:
                # As asyncio's own server does, when there are no more files to open.
                log.error("A connection cannot be taken", extra={"reason": str(error)})
                await asyncio.sleep(1)
                continue
            task = self._loop.create_task(self._begin(connection))
            self.beginning.add(task)
            task.add_done_callback(self.beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(http.HEAD_TIMEOUT):
                plain = not self._required and await self._peek(connection) != HANDSHAKE
                tls = None if plain else self._tls
                await self._loop.connect_accepted_socket(self._protocol, connection, ssl=tls)
        except (OSError, TimeoutError):
            connection.close()

    async def _peek(self, connection: socket.socket) -> bytes:
        """Return the first byte, without taking it from the socket."""
        readable = asyncio.Event()
        self._loop.add_reader(connection, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(connection)
        return connection.recv(1, socket.MSG_PEEK)


class TlsServer(Server):
    """The server on sockets that take TLS, and plaintext as well if TLS is not required."""

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], None], settings: TlsSettings
    ) -> None:
        super().__init__(config, drain)
        self._settings = settings
        self._certificate = Certificate(settings)
        self.listeners: list[TlsListener] = []

    async def listen(self, sockets: list[socket.socket] | None) -> None:
        """Start as without TLS; SIGHUP loads the certificate again."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._certificate.reload)
        listening = sockets or [_bound(self.config)]
        # An empty list, which is not None: uvicorn listens nowhere by itself.
        await super().listen([])
        config, state = self.config, self.server_state

        def protocol() -> LimitedHttp:
            return LimitedHttp(config=config, server_state=state, app_state=self.lifespan.state)

        context, required = self._certificate.context, self._settings.required
        for listener in listening:
            self.listeners.append(TlsListener(listener, protocol, context, required))
        self.servers += self.listeners  # type: ignore[arg-type]  # servers, not asyncio's

    def occupied(self) -> bool:
        """Tell whether an HTTP connection is open, or its handshake under way."""
        return any(listener.beginning for listener in self.listeners) or super().occupied()


def _bound(config: uvicorn.Config) -> socket.socket:
    """Return a socket that listens on the configured address."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    return socket.create_server((config.host, config.port), family=family, backlog=config.backlog)
