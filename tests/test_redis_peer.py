"""A server whose files were replaced under it: who may log in to it, and how it gets to show the new ones."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from cryptography import x509
from ports import free_port
from test_certificates import LOOPBACK, Pair, issue

from conftest import load, server_command

resp = load("plugins/module_utils/resp.py")
peer = load("plugins/module_utils/redis_peer.py")
server = load("plugins/module_utils/redis_server.py")
for library in ("redis_defaults", "redis_conf", "redis_files", "redis_acl", "redis_trial"):
    load(f"plugins/module_utils/{library}.py")
redis_config = load("plugins/modules/redis_config.py")
redis_users = load("plugins/modules/redis_users.py")

PASSWORD = "correct-horse-battery"
OLD, NEW = issue("Old"), issue("New")
TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:18EC 0100007F:D431 01 00000000:00000000 00:00000000 00000000   104        0 7001 1 0 20 4 30 10 -1
   1: 0100007F:18EC 0100007F:D432 01 00000000:00000000 00:00000000 00000000   104        0 7002 1 0 20 4 30 10 -1
   2: 0100007F:18EC 0100007F:D431 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   3: 0B254D0A:18EC 0B254D0A:D431 01 00000000:00000000 00:00000000 00000000   104        0 7003 1 0 20 4 30 10 -1
"""


def test_the_kernel_table_is_read_by_both_ends() -> None:
    assert peer.inodes(TABLE, ("127.0.0.1", 6380), ("127.0.0.1", 0xD431)) == {"7001"}
    assert peer.inodes(TABLE, ("10.77.37.11", 6380), ("10.77.37.11", 0xD431)) == {"7003"}
    assert peer.inodes(TABLE, ("127.0.0.1", 0xD431), ("127.0.0.1", 6380)) == set()


def test_ipv4_within_ipv6_is_ipv4() -> None:
    assert peer.decode("0000000000000000FFFF00000100007F:0050") == ("127.0.0.1", 80)
    assert peer.decode("00000000000000000000000001000000:0050") == ("::1", 80)
    assert peer.readable("fe80::1%eth0", 1) == ("fe80::1", 1)


def test_the_process_at_the_other_end_is_known_from_all_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        # Nobody has accepted it.
        assert not peer.held_by(one, os.getpid())
        other, _ = listener.accept()
        with other:
            assert peer.held_by(one, os.getpid())
            assert not peer.held_by(one, os.getppid())
            assert not peer.held_by(one, 0)


