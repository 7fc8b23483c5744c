"""The module redis_survey: servers as somebody else may have set them up, found and described without changing them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from conftest import load, server_command

for library in ("redis_defaults", "redis_conf", "redis_acl", "resp", "processes", "redis_started", "redis_answers"):
    load(f"plugins/module_utils/{library}.py")
data = load("plugins/module_utils/redis_data.py")
host = load("plugins/module_utils/redis_host.py")
processes = sys.modules["ansible_collections.quantdesk.redis.plugins.module_utils.processes"]
started = sys.modules["ansible_collections.quantdesk.redis.plugins.module_utils.redis_started"]
Client = sys.modules["ansible_collections.quantdesk.redis.plugins.module_utils.resp"].Client

Start = Callable[..., "subprocess.Popen[bytes]"]
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Start]:
    """Start servers as people do, wait until each says that it listens, and end them."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*words: str, cwd: Path = tmp_path, before: tuple[str, ...] = (), **options: Any) -> Any:
        log = tmp_path / f"log.{len(running)}"
        program = options.pop("program", server_command_once(tmp_path))
        with open(log, "wb") as output:
            process = subprocess.Popen([*before, program, *words], cwd=cwd, stdout=output, stderr=output, **options)
        running.append(process)
        deadline = time.monotonic() + 30
        while not re.search(r"eady to accept connections|Connecting to MASTER", log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return process

    yield start
    for process in running:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(10)


def server_command_once(folder: Path) -> str:
    """Return a command whose process is called redis-server."""
    link = folder / "redis-server"
    return str(link) if link.exists() else server_command(folder)


def config(folder: Path, text: str, name: str = "old.conf") -> str:
    """Write a configuration of a server in a folder, and return its path."""
    file = folder / name
    file.write_text(f"bind 127.0.0.1\ndir {folder}\n{text}")
    return str(file)


def survey(pid: int, *logins: dict[str, Any]) -> dict[str, Any]:
    """Return what is found of one server."""
    (server,) = host.survey(list(logins), [pid])["servers"]
    assert isinstance(server, dict)
    return server


def login(password: str, username: str = "default", port: int = 0) -> dict[str, Any]:
    """Return an item of the option `logins`."""
    return {"username": username, "password": password, "port": port}


def call(port: int, *words: str, password: str = "") -> Any:
    """Send a command to a server."""
    with Client("127.0.0.1", port) as client:
        if password:
            client.call("AUTH", password)
        return client.call(*words)


def test_a_plain_server_with_data_elsewhere_is_described(run: Start, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "srv").mkdir()
    text = f"port {port}\ndir {tmp_path}/srv\ndbfilename legacy.rdb\nmaxmemory 100mb\nsave 900 1\n"
    process = run(config(tmp_path, text))
    call(port, "SET", "a", "1")
    with Client("127.0.0.1", port) as other:
        other.pipeline([["CLIENT", "SETNAME", "billing"], ["SELECT", "3"], ["SET", "b", "1"]])
        found = survey(process.pid)
    assert found["version"]
    assert (found["kind"], found["ours"], found["unit"], found["container"]) == ("redis", False, "", "")
    assert (found["port"], found["tls_port"], found["addresses"]) == (port, 0, [f"127.0.0.1:{port}"])
    assert (found["login"], found["login_as"], found["login_problem"]) == ("open", "default", "")
    assert (found["config_file"], found["config_problem"]) == (f"{tmp_path}/old.conf", "")
    assert (found["keys"], found["databases"]) == (2, {"0": 1, "3": 1})
    assert found["data"]["dir"] == f"{tmp_path}/srv"
    assert (found["data"]["dbfilename"], found["data"]["save"]) == ("legacy.rdb", "900 1")
    assert found["data"]["appendonly"] is False
    assert found["settings"]["maxmemory"] == str(100 << 20)
    assert "dir" not in found["settings"]
    assert "maxclients" not in found["settings"]
    client = {"address": "127.0.0.1", "name": "billing", "user": "default", "db": 3, "tls": False, "connections": 1}
    assert [one | {"library": ""} for one in found["clients"]] == [client | {"library": ""}]
    assert (found["role"], found["primary"], found["replicas"]) == ("master", "", [])
    assert (found["loading"], found["cluster"], found["modules"], found["functions"]) == (False, False, [], 0)


def test_nothing_of_the_server_is_changed(run: Start, tmp_path: Path) -> None:
    port = free_port()
    process = run(config(tmp_path, f"port {port}\n"))

    def state() -> Any:
        return [call(port, *words) for words in (("CONFIG", "GET", "*"), ("ACL", "LIST"), ("ACL", "LOG"))]

    before, files = state(), sorted(tmp_path.rglob("*"))
    survey(process.pid, login("wrong"))
    assert state() == before
    assert call(port, "CLIENT", "LIST").count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == files


def test_the_password_in_its_own_file_is_used(run: Start, tmp_path: Path) -> None:
    port = free_port()
    text = f'port {port}\nrequirepass "made by hand"\nmasterauth of-another\n'
    process = run(config(tmp_path, text))
    found = survey(process.pid)
    assert (found["login"], found["login_as"], found["keys"]) == ("accepted", "default", 0)
    assert found["settings"]["requirepass"] == "(hidden)"
    assert found["settings"]["masterauth"] == "(hidden)"
    assert "made by hand" not in str(found)


@pytest.mark.parametrize("file", [True, False])
def test_a_password_that_nobody_knows_is_a_refusal(run: Start, tmp_path: Path, file: bool) -> None:
    """With a file that somebody has changed since, and without one."""
    port = free_port()
    if file:
        path = config(tmp_path, f"port {port}\nrequirepass now\nappendonly yes\n")
        process = run(path)
        call(port, "CONFIG", "SET", "requirepass", "by-hand", password="now")
    else:
        process = run("--port", str(port), "--requirepass", "by-hand", "--bind", "127.0.0.1", "--appendonly", "yes")
    found = survey(process.pid, login("wrong"))
    assert (found["login"], found["keys"], found["port"]) == ("refused", None, port)
    assert found["login_problem"].startswith("default: WRONGPASS")
    assert found["data"]["dir"] == str(tmp_path)
    assert found["data"]["appendonly"] is file
    found = survey(process.pid, login("wrong"), login("by-hand"))
    assert (found["login"], found["login_problem"], found["keys"]) == ("accepted", "", 0)
    assert found["data"]["appendonly"] is True


def test_users_come_with_hashes_only(run: Start, tmp_path: Path) -> None:
    port = free_port()
    text = f"port {port}\nuser default off\nuser boss on >in-clear ~* &* +@all\nuser app on >secret ~app:* +get\n"
    process = run(config(tmp_path, text))
    found = survey(process.pid)
    assert (found["login"], found["login_as"]) == ("accepted", "boss")
    users = {user["name"]: user["rules"] for user in found["users"]}
    assert set(users) == {"default", "boss", "app"}
    assert re.fullmatch(r"on #[0-9a-f]{64} ~app:\* resetchannels -@all \+get", users["app"])
    assert "secret" not in str(found)
    # Whoever cannot ask reads the same from the file.
    call_as_boss = [["AUTH", "boss", "in-clear"], ["ACL", "SETUSER", "boss", ">other", "<in-clear"]]
    with Client("127.0.0.1", port) as client:
        client.pipeline(call_as_boss)
    found = survey(process.pid)
    assert found["login"] == "refused"
    assert {user["name"] for user in found["users"]} == set(users)
    assert all(re.search(r"#[0-9a-f]{64}|off", user["rules"]) for user in found["users"])
    assert "secret" not in str(found)
    assert "in-clear" not in str(found)


def test_a_user_who_may_little_is_told(run: Start, tmp_path: Path) -> None:
    port = free_port()
    text = f"port {port}\nuser default on nopass ~* +@all -config\nuser boss on >given ~* &* +@all\n"
    aclfile = tmp_path / "users.acl"
    aclfile.write_text("\n".join(text.splitlines()[1:]) + "\n")
    process = run(config(tmp_path, f"port {port}\naclfile {aclfile}\nmaxmemory 7mb\n"))
    found = survey(process.pid)
    assert (found["login"], found["login_as"]) == ("open", "default")
    assert found["login_problem"].startswith("CONFIG GET * as default: NOPERM")
    assert found["settings"]["maxmemory"] == "7mb"
    found = survey(process.pid, login("given", "boss"))
    assert (found["login"], found["login_as"], found["login_problem"]) == ("accepted", "boss", "")
    assert found["settings"]["maxmemory"] == str(7 << 20)


@pytest.mark.parametrize("name", ["", "let-me-configure"])
def test_a_renamed_config_is_asked_by_its_name_or_read_from_the_file(run: Start, tmp_path: Path, name: str) -> None:
    port = free_port()
    text = f'port {port}\nmaxmemory 7mb\nrename-command CONFIG "{name}"\nrename-command flushall ""\n'
    process = run(config(tmp_path, text))
    found = survey(process.pid)
    assert found["renamed"] == {"CONFIG": name, "FLUSHALL": ""}
    assert found["settings"]["maxmemory"] == (str(7 << 20) if name else "7mb")
    assert (found["login"], found["login_problem"], found["keys"]) == ("open", "", 0)


def test_a_renamed_config_of_an_unknown_file_is_told(run: Start, tmp_path: Path) -> None:
    port = free_port()
    process = run("--port", str(port), "--bind", "127.0.0.1", "--rename-command", "CONFIG", "")
    found = survey(process.pid)
    assert found["renamed"] == {"CONFIG": ""}
    assert found["login_problem"].startswith("CONFIG GET * as default: ERR unknown command")
    assert found["port"] == port


def test_a_replica_and_its_primary_know_each_other(run: Start, tmp_path: Path) -> None:
    one, two = free_port(), free_port()
    primary = run("--port", str(one), "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0")
    (tmp_path / "two").mkdir()
    replica = run(config(tmp_path / "two", f"port {two}\nreplicaof 127.0.0.1 {one}\n"))
    found = survey(replica.pid)
    assert (found["role"], found["primary"]) == ("slave", f"127.0.0.1:{one}")
    deadline = time.monotonic() + 20
    while not (replicas := survey(primary.pid)["replicas"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert replicas == [f"127.0.0.1:{two}"]


def test_a_unix_socket_alone_is_enough(run: Start, tmp_path: Path) -> None:
    process = run(config(tmp_path, "port 0\nunixsocket here.sock\nrequirepass x\n"))
    found = survey(process.pid)
    assert (found["port"], found["addresses"]) == (0, [])
    assert found["socket"] == f"{tmp_path}/here.sock"
    assert (found["login"], found["keys"]) == ("accepted", 0)


def test_a_server_that_asks_clients_for_certificates_is_shown_its_own(run: Start, tmp_path: Path) -> None:
    port = free_port()
    files = ["-keyout", f"{tmp_path}/key", "-out", f"{tmp_path}/cert"]
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=x",
    ]
    subprocess.run([*new, *files], check=True, capture_output=True)
    text = f"port 0\ntls-port {port}\ntls-cert-file cert\ntls-key-file key\ntls-ca-cert-file cert\n"
    process = run(config(tmp_path, text))
    found = survey(process.pid)
    assert (found["port"], found["tls_port"]) == (0, port)
    assert (found["login"], found["login_problem"]) == ("open", "")
    assert found["settings"]["tls-port"] == str(port)


def test_a_server_that_was_started_with_arguments_alone_is_described(run: Start, tmp_path: Path) -> None:
    port = free_port()
    process = run("--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfilename", "a b.aof")
    found = survey(process.pid)
    assert (found["config_file"], found["config_problem"]) == ("", "")
    assert found["data"]["appendfilename"] == "a b.aof"
    assert (found["data"]["appenddirname"], found["data"]["appendonly"]) == ("appendonlydir", True)


def test_arguments_count_after_the_file_while_they_can_be_read(run: Start, tmp_path: Path) -> None:
    port = free_port()
    path = config(tmp_path, "port 1\nmaxmemory 7mb\nset-proc-title no\nrename-command CONFIG ''\n")
    process = run("old.conf", "--port", str(port), "--requirepass", "as argument")
    found = survey(process.pid)
    assert (found["config_file"], found["login"], found["port"]) == (path, "accepted", port)
    assert found["settings"]["maxmemory"] == "7mb"


def test_a_hidden_password_is_found_in_the_only_file_with_its_port(run: Start, tmp_path: Path) -> None:
    """Redis has written its title over its command line, and a server that refuses a login does not name its file."""
    port = free_port()
    path = config(tmp_path, f"port {port}\nrequirepass x\n")
    config(tmp_path, "port 1\nrequirepass y\n", "other.conf")
    process = run(path)
    assert started.configuration(host.servers([process.pid])[0], {}).file == ""
    found = survey(process.pid)
    assert (found["config_file"], found["login"]) == (path, "accepted")
    # With a second one the origin is not known.
    config(tmp_path, f"port {port}\nrequirepass y\n", "third.conf")
    found = survey(process.pid)
    assert (found["config_file"], found["login"]) == ("", "refused")


def test_a_server_that_does_not_answer_costs_two_seconds(run: Start, tmp_path: Path) -> None:
    port = free_port()
    process = run("--port", str(port), "--bind", "127.0.0.1", "::1", "--unixsocket", "s")
    process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    found = survey(process.pid, login("x"), login("y"))
    # Two logins at three addresses wait once, not six times.
    assert time.monotonic() - begin < 6
    assert found["login"] == "unreachable"
    assert found["login_problem"].endswith("no answer within 2 s")
    assert (found["keys"], found["data"]["dir"]) == (None, str(tmp_path))


def test_a_server_that_loads_is_told(run: Start, tmp_path: Path) -> None:
    port = free_port()
    path = config(tmp_path, f"port {port}\n")
    first = run(path)
    with Client("127.0.0.1", port) as client:
        client.pipeline([["SET", f"key:{number}", "x" * 2000] for number in range(300)])
    call(port, "SAVE")
    first.kill()
    first.wait(10)
    slow = ["--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no"]
    log = tmp_path / "loading"
    with open(log, "wb") as output:
        process = subprocess.Popen([server_command_once(tmp_path), path, *slow], stdout=output)
    try:
        while "oading RDB" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.02)
        found = survey(process.pid)
        assert (found["loading"], found["keys"], found["login"]) == (True, None, "open")
    finally:
        process.kill()
        process.wait(10)


def test_a_child_that_writes_a_file_is_no_server(run: Start, tmp_path: Path) -> None:
    port = free_port()
    process = run("--port", str(port), "--bind", "127.0.0.1", "--rdb-key-save-delay", "1000000")
    with Client("127.0.0.1", port) as client:
        client.pipeline([["MSET", *map(str, range(40))], ["BGSAVE"]])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    assert [one.pid for one in host.servers([process.pid, int(children[0])])] == [process.pid]


def test_a_program_that_was_removed_is_still_named(run: Start, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "opt").mkdir()
    program = tmp_path / "opt/redis-server"
    shutil.copy(os.path.realpath(server_command_once(tmp_path)), program)
    process = run("--port", str(port), "--bind", "127.0.0.1", program=str(program))
    program.unlink()
    assert survey(process.pid)["program"] == str(program)


def test_a_file_that_is_gone_is_a_problem_and_the_server_is_described(run: Start, tmp_path: Path) -> None:
    port = free_port()
    path = config(tmp_path, f"port {port}\n")
    process = run(path)
    os.unlink(path)
    found = survey(process.pid)
    assert found["config_problem"] == f"{path}: No such file or directory"
    assert (found["port"], found["login"]) == (port, "open")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('requirepass "half', "line 4: unbalanced quotes"),
        ("server-threads 4", "line 4: server-threads is not a directive of Redis 7.0"),
        ("root:$y$secret:1::", "line 4: it is not a directive of Redis 7.0"),
        ("list-max-ziplist-entries 5", ""),
        ("slave-read-only yes", ""),
    ],
)
def test_a_line_that_is_not_understood_is_named_without_what_it_holds(
    run: Start, tmp_path: Path, line: str, problem: str
) -> None:
    port = free_port()
    path = config(tmp_path, f"port {port}\n")
    process = run(path)
    config(tmp_path, f"port {port}\n{line}\n")
    found = survey(process.pid)
    assert found["config_problem"] == (f"{path}, {problem}" if problem else "")
    assert "secret" not in str(found["settings"])


