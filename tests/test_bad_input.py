"""Bad input ends in the preflight: each problem by name, all of them at once, and nothing changed.

Most cases share one run: each is a host of its own with one wrong variable, so that the report must name every one.
"""

from __future__ import annotations

import copy
import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import PROJECT

# Removes a variable instead of setting it.
GONE = object()
SECRET = secrets.token_hex(16)

REDIS: list[tuple[str, Any, str]] = [
    ("redis_password", GONE, "found nothing ('redis_password' is undefined)"),
    ("redis_password", "", "found an empty value"),
    ("redis_password", f"{SECRET} blank", "found a hidden value of 38 characters"),
    ("redis_password", SECRET[:15], "found a hidden value of 15 characters"),
    ("redis_password", f"{SECRET}'", "found a hidden value of 33 characters"),
    ("redis_password", f"{SECRET}\nprotected-mode no", "found a hidden value"),
    ("redis_maxmemory", "lots", "found 'lots'; expected a size"),
    ("redis_maxmemory", 0, "found 0; expected a size"),
    ("redis_maxmemory", -1, "found -1; expected a size"),
    ("redis_maxmemory", "512 mb", "found '512 mb'; expected a size"),
    ("redis_maxmemory", "100b", "found '100b'; expected a size from 1mb up"),
    ("redis_maxmemory", "1mb\nbind 0.0.0.0", "expected a size"),
    ("redis_port", 70000, "found 70000; expected a port"),
    ("redis_port", "http", "found 'http'; expected a port"),
    ("redis_port", True, "found True; expected a port"),
    ("redis_tls_port", -1, "found -1; expected a port"),
    ("redis_tls_port", "", "found ''; expected a port"),
    ("redis_tls_cert_file", "", "found ''; expected the path of a file on the host, as TLS is on"),
    ("redis_tls_key_file", "host.key", "found 'host.key'; expected the path"),
    ("redis_tls_ca_file", "/etc/a b", "expected the path"),
    ("redis_topology", "ring", "found 'ring'; expected standalone"),
    ("redis_maxmemory_policy", "lru", "found 'lru'; expected one of allkeys-lru"),
    ("redis_bind", [], "found []; expected a list of this host's addresses"),
    ("redis_bind", ["redis1.example.com"], "expected a list of this host's addresses"),
    ("redis_bind", ["127.0.0.1\nport 6379"], "expected a list of this host's addresses"),
    ("redis_save", ["3600"], "found ['3600']; expected a list"),
    ("redis_save", ["3600 1\nbind *"], "expected a list"),
    ("redis_appendonly", "maybe", "found 'maybe'; expected true or false"),
    ("redis_appendfsync", "sometimes", "found 'sometimes'; expected everysec, always or no"),
    ("redis_maxclients", 0, "found 0; expected a whole number"),
    ("redis_tcp_keepalive", "long", "found 'long'; expected seconds"),
    ("redis_admin_password", GONE, "found nothing ('redis_admin_password' is undefined)"),
    ("redis_admin_password", "short", "found a hidden value of 5 characters"),
    ("redis_app_password", "short", "found a hidden value of 5 characters; expected an empty text for no such user"),
    ("redis_exporter_password", f"{SECRET}\n+@all", "found a hidden value"),
    ("redis_backup_password", 17, "found a hidden value of 2 characters"),
    ("redis_replica_password", f"{SECRET} on", "found a hidden value"),
    ("redis_sentinel_password", "x", "found a hidden value of 1 characters"),
    ("redis_password_min_length", 4, "found 4; expected a whole number from 8 up"),
    ("redis_default_user", "sometimes", "found 'sometimes'; expected true or false"),
    ("redis_default_rules", "~* on >password", "expected keys (~…), channels (&…) and commands"),
    ("redis_default_rules", "~*\nuser evil on nopass +@all", "expected keys (~…)"),
    ("redis_default_rules", "+get (~x +set)", "expected keys (~…)"),
    ("redis_app_keys", "qd:*", "expected a list of patterns"),
    ("redis_app_keys", ["a b"], "expected a list of patterns"),
    ("redis_app_channels", ['x" +@all'], "expected a list of patterns"),
    ("redis_app_commands", ["get +@all"], "expected a list of commands"),
    ("redis_app_commands", ["@dangerous"], "expected a list of commands"),
    ("redis_extra_users", [{"name": "app", "password": SECRET, "rules": "+get"}], "expected a list of users"),
    ("redis_extra_users", [{"name": "a b", "password": SECRET, "rules": "+get"}], "expected a list of users"),
    ("redis_extra_users", [{"name": "x", "password": SECRET}], "expected a list of users"),
    ("redis_previous_passwords", ["x"], "expected by user, the password until now"),
    ("redis_name", "State", "found 'State'; expected up to 21 small letters"),
    ("redis_name", "a/../b", "expected up to 21 small letters"),
    ("redis_clients", ["app1"], "found ['app1']; expected a list of addresses and networks"),
    ("redis_tls_auth_clients", "optional", "found 'optional'; expected true or false"),
    ("redis_tls_server_name", "a b", "expected a host name or an address"),
    ("redis_tls_group", "tls;root", "expected the name of a group"),
    ("redis_maxmemory", "900gb", "found '900gb'; expected at most the host's memory"),
    ("redis_io_threads", 0, "found 0; expected a whole number from 1 to 128"),
    ("redis_io_threads", 500, "found 500; expected a whole number from 1 to 128"),
    ("redis_client_output_buffer_limits", ["normal 1 2"], "expected a list of"),
    ("redis_client_output_buffer_limits", ["slaves 1mb 1mb 60"], "expected a list of"),
    ("redis_settings", "hz 10", "expected directives of redis.conf by name"),
    ("redis_settings", {"maxmemroy": "1gb"}, "found 'maxmemroy'; expected directives that Redis 7 knows"),
    ("redis_settings", {"maxmemory": "1gb"}, "found 'maxmemory'; expected no directive that has an input of its own"),
    ("redis_settings", {"requirepass": "x"}, "redis_password is the default user's password"),
    ("redis_settings", {"rename-command": "FLUSHALL x"}, "a renamed one breaks replication"),
    ("redis_settings", {"replicaof": "a 1"}, "found 'replicaof'; expected Redis itself writes it"),
    ("redis_settings", {"hz": "10\nport 6379"}, "found 'hz'; expected a text in one line"),
    ("redis_install", "snap", "found 'snap'; expected package or source"),
    ("redis_version_accepted", "7.0 or so", "expected a version"),
    ("redis_upgrade", "maybe", "found 'maybe'; expected true or false"),
    ("redis_kernel", "some", "found 'some'; expected true or false"),
    ("redis_somaxconn", 0, "found 0; expected a whole number from 1 to 65535"),
    ("redis_start_timeout", "soon", "found 'soon'; expected seconds"),
    ("redis_stop_timeout", -1, "found -1; expected seconds"),
    ("redis_private_users", "x", "found 'x'; expected true or false"),
    ("redis_instances", [], "found []; expected a list of instances"),
    ("private_address", "redis1", "found 'redis1'; expected the address"),
    ("private_address", GONE, "found nothing ('private_address' is undefined)"),
    ("certificates_source", "letsencrypt", "found 'letsencrypt'; expected private_ca or files"),
    ("certificates_path", GONE, "found nothing ('certificates_path' is undefined)"),
    ("certificates_path", "ssl", "found 'ssl'; expected an absolute path"),
    ("certificates_ca_dir", GONE, "found nothing ('certificates_ca_dir' is undefined)"),
    ("certificates_ca_passphrase", "short", "found a hidden value of 5 characters"),
    ("firewall_table", "my table", "found 'my table'; expected a name"),
    ("firewall_ssh_ports", [], "found []; expected a list of ports"),
    ("firewall_ssh_from", ["the office"], "found ['the office']; expected a list of addresses"),
    ("firewall_allow", [{"name": "x", "ports": [0], "from": ["10.0.0.1"]}], "expected a list of items"),
    ("firewall_allow", [{"name": "x", "ports": [1], "from": ["app1"]}], "expected a list of items"),
    ("firewall_allow", [{"name": 'x" drop; #', "ports": [1], "from": ["10.0.0.1"]}], "expected a list of items"),
    ("firewall_allow", [{"ports": [1], "from": ["10.0.0.1"]}], "expected a list of items"),
]
APP: list[tuple[str, Any, str]] = [
    ("app_name", "Quant Desk", "found 'Quant Desk'; expected up to 31"),
    ("app_name", GONE, "found nothing ('app_name' is undefined)"),
    ("app_source", "/nonexistent", "found '/nonexistent'; expected a folder on the controller"),
    ("app_lock", "/nonexistent.txt", "found '/nonexistent.txt'; expected a lock file"),
    ("app_command", "/bin/sh", "found '/bin/sh'; expected a script"),
    ("app_command", "quantdesk\nUser=root", "expected a script"),
    ("app_health_url", "localhost:3002", "found 'localhost:3002'; expected an http URL"),
    ("app_environment", {"A": "1\nUser=root"}, "expected variables by name"),
    ("app_environment", {"1A": "x"}, "expected variables by name"),
    ("app_environment", {"A": ""}, "expected variables by name"),
    ("app_environment", {"A": "{{ nowhere }}"}, "found nothing ('nowhere' is undefined)"),
    ("app_keep_releases", 1, "found 1; expected a whole number from 2 up"),
    ("app_health_timeout", "soon", "found 'soon'; expected seconds"),
]
# What this very machine is does not matter here.
OWN = re.compile(r"^(distribution|version of Python|(version of|security fixes in) the package redis-server): ")