@pytest.fixture(autouse=True)
def systemd(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Whether this machine runs systemd, as the modules see it: it knows nothing of the servers of these tests."""
    folders: set[str] = set()
    isdir, systemd = os.path.isdir, "/run/systemd/system"
    monkeypatch.setattr(os.path, "isdir", lambda path: path in folders if path == systemd else isdir(path))
    return folders


def plain(port: int) -> dict[str, Any]:
    """Return the parameters of a server without TLS."""
    way = {"host": "127.0.0.1", "port": port, "server_name": None, "ca_file": None, "cert_file": None, "key_file": None}
    return {
        "server": way,
        "logins": [{"username": "admin", "password": PASSWORD}],
        "credentials_file": None,
        "timeout": 5.0,
        "loading_timeout": 1.0,
    }


@pytest.mark.parametrize("option", ["unit", "trusted_unit"])
@pytest.mark.parametrize("runs", [True, False], ids=["runs", "down"])
def test_who_takes_the_port_between_a_look_and_the_connection_gets_no_password(
    systemd: set[str], monkeypatch: pytest.MonkeyPatch, option: str, runs: bool
) -> None:
    systemd.add("/run/systemd/system")
    monkeypatch.setattr(peer, "main_pid", lambda unit: os.getppid() if runs else 0)
    connect, heard, taken = socket.create_connection, [b""], []
    port = free_port()

    def listen(listener: socket.socket) -> None:
        one, _ = listener.accept()
        with one, listener:
            heard.append(one.recv(1000))
            one.sendall(b"+OK\r\n")

    def late(*words: Any, **more: Any) -> socket.socket:
        # As of an instance that was broken into: it has the host's key, and binds the port when nobody looks.
        listener = socket.create_server(("127.0.0.1", port))
        taken.append(threading.Thread(target=listen, args=(listener,)))
        taken[0].start()
        return connect(*words, **more)

    monkeypatch.setattr(socket, "create_connection", late)
    try:
        assert server.connect({**plain(port), option: "redis-server@state.service"}) is None
    finally:
        for thread in taken:
            thread.join()
    assert b"".join(heard) == b""


def test_the_process_of_the_unit_is_spoken_to_however_late_it_takes_the_connection(
    systemd: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.add("/run/systemd/system")
    heard: list[bytes] = []
    looked = threading.Event()

    def pid(unit: str) -> int:
        looked.set()
        return os.getpid()

    monkeypatch.setattr(peer, "main_pid", pid)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            looked.wait()
            one, _ = listener.accept()
            with one:
                heard.append(one.recv(1000))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(resp.ProtocolError, match="closed"):
            server.connect({**plain(listener.getsockname()[1]), "unit": "redis.service"})
        thread.join()
    assert PASSWORD.encode() in heard[0]


def test_a_server_that_takes_no_connection_or_drops_it_is_not_down(
    systemd: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.add("/run/systemd/system")
    monkeypatch.setattr(peer, "main_pid", lambda unit: os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        params = {**plain(listener.getsockname()[1]), "unit": "redis.service", "timeout": 0.2}
        with pytest.raises(server.Refused, match="not accepted within"):
            server.connect(params)
        dropped, _ = listener.accept()
        dropped.close()
        connect = socket.create_connection

        def full(*words: Any, **more: Any) -> socket.socket:
            # As with more clients than `maxclients`.
            made = connect(*words, **more)
            listener.accept()[0].close()
            return made

        monkeypatch.setattr(socket, "create_connection", full)
        with pytest.raises(server.Refused, match="the connection was closed"):
            server.connect(params)


@dataclass
class Unit:
    """A server over TLS, as systemd would run it, and its files."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def put(self, authority: Pair, names: Sequence[x509.GeneralName] = LOOPBACK) -> None:
        """Replace the files by those of an authority; the running server has those from before."""
        host = issue("host", authority, names=names)
        for name, text in {"ca.crt": authority.crt, "host.crt": host.crt, "host.key": host.pem()}.items():
            (self.folder / name).write_text(text)

    @property
    def server(self) -> dict[str, Any]:
        """How modules reach it."""
        files = {option: str(self.folder / name) for option, name in FILES.items()}
        return {"host": "127.0.0.1", "port": self.port, "server_name": None, **files}

    def client(self, host: str = "127.0.0.1") -> Any:
        """Return a connection that is logged in, by the files that are there now, whatever name the certificate has."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        context.check_hostname = False
        context.load_cert_chain(self.folder / "host.crt", self.folder / "host.key")
        client = resp.Client(host, self.port, context=context)
        client.call("AUTH", "admin", PASSWORD)
        return client

    def arguments(self, **more: Any) -> dict[str, Any]:
        """Return what the modules have in common."""
        return {"server": self.server, "logins": [{"username": "admin", "password": PASSWORD}], **more}


FILES = {"ca_file": "ca.crt", "cert_file": "host.crt", "key_file": "host.key"}
# Stands in for systemctl: the process of the unit, and its restart.
SYSTEMCTL = """#!/bin/sh
cd "{folder}" || exit 1
[ "$2" = redis.service ] || exit 4
case $1 in
show) cat pid ;;
restart)
  kill "$(cat pid)"
  while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.05; done
  {command} >/dev/null 2>&1 &
  echo $! >pid ;;
esac
"""


@contextmanager
def started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutual: str = "no",
    bind: str = "127.0.0.1",
    names: Sequence[x509.GeneralName] = LOOPBACK,
) -> Iterator[Unit]:
    """Yield a server that was started with the files of the old authority, as a unit that systemctl knows."""
    port = free_port()
    conf = f"""bind {bind}
port 0
tls-port {port}
tls-cert-file {tmp_path}/host.crt
tls-key-file {tmp_path}/host.key
tls-ca-cert-file {tmp_path}/ca.crt
tls-auth-clients {mutual}
dir {tmp_path}
appendonly yes
save ""
aclfile {tmp_path}/users.acl
"""
    (tmp_path / "redis.conf").write_text(conf)
    (tmp_path / "users.acl").write_text(f"user default off\nuser admin on >{PASSWORD} ~* &* +@all\n")
    command = f"{server_command(tmp_path)} {tmp_path}/redis.conf"
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin/systemctl"
    systemctl.write_text(SYSTEMCTL.format(folder=tmp_path, command=command))
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    made = Unit(tmp_path, port, None)  # type: ignore[arg-type]  # the files come first
    made.put(OLD, names)
    # A file counts as newer than the process by its time.
    for name in FILES.values():
        os.utime(tmp_path / name, (1, 1))
    made.process = subprocess.Popen(command.split(), stdout=subprocess.DEVNULL)
    (tmp_path / "pid").write_text(str(made.process.pid))
    deadline = time.monotonic() + 30
    while True:
        try:
            with made.client(bind.split()[0]) as client:
                client.call("SET", "before", "1")
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    # A restart by the stand-in waits until this process is gone, not a zombie.
    threading.Thread(target=made.process.wait, daemon=True).start()
    try:
        yield made
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.fixture(params=["no", "yes"], ids=["TLS", "mutual TLS"])
def unit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unit]:
    """A server that was started with the files of the old authority and has the new one's by now."""
    with started(tmp_path, monkeypatch, request.param) as made:
        made.put(NEW)
        yield made