def test_what_a_file_includes_counts(run: Start, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.conf").write_text("requirepass included\ninclude loop.conf\n")
    text = f"port {port}\ninclude {tmp_path}/more/*.conf\nrename-command CONFIG ''\n"
    (tmp_path / "loop.conf").write_text("maxmemory 7mb\n")
    process = run(config(tmp_path, text))
    found = survey(process.pid)
    assert (found["login"], found["settings"]["maxmemory"]) == ("accepted", "7mb")


@ROOT
def test_somebody_else_s_program_is_not_shown_a_login(run: Start, tmp_path: Path) -> None:
    """Anybody can call a program redis-server, and write down what it is told."""
    port = free_port()
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    place = tmp_path / "theirs"
    place.mkdir()
    os.chown(place, 12345, 12345)
    process = run(
        *("--port", str(port), "--bind", "127.0.0.1", "--requirepass", "secret", "--dir", str(place)),
        user=12345,
        group=12345,
        extra_groups=[],
    )
    assert survey(process.pid, login("secret"))["login"] == "refused"
    assert survey(process.pid, login("secret", port=port + 1))["login"] == "refused"
    found = survey(process.pid, login("secret", port=port))
    assert (found["login"], found["user"]) == ("accepted", "12345")
    assert call(port, "ACL", "LOG", password="secret") == []


@ROOT
@pytest.mark.parametrize(
    ("owner", "included", "expected"), [(0, False, "refused"), (12345, False, "accepted"), (12345, True, "refused")]
)
def test_a_password_goes_only_to_the_server_whose_file_holds_it(
    run: Start, tmp_path: Path, owner: int, included: bool, expected: str
) -> None:
    """A program may say on its command line that a file is its own which it cannot read."""
    port = free_port()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (tmp_path / "theirs.conf").write_text("requirepass secret\n")
    password = f"include {tmp_path}/theirs.conf" if included else "requirepass secret"
    path = config(tmp_path, f"port {port}\nset-proc-title no\n{password}\nsave ''\n")
    os.chown(path, owner, owner)
    process = run(path, user=12345, group=12345, extra_groups=[])
    found = survey(process.pid)
    assert (found["config_file"], found["login"]) == (path, expected)
    assert call(port, "ACL", "LOG", password="secret") == []


@ROOT
def test_a_server_in_namespaces_of_its_own_is_reached(run: Start, tmp_path: Path) -> None:
    """As in a container: other processes, mounts and network, and a link that leads to another file there."""
    port = free_port()
    inside = tmp_path / "inside"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc/real.conf").write_text(f"port {port}\nbind 127.0.0.1\nrequirepass inside\ndir /\n")
    (inside / "etc/redis.conf").symlink_to("/etc/real.conf")
    for folder in ("usr", "lib", "lib64", "bin", "proc", "dev"):
        (inside / folder).mkdir()
    shutil.copy(os.path.realpath(server_command_once(tmp_path)), inside / "redis-server")
    script = (
        f"cd {inside} && mount --rbind /usr usr && mount --rbind /lib lib && mount --rbind /lib64 lib64 &&"
        " mount --rbind /dev dev && mount -t proc proc proc && ip link set lo up &&"
        " exec chroot . /redis-server /etc/redis.conf"
    )
    unshare = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "sh", "-c", script)
    if subprocess.run([*unshare[:4], "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")
    outer = run(*unshare[1:], program=unshare[0])
    (pid,) = map(int, Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split())
    found = survey(pid)
    assert (found["container"], found["unit"]) == ("unknown", "")
    assert found["addresses"] == [f"127.0.0.1:{port}"]
    # Its file is read where the server sees it.
    assert (found["config_file"], found["config_problem"]) == ("/etc/redis.conf", "")
    assert found["login"] == "accepted"
    assert found["settings"]["port"] == str(port)


def test_other_listeners_are_named(run: Start, tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    process = run("--port", str(port), "--bind", "127.0.0.1")
    with socket.create_server(("127.0.0.1", other)):
        found = {one["port"]: one for one in host.survey([], [process.pid])["listeners"]}
    assert (found[port]["pid"], found[port]["address"]) == (process.pid, "127.0.0.1")
    assert (found[other]["pid"], found[other]["program"]) == (os.getpid(), os.path.realpath(sys.executable))


ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "first", "unit", "container"),
    [
        ("0::/system.slice/redis-server.service\n", "/init.scope", "redis-server.service", ""),
        ("1:name=systemd:/redis.slice/redis-server@a.service\n0::/\n", "/init.scope", "redis-server@a.service", ""),
        ("4:memory:/x\n1:name=systemd:/user.slice/user-0.slice/session-3.scope\n", "/init.scope", "", ""),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/redis.service\n", "/init.scope", "", ""),
        (f"0::/system.slice/docker-{ID}.scope\n", "/init.scope", "", "docker"),
        (f"12:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n", "/", "", "docker"),
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", "/init.scope", "", "podman"),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n", "/init.scope", "", "kubernetes"),
        ("0::/lxc.payload.web/system.slice/redis.service\n", "/init.scope", "", "lxc"),
        # The host itself is a container.
        (
            f"1:name=systemd:/libpod-{ID}/system.slice/redis.service\n",
            f"/libpod-{ID}/init.scope",
            "redis.service",
            "",
        ),
    ],
)
def test_control_groups_tell_units_and_containers(text: str, first: str, unit: str, container: str) -> None:
    group = processes.below(processes.control_group(text), first)
    assert processes.container_of(group) == container
    if not container:
        assert processes.unit_of(group) == unit