def run(folder: Path, redis: dict[str, Any], app: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the preflight over hosts given with their variables; it runs on this machine and changes nothing."""
    inventory = folder / "hosts.json"
    groups = {"redis": {"hosts": redis}, "app": {"hosts": app}}
    inventory.write_text(json.dumps({"all": {"children": groups}}))
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, *arguments, "playbooks/preflight.yml"],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORKS": "4"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def variables(name: str | None = None, value: Any = None) -> dict[str, Any]:
    """Return good values for every input, but for one."""
    good: dict[str, Any] = yaml.safe_load((PROJECT / "tests/inventory/vars.yml").read_text())
    good["redis_password"] = SECRET
    good["redis_admin_password"] = SECRET[::-1] + "admin"
    if name and value is GONE:
        del good[name]
    elif name:
        good[name] = copy.deepcopy(value)
    return good


def problems(output: str) -> list[str]:
    """Return the lines of the one report that are not about this machine."""
    report = output.rsplit("fatal:", 1)[1]
    lines = [line.strip()[2:] for line in report.splitlines() if line.strip().startswith("- ")]
    return [line for line in lines if not OWN.match(line)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run in which each case is a host of its own."""
    redis = {f"redis{i}": variables(name, value) for i, (name, value, _) in enumerate(REDIS)}
    app = {f"app{i}": variables(name, value) for i, (name, value, _) in enumerate(APP)}
    return run(tmp_path_factory.mktemp("report"), redis, app)


CASES = [(f"redis{i}", *case) for i, case in enumerate(REDIS)] + [(f"app{i}", *case) for i, case in enumerate(APP)]


@pytest.mark.parametrize(
    ("host", "name", "value", "found"), CASES, ids=[f"{host}-{name}" for host, name, _, _ in CASES]
)
def test_names_the_variable_what_was_found_and_what_is_expected(
    report: subprocess.CompletedProcess[str], host: str, name: str, value: Any, found: str
) -> None:
    own = [
        line
        for line in problems(report.stdout)
        if re.search(rf"[\[ ]{host}[,\]]", line.rsplit(" [", 1)[0] + " [" + line.rsplit(" [", 1)[1])
    ]
    assert any(line.startswith(f"{name}: ") and found in line and "expected" in line for line in own), own


def test_all_of_them_stand_in_one_message_and_nothing_changed(report: subprocess.CompletedProcess[str]) -> None:
    assert report.returncode != 0
    assert report.stdout.count("fatal:") == 1
    assert "Nothing has been changed on any host." in report.stdout
    assert set(re.findall(r"changed=(\d+)", report.stdout)) == {"0"}


def test_no_secret_is_in_the_output(report: subprocess.CompletedProcess[str]) -> None:
    assert SECRET[:15] not in report.stdout + report.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("redis_maxmemory", "lots"), ("redis_password", ""), ("redis_tls_port", "http")]
)
def test_one_wrong_value_alone_ends_the_run(tmp_path: Path, name: str, value: Any) -> None:
    result = run(tmp_path, {"one": variables(name, value)}, {})
    assert result.returncode != 0
    assert [line.split(":")[0] for line in problems(result.stdout)] == [name]


