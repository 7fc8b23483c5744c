"""The playbooks as operators run them: dry runs, bare hosts, refusals, and the way back."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from testinfra.host import Host

from conftest import ENGINE, PREFIX, RedisCli, changed, eventually, playbook


@pytest.fixture
def bare_host(tmp_path: Path) -> Path:
    """An inventory in which the outsider, on which nothing was ever installed, is a Redis and an application host."""
    path = tmp_path / "bare.yml"
    path.write_text("all: {children: {redis: {hosts: {outsider: }}, app: {hosts: {outsider: }}}}\n")
    return path


@pytest.fixture
def foreign_distribution(redis1: Host) -> Iterator[None]:
    """Make redis1 look like a distribution that nobody has tried."""
    redis1.check_output(
        'printf \'PRETTY_NAME="Debian GNU/Linux 9"\\nID=debian\\nVERSION_ID="9"\\nVERSION="9 (stretch)"\\n\''
        " > /run/os-release && mount --bind /run/os-release /usr/lib/os-release"
        " && echo 9.13 > /run/debian_version && mount --bind /run/debian_version /etc/debian_version"
    )
    try:
        yield
    finally:
        redis1.check_output("umount /usr/lib/os-release /etc/debian_version")


@contextmanager
def offering_redis_eight(host: Host) -> Iterator[None]:
    """Let apt on a host offer a Redis 8."""
    host.check_output(
        "mkdir -p /srv/repository && cd /srv/repository && printf 'Package: redis-server\\nVersion: 9:8.0.2-1\\n"
        "Architecture: all\\nMaintainer: nobody\\nFilename: ./none.deb\\nSize: 1\\nDescription: none\\n' > Packages"
        " && echo 'deb [trusted=yes] file:/srv/repository ./' > /etc/apt/sources.list.d/eight.list"
        " && apt-get update -qq -o Dir::Etc::SourceList=/etc/apt/sources.list.d/eight.list"
        " -o Dir::Etc::SourceParts=- -o APT::Get::List-Cleanup=0"
    )
    try:
        yield
    finally:
        host.check_output("rm -rf /etc/apt/sources.list.d/eight.list /srv/repository /var/lib/apt/lists/_srv_*")


@pytest.fixture
def redis_eight(outsider: Host) -> Iterator[None]:
    """Let apt on the outsider offer a Redis 8."""
    with offering_redis_eight(outsider):
        yield


def test_check_mode_on_a_bare_host_tells_what_would_change_and_changes_nothing(bare_host: Path, outsider: Host) -> None:
    packages = outsider.check_output("dpkg-query --show")
    result = playbook(
        "site.yml", "--check", "--diff", "--limit", "outsider", "-i", "inventory/lab", "-i", str(bare_host)
    )
    assert result.returncode == 0, result.stdout
    assert changed(result.stdout)["outsider"] >= 5
    assert outsider.check_output("dpkg-query --show") == packages
    assert not outsider.file("/etc/redis").exists
    assert not outsider.file("/opt/quantdesk").exists


def test_the_role_redis_alone_needs_no_playbook_of_ours() -> None:
    result = playbook("../tests/bench/role.yml", "--extra-vars", "@tests/bench/vars.yml", "--check")
    assert result.returncode == 0, result.stdout
    assert changed(result.stdout)["outsider"] >= 3


def test_all_wrong_inputs_are_named_at_once_and_nothing_changes() -> None:
    wrong = {"redis_maxmemory": "lots", "redis_tls_port": "http", "redis_password": "short", "redis_topology": "ring"}
    shut_out = {"firewall_ssh_from": ["192.0.2.0/24"]}
    result = playbook("site.yml", "--extra-vars", json.dumps({**wrong, **shut_out}))
    assert result.returncode != 0
    report = result.stdout.rsplit("fatal:", 1)[1]
    assert all(f"{variable}: found" in report for variable in [*wrong, *shut_out])
    assert "'lots'" in report
    assert "could not be reached again" in " ".join(report.split())
    assert "short" not in report
    assert changed(result.stdout) == {"redis1": 0, "app1": 0, "outsider": 0}


@pytest.fixture
def squatter(outsider: Host) -> Iterator[None]:
    """Let another program have the application's port on the outsider."""
    outsider.check_output("systemd-run --quiet --unit=squatter python3 -m http.server 3002")
    eventually(lambda: outsider.socket("tcp://0.0.0.0:3002").is_listening, bool)
    try:
        yield
    finally:
        outsider.check_output("systemctl stop squatter")


@pytest.mark.usefixtures("foreign_distribution", "redis_eight", "squatter")
def test_what_is_wrong_with_the_hosts_is_named_at_once_and_nothing_changes(bare_host: Path) -> None:
    other = {
        "redis_instances": [{"name": "other", "tls_port": 6380, "maxmemory": "32mb", "maxmemory_policy": "noeviction"}]
    }
    subprocess.run([ENGINE, "pause", f"{PREFIX}app1"], check=True, capture_output=True)
    try:
        result = playbook("site.yml", "-i", "inventory/lab", "-i", str(bare_host), "--extra-vars", json.dumps(other))
    finally:
        subprocess.run([ENGINE, "unpause", f"{PREFIX}app1"], check=True, capture_output=True)
    assert result.returncode != 0
    report = " ".join(result.stdout.rsplit("fatal:", 1)[1].split())
    for problem in (
        "distribution: found 'debian 9'; expected one of debian 12, ubuntu 24",
        "version of the package redis-server: found '9:8.0.2-1'; expected 7.x",
        "6380 (/etc/redis/redis.conf)",
    ):
        assert problem in report, report
    squatting = r"app_ports: found '3002 \(python3, process \d+ of squatter.service, on 0.0.0.0\)'"
    assert re.search(squatting, report), report
    # A host that does not answer is one more problem.
    assert "app1" in result.stdout.split("UNREACHABLE")[0].splitlines()[-1] + result.stdout.split("UNREACHABLE")[1]
    assert "connection: found" in report
    assert set(changed(result.stdout).values()) == {0}


