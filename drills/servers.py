"""Servers of a drill's or bench's own: Redis, PostgreSQL, certificates and the application, all on loopback.

Whatever is started here ends with the `with` block that it was started in, and with this process, however that ends.
"""

from __future__ import annotations

import datetime as dt
import http.client
import ipaddress
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PROJECT: Final = Path(__file__).resolve().parent.parent
HOST: Final = "127.0.0.1"
TOKEN: Final = "a-token-of-the-drills"
# The application must count every request, and refuse none of a drill's.
UNLIMITED: Final = "999999999/minute"
START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 15.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_began: Final = time.monotonic()
# PR_SET_PDEATHSIG watches the thread that started a program, not its process: this one lives as long as the process.
_starter: Final = ThreadPoolExecutor(1, "starter")


class NotStarted(RuntimeError):
    """A server ended, or did not answer in time; the text has the end of its log."""


def say(text: str) -> None:
    """Print what runs now, with the seconds since the program's start."""
    print(f"[{time.monotonic() - _began:6.1f} s] {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], seconds: float, pause: float = 0.01) -> bool:
    """Poll until `condition` holds; return whether it did within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(pause)
    return False


def end_on_signals() -> None:
    """Have SIGTERM and SIGHUP end the program through its `with` blocks, as SIGINT does."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def raise_file_limit() -> int:
    """Allow this process and its children as many open files as may be; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Process:
    """A program that was started here. It gets no terminal's signals, and dies with this process."""

    def __init__(
        self,
        words: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cpus: str | None = None,
        user: str | None = None,
        folder: Path | None = None,
    ) -> None:
        command: list[str | Path] = ["setpriv", "--pdeathsig", "KILL"]
        if user is not None:
            entry = pwd.getpwnam(user)
            command += ["--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups"]
        if cpus is not None:
            command += ["taskset", "--cpu-list", cpus]
        self.log: Final = log
        with log.open("ab") as out:
            self._process = _starter.submit(
                subprocess.Popen[bytes],
                [*command, *words],
                cwd=folder,
                env=None if environment is None else dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            ).result()

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def cpu_seconds(self) -> float:
        """Seconds of processor time of all its threads, in user and kernel mode, so far."""
        # The name in the second field may hold spaces; the fields behind it are numbers.
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def memory_mb(self) -> float:
        """Megabytes of memory that it holds now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 1e6

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Wait for it; raise NotStarted when it ended or the time is over."""
        if not wait_for(lambda: not self.running or condition(), seconds) or not self.running:
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise NotStarted(f"{what}: not within {seconds:.0f} s. The end of its log:\n{tail}")

    def kill(self) -> None:
        """End it with SIGKILL."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it with SIGTERM, and with SIGKILL when that is not enough."""
        if self.running:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
                self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of a throw-away authority and of a server on loopback."""

    ca: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make an authority, and a certificate of it for 127.0.0.1 and localhost, valid for a day."""
    files = Certificates(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _name("drill authority")
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    _sign(files.ca, authority, authority, authority_key, authority_key, constraints)
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))])
    _sign(files.certificate, _name("localhost"), authority, key, authority_key, names)
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files.key.touch(mode=0o600)
    files.key.write_bytes(encoded)
    return files


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _sign(
    path: Path,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> None:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(extension, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    certificate = builder.sign(issuer_key, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


class Redis:
    """A redis-server that keeps nothing on disk, and that may be ended and started again on its ports."""

    def __init__(self, workspace: Workspace, certificates: Certificates | None, cpus: str | None) -> None:
        self.port: Final = free_port()
        self.tls_port: Final = free_port() if certificates else 0
        self.certificates: Final = certificates
        self._workspace = workspace
        self._cpus = cpus
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where it is, in plaintext."""
        return f"redis://{HOST}:{self.port}"

    @property
    def tls_url(self) -> str:
        """Where it is, over TLS."""
        return f"rediss://{HOST}:{self.tls_port}"

    @property
    def process(self) -> Process:
        """The running server."""
        if self._process is None:
            raise NotStarted("redis-server does not run")
        return self._process

    def start(self) -> None:
        """Start it, and wait until it answers."""
        folder = self._workspace.folder
        words: list[str | Path] = [redis_binary(folder), "--port", str(self.port), "--bind", HOST]
        words += ["--save", "", "--appendonly", "no", "--dir", folder]
        if self.certificates:
            words += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
            words += ["--tls-ca-cert-file", self.certificates.ca, "--tls-cert-file", self.certificates.certificate]
            words += ["--tls-key-file", self.certificates.key]
        self._process = Process(words, folder / "redis.log", cpus=self._cpus)
        self._process.wait_until(self.answers, "redis-server")

    def answers(self, patience: float = 0.2) -> bool:
        """Return whether it answers a PING on a new connection within so many seconds."""
        try:
            with socket.create_connection((HOST, self.port), patience) as link:
                link.settimeout(patience)
                link.sendall(b"PING\r\n")
                return link.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()

    def ask(self, *words: str) -> str:
        """Send one command on a connection of its own; return the reply's text (a bulk's or a line's)."""
        request = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
        with socket.create_connection((HOST, self.port), 5) as link, link.makefile("rb") as reader:
            link.sendall(b"*%d\r\n%s" % (len(words), request))
            line: bytes = reader.readline()
            if line.startswith(b"$") and not line.startswith(b"$-1"):
                return reader.read(int(line[1:])).decode()
            if line.startswith(b"-"):
                raise RuntimeError(f"Redis refused {words[0]}: {line[1:].decode().strip()}")
            return line[1:].decode().strip()

    def info(self, section: str) -> dict[str, str]:
        """Return the fields of a section of INFO."""
        lines = self.ask("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self) -> dict[str, int]:
        """Return how often each command ran since the start or since `reset_calls`."""
        stats = self.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): int(dict(f.split("=") for f in value.split(","))["calls"])
            for name, value in stats.items()
        }

    def reset_calls(self) -> None:
        """Let `calls` and the hit counters begin anew."""
        self.ask("CONFIG", "RESETSTAT")


def redis_binary(folder: Path) -> str:
    """Return redis-server's path; Debian's redis-tools has it under another name."""
    found = shutil.which("redis-server")
    if found:
        return found
    checker = shutil.which("redis-check-rdb")
    if checker is None:
        raise NotStarted("no redis-server: install Debian's redis-tools, or redis-server, or Redis 7")
    # Redis' binaries are one file, which takes its role from the name it is run under.
    link = folder / "redis-server"
    if not link.exists():
        link.symlink_to(checker)
    return str(link)


class Postgres:
    """A PostgreSQL server that logs every statement, when asked to."""

    def __init__(self, folder: Path, log: Path, *, log_statements: bool = False, cpus: str | None = None) -> None:
        binaries = postgres_binaries()
        if binaries is None:
            raise NotStarted("no PostgreSQL on this machine")
        # It refuses to run as root.
        user = _unprivileged() if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        self.port: Final = free_port()
        self.log: Final = log
        made = Process(
            [binaries / "initdb", "--pgdata", data, "--auth", "trust", "--username", "quantdesk", "--no-sync"],
            log,
            user=user,
            folder=folder,
        )
        if not wait_for(lambda: not made.running, 60) or not (data / "PG_VERSION").exists():
            made.stop()
            raise NotStarted(f"initdb failed:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
        options = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(folder),
            # A drill asks what the application does, not how fast a disk is.
            "fsync": "off",
            "log_statement": "all" if log_statements else "none",
            "logging_collector": "off",
            "lc_messages": "C",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self.process: Final = Process(
            [binaries / "postgres", "-D", data, *words], log, user=user, folder=folder, cpus=cpus
        )
        self.process.wait_until(self._listens, "postgres")

    @property
    def url(self) -> str:
        """Where it is, as the application takes it."""
        return f"postgresql://quantdesk@{HOST}:{self.port}/postgres"

    def _listens(self) -> bool:
        if "ready to accept connections" not in self.log.read_text(encoding="utf-8", errors="replace"):
            return False
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def stop(self) -> None:
        """End it, connections and all."""
        if self.process.running:
            # SIGQUIT: at once, children too. Nothing of it is kept.
            self.process.signal(signal.SIGQUIT)
            wait_for(lambda: not self.process.running, STOP_SECONDS)
        self.process.kill()


def postgres_binaries() -> Path | None:
    """Return the folder of initdb and postgres, None if there are none."""
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NotStarted("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


class App:
    """One process of the installed application."""

    def __init__(
        self,
        workspace: Workspace,
        name: str,
        database_url: str,
        environment: Mapping[str, str],
        cpus: str | None = None,
    ) -> None:
        self.name: Final = name
        self.port: Final = free_port()
        self._log = workspace.folder / f"{name}.log"
        settings = {
            "PATH": os.environ.get("PATH", os.defpath),
            "ADMIN_TOKEN": TOKEN,
            "DATABASE_URL": database_url,
            "ENV_NAME": "drill",
            "LOG_FORMAT": "json",
            "PORT": str(self.port),
            "RATE_LIMIT": UNLIMITED,
            "STATE_DIRECTORY": str(workspace.folder),
            **environment,
        }
        self.process: Final = Process([program("quantdesk")], self._log, environment=settings, cpus=cpus)

    def wait_healthy(self) -> None:
        """Wait until it answers on /health."""
        self.process.wait_until(lambda: self._status("/health") == 200, self.name)

    def _status(self, path: str) -> int:
        with suppress(OSError, http.client.HTTPException):
            return self.get(path)[0]
        return 0

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """GET a path; return the status, the headers in small letters, and the body."""
        return fetch(self.port, "GET", path, headers=headers)

    def put_price(self, symbol: str, price: str) -> None:
        """Write a price; raise RuntimeError when that fails."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        status, _, body = fetch(
            self.port, "PUT", f"/api/prices/{symbol}", json.dumps({"price": price}).encode(), headers
        )
        if status != 200:
            raise RuntimeError(f"PUT of {symbol} to {self.name}: {status} {body[:200]!r}")

    def messages(self) -> list[tuple[float, str]]:
        """Return its log's lines: when (seconds since the epoch) and what."""
        lines: list[tuple[float, str]] = []
        for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                lines.append((dt.datetime.fromisoformat(entry["time"]).timestamp(), entry["message"]))
        return lines

    def last_words(self) -> str:
        """Return whether it runs, and the end of its log."""
        state = "runs" if self.process.running else "has ended"
        return f"{self.name} {state}; its log:\n{self._log.read_text(encoding='utf-8', errors='replace')[-2000:]}"

    def stop(self) -> None:
        """End it."""
        self.process.stop()


def fetch(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one request on a connection of its own; return the status, the headers in small letters, and the body."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def program(name: str) -> Path:
    """Return the path of a program of the virtual environment that this runs in."""
    path = Path(sys.prefix) / "bin" / name
    if not path.exists():
        raise NotStarted(f"no {name} in {sys.prefix}: run requirements/install bench")
    return path


class Workspace:
    """A temporary folder, and the servers in it, which end with it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder: Final = folder
        self.apps: Final[list[App]] = []
        self._stack = stack

    @cached_property
    def certificates(self) -> Certificates:
        """The certificates of this workspace's servers."""
        return make_certificates(self.folder)

    def redis(self, *, tls: bool = False, cpus: str | None = None) -> Redis:
        """Start Redis: in plaintext, and over TLS too when asked for."""
        server = Redis(self, self.certificates if tls else None, cpus)
        self._stack.callback(server.stop)
        server.start()
        return server

    def postgres(self, *, log_statements: bool = False, cpus: str | None = None) -> Postgres:
        """Start PostgreSQL on an empty database."""
        # Its user must reach the folder, which is not so below this workspace's.
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="quantdesk-drill-postgres-")))
        server = Postgres(folder, self.folder / "postgres.log", log_statements=log_statements, cpus=cpus)
        self._stack.callback(server.stop)
        return server

    def sqlite_url(self) -> str:
        """Return the URL of this workspace's SQLite file."""
        return f"sqlite+aiosqlite:///{self.folder}/quantdesk.db"

    def app(
        self, name: str, database_url: str, environment: Mapping[str, str] | None = None, cpus: str | None = None
    ) -> App:
        """Start one process of the application, and wait until it is healthy."""
        app = App(self, name, database_url, environment or {}, cpus)
        self._stack.callback(app.stop)
        app.wait_healthy()
        self.apps.append(app)
        return app

    def process(self, words: Sequence[str | Path], name: str, **options: Any) -> Process:
        """Start a program that ends with the workspace."""
        process = Process(words, self.folder / f"{name}.log", **options)
        self._stack.callback(process.stop)
        return process


@contextmanager
def workspace() -> Iterator[Workspace]:
    """Make a folder for one run, and remove it with its servers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quantdesk-drill-")))
        made = Workspace(folder, stack)
        try:
            yield made
        except Exception:
            for app in made.apps:
                print(app.last_words(), file=sys.stderr)
            raise
