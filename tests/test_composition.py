"""What inventory/base makes of a site's hosts and groups: a host in several groups gets what each of them asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_bad_input import names, problems, run, variables

from conftest import PROJECT, ansible, load

endpoints = load("plugins/filter/endpoints.py")
ports = load("plugins/filter/ports.py")
SECRETS = {
    "vault_redis_app_password": "0123456789abcdef",
    "vault_redis_backup_password": "0123456789abcdef",
    "vault_database_password": "p:w/d@0123456789",
    "vault_admin_token": "0123456789abcdef",
}
WANTED = (
    *("firewall_allow", "firewall_outgoing", "backup_sources", "certificates_host", "backup_hosts", "app_environment"),
    *("firewall_wanted", "certificates_wanted", "backup_wanted", "backup_repository", "redis_endpoints"),
    *("load_balancer_backends", "app_listen", "database_clients"),
)


def site(
    folder: Path, groups: dict[str, list[str]], addresses: dict[str, str], **more: Any
) -> dict[str, dict[str, Any]]:
    """Return by host what the variables of a site are, as Ansible has them."""
    inventory = folder / "site"
    (inventory / "group_vars").mkdir(parents=True)
    (inventory / "base").symlink_to(PROJECT / "inventory/base")
    hosts = {name: {"private_address": address} for name, address in addresses.items()}
    children = {group: {"hosts": dict.fromkeys(members)} for group, members in groups.items()}
    (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "children": children}}))
    (inventory / "group_vars/all.yml").write_text(yaml.safe_dump({"env_name": "test", **SECRETS, **more}))
    told = {name: f"{{{{ {name} | default(none) }}}}" for name in WANTED}
    task = {
        "ansible.builtin.copy": {
            "dest": f"{folder}/{{{{ inventory_hostname }}}}.json",
            "content": "{{ told | to_json }}",
        },
        "vars": {"told": told},
    }
    play = {"hosts": "all:!localhost", "gather_facts": False, "connection": "local", "tasks": [task]}
    (folder / "tell.yml").write_text(yaml.safe_dump([play]))
    interpreter = json.dumps({"ansible_python_interpreter": sys.executable})
    code, output = ansible("ansible-playbook", "-i", str(inventory), "-e", interpreter, str(folder / "tell.yml"))
    assert code == 0, output
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in addresses}


def rules(found: dict[str, Any]) -> dict[str, tuple[list[int], list[str]]]:
    """Return by name the ports and addresses of firewall_allow."""
    return {rule["name"]: ([int(port) for port in rule["ports"]], rule["from"]) for rule in found["firewall_allow"]}


ALL = ["redis", "app", "load_balancer", "database", "backup_repository"]


def test_one_machine_in_all_groups_gets_what_each_of_them_asks_for(tmp_path: Path) -> None:
    groups = {group: ["desk1"] for group in ALL}
    one = site(tmp_path, groups, {"desk1": "10.0.0.1"}, load_balancer_clients=["0.0.0.0/0"])["desk1"]
    assert rules(one) == {
        "redis": ([6380], ["10.0.0.1"]),
        "quantdesk": ([3002], ["10.0.0.1"]),
        "postgresql": ([5432], ["10.0.0.1"]),
        "https": ([443, 80], ["0.0.0.0/0"]),
    }
    assert [source["name"] for source in one["backup_sources"]] == ["wheels", "quantdesk-database"]
    assert {(item["user"], item["name"]) for item in one["firewall_outgoing"]} == {
        ("quantdesk", "redis"),
        ("quantdesk", "database"),
        ("haproxy", "application"),
    }
    assert one["certificates_host"] is True
    assert one["backup_repository"] == "rclone:test/desk1"
    assert one["app_environment"]["DATABASE_URL"] == (
        "postgresql://quantdesk:p%3Aw%2Fd%400123456789@10.0.0.1:5432/quantdesk?sslmode=verify-full"
        "&sslrootcert=/etc/ssl/quantdesk/ca.crt"
    )


def test_a_host_in_two_groups_of_a_larger_site_has_both_parts_and_others_have_theirs(tmp_path: Path) -> None:
    found = site(
        tmp_path,
        {"redis": ["a", "b"], "app": ["b", "c"], "backup_repository": ["v"], "outsiders": ["x"]},
        {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3", "v": "10.0.0.4", "x": "10.0.0.5"},
        app_clients=["10.0.0.9"],
        redis_instances=[{"name": "cache"}, {"name": "state", "tls_port": 6381}],
    )
    assert set(rules(found["a"])) == {"redis"}
    assert set(rules(found["b"])) == {"redis", "quantdesk"}
    assert set(rules(found["c"])) == {"quantdesk"}
    # An application without a balancer has no certificate of its own; beside Redis it has one.
    assert [found[host]["certificates_host"] for host in "abc"] == [True, True, False]
    assert [source["name"] for source in found["b"]["backup_sources"]] == ["quantdesk", "wheels"]
    assert [found[host]["firewall_wanted"] for host in "abcvx"] == [True, True, True, True, False]
    assert [found[host]["certificates_wanted"] for host in "abcvx"] == [True, True, True, False, False]
    assert [found[host]["backup_wanted"] for host in "abcvx"] == [True, True, True, False, False]
    assert found["x"]["backup_hosts"] == ["a", "b", "c"]
    assert found["c"]["app_environment"]["REDIS_URL"] == "rediss://10.0.0.1:6380"
    assert found["c"]["app_environment"]["REDIS_STATE_URL"] == "rediss://10.0.0.1:6381"
    assert found["c"]["firewall_outgoing"] == [
        {"user": "quantdesk", "name": "redis", "ports": [6380, 6381], "to": ["10.0.0.1"]}
    ]


def test_addresses_of_ipv6_stand_in_brackets_wherever_a_url_is_made(tmp_path: Path) -> None:
    one = site(tmp_path, {group: ["desk1"] for group in ALL}, {"desk1": "2001:db8::1"}, load_balancer_clients=[])[
        "desk1"
    ]
    assert one["app_environment"]["REDIS_URL"] == "rediss://[2001:db8::1]:6380"
    assert "@[2001:db8::1]:5432/" in one["app_environment"]["DATABASE_URL"]
    assert one["app_listen"] == "::"
    assert one["load_balancer_backends"][0]["address"] == "2001:db8::1"


def test_a_site_says_otherwise_for_all_hosts_what_a_group_of_the_base_has(tmp_path: Path) -> None:
    found = site(
        tmp_path,
        {"redis": ["a"], "app": ["a"]},
        {"a": "10.0.0.1"},
        redis_firewall_allow=[{"name": "mine", "ports": [1], "from": ["10.0.0.2"]}],
        app_clients=["10.0.0.9"],
    )
    assert set(rules(found["a"])) == {"mine", "quantdesk"}


def test_a_redis_that_is_bought_is_one_structure(tmp_path: Path) -> None:
    place = {"mode": "external", "addresses": [{"host": "redis.example.com", "port": 6379}], "tls": True}
    found = site(
        tmp_path, {"app": ["a"]}, {"a": "10.0.0.1"}, redis_endpoints={"cache": place, "state": place}, app_clients=[]
    )
    assert found["a"]["app_environment"]["REDIS_URL"] == "rediss://redis.example.com:6379"
    assert "REDIS_STATE_URL" not in found["a"]["app_environment"]
    # A name is nothing that a packet filter knows.
    assert found["a"]["firewall_outgoing"] == []


def test_what_reaches_sentinels_is_let_out_too() -> None:
    place = {
        "mode": "sentinel",
        "addresses": [{"host": "10.0.0.1", "port": 6380}, {"host": "10.0.0.2", "port": 6380}],
        # Of an address with a zone no rule can be made: the packet filter takes it for a name.
        "sentinels": [{"host": "10.0.0.2", "port": 26379}, {"host": "fe80::1%eth0", "port": 26379}],
        "primary_name": "cache",
        "tls": True,
    }
    assert endpoints.redis_outgoing({"cache": place, "state": place}, "app") == [
        {"user": "app", "name": "redis", "ports": [6380], "to": ["10.0.0.1"]},
        {"user": "app", "name": "redis", "ports": [6380, 26379], "to": ["10.0.0.2"]},
    ]


def test_plaintext_has_a_url_of_its_own() -> None:
    host = {"redis_instances": [{"tls_port": 0, "port": 6379}], "redis_port": 0, "redis_tls_port": 6380}
    found = endpoints.redis_endpoints([{**host, "private_address": "10.0.0.1"}])
    assert endpoints.redis_environment(found) == {"REDIS_URL": "redis://10.0.0.1:6379"}


def test_doors_are_those_that_are_open_to_others() -> None:
    rule = {"name": "redis", "ports": [6380, "6381"], "from": ["10.0.0.0/24"]}
    hosts = [
        {"inventory_hostname": "a", "private_address": "10.0.0.1", "told": [rule]},
        {"inventory_hostname": "b", "private_address": "10.0.0.2", "told": [{**rule, "from": ["::/0"]}]},
        {"inventory_hostname": "x", "private_address": "10.0.1.1"},
        {"inventory_hostname": "without"},
    ]
    assert [door["name"] for door in ports.closed_doors(hosts, "10.0.1.1", "told")] == [
        "a:6380",
        "a:6381",
        "b:6380",
        "b:6381",
    ]
    assert [door["name"] for door in ports.closed_doors(hosts, "10.0.0.9", "told")] == ["b:6380", "b:6381"]
    assert ports.closed_doors(hosts, "10.0.0.2", "told") == []


def test_an_inventory_without_its_base_is_refused_by_name(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {redis: {hosts: {redis1: }}}}\n")
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, "playbooks/preflight.yml"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "inventory/base: found" in done.stdout
    assert "ln -sfn" in done.stdout


@pytest.mark.slow
def test_the_preflight_takes_one_host_in_all_groups(tmp_path: Path) -> None:
    one = {"one": variables()}
    result = run(tmp_path, one, one, database=one, load_balancer=one)
    if result.returncode != 0:
        assert problems(result.stdout) == []
        assert names(result, "one") == []
