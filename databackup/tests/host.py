"""A host for the tests of databackup: a Redis server with its source, a restic repository, and a stand-in for systemd.

    python databackup/tests/host.py STEP FOLDER WORDS…    databackup WORDS…, which waits at a step

STEP is a function and a side of it, such as FromBackup.fetch:after, or `-`. There it makes FOLDER/paused, and goes on
when FOLDER/go is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305
from ports import free_port

from databackup import catalog, settings
from databackup import cli as program
from databackup.errors import Failed
from databackup.redis import kind as redis_kind
from databackup.redis import rdb
from databackup.redis.replication import Snapshot
from databackup.redis.resp import Client
from databackup.redis.restore import FromBackup, Target
from databackup.redis.server import Configuration
from databackup.restic import Restic

REDIS_PASSWORD = "correct-horse-of-redis"
REPOSITORY_PASSWORD = "correct-horse-of-the-repository"
PLAINTEXT = b"known-plaintext"
# Small dumps as other servers wrote them: Redis 7.2.6, and Debian 13's Redis 8.0.2 and Valkey 8.1.1.
REDIS_7_2 = bytes.fromhex(
    "524544495330303131fa0972656469732d76657205372e322e36fa0a72656469732d62697473c040fa056374696d65c27458"
    "0b6bfa08757365642d6d656dc278a31000fa08616f662d62617365c000fe00fb040012016c01020d0d000000020081610281"
    "6202ff1001681111000000040081660201018167020201ff1401730d0d0000000200816102816202ff000161c001ff44f474"
    "fbe9b3c2b3"
)
REDIS_8 = bytes.fromhex(
    "524544495330303132fa0972656469732d76657205382e302e32fa0a72656469732d62697473c040fa056374696d65c26a4c"
    "0b6bfa08757365642d6d656dc2e8600c00fa08616f662d62617365c000fe00fb0300000161c0011901680c69996cb9010000"
    "1d1d00000006008166020101f40c69996cb90100000981670202010001ff12016c01020d0d0000000200816102816202ffff"
    "32ac60dc62983fe7"
)
VALKEY_8 = bytes.fromhex(
    "524544495330303131fa0a76616c6b65792d76657205382e312e31fa0a72656469732d62697473c040fa056374696d65c26d"
    "4c0b6bfa08757365642d6d656dc238040f00fa08616f662d62617365c000fe00fb0300000161c00112016c01020d0d000000"
    "0200816102816202ff1001681111000000040081660201018167020201ffff5873ee1250059e00"
)

# Children are not waited for: who has stopped one may be another process than who has started it.
_started: list[subprocess.Popen[bytes]] = []


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Return as soon as the condition holds; fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def _crypt(password: bytes, kdf: dict[str, Any], data: bytes) -> tuple[bytes, bytes]:
    """Return the key's data decrypted or encrypted, and the key that authenticates them: restic's design.rst, Keys."""
    size = {"n": int(kdf["N"]), "r": int(kdf["r"]), "p": int(kdf["p"])}
    derived = hashlib.scrypt(password, salt=b64decode(kdf["salt"]), dklen=64, maxmem=1 << 28, **size)
    nonce, text = data[:16], data[16:]
    stream = Cipher(algorithms.AES(derived[:32]), modes.CTR(nonce)).encryptor()
    block = Cipher(algorithms.AES(derived[32:48]), modes.ECB()).encryptor()
    return stream.update(text), derived[48:] + block.update(nonce)


def make_repository(restic: Restic) -> None:
    """Make a repository that opens at once; restic's own take half a second, so that passwords are not guessed."""
    restic.run("init", what="init")
    (path,) = (Path(restic.repository.location) / "keys").iterdir()
    values = json.loads(path.read_text())
    password = REPOSITORY_PASSWORD.encode()
    nonce = b64decode(values["data"])[:16]
    plain, _ = _crypt(password, values, b64decode(values["data"])[:-16])
    values["N"], values["p"] = 2, 1
    text, key = _crypt(password, values, nonce + plain)

    mac = Poly1305.generate_tag(key, text)
    values["data"] = b64encode(nonce + text + mac).decode()
    content = json.dumps(values).encode()
    path.unlink()
    path.with_name(hashlib.sha256(content).hexdigest()).write_bytes(content)


