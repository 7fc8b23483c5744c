"""The module redis_audit against a real server: it is as declared, and then it is not, one thing at a time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ports import free_port
from test_redis_audit import APT
from test_redis_built_in import values

from conftest import load, server_command

records = load("plugins/module_utils/redis_built_in.py")
conf_file = load("plugins/module_utils/redis_conf.py")
places = load("plugins/module_utils/secret_places.py")
rights = load("plugins/module_utils/rights.py")
cut = load("plugins/module_utils/redis_cut.py")
seen_module = load("plugins/module_utils/redis_seen.py")
checks = load("plugins/module_utils/redis_checks.py")
resp = load("plugins/module_utils/resp.py")
redis_audit = load("plugins/modules/redis_audit.py")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it is about other users")
UNIT = "redis-test.service"
# As it is; the fixture has it say what systemd would have made of the process.
confinement = seen_module.confinement
OWN = pwd.getpwuid(os.geteuid()).pw_name
USERS = records.declared(values())


@dataclass
class Redis:
    """A server over TLS with all users of the role, and what redis_audit is told of it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    client: Any
    instance: dict[str, Any]

    def audit(self, **changes: Any) -> dict[str, dict[str, Any]]:
        """Return the rows of the module, by name; nothing that it prints holds a secret."""
        plain = {"_ansible_check_mode": False, "_ansible_no_log": False, "_ansible_remote_tmp": "/tmp"}
        arguments = {
            "instances": [{**self.instance, **changes}],
            "host": "redis1",
            "topology": "standalone",
            "install": "package",
            "packages": {},
            "kernel": False,
            "somaxconn": 1024,
        }
        printed = io.StringIO()
        with warnings.catch_warnings():
            # Old versions of TLS are what is asked for.
            warnings.simplefilter("ignore")
            words = patch_module_args({**arguments, **plain})
            with words, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                redis_audit.main()
        output = printed.getvalue()
        for user in USERS:
            assert user["password"] not in output
            assert hashlib.sha256(user["password"].encode()).hexdigest() not in output
        result = json.loads(output)
        assert "rows" in result, result
        assert result["changed"] is False
        return {row["name"]: row for row in result["rows"]}

    def failed(self, **changes: Any) -> dict[str, str]:
        """Return what was found where it is not as it should be."""
        return {name: row["found"] for name, row in self.audit(**changes).items() if row["verdict"] == "FAILED"}