@pytest.mark.parametrize(
    ("name", "program", "expected"),
    [
        ("redis-server", "/usr/bin/redis-check-rdb", True),
        ("valkey-server", "/usr/bin/valkey-check-rdb", True),
        ("keydb-server", "/usr/bin/keydb-server", True),
        ("redis-sentinel", "/usr/bin/redis-check-rdb", True),
        ("redis-server-7.", "/opt/redis/redis-server-7.2.4", True),
        ("cache", "/opt/cache/redis-server", True),
        ("cache", "/usr/bin/redis-check-rdb", True),
        ("redis-check-rdb", "/usr/bin/redis-check-rdb", False),
        ("redis-cli", "/usr/bin/redis-cli", False),
        ("python3", "/usr/bin/python3.11", False),
    ],
)
def test_servers_are_told_by_name_or_program(name: str, program: str, expected: bool) -> None:
    assert started.is_server(name, program) is expected


def unit(main: int, command: str) -> dict[str, str]:
    """Return what systemctl shows of a unit."""
    return {"MainPID": str(main), "ExecStart": f"{{ path={command} ; argv[]={command} ; }}"}


def test_a_unit_counts_only_if_it_starts_the_server() -> None:
    one = processes.process(os.getpid())
    assert host.runs(unit(one.pid, "/opt/start"), one)
    assert host.runs(unit(0, "/usr/bin/redis-server /etc/redis.conf"), one)
    assert not host.runs(unit(1, "/usr/sbin/cron -f"), one)


