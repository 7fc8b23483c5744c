"""A host for tests and benchmark of adoption: an old server, what a new one needs, and a stand-in for systemd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ports import free_port

from databackup.redis import rdb
from databackup.redis.adoption import Adoption
from databackup.redis.adoption_plan import KEEP, Plan
from databackup.redis.replication import Snapshot
from databackup.redis.resp import Client
from databackup.redis.server import Configuration
from host import wait_for

# Children are not waited for: who has stopped one may be another process than who has started it.
_started: list[subprocess.Popen[bytes]] = []

ADMIN = "correct-horse-of-the-admin"
OLD = "correct-horse-of-old"


class Service:
    """Runs a server as a unit would, for whoever asks: its process and whether a boot starts it are in files."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.command = command
        self.pid_file = folder / "pid"
        self.boots = folder / "enabled"
        self.arguments: list[str] = []

    @property
    def pid(self) -> int:
        try:
            pid = int(self.pid_file.read_text())
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, ValueError):
            return 0
        # A process whose main thread has ended holds its port until the others have ended, too (proc(5), num_threads).
        return pid if fields[0] != "Z" or int(fields[17]) > 1 else 0

    def active(self) -> bool:
        return self.pid != 0

    def main_pid(self) -> int:
        return self.pid

    def failed(self) -> bool:
        return not self.active()

    def kill(self, number: signal.Signals) -> None:
        if self.pid:
            os.kill(self.pid, number)
            wait_for(self.failed, "the server ends")

    def stop(self) -> None:
        self.kill(signal.SIGTERM)

    def start_apart(self, arguments: list[str]) -> None:
        silent = subprocess.DEVNULL
        words = [*self.command, *arguments]
        child = subprocess.Popen(words, stdin=silent, stdout=silent, stderr=silent, start_new_session=True)
        self.pid_file.write_text(str(child.pid))
        _started.append(child)

    def settle(self) -> None:
        pass

    def start(self, seconds: float) -> None:
        self.start_apart([])

    def reload(self) -> None:
        pass

    def enable(self) -> None:
        self.boots.touch()

    def disable(self) -> None:
        self.boots.unlink(missing_ok=True)

    def last_words(self) -> str:
        return "nothing"


