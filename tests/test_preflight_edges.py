"""Preflight: what stands between several hosts, or between the host and who asks, and cases that must pass."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import GONE, SECRET, problems, run, variables

from conftest import free_port

# Five at once on one host, each of another role or kind.
FIVE: dict[str, Any] = {
    "redis_password": GONE,
    "redis_maxmemory": "lots",
    "redis_tls_port": "http",
    "certificates_source": "letsencrypt",
    "firewall_table": "my table",
}


def names(result: subprocess.CompletedProcess[str], host: str) -> list[str]:
    """Return the names of a host's problems."""
    found = [line.rsplit(" [", 1) for line in problems(result.stdout)]
    return [text.split(": found")[0] for text, hosts in found if host in hosts.rstrip("]").split(", ")]


def good(**changes: Any) -> dict[str, Any]:
    """Return good values, with some that are changed or gone."""
    return {name: value for name, value in {**variables(), **changes}.items() if value is not GONE}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run over hosts of which each has its own fault, or none."""
    patch = pytest.MonkeyPatch()
    # Where the preflight thinks that Ansible comes from.
    patch.setenv("SSH_CONNECTION", "198.51.100.7 50000 192.0.2.10 22")
    redis = {
        "five": good(**FIVE),
        "equal": good(redis_port=6380),
        "quoted": good(redis_port="0", redis_tls_port="6380", redis_maxclients="100"),
        "plain": good(redis_port=6379, redis_tls_port=0, redis_tls_cert_file="", redis_tls_key_file=""),
        "listed": good(redis_bind=["127.0.0.1", "-::1"], redis_save=[]),
        "locked": good(firewall_ssh_from=["203.0.113.0/24", "2001:db8::/32"]),
        "kept": good(firewall_ssh_from=["203.0.113.0/24", "198.51.100.0/24"]),
        "services": good(firewall_allow=[{"name": "redis", "ports": ["redis"], "from": ["10.0.0.1"]}]),
        "blank": good(certificates_path="/etc/ssl/my certificates"),
        "sshname": good(firewall_ssh_ports=["ssh"]),
        "passphrase": good(certificates_ca_passphrase=SECRET),
        "leaking": good(redis_password=f"{SECRET}{{{{ nowhere }}}}"),
        "broken": good(redis_password=f"{SECRET}{{{{ nowhere"),
        "files": good(certificates_source="files", certificates_files={}),
        "newline": good(firewall_table="quantdesk\n"),
        "zone": good(redis_bind=["::1%x\nprotected-mode no"]),
        "scalar": good(firewall_allow=[{"name": "redis", "ports": 6380, "from": ["10.0.0.1"]}]),
        "letters": good(firewall_allow=[{"name": "redis", "ports": [6380], "from": "10.0.0.1"}]),
        "away": good(
            ansible_connection="ssh",
            ansible_host="127.0.0.1",
            ansible_port=free_port(),
            redis_maxmemory="plenty",
        ),
    }
    app = {
        "client": good(certificates_source="files", certificates_files={"ca": __file__}, certificates_host=False),
        "nowhere": good(app_build_dir=""),
        "bare": good(app_environment="A=1"),
        "many": good(app_keep_releases="some"),
        "silent": good(app_health_path=""),
        "unnamed": good(app_name="quantdesk\n"),
        "unwell": good(app_health_path="/x\ny"),
        "null": good(app_environment={"A": None}),
    }
    try:
        return run(tmp_path_factory.mktemp("several"), redis, app)
    finally:
        patch.undo()


def test_five_problems_of_one_host_stand_in_one_message(several: subprocess.CompletedProcess[str]) -> None:
    assert several.returncode != 0
    assert several.stdout.count("fatal: [") - several.stdout.count("UNREACHABLE!") == 1
    assert sorted(names(several, "five")) == sorted(FIVE)


@pytest.mark.parametrize("host", ["quoted", "plain", "listed", "kept", "passphrase", "client"])
def test_finds_nothing_where_nothing_is_wrong(several: subprocess.CompletedProcess[str], host: str) -> None:
    assert re.search(rf"^{host} +: ok=[1-9]", several.stdout, re.MULTILINE), "the host was not asked"
    assert names(several, host) == []


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("equal", "redis_port and redis_tls_port"),
        ("services", "firewall_allow"),
        ("sshname", "firewall_ssh_ports"),
        ("nowhere", "app_build_dir"),
        ("bare", "app_environment"),
        ("many", "app_keep_releases"),
        ("silent", "app_health_path"),
        ("newline", "firewall_table"),
        ("zone", "redis_bind"),
        ("scalar", "firewall_allow"),
        ("letters", "firewall_allow"),
        ("unnamed", "app_name"),
        ("unwell", "app_health_path"),
        ("null", "app_environment"),
        ("leaking", "redis_password"),
        ("broken", "redis_password"),
    ],
)
def test_names_the_one_thing_that_is_wrong(several: subprocess.CompletedProcess[str], host: str, name: str) -> None:
    assert names(several, host) == [name]


def test_names_a_wrong_path_and_what_is_derived_from_it(several: subprocess.CompletedProcess[str]) -> None:
    derived = [f"redis_tls_{part}_file" for part in ("ca", "cert", "key")]
    assert names(several, "blank") == ["certificates_path", *derived]


def test_refuses_a_rule_that_would_lock_ansible_out(several: subprocess.CompletedProcess[str]) -> None:
    assert names(several, "locked") == ["firewall_ssh_from"]
    assert "networks that include 198.51.100.7, from which Ansible is connected" in several.stdout


def test_a_host_that_does_not_answer_is_one_more_problem_and_its_inputs_are_checked(
    several: subprocess.CompletedProcess[str],
) -> None:
    assert names(several, "away") == ["connection", "redis_maxmemory"]
    assert "Connection refused" in several.stdout


def test_certificates_that_the_user_brings_are_all_asked_for(several: subprocess.CompletedProcess[str]) -> None:
    assert names(several, "files") == [f"certificates_files.{part}" for part in ("ca", "cert", "key")]


def test_a_secret_that_cannot_be_templated_is_not_shown(several: subprocess.CompletedProcess[str]) -> None:
    assert SECRET not in several.stdout + several.stderr


def test_changes_nothing_on_any_host(several: subprocess.CompletedProcess[str]) -> None:
    changed = re.findall(r"^(\w+) .*changed=(\d+)", several.stdout, re.MULTILINE)
    assert len(changed) == 27
    assert {count for _, count in changed} == {"0"}


def test_extra_variables_win_and_come_as_text(tmp_path: Path) -> None:
    result = run(tmp_path, {"one": good()}, {}, "-e", "redis_tls_port=70000")
    assert result.returncode != 0
    assert names(result, "one") == ["redis_tls_port"]
    assert "redis_tls_port: found '70000'; expected a port" in result.stdout