class Process:
    """Runs a server as service.Unit does with systemd, and like that for whoever asks: its number is in a file."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.command = command
        self.file = Path(command[1]).with_name("unit.pid")

    @property
    def number(self) -> int:
        """The running server's process; 0 for none."""
        try:
            number = int(self.file.read_text())
            name, fields = Path(f"/proc/{number}/stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except (OSError, ValueError):
            return 0
        # A process whose main thread has ended holds its port until the others have ended, too (proc(5), num_threads).
        state, threads = fields.split()[0], int(fields.split()[17])
        return number if name.startswith("redis") and (state != "Z" or threads > 1) else 0

    def active(self) -> bool:
        """Return whether it runs."""
        return self.number != 0

    def main_pid(self) -> int:
        """Return its process."""
        return self.number

    def failed(self) -> bool:
        """Return whether it has ended."""
        return not self.active()

    def end(self, number: signal.Signals) -> None:
        """Send a signal, and wait until it has ended."""
        if self.number:
            os.kill(self.number, number)
            wait_for(self.failed, "the server ends")

    def stop(self) -> None:
        """Stop it."""
        self.end(signal.SIGTERM)

    def start_apart(self, arguments: list[str]) -> None:
        """Start it with further arguments."""
        # Who waits for the end of a command's output must not wait for that of a server which goes on.
        silent = subprocess.DEVNULL
        # As the user whose configuration it is.
        status = Path(self.command[1]).stat()
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            identity = {"user": status.st_uid, "group": status.st_gid, "extra_groups": []}
        child = subprocess.Popen(
            [*self.command, *arguments], stdin=silent, stdout=silent, stderr=silent, start_new_session=True, **identity
        )
        with self.file.open("w") as file:
            file.write(str(child.pid))
        _started.append(child)
        # Until then it has the name of the program that starts it.
        wait_for(lambda: child.poll() is not None or self.active(), "the server is started")

    def settle(self) -> None:
        """Do nothing: nothing was changed."""

    def start(self, seconds: float) -> None:
        """Start it as it is, and wait until it serves."""
        self.start_apart([])
        port = int(Configuration(self.command[1])["port"])
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.active():
            try:
                with Client("127.0.0.1", port) as client:
                    client.call("AUTH", REDIS_PASSWORD)
                    client.call("DBSIZE")
                return
            except Exception:
                time.sleep(0.02)
        raise Failed(f"it does not start: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log."""
        log = Path(Configuration(self.command[1])["logfile"])
        return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) if log.exists() else "nothing"


class Host:
    """A Redis server with its source, and a repository."""

    def __init__(self, folder: Path, data: Path | None = None, user: str = "", **directives: str) -> None:
        """`user` has the server's data and configuration, and runs it; without one they are the caller's."""
        self.port = free_port()
        self.folder = folder
        self.user = user
        self.data = data or folder / "data"
        self.data.mkdir(exist_ok=True)
        self.own(self.data)
        self.etc = folder / "etc"
        self.etc.mkdir()
        self.conf = folder / "redis.conf"
        # Debian's redis-tools has the server under another name.
        self.binary = folder / "redis-server"
        self.binary.symlink_to(shutil.which("redis-server") or str(shutil.which("redis-check-rdb")))
        self.directives = {"appendonly": "yes", "maxmemory": "64mb", **directives}
        self.configure()
        self.set_repository()
        (folder / "redis.env").write_text(f"REDISCLI_AUTH={REDIS_PASSWORD}\n")
        self.set_source()
        self.service = Process("none", [str(self.binary), str(self.conf)])
        self.service.start(20)

    def configure(self, **changes: str) -> None:
        """Write redis.conf."""
        directives = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.data),
            "logfile": f"{self.data if self.user else self.folder}/log",
            "repl-diskless-sync-delay": "0",
            "requirepass": REDIS_PASSWORD,
            **self.directives,
            **changes,
        }
        self.conf.write_text("".join(f"{name} {value}\n" for name, value in directives.items()))
        self.own(self.conf)

    def own(self, path: Path) -> None:
        """Give a file to the server's user."""
        if self.user:
            shutil.chown(path, self.user, pwd.getpwnam(self.user).pw_gid)

    def set_repository(self, **changes: Any) -> None:
        """Write what is known of the repository."""
        (self.folder / "password").write_text(f"{REPOSITORY_PASSWORD}\n")
        values = {
            "location": str(self.folder / "repository"),
            "password_file": str(self.folder / "password"),
            "cache": str(self.folder / "cache"),
            "lock_timeout": 5,
            **changes,
        }
        (self.etc / "repository.json").write_text(json.dumps(values))

    def set_source(self, **changes: Any) -> None:
        """Write what is known of the source."""
        user = self.user or pwd.getpwuid(os.getuid()).pw_name
        credentials = str(self.folder / "redis.env")
        options = {
            "server": {"port": self.port},
            "credentials_file": credentials,
            "admin_credentials_file": credentials,
            "data": str(self.data),
            "config_file": str(self.conf),
            "binary": str(self.binary),
            "user": user,
            "unit": "none",
            "command": [str(self.binary), str(self.conf)],
        }
        values = {
            "name": "redis",
            "kind": "redis",
            "environment": "test",
            "host": "here",
            "state": str(self.folder / "state"),
            "options": options,
        }
        (self.etc / "source-redis.json").write_text(json.dumps({**values, **changes}))

    @property
    def source(self) -> settings.Source:
        """The source."""
        return settings.source("redis", self.etc)

    @property
    def restic(self) -> Restic:
        """The repository."""
        return Restic(settings.repository(self.etc))

    @property
    def target(self) -> Target:
        """What a restore replaces."""
        return Target(self.source, self.service, lambda text: None)

    def client(self) -> Client:
        """Return a connection that is logged in."""
        client = Client("127.0.0.1", self.port, timeout=20)
        client.call("AUTH", REDIS_PASSWORD)
        return client

    def call(self, *words: str) -> Any:
        """Send one command."""
        with self.client() as client:
            return client.call(*words)

    def fill(self) -> None:
        """Write values of all types, some of them binary, packed small and large, some that expire."""
        script = """
            for i = 1, 700 do
              redis.call('SET', 'k' .. i, string.rep('known-plaintext', i % 40) .. i)
              redis.call('SET', 't' .. i, i, 'EX', 1000)
              redis.call('HSET', 'h' .. i % 3, 'f' .. i, i)
              redis.call('HSET', 'small' .. i, 'f', 'a', 'g', -i)
              redis.call('SADD', 's' .. i % 3, 'm' .. i)
              redis.call('SADD', 'numbers', i * 70000)
              redis.call('ZADD', 'z' .. i % 90, i / 3, 'e' .. i)
              redis.call('ZADD', 'zbig', i / 7, 'e' .. i)
              redis.call('RPUSH', 'l' .. i % 2, 'x' .. i)
              redis.call('XADD', 'x', i .. '-1', 'a', i)
            end
            redis.call('SET', 'binary', '\\0\\255\\r\\n\\1')
            redis.call('XGROUP', 'CREATE', 'x', 'g', '0')
            redis.call('XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', '3', 'STREAMS', 'x', '>')
            redis.call('SELECT', '3')
            redis.call('SET', 'elsewhere', 'v')
        """
        self.call("EVAL", script, "0")

    def fill_with_noise(self, mib: int) -> None:
        """Write what nobody can pack smaller."""
        for number in range(mib * 4):
            self.call("SET", f"noise{number}", os.urandom(1 << 17).hex())

    def count(self) -> int:
        """Return the number of keys."""
        return int(self.call("DBSIZE"))

    def digest(self) -> str:
        """Return the digest of the live data, as their own snapshot gives it."""
        with self.client() as client:
            return rdb.summarize(Snapshot(client).chunks()).digest

    def left_over(self) -> list[str]:
        """Return what is in the data folder besides data, of what a restore has kept; and its journal."""
        kept = [path.name for path in self.data.iterdir() if path.name.startswith((".restore", "before-restore"))]
        journals = [path.name for path in (self.folder / "state").glob(".*")]
        return sorted(kept + journals)

    def backup(self) -> dict[str, Any]:
        """Make a backup."""
        # Whose process serves is asked of what runs it.
        names = vars(redis_kind)
        before, names["Unit"] = names["Unit"], Process
        try:
            return program.backup(Namespace(name="redis", config=self.etc))
        finally:
            names["Unit"] = before

    def restore(self, **choice: Any) -> dict[str, Any]:
        """Restore a backup as the command does; needs the Unit of redis.kind to be Process."""
        defaults = {"backup": "latest", "as_of": "", "host": "", "source": "", "environment": ""}
        rest = {"dry_run": False, "verify": "digest", "wait": 0.0, "repository": None}
        return program.restore(Namespace(**{"name": "redis", "config": self.etc, **defaults, **rest, **choice}))

    def rewrite(self, **changes: Any) -> None:
        """Add a backup with the latest one's data and a changed manifest."""
        chosen = catalog.backups(self.restic, "source=redis")[-1]
        manifest = {**catalog.manifest(self.restic, chosen), **changes}
        catalog.write_manifest(self.restic, self.source, manifest, chosen.time + timedelta(seconds=1))

    def start_command(self, *words: str, step: str = "-") -> subprocess.Popen[str]:
        """Start databackup, which waits at a step."""
        for name in ("paused", "go"):
            (self.folder / name).unlink(missing_ok=True)
        path = ":".join(str(Path(item).resolve()) for item in sys.path if item)
        return subprocess.Popen(
            [sys.executable, __file__, step, str(self.folder), "--config", str(self.etc), *words],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_paused(self, command: subprocess.Popen[str]) -> None:
        """Return when a command waits at its step."""
        wait_for(lambda: (self.folder / "paused").exists() or command.poll() is not None, "it comes to its step")
        assert command.poll() is None, command.communicate()

    def command(self, *words: str) -> tuple[int, str]:
        """Run databackup, and return its exit code and what it said."""
        done = self.start_command(*words)
        said, _ = done.communicate(timeout=60)
        return done.returncode, said


def _wait_at(step: str, folder: Path) -> None:
    """Have a function wait before or after it does its work."""
    name, side = step.split(":")
    owner, method = name.split(".")
    place = {"FromBackup": FromBackup, "Target": Target, "Process": Process, "Snapshot": Snapshot}[owner]
    plain = getattr(place, method)

    def pause() -> None:
        (folder / "paused").touch()
        while not (folder / "go").exists():
            time.sleep(0.02)

    def waiting(*words: Any, **named: Any) -> Any:
        if side == "before":
            pause()
        result = plain(*words, **named)
        if side == "after":
            pause()
        return result

    setattr(place, method, waiting)


if __name__ == "__main__":
    vars(redis_kind)["Unit"] = Process
    if sys.argv[1] != "-":
        _wait_at(sys.argv[1], Path(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    sys.exit(program.main())