@dataclass
class Host:
    """A host with an old server, and what a new one needs."""

    folder: Path
    old_settings: dict[str, str] = field(default_factory=dict)
    # The same data folder, configuration and unit for both, as where Debian's own server is taken over.
    together: bool = False
    mode: str = KEEP
    appendonly: str = "yes"
    maxmemory: str = "64mb"

    def __post_init__(self) -> None:
        self.binary = self.folder / "redis-server"
        self.binary.symlink_to(shutil.which("redis-server") or str(shutil.which("redis-check-rdb")))
        self.old_port, self.new_port = free_port(), free_port()
        self.data = self.folder / "data"
        self.old_data = self.data if self.together else self.folder / "old-data"
        self.etc, self.staged, self.state = (self.folder / name for name in ("etc", "staged", "state"))
        self.units = [self.folder / "units-new", self.folder / "units-old"]
        for path in {self.data, self.old_data, self.etc, self.staged, self.state, *self.units}:
            path.mkdir(exist_ok=True)
        self.old_conf = self.etc / ("redis.conf" if self.together else "old.conf")
        settings = {
            "port": str(self.old_port),
            "bind": "127.0.0.1",
            "dir": str(self.old_data),
            "appendonly": "no",
            "requirepass": OLD,
            # Each snapshot that a test takes would wait five seconds for more replicas.
            "repl-diskless-sync-delay": "0",
            "logfile": str(self.folder / "old.log"),
            **self.old_settings,
        }
        self.old_conf.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self.old_conf_text = self.old_conf.read_text()
        unit = self.etc / "new.service"
        if self.together:
            unit.write_text("the old unit\n")
        texts = {
            self.etc / "redis.conf": "".join(
                f"{name} {value}\n"
                for name, value in {
                    "port": self.new_port,
                    "bind": "127.0.0.1",
                    "dir": self.data,
                    "appendonly": self.appendonly,
                    "maxmemory": self.maxmemory,
                    "aclfile": self.etc / "users.acl",
                    "logfile": self.folder / "new.log",
                    "repl-diskless-sync-delay": 0,
                }.items()
            ),
            self.etc / "users.acl": f"user default off\nuser admin on >{ADMIN} ~* &* +@all\n",
            unit: "the new unit\n",
        }
        self.files = []
        for path, text in texts.items():
            (self.staged / path.name).write_text(text)
            self.files.append(
                {
                    "staged": str(self.staged / path.name),
                    "path": str(path),
                    "owner": "root",
                    "group": "root",
                    "mode": "0600",
                }
            )
        (self.folder / "admin.env").write_text(f"REDISCLI_USER=admin\nREDISCLI_AUTH={ADMIN}\n")
        self.new_service = Service(self.units[0], [str(self.binary), str(self.etc / "redis.conf")])
        self.old_service = (
            self.new_service if self.together else Service(self.units[1], [str(self.binary), str(self.old_conf)])
        )
        self.old_service.start(10)
        self.old_service.enable()
        wait_for(lambda: self.asks(self.old_port, OLD), "the old server answers")

    def asks(self, port: int, password: str, user: str = "default") -> bool:
        try:
            with Client("127.0.0.1", port) as client:
                client.call("AUTH", user, password)
                return client.call("PING") == "PONG"
        except Exception:
            return False

    def old(self) -> Client:
        client = Client("127.0.0.1", self.old_port)
        client.call("AUTH", "default", OLD)
        return client

    def new(self) -> Client:
        client = Client("127.0.0.1", self.new_port)
        client.call("AUTH", "admin", ADMIN)
        return client

    def fill(self, keys: int = 500) -> None:
        with self.old() as client:
            client.pipeline([["SET", f"key-{n}", f"value-{n}"] for n in range(keys)])
            client.call("RPUSH", "list", "a", "b")
            client.call("SELECT", "3")
            client.call("SET", "elsewhere", "x", "EX", "1000")

    def plan(self) -> Plan:
        configuration = Configuration(str(self.old_conf)) if self.old_conf.exists() else None
        values = configuration.values if configuration else {}
        return Plan(
            name="redis",
            mode=self.mode,
            options={
                "unit": "new.service",
                "command": self.new_service.command,
                "binary": str(self.binary),
                "config_file": str(self.etc / "redis.conf"),
                "data": str(self.data),
                "user": "root",
                "server": {"host": "127.0.0.1", "port": self.new_port},
                "admin_credentials_file": str(self.folder / "admin.env"),
                "start_timeout": 20,
            },
            files=self.files,
            old={
                "unit": "new.service" if self.together else "old.service",
                "unit_enabled": True,
                "pid": self.old_service.pid,
                "config_file": str(self.old_conf),
                "port": self.old_port,
                "addresses": [f"127.0.0.1:{self.old_port}"],
                "used_memory": 1 << 20,
                "data": {
                    "dir": str(self.old_data),
                    "dbfilename": self.old_settings.get("dbfilename", "dump.rdb"),
                    "appendonly": values.get("appendonly", "no") == "yes",
                    "appenddirname": "appendonlydir",
                    "appendfilename": "appendonly.aof",
                },
            },
            logins=[{"username": "default", "password": OLD}],
        )

    def adoption(self) -> Adoption:
        self.said: list[str] = []
        return Adoption(self.plan(), self.new_service, self.old_service, self.said.append, self.state)

    def digest(self, client: Client) -> tuple[int, str]:
        with client:
            found = rdb.summarize(Snapshot(client).chunks())
        return found.keys, found.digest

    def reap(self) -> None:
        for service in (self.new_service, self.old_service):
            service.kill(signal.SIGKILL)
        for child in _started:
            child.kill()
            child.wait()
        _started.clear()
