"""Preflight: what stands between several hosts, or between the host and who asks, and cases that must pass."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import GONE, SECRET, Faults, each, faulty, names, names_of, run, variables

from conftest import PROJECT

pytestmark = pytest.mark.slow

# An authority's certificate without its key.
PKI = PROJECT / "tests/inventory/pki"
# Five at once on one host, each of another role or kind.
FIVE: dict[str, Any] = {
    "redis_password": GONE,
    "redis_maxmemory": "lots",
    "redis_tls_port": "http",
    "certificates_source": "letsencrypt",
    "firewall_table": "my table",
}


def good(**changes: Any) -> dict[str, Any]:
    """Return good values, with some that are changed or gone."""
    return {name: value for name, value in {**variables(), **changes}.items() if value is not GONE}


WRONG: Faults = {
    "first": {
        "equal": ({"redis_port": 6380}, ["redis_port and redis_tls_port"]),
        "services": (
            {"firewall_allow": [{"name": "redis", "ports": ["redis"], "from": ["10.0.0.1"]}]},
            ["firewall_allow"],
        ),
        "sshname": ({"firewall_ssh_ports": ["ssh"]}, ["firewall_ssh_ports"]),
        "nowhere": ({"app_build_dir": ""}, ["app_build_dir"]),
        "bare": ({"app_environment": "A=1"}, ["app_environment"]),
        "many": ({"app_keep_releases": "some"}, ["app_keep_releases"]),
        "silent": ({"app_health_path": ""}, ["app_health_path"]),
        "newline": ({"firewall_table": "quantdesk\n"}, ["firewall_table"]),
        "zone": ({"redis_bind": ["::1%x\nprotected-mode no"]}, ["redis_bind"]),
        "unnamed": ({"app_name": "quantdesk\n"}, ["app_name"]),
        # A second controller: the host trusts an authority that this one does not have.
        "another authority": ({"certificates_path": str(PKI)}, ["authority that the host trusts"]),
        "leaking": ({"redis_password": f"{SECRET}{{{{ nowhere }}}}"}, ["redis_password"]),
    },
    "second": {
        "scalar": (
            {"firewall_allow": [{"name": "redis", "ports": 6380, "from": ["10.0.0.1"]}]},
            ["firewall_allow"],
        ),
        "unwell": ({"app_health_path": "/x\ny"}, ["app_health_path"]),
        "null": ({"app_environment": {"A": None}}, ["app_environment"]),
        "broken": ({"redis_password": f"{SECRET}{{{{ nowhere"}, ["redis_password"]),
        # All of the certificates that the user brings are asked for.
        "files": (
            {"certificates_source": "files", "certificates_files": {}},
            [f"certificates_files.{part}" for part in ("ca", "cert", "key")],
        ),
    },
    "third": {
        "letters": (
            {"firewall_allow": [{"name": "redis", "ports": [6380], "from": "10.0.0.1"}]},
            ["firewall_allow"],
        ),
        "authority without key": ({"certificates_ca_dir": str(PKI)}, ["authority in certificates_ca_dir"]),
        "locked": ({"firewall_ssh_from": ["203.0.113.0/24", "2001:db8::/32"]}, ["firewall_ssh_from"]),
        # A wrong path, and what is derived from it.
        "blank": (
            {"certificates_path": "/etc/ssl/my certificates"},
            ["certificates_path", *(f"redis_tls_{part}_file" for part in ("ca", "cert", "key"))],
        ),
    },
}
# Right values of several kinds, in which nothing is to be found.
RIGHT: dict[str, dict[str, dict[str, Any]]] = {
    "right": {
        "quoted": {"redis_port": "0", "redis_tls_port": "6380", "redis_maxclients": "100"},
        "kept": {"firewall_ssh_from": ["203.0.113.0/24", "198.51.100.0/24"]},
        "passphrase": {"certificates_ca_passphrase": SECRET},
    },
    "plain": {
        "plain": {"redis_port": 6379, "redis_tls_port": 0, "redis_tls_cert_file": "", "redis_tls_key_file": ""},
        "listed": {"redis_bind": ["127.0.0.1", "-::1"], "redis_save": []},
        "octal": {"redis_settings": {"unixsocketperm": "0770"}},
    },
    "client": {
        "client": {
            "certificates_source": "files",
            "certificates_files": {"ca": f"{PKI}/ca.crt"},
            "certificates_host": False,
        },
    },
}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run over hosts of which each has its own faults, or none."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("several")
    (folder / "sudo").write_text("#!/bin/sh\necho 'sudo: ops is not in the sudoers file' >&2\nexit 1\n")
    (folder / "sudo").chmod(0o755)
    # Taken, so that nobody else listens there, and refusing.
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    # Another program's.
    busy = socket.create_server(("127.0.0.1", 0))
    # Where the preflight thinks that Ansible comes from.
    patch.setenv("SSH_CONNECTION", "198.51.100.7 50000 192.0.2.10 22")
    wrong = {host: faulty(WRONG, host) for host in WRONG}
    right = {
        host: good(**{name: value for changes in kinds.values() for name, value in changes.items()})
        for host, kinds in RIGHT.items()
    }
    client = {"client": right.pop("client")}
    redis = {
        **wrong,
        **right,
        "five": good(**FIVE),
        # On port 1, where nothing listens, whatever else this machine runs.
        "claiming": good(redis_instances=[{"adopt": "keep", "adopt_from": 1}], redis_ports=[6380]),
        "taken": good(redis_tls_port=busy.getsockname()[1], redis_bind=["127.0.0.1"]),
        "elsewhere": good(redis_tls_port=busy.getsockname()[1], redis_bind=["192.0.2.10"]),
        "away": good(
            ansible_connection="ssh",
            ansible_host="127.0.0.1",
            ansible_port=closed.getsockname()[1],
            redis_maxmemory="plenty",
        ),
        # Whoever logs in there may not become root: sudo ends without a question for the password.
        "locked": good(
            # Otherwise sudo is not even called where the tests run as root.
            ansible_become_user="nobody",
            ansible_become=True,
            ansible_become_exe=str(folder / "sudo"),
            ansible_become_password=SECRET,
            redis_maxmemory="plenty",
        ),
    }
    try:
        return run(folder, redis, {**wrong, **client})
    finally:
        patch.undo()
        closed.close()
        busy.close()


def test_five_problems_of_one_host_stand_in_one_message(several: subprocess.CompletedProcess[str]) -> None:
    assert several.returncode != 0
    # Besides the host that does not answer, and the one that is locked.
    assert several.stdout.count("fatal: [") == 3
    assert sorted(names(several, "five")) == sorted(FIVE)


def test_an_instance_without_a_name_is_no_other_one_than_itself(several: subprocess.CompletedProcess[str]) -> None:
    assert re.search(r"^claiming +: ok=[1-9]", several.stdout, re.MULTILINE), "the host was not asked"
    # Whether that port's server is missed depends on whether Redis is installed on this machine.
    assert set(names(several, "claiming")) <= {"redis_adopt and redis_adopt_from"}


@pytest.mark.parametrize("host", [pytest.param(host, id=kind) for host, kinds in RIGHT.items() for kind in kinds])
def test_finds_nothing_where_nothing_is_wrong(several: subprocess.CompletedProcess[str], host: str) -> None:
    assert re.search(rf"^{host} +: ok=[1-9]", several.stdout, re.MULTILINE), "the host was not asked"
    assert names(several, host) == []


@pytest.mark.parametrize(("host", "fault"), each(WRONG))
def test_names_each_fault_and_nothing_else(several: subprocess.CompletedProcess[str], host: str, fault: str) -> None:
    assert names_of(several, WRONG, host, fault) == WRONG[host][fault][1]


def test_refuses_a_rule_that_would_lock_ansible_out(several: subprocess.CompletedProcess[str]) -> None:
    assert "networks that include 198.51.100.7, from which Ansible is connected" in several.stdout


def test_tells_which_authority_the_host_trusts_and_what_to_do(several: subprocess.CompletedProcess[str]) -> None:
    told = "authority that the host trusts: found 'Authority of the tests, SHA-256 "
    assert told in several.stdout
    assert "; and in certificates_ca_dir none'; expected the authority of the host" in several.stdout
    assert "Copy that folder from the controller that made the authority" in several.stdout
    assert (
        "authority in certificates_ca_dir: found 'ca.crt without ca.key'; expected ca.crt, and the ca.key"
        in several.stdout
    )


def test_a_host_that_does_not_answer_is_one_more_problem_and_its_inputs_are_checked(
    several: subprocess.CompletedProcess[str],
) -> None:
    assert names(several, "away") == ["connection", "redis_maxmemory"]
    assert "Connection refused" in several.stdout


def test_a_host_where_ansible_cannot_become_root_is_one_more_problem_and_its_inputs_are_checked(
    several: subprocess.CompletedProcess[str],
) -> None:
    assert sorted(names(several, "locked")) == ["become", "redis_maxmemory"]
    assert "expected that Ansible may become root: see ansible_become_password, or -K" in several.stdout


def test_a_port_of_another_program_is_refused_with_its_name(several: subprocess.CompletedProcess[str]) -> None:
    report = several.stdout.rsplit("fatal:", 1)[1]
    lines = [line for line in report.splitlines() if "ports of other programs: found" in line]
    mine = [line for line in lines if f"process {os.getpid()}" in line]
    assert len(mine) == 1, several.stdout
    # Whoever listens on one address is no hindrance on another.
    assert "taken" in mine[0].rsplit("[", 1)[1]
    assert "elsewhere" not in mine[0].rsplit("[", 1)[1]
    assert "expected ports that no other program listens on: stop that program for good" in mine[0]


def test_a_secret_that_cannot_be_templated_is_not_shown(several: subprocess.CompletedProcess[str]) -> None:
    assert SECRET not in several.stdout + several.stderr


def test_changes_nothing_on_any_host(several: subprocess.CompletedProcess[str]) -> None:
    changed = re.findall(r"^(\w+) .*changed=(\d+)", several.stdout, re.MULTILINE)
    assert len(changed) == 12
    assert {count for _, count in changed} == {"0"}


def test_extra_variables_win_and_come_as_text(tmp_path: Path) -> None:
    result = run(tmp_path, {"one": good()}, {}, "-e", "redis_tls_port=70000")
    assert result.returncode != 0
    assert names(result, "one") == ["redis_tls_port"]
    assert "redis_tls_port: found '70000'; expected a port" in result.stdout