def test_no_upgrade_of_the_host_takes_redis_8(redis1: Host) -> None:
    with offering_redis_eight(redis1):
        assert "9:8.0.2-1" in redis1.check_output("apt-cache policy redis-server")
        assert "redis-server" not in redis1.check_output("apt-get --simulate --yes dist-upgrade")
        # It is the pin that keeps it away.
        without = "-o Dir::Etc::PreferencesParts=/nonexistent"
        assert "redis-server" in redis1.check_output(f"apt-get --simulate --yes {without} dist-upgrade")


RULES = "cat /etc/nftables-quantdesk.conf; nft --stateless list table inet quantdesk"
PID = "systemctl show quantdesk@3002 --property MainPID --value"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"app_command": "quantdesk --no-such-option"}, "no-such-option"),
        ({"app_settings": {"LOG_LEVEL": "loud"}}, "LOG_LEVEL"),
        ({"app_migrate_command": "quantdesk --no-such-option", "app_memory_max": "400M"}, "no-such-option"),
    ],
    ids=["candidate", "settings", "migration"],
)
def test_a_release_that_fails_its_trial_never_replaces_the_one_that_serves(
    app1: Host, extra: dict[str, object], words: str
) -> None:
    pid = app1.check_output(PID)
    # Would shut out everybody who uses the application now.
    closing = {"app_clients": ["192.0.2.1"]}
    rules = app1.check_output(RULES)
    result = playbook("app.yml", "--extra-vars", json.dumps({**extra, **closing}))
    assert result.returncode != 0
    assert "did not become healthy" in result.stdout
    assert words in result.stdout
    assert app1.check_output("python3 -c %s", HEALTH) == "200"
    assert "continues to serve" in result.stdout
    assert app1.check_output(PID) == pid
    assert app1.check_output(RULES) == rules
    left = app1.check_output("ls /run/systemd/system /run/*.env 2>/dev/null; ls /etc/quantdesk /etc/systemd/system")
    assert not [name for name in left.split() if "candidate" in name or "trial" in name or "previous" in name]


def test_check_mode_after_all_that_failed_changes_nothing_and_shows_no_secret(password: str, admin_token: str) -> None:
    result = playbook("site.yml", "--check", "--diff", "-vvv")
    assert result.returncode == 0, result.stdout
    assert changed(result.stdout) == {"redis1": 0, "app1": 0, "outsider": 0}
    assert password not in result.stdout + result.stderr
    assert admin_token not in result.stdout + result.stderr


HEALTH = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:3002/health').status)"


def test_a_dump_without_a_log_is_not_started_empty(redis1: Host, redis_cli: RedisCli) -> None:
    assert redis_cli("SET durable:dump 1", "SAVE") == ["OK", "OK"]
    redis1.check_output("systemctl stop redis-server && mv /var/lib/redis/appendonlydir /root/")
    try:
        result = playbook("redis.yml")
        assert result.returncode != 0
        assert "dump.rdb without an append-only file" in " ".join(result.stdout.split())
        assert not redis1.service("redis-server").is_running
        # The way that the message names: first without the log, then with it, live.
        first = playbook("redis.yml", "-e", json.dumps({"redis_appendonly": False}))
        assert first.returncode == 0, first.stdout
        assert redis_cli("GET durable:dump") == ["1"]
        pid = redis1.check_output("systemctl show redis-server --property MainPID --value")
    finally:
        back = playbook("redis.yml")
    assert back.returncode == 0, back.stdout
    assert redis1.check_output("systemctl show redis-server --property MainPID --value") == pid
    redis1.check_output("rm -rf /root/appendonlydir; systemctl restart redis-server")
    assert eventually(lambda: redis_cli("GET durable:dump"), lambda answer: answer == ["1"]) == ["1"]
    redis_cli("DEL durable:dump")


def test_the_role_deploys_another_application(outsider: Host) -> None:
    first = playbook("../molecule/standalone/other_app.yml")
    assert first.returncode == 0, first.stdout
    assert outsider.check_output("python3 -c %s", HEALTH.replace("3002/health", "8099/")) == "200"
    outsider.check_output(
        "systemctl disable --now other.target && rm -rf /etc/systemd/system/other* /opt/other /etc/other"
    )


def test_a_dead_host_of_the_lab_is_replaced_without_a_question() -> None:
    subprocess.run([ENGINE, "kill", f"{PREFIX}outsider"], check=True, capture_output=True)
    result = playbook("../molecule/default/create.yml")
    assert result.returncode == 0, result.stdout
    assert changed(result.stdout)["outsider"] == 1
    assert changed(result.stdout)["app1"] == 0
