"""Bad input ends in the preflight: each problem by name, all of them at once, and nothing changed.

A host costs a second, a run two: most cases share one run, and those that do not hide one another share a host.
"""

from __future__ import annotations

import copy
import hashlib
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
    ("redis_maxmemory_policy", "lru", "found 'lru'; expected allkeys-lru, allkeys-lfu, "),
    ("redis_bind", [], "found []; expected a list of this host's addresses"),
    ("redis_bind", ["redis1.example.com"], "expected a list of this host's addresses"),
    ("redis_bind", ["127.0.0.1\nport 6379"], "expected a list of this host's addresses"),
    ("redis_save", ["3600"], "found ['3600']; expected a list"),
    ("redis_save", ["3600 1\nbind *"], "expected a list"),
    ("redis_appendonly", "maybe", "found 'maybe'; expected true or false"),
    ("redis_appendfsync", "sometimes", "found 'sometimes'; expected everysec, always or 'no', in quotes"),
    ("redis_maxclients", 0, "found 0; expected a whole number"),
    ("redis_tcp_keepalive", "long", "found 'long'; expected seconds"),
    ("redis_admin_password", GONE, "found nothing ('redis_admin_password' is undefined)"),
    ("redis_admin_password", "short", "found a hidden value of 5 characters"),
    ("redis_app_password", "short", "found a hidden value of 5 characters; expected an empty text for no such user"),
    ("redis_exporter_password", f"{SECRET}\n+@all", "found a hidden value"),
    ("redis_backup_password", 17, "found a hidden number of 2 characters instead of a text in quotes"),
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
    ("redis_extra_users", [{"name": "x", "password_hashes": ["0" * 63], "rules": "+get"}], "expected a list of users"),
    ("redis_previous_hashes", {"app": "0" * 64}, "expected by user, a list of SHA-256 hashes"),
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
    (
        "redis_settings",
        {"replicaof": "a 1"},
        "found 'replicaof'; expected no directive that must not be set: Redis itself writes it",
    ),
    ("redis_settings", {"hz": "10\nport 6379"}, "found 'hz'; expected a text in one line"),
    ("redis_install", "snap", "found 'snap'; expected package, repository or source"),
    ("redis_security_max_age", "a week", "found 'a week'; expected days"),
    ("redis_version_accepted", "7.0 or so", "expected a version"),
    ("redis_no_log", "maybe", "found 'maybe'; expected true or false"),
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
    (
        "certificates_ca_dir",
        "pki",
        "found 'pki'; expected a folder on the controller that will hold the private authority",
    ),
    ("certificates_host", "perhaps", "found 'perhaps'; expected true or false"),
    ("certificates_group", "a b", "found 'a b'; expected the name of a group"),
    ("certificates_names", ["a b"], "found ['a b']; expected a list of names"),
    ("certificates_names", [], "found []; expected a list of names"),
    ("certificates_addresses", ["redis1"], "found ['redis1']; expected a list of addresses"),
    ("certificates_ca_name", "x" * 65, "expected a text of one line with up to 64 characters"),
    ("certificates_days", "a year", "found 'a year'; expected days"),
    ("certificates_renew_days", 397, "found 397; expected days, a whole number above 0 and below certificates_days"),
    ("certificates_ca_days", 0, "found 0; expected days"),
    ("certificates_no_log", "perhaps", "found 'perhaps'; expected true or false"),
    ("firewall_table", "my table", "found 'my table'; expected a name"),
    ("firewall_ssh_ports", [], "found []; expected a list of ports"),
    ("firewall_ssh_from", ["the office"], "found ['the office']; expected a list of addresses"),
    ("firewall_allow", [{"name": "x", "ports": [0], "from": ["10.0.0.1"]}], "expected a list of items"),
    ("firewall_allow", [{"name": "x", "ports": [1], "from": ["app1"]}], "expected a list of items"),
    ("firewall_allow", [{"name": 'x" drop; #', "ports": [1], "from": ["10.0.0.1"]}], "expected a list of items"),
    ("firewall_allow", [{"ports": [1], "from": ["10.0.0.1"]}], "expected a list of items"),
    ("firewall_outgoing", [{"user": "app", "name": "x", "ports": [1], "to": ["db1"]}], "expected a list of items"),
    ("firewall_outgoing", [{"user": "a b", "name": "x", "ports": [1], "to": ["10.0.0.1"]}], "expected a list of items"),
    ("firewall_outgoing", [{"user": "root", "name": "x", "ports": [1], "to": ["10.0.0.1"]}], "found 'root'"),
    ("firewall_forward", "perhaps", "found 'perhaps'; expected drop or accept"),
]
APP: list[tuple[str, Any, str]] = [
    ("app_name", "Quant Desk", "found 'Quant Desk'; expected up to 31"),
    ("app_name", GONE, "found nothing ('app_name' is undefined)"),
    ("app_source", "/nonexistent", "found '/nonexistent'; expected a folder on the controller"),
    ("app_lock", "/nonexistent.txt", "found '/nonexistent.txt'; expected a lock file"),
    (
        "app_build_dir",
        ".build",
        "found '.build'; expected a folder on the controller for the built wheels, as a path that",
    ),
    ("app_package", "../x", "found '../x'; expected the name of the package"),
    ("app_packages", ["a b"], "found ['a b']; expected a list of packages"),
    ("app_root", "opt", "found 'opt'; expected the path of a folder on the host"),
    ("app_command", "/bin/sh", "found '/bin/sh'; expected a script"),
    ("app_command", "quantdesk\nUser=root", "expected a script"),
    ("app_health_path", "health", "found 'health'; expected a path that begins with /"),
    ("app_ports", [], "found []; expected a list of ports"),
    ("app_ports", ["http"], "found ['http']; expected a list of ports"),
    ("app_ports", [3002, "3002"], "found '3002, 3002'; expected a port of its own for each instance"),
    ("app_ports", GONE, "found nothing ('app_ports' is undefined)"),
    ("app_listen", "everywhere", "found 'everywhere'; expected the address that instances listen on"),
    ("app_socket_activation", "perhaps", "found 'perhaps'; expected true or false"),
    ("app_service_type", "forking", "found 'forking'; expected exec or notify"),
    ("app_check_command", "/bin/true", "found '/bin/true'; expected a script"),
    ("app_migrate_command", "quantdesk\nUser=root", "expected a script"),
    ("app_migrate_once", "x", "found 'x'; expected true or false"),
    ("app_migrate_timeout", 0, "found 0; expected seconds"),
    ("app_candidate", "x", "found 'x'; expected true or false"),
    ("app_settle", "long", "found 'long'; expected seconds"),
    ("app_stop_timeout", 0, "found 0; expected seconds"),
    ("app_open_files", "many", "found 'many'; expected a whole number above 0"),
    ("app_memory_max", "lots", "found 'lots'; expected memory as systemd writes it"),
    ("app_fatal_exit_codes", ["78\nUser=root"], "expected a list of exit codes"),
    ("app_environment", {"PORT": "1", "HOST": "x"}, "expected none of HOST, PORT, TLS_CERT_FILE"),
    ("app_tls_cert_file", "host.crt", "found 'host.crt'; expected the path of a file on the host"),
    ("app_tls_required", "perhaps", "found 'perhaps'; expected true or false"),
    ("app_environment", {"A": "1\nUser=root"}, "expected variables by name"),
    ("app_environment", {"1A": "x"}, "expected variables by name"),
    ("app_environment", {"A": ""}, "expected variables by name"),
    ("app_environment", {"A": "{{ nowhere }}"}, "found nothing ('nowhere' is undefined)"),
    (
        "app_environment",
        {"APP_ENV": "production", "AUTH_DEVELOPMENT_USERS": "true"},
        "expected no AUTH_DEVELOPMENT_USERS",
    ),
    (
        "app_environment",
        {"NODE_ENV": "production", "AUTH_DEVELOPMENT_USERS": True},
        "found 'AUTH_DEVELOPMENT_USERS: True'",
    ),
    ("app_login_path", "sessions", "found 'sessions'; expected a path"),
    ("app_socket_path", "ws", "found 'ws'; expected a path"),
    ("app_auth_keys", "-----BEGIN PRIVATE KEY-----", "expected public keys"),
    ("app_auth_keys", {"keys": [{"kty": "EC", "d": "c2VjcmV0"}]}, "expected public keys"),
    ("app_auth_keys", "secret", "found a hidden value of 6 characters; expected public keys"),
    ("app_auth_keys_file", "keys.json", "found 'keys.json'; expected an absolute path"),
    ("app_auth_user_claim", "a b", "found 'a b'; expected the name of a claim"),
    ("app_auth_max_age", 0, "found 0; expected seconds"),
    ("app_auth_leeway", 301, "found 301; expected seconds"),
    ("app_reads", ["ca.crt"], "expected a list of absolute paths on the host"),
    ("app_keep_releases", 1, "found 1; expected a whole number from 2 up"),
    ("app_health_timeout", "soon", "found 'soon'; expected seconds"),
]
DATABASE: list[tuple[str, Any, str]] = [
    ("database_name", "Quant Desk", "found 'Quant Desk'; expected up to 63"),
    ("database_name", GONE, "found nothing ('database_name' is undefined)"),
    ("database_user", "postgres", "found 'postgres'; expected up to 63"),
    ("database_password", "short", "found a hidden value of 5 characters"),
    ("database_password", GONE, "found nothing ('database_password' is undefined)"),
    ("database_clients", [], "found []; expected a list of the addresses"),
    ("database_clients", ["app1"], "found ['app1']; expected a list of the addresses"),
    ("database_clients", ["10.0.0.1/32 trust\nhost all all 0.0.0.0/0"], "expected a list of the addresses"),
    ("database_port", "x", "found 'x'; expected a port"),
    ("database_listen", ["*"], "found ['*']; expected a list of this host's addresses"),
    ("database_tls_cert_file", "host.crt", "found 'host.crt'; expected the path"),
    ("database_tls_key_file", "", "found ''; expected the path"),
    ("database_tls_ca_file", "ca.crt", "found 'ca.crt'; expected the path"),
    ("database_tls_group", "a b", "found 'a b'; expected the name of a group"),
    ("database_max_connections", 1, "found 1; expected a whole number from 10 up"),
    ("database_settings", {"work_mem\nssl": "off"}, "expected settings of postgresql.conf by name"),
    ("database_settings", {"work_mem": None}, "expected settings of postgresql.conf by name"),
    ("database_no_log", "x", "found 'x'; expected true or false"),
    ("database_locale", "C", "found 'C'; expected a locale with UTF-8"),
]
DATABASE_SETTINGS = ("database_settings", {"ssl": "off", "port": 1}, "found 'ssl, port'; expected no setting that has")
BALANCER_PORT = ("load_balancer_http_port", 443, "found 443; expected a port other than load_balancer_port")
DATABASE_MEMORY = ("database_shared_buffers", "lots", "memory settings: found 'lots, 384MB, 4MB, 64MB'")
BALANCER: list[tuple[str, Any, str]] = [
    ("load_balancer_backends", [], "expected a list of items with `name`, `address`, `port` and"),
    ("load_balancer_backends", [{"name": "a b", "address": "10.0.0.1", "port": 1}], "expected a list of items"),
    ("load_balancer_backends", [{"name": "a", "address": "app1", "port": 1}], "expected a list of items"),
    (
        "load_balancer_backends",
        [{"name": "a", "address": "10.0.0.1", "port": 1, "tls_name": "a verify none"}],
        "expected a list of items",
    ),
    ("load_balancer_backend_ca_file", "ca.crt", "found 'ca.crt'; expected the path of a file on the host"),
    ("load_balancer_backends", GONE, "found nothing ('load_balancer_backends' is undefined)"),
    ("load_balancer_health_path", "health", "found 'health'; expected a path"),
    ("load_balancer_health_path", "/x if TRUE", "expected a path"),
    ("load_balancer_health_interval", 0, "found 0; expected seconds"),
    ("load_balancer_algorithm", "fair", "found 'fair'; expected leastconn"),
    ("load_balancer_listen", ["*"], "found ['*']; expected a list of this host's addresses"),
    ("load_balancer_port", "https", "found 'https'; expected a port"),
    ("load_balancer_http_port", 70000, "found 70000; expected a port other than load_balancer_port"),
    ("load_balancer_stats_port", "x", "found 'x'; expected a port of its own"),
    ("load_balancer_cert_file", "/etc/ssl/host.pem", "found '/etc/ssl/host.pem'; expected the path"),
    ("load_balancer_refused", [{"path": "metrics"}], "expected a list of items with `path`"),
    ("load_balancer_refused", [{"path": "/a/"}], "expected a list of items with `path`"),
    ("load_balancer_refused", [{"path": "/a }\n server x"}], "expected a list of items with `path`"),
    ("load_balancer_refused", [{"path": "/a", "methods": ["get"]}], "expected a list of items with `path`"),
    ("load_balancer_hsts", -1, "found -1; expected seconds"),
    ("load_balancer_max_connections", 0, "found 0; expected a whole number above 0"),
    ("load_balancer_max_connections_per_client", "x", "found 'x'; expected a whole number"),
    ("load_balancer_max_connection_rate", "x", "found 'x'; expected connections in ten seconds"),
    ("load_balancer_unlimited_clients", ["nobody"], "expected a list of addresses and networks"),
    ("load_balancer_max_body", "1M", "found '1M'; expected bytes"),
    ("load_balancer_access_log", "x", "found 'x'; expected true or false"),
    ("load_balancer_request_timeout", "5s", "found '5s'; expected seconds"),
    ("load_balancer_client_timeout", 0, "found 0; expected seconds"),
    ("load_balancer_server_timeout", 0, "found 0; expected seconds"),
    ("load_balancer_tunnel_timeout", 0, "found 0; expected seconds"),
    ("load_balancer_drain_timeout", 0, "found 0; expected seconds"),
]
# What this very machine is, and what is on it, does not matter here.
OWN = re.compile(
    r"^((distribution( of a database host)?|Redis of another distribution|version of Python): "
    r"|(version of|security fixes in) the package redis-server: "
    # Other tests have servers here, and labs have ports.
    r"|a Redis that this bundle did not set up: "
    r"|[a-z_ ]*ports?[a-z_ ]*: found '[0-9]+ \(.*, on |.*, (of the cluster )?on the host: )"
)


