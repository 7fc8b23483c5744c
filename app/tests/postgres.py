"""A real PostgreSQL for the tests: a cluster of their own that goes when they end."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from conftest import HANG, free_port

PASSWORD = "p@ss:w/rd?#%"


def _binaries() -> Path:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    # Debian keeps those of each version in a folder of their own.
    folders = list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not folders:
        pytest.fail("no initdb: install PostgreSQL's server (Debian: postgresql)")
    return max(folders, key=lambda path: int(path.parts[4])).parent


def _owner() -> str | None:
    """Return whom the server runs as: root may not."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class Postgres:
    """A server on a loopback port and on a unix socket in `folder`, whose user is `quantdesk`.

    On the loopback address the user needs PASSWORD, on the socket none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._bin = _binaries()
        self._owner = _owner()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def init(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if self._owner:
            for path in (self.folder, password):
                shutil.chown(path, self._owner)
        self._run(
            "initdb",
            *("--pgdata", str(self._data), "--username", "quantdesk", "--pwfile", str(password)),
            *("--auth-host", "scram-sha-256", "--auth-local", "trust"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )

    def start(self) -> None:
        """Start the server and wait until it lets clients in."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "shared_buffers": "16MB",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                **self._as_owner(),
            )
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                lines = (self._data / "postmaster.pid").read_text().split("\n")
                if lines[0] == str(self._process.pid) and "ready" in lines[-2]:
                    return
            time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def stop(self) -> None:
        """Shut the server down at once, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(HANG)
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Have the server hang, with all its processes: connections stay, nobody answers."""
        assert self._process is not None
        pids = [self._process.pid, *self._children()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def tls(self, cert: Path, key: Path) -> Iterator[None]:
        """Have the server offer TLS to new connections."""
        for name, path in (("ssl_cert_file", cert), ("ssl_key_file", key)):
            copy = self.folder / name
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o600)
            if self._owner:
                shutil.chown(copy, self._owner)
            self.sql(f"ALTER SYSTEM SET {name} = '{copy}'")
        self._set_tls("on")
        try:
            yield
        finally:
            self._set_tls("off")

    def _set_tls(self, value: str) -> None:
        self.sql(f"ALTER SYSTEM SET ssl = {value}")
        self.sql("SELECT pg_reload_conf()")
        deadline = time.monotonic() + HANG
        while self.sql("SHOW ssl") != value:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.01)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run SQL over the socket and return what it prints, unadorned."""
        words = ("--no-psqlrc", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1")
        where = ("--host", str(self.folder), "--port", str(self.port), "--username", "quantdesk")
        return self._run("psql", *words, *where, "--command", statement, database).strip()

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str, host: str = "127.0.0.1") -> str:
        """Return the URL of a database."""
        secret = quote(PASSWORD, safe="")
        return f"postgresql://quantdesk:{secret}@{host}:{self.port}/{database}"

    def _children(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _as_owner(self) -> dict[str, Any]:
        if self._owner is None:
            return {"cwd": self.folder}
        group = pwd.getpwnam(self._owner).pw_gid
        return {"cwd": self.folder, "user": self._owner, "group": group, "extra_groups": []}

    def _run(self, program: str, *words: str) -> str:
        done = subprocess.run(
            [self._bin / program, *words],
            capture_output=True,
            text=True,
            check=False,
            **self._as_owner(),
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that the tests share. Who stops or freezes it has to bring it back."""
    # Not below pytest's folders: the server's user may not enter those.
    folder = Path(tempfile.mkdtemp(prefix="quantdesk-postgres-"))
    server = Postgres(folder)
    try:
        server.init()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty database's URL."""
    return postgres.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database's URL, once for each kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/quantdesk.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.new_database()
