"""Who listens: sockets of this machine, and of files of /proc as other machines have them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import PROJECT, ansible, load

listening = load("plugins/module_utils/listeners.py")
ports = load("plugins/filter/ports.py")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc in which nginx, a container, systemd and somebody unknown listen; the others have gone or only talk."""
    (tmp_path / "self/net").mkdir(parents=True)
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    (tmp_path / "self/net/tcp").write_text(
        head
        + "   0: 00000000:0BBA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0\n"
        + "   1: 0100007F:18EC 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0\n"
        + "   2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1 0 100 0\n"
        + "   3: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 103 1 0 100 0\n"
    )
    (tmp_path / "self/net/tcp6").write_text(
        head
        + "   0: 00000000000000000000000000000000:18EC 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 200 1\n"
    )
    for pid, program, inode, group in [
        (1, "systemd", 100, "/init.scope"),
        (812, "nginx", 100, "/system.slice/nginx.service"),
        (813, "nginx", 100, "/system.slice/nginx.service"),
        (900, "docker-proxy", 200, "/system.slice/docker-0a1b.scope"),
        (901, "python3", 102, "/user.slice/user-0.slice/session-3.scope"),
    ]:
        folder = tmp_path / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "fd/3").symlink_to(f"socket:[{inode}]")
        (folder / "comm").write_text(f"{program}\n")
        (folder / "cgroup").write_text(f"2:cpu:/other.service\n0::{group}\n")
    (tmp_path / "77").mkdir()
    return tmp_path


def test_names_program_unit_and_address_of_each_port(proc: Path) -> None:
    found = [(one.port, one.address, one.pid, one.program, one.unit) for one in listening.listeners(proc)]
    assert found == [
        (22, "127.0.0.1", 0, "", ""),
        (3002, "0.0.0.0", 812, "nginx", "nginx.service"),
        (6380, "::", 900, "docker-proxy", "docker-0a1b.scope"),
        (8080, "127.0.0.1", 901, "python3", ""),
    ]


def test_a_socket_that_systemd_holds_has_the_name_of_its_unit(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (proc / "812/fd/3").unlink()
    (proc / "813/fd/3").unlink()
    tools = proc / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text(
        "#!/bin/sh\necho '/run/x.sock x.socket x.service'\necho '[::]:3002 a@3002.socket a'\n"
    )
    (tools / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    found = {one.port: (one.pid, one.program, one.unit) for one in listening.listeners(proc)}
    assert found[3002] == (1, "systemd", "a@3002.socket")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the texts are those of a little-endian machine")
def test_reads_addresses(text: str, address: str) -> None:
    assert listening.address_of(text) == address


def test_the_module_finds_a_socket_of_this_machine_and_the_session_although_sudo_dropped_it() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        code, output = ansible("ansible", "localhost", "-m", "quantdesk.redis.host_survey")
        found = yaml.safe_load(output.split("=>", 1)[1])
        mine = [one for one in found["listeners"] if one["port"] == port]
        assert code == 0
        assert [(one["address"], one["pid"]) for one in mine] == [("127.0.0.1", os.getpid())]
        assert found["ssh_connection"] == os.environ.get("SSH_CONNECTION", "")
    script = "from ansible_collections.quantdesk.redis.plugins.module_utils import listeners"
    script += "; print(listeners.ssh_connection())"
    done = subprocess.run(
        ["sh", "-c", 'env -u SSH_CONNECTION "$@"; :', "sh", sys.executable, "-c", script],
        cwd=PROJECT / ".ansible/collections",
        env={**os.environ, "SSH_CONNECTION": "198.51.100.7 50000 192.0.2.10 22"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "198.51.100.7 50000 192.0.2.10 22"


NGINX = {"port": 3002, "address": "0.0.0.0", "pid": 812, "program": "nginx", "unit": "nginx.service"}
HIDDEN = {"port": 3003, "address": "10.0.0.1", "pid": 0, "program": "", "unit": ""}


@pytest.mark.parametrize(
    ("wanted", "addresses", "ours", "found"),
    [
        ([3002], ["127.0.0.1"], "quantdesk[@.-]", ["3002 (nginx, process 812 of nginx.service, on 0.0.0.0)"]),
        (["3002"], ["127.0.0.1"], "nginx", []),
        ([3002], ["127.0.0.1"], "other|nginx[.]service", []),
        ([3004, 0], ["0.0.0.0"], "x", []),
        ([3003], ["10.0.0.2", "-::1"], "x", []),
        ([3003], ["10.0.0.2", "::"], "x", ["3003 (unknown program, on 10.0.0.1)"]),
        ([3003], ["-10.0.0.1"], "x", ["3003 (unknown program, on 10.0.0.1)"]),
    ],
)
def test_tells_which_ports_another_program_has(
    wanted: list[int], addresses: list[str], ours: str, found: list[str]
) -> None:
    assert ports.taken_ports([NGINX, HIDDEN, NGINX], wanted, addresses, ours) == found


def test_a_file_that_is_closed_meanwhile_hides_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "12/fd"
    folder.mkdir(parents=True)
    for number, target in enumerate(["/dev/null", "socket:[7]", "socket:[8]"], 3):
        (folder / str(number)).symlink_to(target)
    # As the name of a file that was closed: it is listed, and is no link any more.
    for number in (0, 4, 9):
        (folder / str(number)).unlink(missing_ok=True)
        (folder / str(number)).touch()
    assert listening.holders({"7", "8"}, tmp_path) == {"8": 12}
