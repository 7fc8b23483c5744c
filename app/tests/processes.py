"""The command as a process of its own, and a client that says to it exactly what a test wants."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from conftest import (
    HANG,
    LENIENT_ENV,
    PATIENT,
    PATIENT_ENV,
    TOKEN,
    development,
    free_port,
    lay_database,
)

# The headers that ask for a WebSocket, of anybody; and of who holds the admin token.
ANONYMOUS_HANDSHAKE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {base64.b64encode(b'x' * 16).decode()}",
)
HANDSHAKE = (*ANONYMOUS_HANDSHAKE, f"Authorization: Bearer {TOKEN}")

# Passes a listening socket on as systemd does, and becomes the command.
_PASS_ON = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
# The command, with limits that a test need not wait long for, or that a busy machine does not
# cross.
_WITH_CONSTANTS = """
import importlib, sys
from quantdesk.__main__ import main
for argument in sys.argv[1:]:
    name, value = argument.split("=")
    module, constant = name.rsplit(".", 1)
    assert hasattr(importlib.import_module("quantdesk." + module), constant)
    setattr(importlib.import_module("quantdesk." + module), constant, float(value))
del sys.argv[1:]
sys.exit(main())
"""


class Process:
    """The command `quantdesk`, which serves on `port` and logs to a file.

    `folder` holds its database; `constants` are those of its modules that are to be others, such as
    {"web.server.http.HEAD_TIMEOUT": 0.5}, besides those in PATIENT.
    """

    def __init__(
        self,
        folder: Path,
        *,
        listener: socket.socket | None = None,
        constants: dict[str, float] | None = None,
        **env: str,
    ) -> None:
        self.port: int = listener.getsockname()[1] if listener else int(env.get("PORT", 0))
        self.port = self.port or free_port()
        changed = PATIENT | (constants or {})
        words = ["-c", _WITH_CONSTANTS, *(f"{name}={value}" for name, value in changed.items())]
        if listener:
            words = ["-c", _PASS_ON, str(listener.fileno()), *words]
        lay_database(folder)
        self.folder = folder
        self._log = folder / f"{self.port}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, *words],
                env={
                    "PATH": os.environ["PATH"],
                    "STATE_DIRECTORY": str(folder),
                    "PORT": str(self.port),
                    "ADMIN_TOKEN": TOKEN,
                    **LENIENT_ENV,
                    **PATIENT_ENV,
                    **development(env),
                    **env,
                },
                pass_fds=(listener.fileno(),) if listener else (),
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        self.until_serving()
        return self

    def until_serving(self) -> None:
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline and self.popen.poll() is None:
            if "Serving" in self.log:
                return
            time.sleep(0.02)
        self.__exit__(None, None, None)
        raise AssertionError(f"not serving: {self.log}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.popen.kill()
        self.popen.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has written so far, to stdout and stderr."""
        return self._log.read_text()

    @property
    def complaints(self) -> list[str]:
        """The lines of the log that tell of an error, or that are none of the log's own."""
        fine = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (?:DEBUG|INFO|WARNING) ")
        return [line for line in self.log.splitlines() if not fine.match(line)]

    @property
    def memory(self) -> int:
        """Bytes of memory that it holds."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it has taken, which others' load leaves as they are."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Send SIGTERM; return the exit code.

        What the process must not wait for is to be given longer than HANG.
        """
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(HANG)


class Answer(NamedTuple):
    """A response, the names of its headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  # what JSON holds
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error, whose shape is checked."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"success", "error"}
        assert self.json["success"] is False
        assert set(self.json["error"]) == {"code", "message"}
        assert self.json["error"]["message"]
        code: str = self.json["error"]["code"]
        return code


class Client:
    """A TCP connection, to send bytes as they are and to read responses one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Send one piece after the other."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(pause)

    async def get(self, path: str, *headers: str) -> Answer:
        await self.send(request("GET", path, *headers))
        return await self.answer()

    async def answer(self, method: str = "GET") -> Answer:
        """Return the next response, of a request of this method.

        Raises:
            asyncio.IncompleteReadError, ConnectionError: the connection ended instead.
        """
        async with asyncio.timeout(HANG):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
            headers = {}
            for field in fields:
                name, value = field.split(": ", 1)
                headers[name.lower()] = value
            length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
            return Answer(int(line.split()[1]), headers, await self._reader.readexactly(length))

    async def until(self, end: bytes) -> bytes:
        """Return what comes up to these bytes, and them."""
        async with asyncio.timeout(HANG):
            return await self._reader.readuntil(end)

    async def ended(self) -> bytes:
        """Wait for the end of the connection, an orderly one; return what came before it."""
        async with asyncio.timeout(HANG):
            return await self._reader.read()

    async def cut(self) -> bytes:
        """Wait for the end of the connection, also by a reset; return what came before it."""
        got = b""
        async with asyncio.timeout(HANG):
            with suppress(ConnectionError):
                while piece := await self._reader.read(65536):
                    got += piece
        return got


@asynccontextmanager
async def client(port: int, host: str = "127.0.0.1") -> AsyncIterator[Client]:
    """Connect from an address of loopback, by which a test may be a client apart."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def request(method: str, path: str, *headers: str, body: bytes | None = None) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