def run(
    folder: Path, redis: dict[str, Any], app: dict[str, Any], *arguments: str, **more: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run the preflight over hosts given with their variables; it runs on this machine and changes nothing."""
    inventory = folder / "hosts.json"
    groups = {name: {"hosts": hosts} for name, hosts in {"redis": redis, "app": app, **more}.items()}
    inventory.write_text(json.dumps({"all": {"children": groups}}))
    base = ("inventory/base/all.yml", "inventory/base/composition.yml", "tests/inventory/minimal.yml")
    sources = [word for source in (*base, str(inventory)) for word in ("-i", source)]
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", *sources, *arguments, "playbooks/preflight.yml"],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORKS": "4"},
        capture_output=True,
        text=True,
        check=False,
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


def names(result: subprocess.CompletedProcess[str], host: str) -> list[str]:
    """Return the names of a host's problems."""
    found = [line.rsplit(" [", 1) for line in problems(result.stdout)]
    return [text.split(": found")[0] for text, hosts in found if host in hosts.rstrip("]").split(", ")]


# By host and by a name of their own: what is wrong, and the names of the problems.
Faults = dict[str, dict[str, tuple[dict[str, Any], list[str]]]]


def faulty(faults: Faults, host: str) -> dict[str, Any]:
    """Return good values, but for those of a host's faults; each is of other variables."""
    result = variables()
    for changes, _ in faults[host].values():
        result |= changes
    return {name: value for name, value in result.items() if value is not GONE}


def names_of(result: subprocess.CompletedProcess[str], faults: Faults, host: str, fault: str) -> list[str]:
    """Return the names of a host's problems that are not those of its other faults."""
    others = [name for other, (_, known) in faults[host].items() if other != fault for name in known]
    return [name for name in names(result, host) if name not in others]


def each(faults: Faults) -> list[Any]:
    """Return host and name of each fault, for pytest."""
    return [pytest.param(host, fault, id=fault) for host, known in faults.items() for fault in known]


Case = tuple[str, Any, str]
# Checks of the others apply only while this one is right.
HIDES = {
    "redis_maxmemory": ["redis_start_timeout", "redis_stop_timeout"],
    # Short passwords are long enough for a short minimum.
    "redis_password_min_length": ["redis_password", "redis_admin_password", "redis_app_password"],
    "certificates_source": ["certificates_ca_dir", "certificates_ca_passphrase"],
    "certificates_days": ["certificates_renew_days"],
    "private_address": ["certificates_addresses"],
    "app_name": ["app_package", "app_root"],
}


def apart(one: str, other: str) -> bool:
    """Return whether two wrong variables need a host each for both of them to be reported."""
    return one == other or other in HIDES.get(one, []) or one in HIDES.get(other, [])


def pack(cases: list[Case]) -> list[list[Case]]:
    """Spread cases over as few hosts as it takes for each variable to be wrong in one way only."""
    hosts: list[list[Case]] = []
    for case in cases:
        fitting = [host for host in hosts if not any(apart(case[0], other) for other, _, _ in host)]
        if fitting:
            fitting[0].append(case)
        else:
            hosts.append([case])
    return hosts


def with_all(cases: list[Case]) -> dict[str, Any]:
    """Return good values, but for those of some cases."""
    result = variables()
    for name, value, _ in cases:
        if value is GONE:
            del result[name]
        else:
            result[name] = copy.deepcopy(value)
    return result


# A host may be all at once: the inputs of a role have to do with those of no other.
PACKED = {f"wrong{i}": cases for i, cases in enumerate(pack([*REDIS, *APP, *DATABASE, *BALANCER]))}
CASES = [(host, *case) for host, cases in PACKED.items() for case in cases]


SOURCE = {
    "redis_install": "source",
    "redis_source_version": "7.0.15",
    "redis_source_archive": "https://example.com/redis-7.0.15.tar.gz",
    "redis_source_checksum": "sha256:" + "0" * 64,
    "redis_version_accepted": "7.0.15",
}
FILES = {"ca": "/nonexistent/ca.crt", "cert": "/nonexistent/host.crt", "key": "/nonexistent/host.key"}
# Each is wrong on the same host, but for those that would hide another one. In the order of the report: booleans first.
BACKUP: list[Case] = [
    ("backup_maintenance", "x", "found 'x'; expected true or false"),
    ("backup_prune", "x", "found 'x'; expected true or false"),
    ("backup_no_log", "x", "found 'x'; expected true or false"),
    ("backup_repository", "somewhere", "restic's name of a repository"),
    ("backup_master_password", "short-of-32-characters", "found a hidden value of 22 characters"),
    ("backup_environment", "a b", "found 'a b'"),
    ("backup_sources", [{"name": "X", "kind": "mysql", "options": {}}], "name 'X' of item 1; X: kind 'mysql'"),
    ("backup_calendar", "", "a calendar of systemd"),
    ("backup_spread", -1, "seconds, from 0 up"),
    ("backup_max_age", 5, "seconds, 60 or more"),
    ("backup_retention", {"daily": 0, "never": 1}, "never: not one of last, hourly"),
    ("backup_check_subset", "all", "a share such as 5%"),
    ("backup_ssh_host_keys", "ssh-ed25519 AAAA", "expected a list of public keys"),
    ("backup_ssh_port", 0, "a port from 1 to 65535"),
    ("backup_metrics_path", "metrics", "the path of a folder"),
]


# Single values, and values that do not go together.
FAULTS: Faults = {
    "one": {
        "version from source": ({**SOURCE, "redis_source_version": "8.0.1"}, ["redis_source_version"]),
        "archive": ({"redis_source_archive": "/nonexistent.tar.gz"}, ["redis_source_archive"]),
        "checksum": ({"redis_source_checksum": "md5:1"}, ["redis_source_checksum"]),
        "nothing that lasts": (
            {"redis_appendonly": False, "redis_save": [], "redis_maxmemory_policy": "noeviction"},
            ["redis_appendonly and redis_save"],
        ),
        "port alone": ({"redis_tls_port": "http"}, ["redis_tls_port"]),
        "instances": (
            {
                "redis_instances": [{"name": "a", "upgrade": True}, {"name": "a", "max": 1}],
                "redis_ports": [6380, 6380],
            },
            ["redis_instances' inputs", "redis_instances' names", "redis_instances' ports"],
        ),
        "size": ({"redis_maxmemory": "as much"}, ["redis_maxmemory"]),
        "hash of nobody": ({"redis_previous_hashes": {"nobody": ["0" * 64]}}, ["redis_previous_hashes"]),
    },
    "two": {
        "accepted version": ({**SOURCE, "redis_version_accepted": ""}, ["security fixes in redis_source_version"]),
        "same password": ({"redis_admin_password": SECRET}, ["passwords"]),
        # As YAML reads 0770.
        "octal number": ({"redis_settings": {"unixsocketperm": 0o770}}, ["redis_settings"]),
        "certificates without TLS": (
            {"redis_tls_auth_clients": True, "redis_tls_port": 0, "redis_port": 6379},
            ["redis_tls_auth_clients"],
        ),
        "missing files": (
            {"certificates_source": "files", "certificates_files": FILES},
            [f"certificates_files.{name}" for name in FILES],
        ),
        "size again": ({"redis_maxmemory": "as much"}, ["redis_maxmemory"]),
    },
    "three": {
        "password alone": ({"redis_password": ""}, ["redis_password"]),
        # A file of the controller that is another one than its checksum says.
        "another archive": ({**SOURCE, "redis_source_archive": __file__}, ["redis_source_archive"]),
        "both ports off": ({"redis_tls_port": 0}, ["redis_port and redis_tls_port"]),
        "backup": ({name: value for name, value, _ in BACKUP}, [name for name, _, _ in BACKUP]),
    },
    # Of the roles database and load_balancer.
    "four": {
        "settings of PostgreSQL": ({DATABASE_SETTINGS[0]: DATABASE_SETTINGS[1]}, ["database_settings"]),
        "memory of PostgreSQL": ({DATABASE_MEMORY[0]: DATABASE_MEMORY[1]}, ["memory settings"]),
        "port of HAProxy": ({BALANCER_PORT[0]: BALANCER_PORT[1]}, ["load_balancer_http_port"]),
    },
    # The others build from source.
    "five": {
        "repository": (
            {
                "redis_install": "repository",
                "redis_repository": {
                    "url": "https://me:sesame@example.com/deb",
                    "suite": "bookworm",
                    "components": ["main"],
                    "key": "/nonexistent.asc",
                    "version": "8.0.2",
                },
            },
            ["redis_repository.url", "redis_repository.version", "redis_repository.key"],
        ),
    },
    # Of the role backup_repository.
    "backup1": {
        "hosts with backups": ({"backup_repository_hosts": [{"name": "../x", "key": ""}]}, ["backup_repository_hosts"]),
        "retention of backups": ({"backup_repository_retention": {}}, ["backup_repository_retention"]),
        "path of the backups": ({"backup_repository_path": "relative"}, ["backup_repository_path"]),
    },
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run over hosts of which each has its own faults, or none."""
    wrong = {host: with_all(cases) for host, cases in PACKED.items()}
    one, two, three, four, five, backup1 = ({host: faulty(FAULTS, host)} for host in FAULTS)
    return run(
        tmp_path_factory.mktemp("report"),
        {**wrong, **one, **two, **three, **five, "good": variables()},
        wrong,
        database={**wrong, **four},
        load_balancer={**wrong, **four},
        backup_repository=backup1,
    )


@pytest.mark.parametrize(
    ("host", "name", "value", "found"), CASES, ids=[f"{host}-{name}" for host, name, _, _ in CASES]
)
def test_names_the_variable_what_was_found_and_what_is_expected(
    report: subprocess.CompletedProcess[str], host: str, name: str, value: Any, found: str
) -> None:
    own = [line for line in problems(report.stdout) if re.search(rf"[\[ ]{host}[,\]]", " [" + line.rsplit(" [", 1)[1])]
    assert any(line.startswith(f"{name}: ") and found in line and "expected" in line for line in own), own


def test_all_of_them_stand_in_one_message_and_nothing_changed(report: subprocess.CompletedProcess[str]) -> None:
    assert report.returncode != 0
    assert report.stdout.count("fatal:") == 1
    assert "Nothing has been changed on any host." in report.stdout
    assert set(re.findall(r"changed=(\d+)", report.stdout)) == {"0"}


def test_no_secret_is_in_the_output(report: subprocess.CompletedProcess[str]) -> None:
    assert SECRET[:15] not in report.stdout + report.stderr


def test_one_wrong_value_alone_ends_the_run(tmp_path: Path) -> None:
    result = run(tmp_path, {"one": variables("redis_maxmemory", "lots")}, {})
    assert result.returncode != 0
    assert [line.split(":")[0] for line in problems(result.stdout)] == ["redis_maxmemory"]


@pytest.mark.parametrize(("host", "fault"), each(FAULTS))
def test_names_each_fault_and_nothing_else(report: subprocess.CompletedProcess[str], host: str, fault: str) -> None:
    assert names_of(report, FAULTS, host, fault) == FAULTS[host][fault][1]


def test_both_ports_off_is_one_problem_of_both(report: subprocess.CompletedProcess[str]) -> None:
    assert "redis_port and redis_tls_port: found '0 and 0'; expected two different ports" in report.stdout


def test_a_local_archive_is_compared_with_its_checksum(report: subprocess.CompletedProcess[str]) -> None:
    found = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert (
        f"redis_source_archive: found '{__file__}, with sha256:{found}'; expected the file whose checksum is"
        f" redis_source_checksum, {SOURCE['redis_source_checksum']}. [three]"
    ) in problems(report.stdout)


def test_the_same_problem_on_two_hosts_is_said_once(report: subprocess.CompletedProcess[str]) -> None:
    assert [line for line in problems(report.stdout) if "as much" in line] == [
        "redis_maxmemory: found 'as much'; expected a size from 1mb up, such as 512mb (units b, k, kb, m, mb, g, gb). "
        "[one, two]"
    ]


@pytest.mark.parametrize("case", [DATABASE_SETTINGS, DATABASE_MEMORY, BALANCER_PORT], ids=lambda case: str(case[0]))
def test_inputs_of_database_and_balancer_go_together(report: subprocess.CompletedProcess[str], case: Case) -> None:
    assert len([line for line in problems(report.stdout) if case[2] in line and line.endswith(" [four]")]) == 1


@pytest.mark.parametrize(("name", "value", "found"), BACKUP, ids=[name for name, _, _ in BACKUP])
def test_inputs_of_backup_are_checked_where_there_is_a_repository(
    report: subprocess.CompletedProcess[str], name: str, value: Any, found: str
) -> None:
    own = [line for line in problems(report.stdout) if line.endswith(" [three]")]
    assert any(line.startswith(f"{name}: ") and found in line for line in own), own


def test_finds_nothing_on_a_good_host_beside_bad_ones(report: subprocess.CompletedProcess[str]) -> None:
    assert re.search(r"^good +: ok=[1-9]", report.stdout, re.MULTILINE), "the host was not asked"
    assert names(report, "good") == []


def test_a_version_from_source_passes_and_inputs_of_backup_do_not_matter_without_a_repository(tmp_path: Path) -> None:
    unused = {name: value for name, value, _ in BACKUP if name != "backup_repository"}
    archive = tmp_path / "redis-7.0.15.tar.gz"
    archive.write_bytes(b"an archive")
    local = {
        "redis_source_archive": str(archive),
        "redis_source_checksum": f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}",
    }
    good = {**variables(), **SOURCE, **unused, "backup_repository": ""}
    result = run(tmp_path, {"one": good, "two": {**good, **local}}, {})
    if result.returncode != 0:
        assert problems(result.stdout) == []


def test_warns_of_an_application_where_nobody_can_log_in(tmp_path: Path) -> None:
    paths = {"app_login_path": "/api/sessions"}
    keys = {"app_auth_issuer": "https://a", "app_auth_audience": "b", "app_auth_keys": {"keys": [{"kty": "EC"}]}}
    hosts = {"without": {**variables(), **paths}, "with": {**variables(), **paths, **keys}, "neither": variables()}
    result = run(tmp_path, {"one": variables()}, hosts)
    output = " ".join((result.stdout + result.stderr).split())
    assert re.findall(r"app_auth_keys: found 'nothing[^\[]*\[(\w+)\]", output) == ["without"]
    if result.returncode != 0:
        assert problems(result.stdout) == []


def test_good_values_pass(tmp_path: Path) -> None:
    one, two = {"one": variables()}, {"two": variables()}
    result = run(tmp_path, one, two, database=one, load_balancer=two)
    if result.returncode != 0:
        assert problems(result.stdout) == []


def test_an_inventory_without_redis_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, {}, {"two": variables()})
    assert result.returncode != 0
    assert "groups redis and app" in result.stdout