def run(module: Any, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run a module in this process and return its result."""
    with warnings.catch_warnings():
        # A module ends with its process, which here goes on.
        warnings.simplefilter("ignore", ResourceWarning)
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        gc.collect()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def users(unit: Unit, **more: Any) -> dict[str, Any]:
    """Return the arguments of redis_users."""
    declared = [{"name": "admin", "password": PASSWORD, "rules": "~* &* +@all"}]
    binary = server_command_of(unit)
    return unit.arguments(path=str(unit.folder / "users.acl"), users=declared, server_binary=binary, **more)


def server_command_of(unit: Unit) -> str:
    """Return the program that the unit runs."""
    return os.readlink(f"/proc/{(unit.folder / 'pid').read_text().strip()}/exe")


def test_the_next_run_brings_the_new_files_to_the_server_and_no_key_is_lost(
    unit: Unit, systemd: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    systemd.add("/run/systemd/system")
    mutual = "tls-auth-clients yes" in (unit.folder / "redis.conf").read_text()
    refused = run(redis_users, users(unit), capsys)
    assert refused["failed"]
    assert "Nothing was changed" in refused["msg"]
    done = run(redis_users, users(unit, trusted_unit="redis.service"), capsys)
    assert not done.get("failed"), done
    # A server that asks for certificates of the old authority lets nobody in who could have it read the new one.
    assert done["restarted"] is mutual
    directives = {"tls-cert-file": str(unit.folder / "host.crt")}
    common = {
        "path": str(unit.folder / "redis.conf"),
        "server_binary": server_command_of(unit),
        "directives": directives,
    }
    done = run(redis_config, unit.arguments(**common, trusted_unit="redis.service"), capsys)
    assert not done.get("failed"), done
    assert done["tls_reloaded"] is not mutual
    with resp.Client("127.0.0.1", unit.port, **{k: v for k, v in unit.server.items() if k in FILES}) as client:
        client.call("AUTH", "admin", PASSWORD)
        assert client.call("GET", "before") == "1"
    done = run(redis_config, unit.arguments(**common), capsys)
    assert (done["changed"], done["tls_reloaded"]) == (False, False)


def test_check_mode_restarts_nothing(unit: Unit, capsys: pytest.CaptureFixture[str]) -> None:
    pid = (unit.folder / "pid").read_text()
    done = run(redis_users, {**users(unit, trusted_unit="redis.service"), "_ansible_check_mode": True}, capsys)
    mutual = "tls-auth-clients yes" in (unit.folder / "redis.conf").read_text()
    assert bool(done.get("failed")) is mutual
    assert (unit.folder / "pid").read_text() == pid


class Listener(threading.Thread):
    """Somebody else on the port, with a certificate of its own; keeps all that it is sent."""

    def __init__(self, folder: Path, pair: Pair, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(daemon=True)
        (folder / "impostor.crt").write_text(pair.crt)
        (folder / "impostor.key").write_text(pair.pem())
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "impostor.crt", folder / "impostor.key")
        self.socket = socket.create_server(address)
        self.port: int = self.socket.getsockname()[1]
        self.heard: list[bytes] = []

    def run(self) -> None:
        """Take connections one after another, and keep what comes before and after the handshake."""
        while True:
            try:
                raw, _ = self.socket.accept()
            except OSError:
                return
            try:
                with raw:
                    self.heard.append(raw.recv(1000, socket.MSG_PEEK))
                    with self.context.wrap_socket(raw, server_side=True) as connection:
                        self.heard.append(connection.recv(1000))
            except OSError:
                continue


def test_nobody_but_the_process_of_the_unit_gets_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.crt").write_text(NEW.crt)
    impostor = Listener(tmp_path, issue("impostor"))
    impostor.start()
    way = {"host": "127.0.0.1", "port": impostor.port, "server_name": None, "cert_file": None, "key_file": None}
    params = {
        "server": {**way, "ca_file": str(tmp_path / "ca.crt")},
        "logins": [{"username": "admin", "password": PASSWORD}],
        "credentials_file": None,
        "timeout": 5.0,
        "loading_timeout": 1.0,
    }
    # The unit runs, as another process; or it does not.
    for pid in (os.getppid(), 0):
        monkeypatch.setattr(peer, "main_pid", lambda unit, pid=pid: pid)
        with pytest.raises(server.Refused, match="certificate verify failed"):
            server.connect({**params, "trusted_unit": "redis.service"})
    with pytest.raises(server.Refused, match="certificate verify failed"):
        server.connect(params)
    # It is this very process: then the login is sent.
    monkeypatch.setattr(peer, "main_pid", lambda unit: os.getpid())
    with pytest.raises(Exception, match="closed"):
        server.connect({**params, "trusted_unit": "redis.service"})
    impostor.socket.close()
    assert [text for text in impostor.heard if PASSWORD.encode() in text] == impostor.heard[-1:]
