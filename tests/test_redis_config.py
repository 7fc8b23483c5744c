"""The module redis_config, run as Ansible runs it, against real servers."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ports import free_port

from conftest import ansible_module, load, server_command

resp = load("plugins/module_utils/resp.py")
# In the order in which they need each other.
for library in ("redis_defaults", "redis_conf", "redis_files", "redis_server", "redis_trial"):
    load(f"plugins/module_utils/{library}.py")
redis_config = load("plugins/modules/redis_config.py")

SECRET = "correct-horse-battery"


def run(arguments: dict[str, Any], check: bool = False) -> tuple[dict[str, Any], str]:
    """Return the module's result, and all that it wrote."""
    plain = {"_ansible_check_mode": check, "_ansible_no_log": False, "_ansible_remote_tmp": "/tmp"}
    printed = io.StringIO()
    with warnings.catch_warnings():
        # The module leaves its connection to the end of its process.
        warnings.simplefilter("ignore", ResourceWarning)
        with (
            patch_module_args({**arguments, **plain}),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            contextlib.suppress(SystemExit),
        ):
            redis_config.main()
        gc.collect()
    output = printed.getvalue()
    return json.loads(output), output


@dataclass
class Host:
    """A server that runs on a file of its own, and the module's arguments for it."""

    folder: Path
    port: int
    binary: str
    text: str = ""
    secured: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def file(self) -> Path:
        return self.folder / "redis.conf"

    def start(self, text: str = "") -> None:
        """Start it on a text, and wait until it answers."""
        self.text = f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n{text}"
        self.file.write_text(self.text)
        self.launch()

    def launch(self) -> None:
        """Start it on the file as it is."""
        self.process = subprocess.Popen([self.binary, str(self.file)], stdout=subprocess.DEVNULL)
        for _ in range(3000):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("the server does not listen")

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self, password: str | None = None) -> Any:
        client = resp.Client("127.0.0.1", self.port, **self.secured)
        if password:
            client.call("AUTH", password)
        return client

    def get(self, *names: str, password: str | None = None) -> dict[str, str]:
        with self.client(password) as client:
            reply = client.call("CONFIG", "GET", *names)
        return dict(zip(reply[::2], reply[1::2], strict=True))

    def converge(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        return self.converge_with_output(check, **arguments)[0]

    def converge_with_output(self, check: bool = False, **arguments: Any) -> tuple[dict[str, Any], str]:
        return run(
            {
                "path": str(self.file),
                "directives": {},
                "server_binary": self.binary,
                "server": {"port": self.port, **self.secured},
                **arguments,
            },
            check,
        )

    def leftovers(self) -> set[str]:
        """Return what is in the folder besides what belongs there."""
        return {path.name for path in self.folder.iterdir() if path.name.startswith(".")}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with nothing running yet."""
    folder = tmp_path / "redis"
    folder.mkdir()
    binary = server_command(tmp_path)
    host = Host(folder, free_port(), binary)
    yield host
    host.stop()


def test_changes_a_running_server_in_one_go(host: Host) -> None:
    host.start("# kept\nmaxmemory 1mb\nsave 1 1\nuser app on nopass ~* +ping\n")
    wanted = {
        "maxmemory": "100mb",
        "maxmemory-policy": "allkeys-lru",
        "save": ["3600 1", "300 100"],
        "client-output-buffer-limit": ["replica 512mb 128mb 60"],
        "appendfsync": "everysec",
    }
    with host.client() as witness:
        before = witness.call("CLIENT", "ID"), witness.call("INFO", "server")
        result = host.converge(directives=wanted, mode="0640")
        after = witness.call("CLIENT", "ID"), witness.call("INFO", "server")
    assert result["changed"] is True, result
    assert result["applied"] == ["client-output-buffer-limit", "maxmemory", "maxmemory-policy", "save"]
    assert (result["restart"], result["server"], result["role"]) == ([], "up", "master")
    assert before[0] == after[0]
    assert before[1].split("run_id:")[1][:40] == after[1].split("run_id:")[1][:40]
    live = host.get("maxmemory", "maxmemory-policy", "save", "client-output-buffer-limit")
    assert live["maxmemory"] == str(100 * 1024**2)
    assert live["save"] == "3600 1 300 100"
    assert "slave 536870912 134217728 60" in live["client-output-buffer-limit"]
    assert host.file.read_text().splitlines()[3:] == [
        "# kept",
        "maxmemory 100mb",
        "save 3600 1",
        "save 300 100",
        "user app on nopass ~* +ping",
        "maxmemory-policy allkeys-lru",
        "client-output-buffer-limit replica 512mb 128mb 60",
    ]
    assert result["backup"] == f"{host.file}.previous"
    assert Path(result["backup"]).read_text() == host.text
    assert host.file.stat().st_mode & 0o777 == 0o640
    assert Path(result["backup"]).stat().st_mode & 0o777 == 0o640
    assert host.converge(directives=wanted, mode="0640")["changed"] is False
    assert host.leftovers() == set()


def test_what_needs_a_restart_is_told_until_it_was_done(host: Host) -> None:
    host.start()
    wanted = {"io-threads": 2, "maxmemory": "50mb", "dbfilename": "other.rdb"}
    predicted = host.converge(check=True, directives=wanted)
    first = host.converge(directives=wanted, secrets={"rename-command": ['FLUSHALL ""']})
    assert first["applied"] == predicted["applied"] == ["maxmemory"]
    assert [item["directive"] for item in first["restart"]] == ["dbfilename", "io-threads", "rename-command"]
    assert first["restart"][1] == {
        "directive": "io-threads",
        "running": "1",
        "wanted": "2",
        "reason": "can't set immutable config",
    }
    assert first["restart"][0]["reason"] == "can't set protected config"
    assert first["restart"][2]["wanted"] == "(hidden)"
    assert predicted["restart"] == first["restart"][:2]
    again = host.converge(directives=wanted, secrets={"rename-command": ['FLUSHALL ""']})
    assert (again["changed"], again["applied"]) == (False, [])
    assert [item["directive"] for item in again["restart"]] == ["dbfilename", "io-threads"]
    host.stop()
    host.launch()
    last = host.converge(directives=wanted, secrets={"rename-command": ['FLUSHALL ""']})
    assert (last["changed"], last["restart"]) == (False, [])


def test_a_default_is_put_back(host: Host) -> None:
    host.start("maxmemory 5mb\nsave 1 1\n")
    result = host.converge(directives={"maxmemory": None, "save": None})
    assert result["applied"] == ["maxmemory", "save"]
    assert host.get("maxmemory", "save") == {"maxmemory": "0", "save": "3600 1 300 100 60 10000"}
    assert "maxmemory" not in host.file.read_text()
    assert host.converge(directives={"maxmemory": None, "save": None})["changed"] is False


def test_an_unknown_default_comes_with_a_restart(host: Host) -> None:
    host.start(f"logfile {host.folder}/redis.log\n")
    result = host.converge(directives={"logfile": None})
    assert (result["applied"], [item["directive"] for item in result["restart"]]) == ([], ["logfile"])
    assert result["restart"][0] == {
        "directive": "logfile",
        "running": f"{host.folder}/redis.log",
        "wanted": None,
        "reason": "Redis reads it at its start only",
    }
    assert host.converge(directives={"logfile": None})["restart"] == []


def test_a_file_that_redis_rewrote_is_left_alone(host: Host) -> None:
    host.start()
    wanted = {
        "maxmemory": "100mb",
        "save": ["3600 1"],
        "client-output-buffer-limit": ["replica 512mb 128mb 60", "normal 0 0 0"],
        "notify-keyspace-events": "KEA",
        "repl-backlog-size": "1gb",
        "bind": ["127.0.0.1", "-::1"],
        "slave-priority": 90,
        "maxmemory-policy": "noeviction",
        "tls-protocols": "TLSv1.2 TLSv1.3",
        "latency-tracking-info-percentiles": None,
        "dir": f"{host.folder}/",
    }
    secrets = {"masterauth": 'a "b" ä#', "requirepass": SECRET}
    login = [{"password": SECRET}]
    assert host.converge(directives=wanted, secrets=secrets)["changed"] is True
    with host.client(SECRET) as client:
        client.call("CONFIG", "REWRITE")
    rewritten = host.file.read_text()
    again = host.converge(directives=wanted, secrets=secrets, logins=login)
    assert (again["changed"], again["restart"]) == (False, []), again
    assert host.file.read_text() == rewritten
    # All at their defaults, and CONFIG REWRITE takes their lines out.
    assert host.converge(directives=dict.fromkeys(wanted), logins=login)["changed"] is True
    with host.client(SECRET) as client:
        client.call("CONFIG", "REWRITE")
    usual = {name: None for name in wanted if name != "dir"}
    assert host.converge(directives=usual, secrets=secrets, logins=login)["changed"] is False


def test_a_replica_stays_one(host: Host, tmp_path: Path) -> None:
    (tmp_path / "primary").mkdir()
    primary = Host(tmp_path / "primary", free_port(), host.binary)
    try:
        primary.start()
        host.start()
        wanted = {"maxmemory": "100mb", "save": []}
        host.converge(directives=wanted)
        with host.client() as client:
            client.call("REPLICAOF", "127.0.0.1", str(primary.port))
            client.call("CONFIG", "REWRITE")
        again = host.converge(directives=wanted)
        assert (again["changed"], again["role"]) == (False, "slave")
        changed = host.converge(directives={**wanted, "maxmemory": "90mb", "io-threads": 2})
        assert (changed["applied"], changed["role"]) == (["maxmemory"], "slave")
        assert f"replicaof 127.0.0.1 {primary.port}\n" in host.file.read_text()
    finally:
        primary.stop()


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"maxmemory-policy": "nonsense"}, "must be one of the following: volatile-lru"),
        ({"maxmemroy": "1mb"}, "Bad directive or wrong number of arguments"),
    ],
)
def test_redis_refuses_a_value_in_its_own_words(host: Host, running: bool, wrong: dict[str, Any], said: str) -> None:
    host.start("maxmemory 1mb\n")
    if not running:
        host.stop()
    result = host.converge(directives={"maxmemory": "2mb", **wrong})
    assert result["failed"]
    assert next(iter(wrong)) in result["msg"]
    assert said in result["msg"]
    assert result["msg"].endswith("Nothing was changed.")
    assert host.file.read_text() == host.text
    assert {path.name for path in host.folder.iterdir()} == {"redis.conf"}
    if running:
        assert host.get("maxmemory")["maxmemory"] == str(1024**2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"directives": {"requirepass": "hush-hush"}}, "requirepass is secret: put it in `secrets`"),
        ({"secrets": {"maxmemory": "1mb"}}, "maxmemory is no secret"),
        ({"directives": {"slaveof": "a 1"}}, "Redis itself writes"),
        ({"directives": {"dir": "a\nb"}}, "dir: a value must not hold a line break"),
        ({"path": "/nowhere/redis.conf", "server": None}, "/nowhere is no folder"),
    ],
)
def test_refuses_wrong_input_before_it_does_anything(host: Host, arguments: dict[str, Any], said: str) -> None:
    host.file.write_text("")
    result, output = host.converge_with_output(**arguments)
    assert result["failed"]
    assert said in result["msg"]
    assert "hush-hush" not in output


def test_a_wrong_password_is_told_also_in_check_mode(host: Host) -> None:
    host.start(f"requirepass {SECRET}\n")
    for check in (False, True):
        result = host.converge(check, directives={"maxmemory": "1mb"}, logins=[{"password": "not-it-at-all"}])
        assert result["failed"]
        assert "refuses every login" in result["msg"]
    assert host.file.read_text() == host.text


def test_a_changed_password_is_never_shown(host: Host) -> None:
    host.start("requirepass an-old-password\nuser app on >apps-password ~* +@all\n")
    result, output = host.converge_with_output(
        secrets={"requirepass": SECRET}, logins=[{"password": SECRET}, {"password": "an-old-password"}]
    )
    assert result["applied"] == ["requirepass"]
    assert host.get("requirepass", password=SECRET)["requirepass"] == SECRET
    for secret in (SECRET, "an-old-password", "apps-password"):
        assert secret not in output
    assert "requirepass (hidden)" in result["diff"]["before"]


def test_a_server_that_loads_is_waited_for(host: Host) -> None:
    host.start("enable-debug-command yes\n")
    with host.client() as client:
        client.call("DEBUG", "POPULATE", "4000")
        client.call("SAVE")
    host.stop()
    # Slow, and answering while it loads.
    host.file.write_text(f"{host.text}key-load-delay 500\nloading-process-events-interval-bytes 1024\n")
    host.launch()
    impatient = host.converge(directives={"maxmemory": "100mb"}, loading_timeout=0.1)
    assert "still loading" in impatient["msg"]
    assert host.converge(directives={"maxmemory": "100mb"})["applied"] == ["maxmemory"]


def test_writes_a_new_file_while_no_server_runs(host: Host) -> None:
    result = host.converge(
        directives={"port": host.port, "dir": str(host.folder), "bind": "127.0.0.1"},
        secrets={"requirepass": SECRET},
        header="Written by Ansible.\n# Edit elsewhere.",
        mode="0600",
    )
    assert (result["changed"], result["server"], result["backup"]) == (True, "down", None), result
    assert host.file.read_text().startswith("# Written by Ansible.\n# Edit elsewhere.\n")
    assert host.file.stat().st_mode & 0o777 == 0o600
    host.launch()
    assert host.get("port", password=SECRET) == {"port": str(host.port)}


def test_check_mode_predicts_and_changes_nothing(host: Host) -> None:
    host.start("maxmemory 1mb\n")
    wanted = {"maxmemory": "2mb", "databases": 4}
    before = host.file.stat()
    predicted = host.converge(check=True, directives=wanted, mode="0600")
    assert host.file.stat() == before
    assert {path.name for path in host.folder.iterdir()} == {"redis.conf"}
    assert host.get("maxmemory")["maxmemory"] == str(1024**2)
    done = host.converge(directives=wanted, mode="0600")
    for key in ("changed", "applied", "restart", "server", "role", "backup", "diff"):
        assert predicted[key] == done[key]


def test_check_mode_on_a_bare_host(tmp_path: Path) -> None:
    bare = {"path": str(tmp_path / "none" / "redis.conf"), "directives": {"maxmemory": "1mb"}, "mode": "0640"}
    result, _ = run({**bare, "server": {"port": free_port()}, "server_binary": "/nowhere/redis-server"}, check=True)
    assert (result["changed"], result["server"]) == (True, "down")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_changes_neither_server_nor_file(host: Host) -> None:
    host.start("maxmemory 1mb\n")
    small = host.folder / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        path = small / "redis.conf"
        path.write_text(host.text)
        (small / "full").write_bytes(b"x" * 4096)
        result = host.converge(path=str(path), directives={"maxmemory": "2mb"})
        assert f"{path} cannot be written: No space left on device. Nothing was changed." in result["msg"]
        assert path.read_text() == host.text
        assert {file.name for file in small.iterdir()} == {"redis.conf", "full"}
        assert host.get("maxmemory")["maxmemory"] == str(1024**2)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_file_that_cannot_be_replaced_takes_the_change_back(host: Host) -> None:
    host.start("maxmemory 1mb\n")
    # A folder where the old file is to be kept.
    Path(f"{host.file}.previous").mkdir()
    result = host.converge(directives={"maxmemory": "2mb"})
    assert "cannot be replaced" in result["msg"]
    assert host.get("maxmemory")["maxmemory"] == str(1024**2)
    assert host.file.read_text() == host.text
    assert host.leftovers() == set()


def test_includes_are_looked_into(host: Host) -> None:
    extra = host.folder / "extra.conf"
    host.file.write_text(f"include {host.folder}/*.none\ninclude {extra}\n")
    arguments: dict[str, Any] = {"server": None, "directives": {"maxmemory": "2mb"}}
    assert f"there is no file {extra}" in host.converge(**arguments)["msg"]
    extra.write_text("hz 20\n")
    assert host.converge(**arguments)["server"] == "none"
    extra.write_text("maxmemory 1mb\n")
    # Ours comes later and counts, but not if the line is left out because it says the default.
    assert host.converge(**arguments)["changed"] is False
    host.file.write_text(f"maxmemory 2mb\ninclude {extra}\n")
    assert "sets maxmemory, which would override" in host.converge(**arguments)["msg"]
    host.file.write_text(f"include {extra}\n")
    assert "sets maxmemory" in host.converge(server=None, directives={"maxmemory": 0})["msg"]


def make_certificate(folder: Path) -> None:
    """Put a new key and a certificate for 127.0.0.1 in a folder."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )


def test_a_renewed_certificate_is_read_without_losing_a_connection(host: Host, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    old, certificate = tmp_path / "old.pem", tmp_path / "cert.pem"
    shutil.copy(certificate, old)
    tls = {"tls-cert-file": str(certificate), "tls-key-file": str(tmp_path / "key.pem"), "tls-auth-clients": "no"}
    host.text = "".join(f"{name} {value}\n" for name, value in tls.items())
    host.file.write_text(
        f"port 0\ntls-port {host.port}\nbind 127.0.0.1\ndir {host.folder}\ntls-ca-cert-file {certificate}\n{host.text}"
    )
    host.launch()
    host.secured = {"ca_file": str(old)}
    assert host.converge(directives=tls)["tls_reloaded"] is False
    with host.client() as witness:
        make_certificate(tmp_path)
        assert host.converge(directives=tls, reload_tls=False)["changed"] is False
        assert host.converge(check=True, directives=tls)["tls_reloaded"] is True
        result = host.converge(directives=tls)
        assert (result["changed"], result["tls_reloaded"], result["restart"]) == (True, True, [])
        assert witness.call("PING") == "PONG"
    host.secured = {"ca_file": str(certificate)}
    assert host.converge(directives=tls)["changed"] is False
    # A key that does not fit: the server keeps what it has.
    shutil.copy(tmp_path / "key.pem", tmp_path / "good.pem")
    shutil.copy(certificate, old)
    make_certificate(tmp_path)
    shutil.copy(tmp_path / "good.pem", tmp_path / "key.pem")
    host.secured = {"ca_file": str(old)}
    assert "Unable to update TLS configuration" in host.converge(directives=tls)["msg"]
    with host.client() as client:
        assert client.call("PING") == "PONG"


def test_secrets_are_masked_in_the_most_talkative_output(host: Host) -> None:
    host.start("requirepass an-old-password\n")
    arguments = {
        "path": str(host.file),
        "directives": {"io-threads": 2},
        "secrets": {"requirepass": SECRET, "masterauth": "another-secret", "rename-command": ['DEBUG "hidden-name"']},
        "server": {"port": host.port},
        "logins": [{"password": SECRET}, {"password": "an-old-password"}],
        "server_binary": host.binary,
    }
    code, output = ansible_module("quantdesk.redis.redis_config", arguments, "-vvvv", "--diff")
    assert code == 0, output
    assert "requirepass (hidden)" in output
    assert "can't set immutable config" in output or "can''t set immutable config" in output
    for secret in (SECRET, "an-old-password", "another-secret", "hidden-name"):
        assert secret not in output
    assert "rename-command DEBUG hidden-name" in host.file.read_text()


def test_a_file_that_takes_config_away_is_named_with_the_line_and_without_the_name(host: Host) -> None:
    host.start("maxmemory 10mb\nrename-command CONFIG hidden-name\n")
    result = host.converge(directives={"maxmemory": "20mb"})
    assert f"{host.file}, line 5: found rename-command CONFIG" in result["msg"]
    assert "hidden-name" not in result["msg"]
    assert "maxmemory 10mb" in host.file.read_text()


def test_the_first_append_only_file_holds_all_data_before_the_file_says_so(host: Host) -> None:
    host.start("save ''\nrdb-key-save-delay 20000\n")
    with host.client() as client:
        for number in range(30):
            client.call("SET", f"key:{number}", "x")
    # 30 keys at 20 ms each: the rewrite takes over half a second.
    began = time.monotonic()
    result = host.converge(directives={"appendonly": True})
    assert result["applied"] == ["appendonly"]
    assert time.monotonic() - began > 0.5
    host.stop()
    host.launch()
    with host.client() as client:
        assert loaded(client) == 30


def loaded(client: Any) -> object:
    """Return how many keys there are, once the server has loaded them: it listens before that."""
    for _ in range(3000):
        try:
            return client.call("DBSIZE")
        except resp.ErrorReply as error:
            if not str(error).startswith("LOADING"):
                raise
            time.sleep(0.02)
    raise AssertionError("the server does not get through its file")


def test_an_append_only_file_that_takes_too_long_is_taken_back(host: Host) -> None:
    host.start("save ''\nrdb-key-save-delay 1000000\n")
    with host.client() as client:
        for number in range(30):
            client.call("SET", f"key:{number}", "x")
    result = host.converge(directives={"appendonly": True}, loading_timeout=0.5)
    assert result["failed"]
    assert "no first append-only file" in result["msg"]
    assert host.get("appendonly") == {"appendonly": "no"}
    assert host.file.read_text() == host.text