def test_links_of_another_root_stay_in_it(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/shadow").write_text("")
    (tmp_path / "a").symlink_to("/etc/shadow")
    (tmp_path / "b").symlink_to("../../../../etc/shadow")
    (tmp_path / "c").symlink_to("c")
    for name in ("a", "b"):
        assert processes.within(str(tmp_path), f"/{name}") == f"{tmp_path}/etc/shadow"
    assert processes.within(str(tmp_path), "/c").startswith(str(tmp_path))


def test_data_without_a_server_are_found(run: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: tmp_path / f"var/{name}" for name in ("redis", "redis-old", "elsewhere", "used")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    port = free_port()
    process = run("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folders["used"]), "--appendonly", "yes")
    call(port, "SAVE")
    shutil.copy(folders["used"] / "dump.rdb", folders["elsewhere"] / "legacy.snapshot")
    shutil.copytree(folders["used"] / "appendonlydir", folders["redis"] / "appendonlydir")
    (folders["redis-old"] / "appendonly.aof").write_text("*1\r\n$4\r\nPING\r\n")
    (folders["redis-old"] / "dump.rdb").write_bytes(b"REDIS0011\xfa\x09redis-ver\x057.2.4\xfa")
    (folders["redis-old"] / "notes.txt").write_text("no data")
    (folders["redis-old"] / "temp-1.rdb").write_bytes(b"REDIS0011")
    (folders["redis-old"] / "link.rdb").symlink_to("dump.rdb")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/old.conf").write_text(f"dir {folders['elsewhere']}\ndbfilename legacy.snapshot\n")
    monkeypatch.setattr(data, "DATA", (f"{tmp_path}/var/redis*",))
    monkeypatch.setattr(data, "USUAL", (f"{tmp_path}/etc/*.conf",))
    monkeypatch.setattr(data, "UNITS", ())
    version = survey(process.pid)["version"]
    found = {one["path"]: one for one in host.survey([], [process.pid])["files"]}
    assert set(found) == {
        f"{folders['elsewhere']}/legacy.snapshot",
        f"{folders['redis']}/appendonlydir",
        f"{folders['redis-old']}/appendonly.aof",
        f"{folders['redis-old']}/dump.rdb",
    }
    moved = found[f"{folders['elsewhere']}/legacy.snapshot"]
    assert (moved["kind"], moved["rdb_version"], moved["redis_version"], moved["ours"]) == ("rdb", 10, version, False)
    assert moved["bytes"] == (folders["used"] / "dump.rdb").stat().st_size
    assert moved["empty"] is True
    log = found[f"{folders['redis']}/appendonlydir"]
    assert (log["kind"], log["rdb_version"], log["empty"]) == ("aof", 10, True)
    # With a key.
    call(port, "SET", "a", "1")
    call(port, "SAVE")
    assert data.head(str(folders["used"] / "dump.rdb")) == (10, version, False)
    newer = found[f"{folders['redis-old']}/dump.rdb"]
    assert (newer["rdb_version"], newer["redis_version"], newer["empty"]) == (11, "7.2.4", False)


def test_data_of_a_unit_elsewhere_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv/dump.rdb").write_bytes(b"REDIS0009")
    (tmp_path / "cache.conf").write_text(f"dir {tmp_path}/srv\n")
    command = f"ExecStart=/opt/bin/redis-server {tmp_path}/cache.conf --daemonize no\n"
    (tmp_path / "redis-cache.service").write_text(f"[Service]\n{command}")
    monkeypatch.setattr(data, "DATA", ())
    monkeypatch.setattr(data, "USUAL", ())
    monkeypatch.setattr(data, "UNITS", (str(tmp_path),))
    (found,) = data.data_files([])
    assert (found["path"], found["rdb_version"]) == (f"{tmp_path}/srv/dump.rdb", 9)


def test_only_units_of_the_role_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "redis-server@cache.service"
    monkeypatch.setattr(data, "OUR_UNIT", re.compile(re.escape(str(tmp_path)) + r"/redis-server(@[^/]+)?\.service"))
    file.write_text("[Unit]\nDescription=Advanced key-value store\n")
    assert not data.is_ours(str(file))
    template = Path(__file__).parent.parent / "roles/redis/templates/redis.service.j2"
    file.write_text(template.read_text())
    assert data.is_ours(str(file))


def test_it_is_cheap(run: Start, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    pids = [run("--port", str(port), "--bind", "127.0.0.1").pid for port in ports]
    begin = time.process_time()
    assert len(host.survey([], pids)["servers"]) == 2
    assert time.process_time() - begin < 0.3


def test_the_preflight_s_own_look_finds_the_same_servers(run: Start, tmp_path: Path) -> None:
    """The cheap question of each run, and the survey that follows it."""
    ports = [free_port(), free_port()]
    pids = [run("--port", str(port), "--bind", "127.0.0.1", "--rdb-key-save-delay", "1000000").pid for port in ports]
    (tmp_path / "cache").symlink_to(os.path.realpath(server_command_once(tmp_path)))
    pids.append(run("--port", str(free_port()), "--bind", "127.0.0.1", program=str(tmp_path / "cache")).pid)
    with Client("127.0.0.1", ports[0]) as client:
        client.pipeline([["MSET", *map(str, range(40))], ["BGSAVE"]])
    (child,) = map(int, Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split())
    script = Path(__file__).parent.parent / "roles/redis/files/servers.sh"
    done = subprocess.run(["sh", "-uc", f". {script}; servers"], capture_output=True, text=True, check=True)
    found = dict(line.split() for line in done.stdout.splitlines())
    assert {str(pid) for pid in pids} <= set(found)
    assert str(child) not in found
    assert all(found[str(pid)] == "-" for pid in pids)
    assert done.stderr == ""
