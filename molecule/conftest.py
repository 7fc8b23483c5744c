"""Fixtures that all scenarios share: the lab's hosts, its secrets, and the playbooks.

Hosts are reached over ssh, as Ansible reaches them. Tests that break something put it back themselves.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jwt
import pytest
import testinfra
from testinfra.host import Host

PROJECT = Path(__file__).resolve().parent.parent
# The lab that inventory/lab means, too.
LAB = PROJECT / ".lab" / os.environ.get("LAB", "")
# What molecule/default/create.yml has written down of it.
MAP = json.loads((LAB / "lab.json").read_text())
ADDRESSES: dict[str, str] = MAP["hosts"]
# Not every scenario has it.
REDIS_ADDRESS = ADDRESSES.get("redis1", "")
PREFIX: str = MAP["containers"]
# podman or docker.
ENGINE: str = MAP["engine"]


def published(port: int) -> int:
    """Return the port on this machine's loopback that leads to a published port of the lab."""
    return port + int(MAP["shift"])


Answer = TypeVar("Answer")


def connect(name: str) -> Host:
    """Return a host of the lab, as root."""
    return testinfra.get_host(f"ssh://{name}?ssh_config={LAB}/ssh/config&sudo=true")


class RedisCli:
    """redis-cli on a host of the lab, aimed at redis1."""

    def __init__(self, host: str, user: str, password: str, address: str = REDIS_ADDRESS) -> None:
        self.host = host
        self.user = user
        self.password = password
        self.address = address

    def __call__(self, *commands: str, password: str | None = "", tls: bool = True, port: int = 6380) -> list[str]:
        """Send commands, a line each, and return the lines of the answers, errors included.

        Without `password` the user's own is used; None sends none.
        """
        secret = self.password if password == "" else password
        lines = [*([] if secret is None else [f"AUTH {self.user} {secret}"]), *commands]
        options = "--tls --cacert /etc/ssl/quantdesk/ca.crt" if tls else ""
        # By standard input: sudo writes command lines into the journal, and verify.yml looks for passwords there.
        result = subprocess.run(
            [
                "ssh",
                "-F",
                LAB / "ssh/config",
                self.host,
                f"timeout 10 redis-cli -h {self.address} -p {port} {options} 2>&1",
            ],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        output: list[str] = result.stdout.splitlines()
        return output[1:] if secret is not None and output[:1] == ["OK"] else output


def playbook(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook of the project against the lab, as an operator does, and return what it printed."""
    return subprocess.run(
        [PROJECT / ".venv/bin/ansible-playbook", f"playbooks/{name}", *arguments],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        check=False,
        # Reached by a run that hangs, not by one on a busy machine.
        timeout=900,
    )


def converge(**inputs: object) -> subprocess.CompletedProcess[str]:
    """Run redis.yml with some inputs changed, and fail with its output."""
    result = playbook("redis.yml", "-e", json.dumps(inputs))
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def changed(output: str) -> dict[str, int]:
    """Return the number of changes for each host in the recap of a playbook's output."""
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.MULTILINE)}


def assert_confined(host: Host, unit: str, user: str, exposure: int) -> None:
    """Assert that a unit runs now and at boot, as its user, without privileges, and confined.

    `exposure` is the limit for systemd-analyze, from 0 to 100; a unit with nothing but User= has 92.
    """
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled
    pid = host.check_output("systemctl show %s --property MainPID --value", unit)
    lines = host.check_output("cat /proc/%s/status", pid).splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split()[0] == str(host.user(user).uid) != "0"
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
    assert host.run("systemd-analyze security --threshold=%s %s", str(exposure), unit).rc == 0


# Over TLS where its environment says so; its certificate is looked at elsewhere.
HEALTH = (
    "import pathlib, ssl, sys, urllib.request as u;"
    "tls = 'TLS_CERT_FILE=' in pathlib.Path('/etc/quantdesk/quantdesk.env').read_text();"
    "url = f\"http{'s' if tls else ''}://127.0.0.1:{sys.argv[1]}/health\";"
    "answer = u.urlopen(url, timeout=5, context=ssl._create_unverified_context() if tls else None);"
    "print(answer.status, answer.read().decode())"
)


def health(host: Host, port: int = 3002) -> tuple[int, str]:
    """Return what an instance of the application says of itself on its host, as code and status; 0 for no answer."""
    code, _, body = host.run("python3 -c %s %s", HEALTH, str(port)).stdout.partition(" ")
    return int(code or 0), json.loads(body)["status"] if body else ""


@pytest.fixture(scope="session")
def redis1() -> Host:
    """The host that runs Redis."""
    return connect("redis1")


@pytest.fixture(scope="session")
def app1() -> Host:
    """The host that runs the application."""
    return connect("app1")


@pytest.fixture(scope="session")
def outsider() -> Host:
    """A bare host without any rights."""
    return connect("outsider")


@pytest.fixture(scope="session")
def backup1() -> Host:
    """The host that holds the backups."""
    return connect("backup1")


def secret(name: str) -> str:
    """Return one of the lab's secrets."""
    return (LAB / "secrets" / name).read_text().strip()


def assertion(user: str) -> str:
    """Return what the lab's issuer says of a user, who begins a session with it."""
    now = int(time.time())
    said = {"iss": "https://issuer.lab", "aud": "quantdesk", "sub": user, "iat": now, "exp": now + 120}
    # Of the same second, two would be the same one, which counts once.
    key = (LAB / "issuer/private.pem").read_text()
    return jwt.encode({**said, "jti": uuid.uuid4().hex}, key, "ES256")


def as_user(host: str, user: str, address: str = REDIS_ADDRESS) -> RedisCli:
    """Return redis-cli on a host, as one of Redis' users."""
    return RedisCli(host, user, secret("redis_password" if user == "default" else f"redis_{user}_password"), address)


@pytest.fixture(scope="session")
def password() -> str:
    """The password of Redis' default user."""
    return secret("redis_password")


@pytest.fixture(scope="session")
def admin_token() -> str:
    """The lab's token for the application's admin endpoints."""
    return secret("admin_token")


@pytest.fixture(scope="session")
def redis_cli() -> RedisCli:
    """redis-cli as admin, on the host of Redis itself, over loopback."""
    return as_user("redis1", "admin", "127.0.0.1")


@pytest.fixture(scope="session")
def app_cli() -> RedisCli:
    """redis-cli as the application, on its host."""
    return as_user("app1", "app")


def eventually(probe: Callable[[], Answer], good: Callable[[Answer], bool], seconds: float = 15.0) -> Answer:
    """Return the first good answer; after `seconds` the last one, for the assertion to show."""
    deadline = time.monotonic() + seconds
    while not good(answer := probe()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return answer