def make_certificate(folder: Path, days: int, names: str) -> None:
    """Make a certificate that signs itself, and its key."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    files = ["-keyout", f"{folder}/host.key", "-out", f"{folder}/host.crt"]
    words = [*new, "-days", str(days), "-subj", "/CN=test", "-addext", f"subjectAltName={names}", *files]
    subprocess.run(words, check=True, capture_output=True)
    (folder / "host.key").chmod(0o400)


def wait_for(port: int) -> None:
    """Wait until something listens on a port."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        else:
            return


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A server that is as declared; of this machine's systemd, apt and journal nothing is asked."""
    folder, port = tmp_path_factory.mktemp("audited"), free_port()
    for name in ("etc", "data", "log"):
        (folder / name).mkdir(mode=0o750)
    make_certificate(folder, 60, "IP:127.0.0.1,DNS:redis1")
    acl, conf = folder / "etc/users.acl", folder / "etc/redis.conf"
    digests = {user["name"]: hashlib.sha256(user["password"].encode()).hexdigest() for user in USERS}
    acl.write_text("".join(f"user {user['name']} on #{digests[user['name']]} {user['rules']}\n" for user in USERS))
    directives = {
        "bind": ["127.0.0.1"],
        "protected-mode": True,
        "port": 0,
        "tls-port": port,
        "maxmemory": "64mb",
        "maxmemory-policy": "allkeys-lru",
        "appendonly": False,
        "appendfsync": "everysec",
        "save": ["3600 1"],
        "maxclients": 100,
        "client-output-buffer-limit": ["pubsub 32mb 8mb 60"],
        "tls-ca-cert-file": f"{folder}/host.crt",
        "tls-cert-file": f"{folder}/host.crt",
        "tls-key-file": f"{folder}/host.key",
        "tls-auth-clients": True,
        "tls-replication": True,
        "tls-protocols": "TLSv1.2 TLSv1.3",
        "tls-ciphers": "ECDHE+AESGCM:ECDHE+CHACHA20",
        "dir": str(folder / "data"),
        "aclfile": str(acl),
        "acllog-max-len": 128,
    }
    conf.write_text(conf_file.merge("", directives))
    for file in (acl, conf):
        file.chmod(0o600)
    process = subprocess.Popen([server_command(folder), str(conf)], stdout=subprocess.DEVNULL)
    state = {"ActiveState": "active", "UnitFileState": "enabled", "MainPID": str(process.pid)}
    own = {"ca_file": f"{folder}/host.crt", "cert_file": f"{folder}/host.crt", "key_file": f"{folder}/host.key"}
    instance = {
        "subject": "redis",
        "unit": UNIT,
        "user": OWN,
        "folder": str(folder / "etc"),
        "folder_mode": "0750",
        "conf": str(conf),
        "acl": str(acl),
        "credentials": str(folder / "admin.env"),
        "data": str(folder / "data"),
        "log": str(folder / "log/redis.log"),
        "sizes": str(folder / "sizes"),
        "server": {"host": "127.0.0.1", "port": port, **own},
        "port": 0,
        "tls_port": port,
        "tls_auth_clients": True,
        "names": ["127.0.0.1", "redis1"],
        "exposure": 0.9,
        "maxmemory": 64 << 20,
        "directives": directives,
        "users": USERS,
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(seen_module, "units", lambda names: {UNIT: state})
            patch.setattr(seen_module, "exposure", lambda unit: "0.9")
            patch.setattr(seen_module, "confinement", lambda pid: checks.CONFINED)
            patch.setattr(seen_module, "undeclared", lambda declared, leave: [])
            patch.setattr(seen_module.Shared, "apt", APT)
            patch.setattr(places, "journal", lambda: b"")
            wait_for(port)
            with resp.Client("127.0.0.1", port, **own) as client:
                client.call("AUTH", "admin", values()["redis_admin_password"])
                yield Redis(folder, port, process, client, instance)
    finally:
        process.terminate()
        process.wait(10)


def test_a_server_as_declared_passes(redis: Redis) -> None:
    assert redis.failed() == {}


# What is set on the server, and set back, and the rows that say so with what they have found.
LIVE: list[tuple[str, str, dict[str, str]]] = [
    ("maxmemory-policy noeviction", "maxmemory-policy allkeys-lru", {"maxmemory-policy": "'noeviction'"}),
    ("maxmemory 1mb", "maxmemory 64mb", {"maxmemory": "1048576"}),
    ("protected-mode no", "protected-mode yes", {"protected-mode": "'no'"}),
    ("appendfsync no", "appendfsync everysec", {"appendfsync": "'no'"}),
    ("maxclients 99", "maxclients 100", {"maxclients": "99"}),
    ("tls-replication no", "tls-replication yes", {"replication over TLS": "'no'"}),
    ("tls-auth-clients no", "tls-auth-clients yes", {"client certificate of a foreign authority": "'NOAUTH"}),
    (
        "tls-ciphers DEFAULT:ECDHE+AES",
        "tls-ciphers ECDHE+AESGCM:ECDHE+CHACHA20",
        {"TLS 1.2 with CBC ciphers": "'a conn"},
    ),
    (
        "client-output-buffer-limit 'pubsub 1mb 1mb 60'",
        "client-output-buffer-limit 'pubsub 32mb 8mb 60'",
        {"client-output-buffer-limit": "'normal 0 0 0"},
    ),
]


@pytest.mark.parametrize(("take", "back", "rows"), LIVE, ids=[take for take, _, _ in LIVE])
def test_a_directive_that_somebody_has_set_is_found(redis: Redis, take: str, back: str, rows: dict[str, str]) -> None:

    redis.client.call("CONFIG", "SET", *shlex.split(take))
    try:
        found = redis.failed()
    finally:
        redis.client.call("CONFIG", "SET", *shlex.split(back))
    assert take.split()[0] in found.pop("directives, compared with the inventory")
    # Without certificates of clients, none is missing either.
    if take.startswith("tls-auth-clients"):
        assert found.pop("no client certificate").startswith("'NOAUTH")
    assert {name: text[: len(rows.get(name, ""))] for name, text in found.items()} == rows


USER_CHANGES = [
    ("app", "+flushall", "commands that app may not run"),
    ("app", "+script", "scripts as app, EVAL by declaration"),
    ("app", "~*", "keys that app reaches"),
    ("app", "&*", "channels that app reaches"),
    ("default", "+eval", "rights of default"),
    ("exporter", "+slowlog", "rights of exporter"),
    ("backup", "+config", "rights of backup"),
    ("sentinel", "+@all", "rights of replica and sentinel"),
]


@pytest.mark.parametrize(("user", "rule", "row"), USER_CHANGES)
def test_a_right_too_many_is_found(redis: Redis, user: str, rule: str, row: str) -> None:
    (before,) = (line for line in redis.client.call("ACL", "LIST") if line.split()[1] == user)
    redis.client.call("ACL", "SETUSER", user, rule)
    try:
        found = redis.failed()
    finally:
        redis.client.call("ACL", "SETUSER", user, "reset", *before.split()[2:])
    assert found.pop("users, compared with the inventory") == f"'different {user}'"
    assert set(found) == {row}


def test_the_application_that_may_read_settings_is_found_and_is_not_in_the_log(redis: Redis) -> None:
    (before,) = (line for line in redis.client.call("ACL", "LIST") if line.split()[1] == "app")
    redis.client.call("ACL", "SETUSER", "app", "+config|get")
    redis.client.call("ACL", "LOG", "RESET")
    try:
        found = redis.failed()
    finally:
        redis.client.call("ACL", "SETUSER", "app", "reset", *before.split()[2:])
    assert set(found) == {"CONFIG GET as app", "ACL LOG", "users, compared with the inventory"}


def test_a_server_without_a_password_is_found(redis: Redis) -> None:
    redis.client.call("ACL", "SETUSER", "default", "nopass")
    try:
        found = redis.failed()
    finally:
        redis.client.call("ACL", "SETUSER", "default", "resetpass", f">{values()['redis_password']}")
    assert found["PING without a password"] == "'PONG'"
    assert set(found) == {"PING without a password", "users, compared with the inventory"}


def test_a_user_too_many_and_one_too_few_are_found(redis: Redis) -> None:
    redis.client.call("ACL", "SETUSER", "ann", "on", "nopass")
    try:
        assert redis.failed() == {"users, compared with the inventory": "'undeclared ann'"}
        more = [*USERS, {"name": "bob", "password": "bob-0123456789abcdef", "rules": "+ping"}]
        found = redis.failed(users=more)
    finally:
        redis.client.call("ACL", "DELUSER", "ann")
    assert found["users, compared with the inventory"] == "'undeclared ann, missing bob'"
    assert found["passwords in the ACL file"] == "'0 clear, 7 hashed'"


def test_the_certificate_is_judged_by_names_and_by_the_file(redis: Redis) -> None:
    assert redis.failed(names=["redis9"]) == {"names in the certificate": "'127.0.0.1 redis1'"}
    kept = redis.folder / "kept"
    kept.mkdir()
    for name in ("host.crt", "host.key"):
        shutil.move(redis.folder / name, kept / name)
    try:
        make_certificate(redis.folder, 60, "IP:127.0.0.1,DNS:redis1")
        (redis.folder / "host.key").chmod(0o444)
        # This host trusts what the server shows; the certificate on the disk is another one.
        found = redis.failed(server={**redis.instance["server"], "ca_file": str(kept / "host.crt")})
    finally:
        for name in ("host.crt", "host.key"):
            shutil.move(kept / name, redis.folder / name)
    assert found["certificate that is served"] == "'an older one'"
    assert found["mode of the certificate's key"] == f"'444 {OWN}'"


def test_a_server_in_plaintext_is_found(redis: Redis) -> None:
    port = free_port()
    redis.client.call("CONFIG", "SET", "port", str(port))
    try:
        found = redis.failed()
        # Where TLS is declared, plaintext is no way in.
        plaintext = redis.failed(tls_port=port)
    finally:
        redis.client.call("CONFIG", "SET", "port", "0")
    sockets = " ".join(sorted(f"127.0.0.1:{number}" for number in (port, redis.port)))
    assert found["plaintext port"] == f"'{port}'"
    assert found["listening sockets"] == f"'{sockets}'"
    assert set(found) == {"plaintext port", "listening sockets", "directives, compared with the inventory"}
    assert plaintext["PING in plaintext to the TLS port"] == "'NOAUTH Authentication required.'"


def test_a_login_that_is_not_the_declared_one_is_a_finding_and_not_the_end(redis: Redis) -> None:
    users = [{**user, "password": f"other-{user['password']}"} for user in USERS]
    # The other passwords begin with words of the real ones: no output may hold either.
    found = redis.failed(users=users)
    assert "WRONGPASS" in found["PING as admin, over TLS"]
    assert "refuses every login that was tried" in found["users, compared with the inventory"]
    assert found["maxmemory"] == "nothing (no answer to CONFIG GET maxmemory)"


def test_a_server_that_does_not_run_is_a_finding_and_not_the_end(redis: Redis) -> None:
    found = redis.failed(server={**redis.instance["server"], "port": free_port()})
    assert "ConnectionRefusedError" in found["PING as admin, over TLS"]
    # Without a server its files are compared.
    assert "users, compared with the inventory" not in found


def test_files_are_judged_by_what_others_may(redis: Redis) -> None:
    acl = Path(redis.instance["acl"])
    dump, other = redis.folder / "data/dump.rdb", redis.folder / "etc/other"
    dump.write_text("x")
    dump.chmod(0o644)
    (redis.folder / "log").chmod(0o755)
    os.link(acl, other)
    text = acl.read_text()
    acl.write_text(f"{text}user ann on >a-password-in-clear\n")
    try:
        found = redis.failed()
    finally:
        acl.write_text(text)
        other.unlink()
        dump.unlink()
        (redis.folder / "log").chmod(0o750)
    assert found["files that others may read"] == f"'{dump}'"
    assert found["owner and mode of its folders"] == f"'{OWN} 755 {redis.folder}/log'"
    assert (
        found["redis.conf and users.acl, which root reads and writes"] == f"'{acl}: regular file, names: 2, of {OWN}'"
    )
    assert found["passwords in the ACL file"] == "'1 clear, 7 hashed'"
    # What is no plain file is not read as one.
    assert "a file with 2 names" in found["users, compared with the inventory"]


def test_a_file_that_is_not_there_is_a_finding(redis: Redis) -> None:
    acl = Path(redis.instance["acl"])
    kept = acl.rename(acl.with_name("kept"))
    try:
        found = redis.failed()
    finally:
        kept.rename(acl)
    assert found["redis.conf and users.acl, which root reads and writes"] == f"'{acl} is not there'"
    assert "No such file" in found["passwords in the ACL file"]


def test_a_secret_in_the_configuration_is_found(redis: Redis) -> None:
    conf = Path(redis.instance["conf"])
    text = conf.read_text()
    conf.write_text(f"{text}# {values()['redis_app_password']}\n")
    try:
        found = redis.failed()
    finally:
        conf.write_text(text)
    assert found == {"secrets on command lines, in the journal, log, unit and configuration": f"'app in {conf}'"}


@as_root
def test_what_other_users_reach_is_tried_as_each_of_them() -> None:
    # Not below pytest's folders: others may not enter those.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file, mode in (("open", 0o644), ("closed", 0o600)):
            (folder / file).write_text("x")
            (folder / file).chmod(mode)
        questions = [(f"{folder}/{file}", right) for file in ("open", "closed") for right in "rw"]
        assert rights.reached("nobody", "nogroup", questions) == [(f"{folder}/open", "r")]
        assert rights.reached("daemon", "daemon", [(str(folder), right) for right in "rwx"]) == [
            (str(folder), "r"),
            (str(folder), "x"),
        ]
        assert rights.reached("nobody", "no-such-group", questions) == []
        assert rights.reached("no-such-user", "nogroup", questions) == []
        # This process is who it was.
        assert os.geteuid() == 0
        assert seen_module.read_by_somebody([f"{folder}/open", f"{folder}/closed"]) == [f"{folder}/open"]


@as_root
def test_a_user_of_another_instance_is_tried(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_module, "other_users", lambda own: ["daemon"])
    assert redis.failed() == {}
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        file = Path(name, "users.acl")
        file.write_text("x")
        file.chmod(0o666)
        found = redis.failed(acl=str(file))
    text = found["access of other instances' users to its configuration, data and log"]
    assert text == f"'daemon r {file}, daemon w {file}'"


def test_user_and_confinement_are_those_of_the_process(redis: Redis) -> None:
    assert seen_module.user_of(redis.process.pid) == OWN
    assert seen_module.user_of(0) == ""
    words = confinement(redis.process.pid).split()
    assert [word.split(":")[0] for word in words] == ["CapEff", "NoNewPrivs", "Seccomp"]
    assert confinement(0) == ""


STARTED = "9:C 29 Nov 2026 10:00:00.000 # oO0OoO0OoO0Oo Redis is starting oO0OoO0OoO0Oo\n"
TRUNCATED = (
    "9:M 29 Nov 2026 10:00:01.123 # !!! Warning: short read while loading the AOF file appendonly.aof.1.incr.aof!!!\n"
    "9:M 29 Nov 2026 10:00:01.123 # !!! Truncating the AOF appendonly.aof.1.incr.aof at offset 300 !!!\n"
)
AT = time.mktime((2026, 11, 29, 10, 0, 1, 0, 0, -1))


def test_what_was_cut_at_the_last_start_is_known_by_the_log(tmp_path: Path) -> None:
    log, sizes = tmp_path / "log", tmp_path / "sizes"
    assert cut.last_cut(str(log), str(sizes)) is None
    log.write_text(STARTED + TRUNCATED)
    found = cut.last_cut(str(log), str(sizes))
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(AT))
    place = f"dropped behind byte 300 of appendonly.aof.1.incr.aof at {when}"
    assert found.text == f"cut at its end: what was {place}"
    assert abs(found.age - (time.time() - AT)) < 5
    # With its length noted before the start, as a host does that comes up.
    sizes.write_text("appendonly.aof.1.base.rdb 90\nappendonly.aof.1.incr.aof 370\n")
    os.utime(sizes, (AT - 5, AT - 5))
    assert cut.last_cut(str(log), str(sizes)).text == f"cut at its end: 70 bytes were {place}"
    # What was noted long before says nothing of this start, and one that dropped nothing ends it.
    os.utime(sizes, (AT - 3600, AT - 3600))
    assert cut.last_cut(str(log), str(sizes)).text == f"cut at its end: what was {place}"
    log.write_text(STARTED + TRUNCATED + STARTED)
    assert cut.last_cut(str(log), str(sizes)) is None


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(STARTED + TRUNCATED)
    (tmp_path / "log").symlink_to(tmp_path / "real")
    assert cut.last_cut(str(tmp_path / "log"), str(tmp_path / "sizes")) is None