def test_both_ports_off_is_one_problem(tmp_path: Path) -> None:
    result = run(tmp_path, {"one": {**variables(), "redis_tls_port": 0}}, {})
    assert result.returncode != 0
    assert len(problems(result.stdout)) == 1
    assert "redis_port and redis_tls_port: found '0 and 0'; expected two different ports" in result.stdout


def test_the_same_problem_on_two_hosts_is_said_once(tmp_path: Path) -> None:
    wrong = variables("redis_maxmemory", "lots")
    result = run(tmp_path, {"one": wrong, "two": wrong}, {})
    assert problems(result.stdout) == [
        "redis_maxmemory: found 'lots'; expected a size from 1mb up, such as 512mb (units b, k, kb, m, mb, g, gb). "
        "[one, two]"
    ]


def test_files_that_the_user_brings_must_be_there(tmp_path: Path) -> None:
    missing = {"ca": "/nonexistent/ca.crt", "cert": "/nonexistent/host.crt", "key": "/nonexistent/host.key"}
    result = run(tmp_path, {"one": {**variables(), "certificates_source": "files", "certificates_files": missing}}, {})
    assert [line.split(":")[0] for line in problems(result.stdout)] == [
        f"certificates_files.{name}" for name in missing
    ]


SOURCE = {
    "redis_install": "source",
    "redis_source_version": "7.0.15",
    "redis_source_archive": "https://example.com/redis-7.0.15.tar.gz",
    "redis_source_checksum": "sha256:" + "0" * 64,
    "redis_version_accepted": "7.0.15",
}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"redis_version_accepted": ""}, ["security fixes in redis_source_version"]),
        ({"redis_source_version": "8.0.1"}, ["redis_source_version"]),
        ({"redis_source_archive": "/nonexistent.tar.gz"}, ["redis_source_archive"]),
        ({"redis_source_checksum": "md5:1"}, ["redis_source_checksum"]),
        ({"redis_admin_password": SECRET}, ["passwords"]),
        (
            {"redis_appendonly": False, "redis_save": [], "redis_maxmemory_policy": "noeviction"},
            ["redis_appendonly and redis_save"],
        ),
        ({"redis_tls_auth_clients": True, "redis_tls_port": 0, "redis_port": 6379}, ["redis_tls_auth_clients"]),
        (
            {"redis_instances": [{"name": "a"}, {"name": "a"}], "redis_ports": [6380, 6380]},
            ["redis_instances' names", "redis_instances' ports"],
        ),
    ],
)
def test_values_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], names: list[str]) -> None:
    result = run(tmp_path, {"one": {**variables(), **SOURCE, **changes}}, {})
    assert (result.returncode != 0) is bool(names)
    if names:
        assert [line.split(":")[0] for line in problems(result.stdout)] == names
        assert SECRET[:15] not in result.stdout


def test_good_values_pass(tmp_path: Path) -> None:
    result = run(tmp_path, {"one": variables()}, {"two": variables()})
    if result.returncode != 0:
        assert problems(result.stdout) == []


def test_an_inventory_without_redis_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, {}, {"two": variables()})
    assert result.returncode != 0
    assert "groups redis and app" in result.stdout
