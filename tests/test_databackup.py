"""The program databackup with real Redis servers and a real restic repository: backups, restores, refusals."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from databackup import __main__ as program
from databackup import catalog, rdb, settings, status
from databackup.errors import Failed
from databackup.redis_restore import Target, restore
from databackup.resp import Client
from databackup.restic import Restic


class Process:
    """Runs a server as systemd would, for tests on a machine without it."""

    def __init__(self, command: list[str], port: int) -> None:
        self.command, self.port = command, port
        self.child: subprocess.Popen[bytes] | None = None

    def active(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def failed(self) -> bool:
        return not self.active()

    def stop(self) -> None:
        if self.child is not None:
            self.child.terminate()
            self.child.wait(20)

    def start_apart(self, arguments: list[str]) -> None:
        self.child = subprocess.Popen([*self.command, *arguments])

    def settle(self) -> None:
        pass

    def start(self, seconds: float) -> None:
        self.start_apart([])
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with Client("127.0.0.1", self.port) as client:
                    client.call("DBSIZE")
                return
            except Exception:
                time.sleep(0.05)
        raise Failed("it does not start")

    def last_words(self) -> str:
        return "it ended"


class Host:
    """A Redis server with its source, and a repository."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as spare:
            self.port: int = spare.getsockname()[1]
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        binary = folder / "redis-server"
        # Debian's redis-tools has the server under another name.
        binary.symlink_to("/usr/bin/redis-check-rdb")
        conf = folder / "redis.conf"
        conf.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.data}\nappendonly yes\nmaxmemory 64mb\nlogfile {folder}/log\n"
            "repl-diskless-sync-delay 0\n"
        )
        (folder / "password").write_text("correct-horse-battery\n")
        self.etc = folder / "etc"
        self.etc.mkdir()
        repository = {
            "location": str(folder / "repository"),
            "password_file": str(folder / "password"),
            "cache": str(folder / "cache"),
            "lock_timeout": 5,
        }
        (self.etc / "repository.json").write_text(json.dumps(repository))
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        options = {
            "server": {"port": self.port},
            "credentials_file": "",
            "admin_credentials_file": "",
            "data": str(self.data),
            "config_file": str(conf),
            "binary": str(binary),
            "user": user,
            "unit": "none",
            "command": [str(binary), str(conf)],
        }
        values = {
            "name": "redis",
            "kind": "redis",
            "environment": "test",
            "host": "here",
            "state": str(folder / "state"),
        }
        (self.etc / "source-redis.json").write_text(json.dumps({**values, "options": options}))
        self.service = Process([str(binary), str(conf)], self.port)
        self.service.start(20)

    def fill(self) -> None:
        """Write values of all types, some of them binary, packed small and large, some that expire."""
        with Client("127.0.0.1", self.port) as client:
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
            client.call("EVAL", script, "0")

    def count(self) -> int:
        """Return the number of keys."""
        with Client("127.0.0.1", self.port) as client:
            return int(str(client.call("DBSIZE")))

    def backup(self) -> dict[str, Any]:
        """Make a backup."""
        return program.backup(Namespace(name="redis", config=self.etc))

    @property
    def restic(self) -> Restic:
        """The repository."""
        return Restic(settings.repository(self.etc))

    def restore(self, wanted: str = "latest", **changes: Any) -> dict[str, Any]:
        """Restore a backup, whose manifest may be changed before."""
        target = Target(settings.source("redis", self.etc), self.service, lambda text: None)
        chosen = catalog.choose(catalog.backups(self.restic, "source=redis"), wanted, "", "redis")
        manifest = {**catalog.manifest(self.restic, chosen), **changes}
        return restore(target, self.restic, chosen.id, manifest, "test", True)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    try:
        made.fill()
        made.restic.run("init", what="init")
        yield made
    finally:
        made.service.stop()


def test_a_restore_brings_back_all_types_and_keeps_what_was_there(host: Host) -> None:
    before = host.count()
    made = host.backup()
    with Client("127.0.0.1", host.port) as client:
        client.call("FLUSHALL")
        client.call("SET", "later", "1")
    done = host.restore()
    assert done["found"] == done["expected"]
    assert done["in_backup"] == {"keys": made["items"], "digest": made["digest"]}
    assert host.count() == before
    assert (Path(done["kept"]) / "appendonlydir").is_dir()
    # With the append-only file on, too, the data are there after a restart.
    host.service.stop()
    host.service.start(20)
    assert host.count() == before


def test_the_digest_is_that_of_the_data_not_of_their_order(host: Host) -> None:
    first = host.backup()["digest"]
    host.service.stop()
    host.service.start(20)
    assert host.backup()["digest"] == first
    with Client("127.0.0.1", host.port) as client:
        client.call("SADD", "s1", "one-more")
    assert host.backup()["digest"] != first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "the backup is damaged"),
        ({"digest": "0" * 32}, "is not what its manifest says"),
        ({"environment": "production"}, "environment 'production'"),
        ({"redis_version": "9.1.0"}, "cannot read it"),
        ({"used_memory": 1 << 30}, "maxmemory is 64 MiB"),
        ({"bytes": 1 << 60}, "MiB free"),
    ],
)
def test_a_backup_that_does_not_fit_leaves_everything_as_it_was(
    host: Host, changes: dict[str, Any], words: str
) -> None:
    host.backup()
    with Client("127.0.0.1", host.port) as client:
        client.call("SET", "since", "1")
    before = host.backup()["digest"]
    with pytest.raises(Failed, match=words):
        host.restore(**changes)
    assert host.backup()["digest"] == before


def test_a_wrong_password_and_an_unknown_backup_are_named(host: Host) -> None:
    host.backup()
    with pytest.raises(Failed, match="there is no such backup"):
        host.restore("ffffffff")
    (host.folder / "password").write_text("wrong\n")
    with pytest.raises(Failed, match="refuses the password"):
        host.backup()
    assert "the last run failed" in status.tell(settings.source("redis", host.etc))["text"]


def test_no_plaintext_is_left_behind(host: Host) -> None:
    host.backup()
    for folder in ("repository", "state", "cache"):
        for path in (host.folder / folder).rglob("*"):
            assert not path.is_file() or b"known-plaintext" not in path.read_bytes(), path


def test_a_cut_off_stream_is_no_snapshot(host: Host) -> None:
    backup = host.backup()
    whole = b"".join(host.restic.read(backup["data"], "/redis.rdb"))
    assert rdb.summarize(iter([whole])).digest == backup["digest"]
    assert rdb.summarize(whole[i : i + 7] for i in range(0, len(whole), 7)).keys == backup["items"]
    with pytest.raises(rdb.Damaged, match="cut off"):
        rdb.summarize(iter([whole[:-9]]))
