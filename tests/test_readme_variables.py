"""The README's table of variables: each, set in a copy of the production inventory, changes what its row says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from conftest import PROJECT, ansible

pytestmark = pytest.mark.slow

README = (PROJECT / "README.md").read_text()
VAULT = yaml.safe_load((PROJECT / "inventory/vault.yml.example").read_text())
FILLED = {
    **dict.fromkeys(VAULT, "0123456789abcdef0123456789abcdef"),
    "certificates_ca_dir": "/nonexistent/pki",
    "private_address": "10.0.0.11",
}
# A small part of each role, which is skipped: with it a play knows the role's variables.
SMALL = {
    **{"redis": "describe", "firewall": "install", "certificates": "verify", "app": "user"},
    **{"load_balancer": "install", "backup": "program", "backup_repository": "install"},
}
# What a role makes of its inputs, by the name that it has below.
MADE = {
    "redis": {
        "redis.conf": "__redis_directives",
        "users": "__redis_wanted_users",
        "unit": "lookup('ansible.builtin.template', 'redis.slice.j2')",
        "listens": "__redis_listen",
    },
    "firewall": {"rules": "__firewall_files[0].content"},
    "certificates": {"files": "__certificates_install"},
    "app": {"environment": "__app_environment_text", "ports": "app_ports", "root": "app_root"},
    "load_balancer": {"haproxy.cfg": "lookup('ansible.builtin.template', 'haproxy.cfg.j2')"},
    "backup_repository": {"retention": "backup_repository_retention | quantdesk.redis.backup_retention"},
    "backup": {"files": "__backup_config_files", "sources": "backup_sources", "units": "__backup_unit_files"},
}


class Change(NamedTuple):
    """What a variable is set to, the role and the part of MADE that it changes, and what stands there then."""

    value: Any
    role: str
    part: str
    then: str


ALLOW = [{"name": "mine", "ports": [8080], "from": ["10.0.0.77"]}]
OUTGOING = [{"user": "mine", "name": "there", "ports": [8080], "to": ["10.0.0.78"]}]
SOURCES = [{"name": "mine", "kind": "files", "options": {"paths": ["/srv/mine"]}}]
FILES = {"ca": "/mine/ca.crt", "cert": "/mine/host.crt", "key": "/mine/host.key"}
CHANGES = {
    "redis_instances": Change([{"name": "mine", "maxmemory": "33mb"}], "redis", "redis.conf", '"maxmemory": "33mb"'),
    "redis_port": Change(6399, "redis", "redis.conf", '"port": 6399'),
    "redis_tls_port": Change(6398, "redis", "redis.conf", '"tls-port": 6398'),
    "redis_tls_auth_clients": Change(True, "redis", "redis.conf", '"tls-auth-clients": true'),
    "redis_app_commands": Change(["ping", "strlen"], "redis", "users", "+ping +strlen"),
    "redis_app_keys": Change(["mine:*"], "redis", "users", "~mine:*"),
    "redis_app_channels": Change(["mine:*"], "redis", "users", "&mine:*"),
    "redis_default_user": Change(False, "redis", "users", '"enabled": false'),
    "redis_default_rules": Change("~mine:* +get", "redis", "users", "~mine:* +get"),
    "redis_settings": Change({"slowlog-max-len": 77}, "redis", "redis.conf", '"slowlog-max-len": 77'),
    "redis_bind": Change(["10.0.0.12"], "redis", "redis.conf", '"bind": ["10.0.0.12"]'),
    "redis_maxmemory": Change("77mb", "redis", "redis.conf", '"maxmemory": "77mb"'),
    "redis_maxmemory_policy": Change("volatile-ttl", "redis", "redis.conf", "volatile-ttl"),
    "redis_appendonly": Change(False, "redis", "redis.conf", '"appendonly": false'),
    "redis_appendfsync": Change("always", "redis", "redis.conf", '"appendfsync": "always"'),
    "redis_save": Change(["77 7"], "redis", "redis.conf", '"save": ["77 7"]'),
    "site_firewall_allow": Change(ALLOW, "firewall", "rules", "10.0.0.77 } tcp dport { 8080 } accept"),
    "site_firewall_outgoing": Change(OUTGOING, "firewall", "rules", 'skuid \\"mine\\" ip daddr { 10.0.0.78 }'),
    "site_backup_sources": Change(SOURCES, "backup", "sources", "/srv/mine"),
    "firewall_ssh_ports": Change([2222], "firewall", "rules", "tcp dport { 2222 } accept comment"),
    "firewall_ssh_from": Change(["10.7.0.0/16"], "firewall", "rules", "10.7.0.0/16"),
    "certificates_source": Change("files", "certificates", "files", "/mine/ca.crt"),
    "app_more": Change({"MINE": "yes"}, "app", "environment", "MINE="),
    "app_ports": Change([3999], "firewall", "rules", "tcp dport { 3999 } accept"),
    "load_balancer_clients": Change(["10.8.0.0/16"], "firewall", "rules", "10.8.0.0/16 } tcp dport {"),
    "load_balancer_max_connections_per_client": Change(77, "load_balancer", "haproxy.cfg", "sc0_conn_cur(https) gt 77"),
    "load_balancer_max_connection_rate": Change(78, "load_balancer", "haproxy.cfg", "sc0_conn_rate(https) gt 78"),
    "load_balancer_unlimited_clients": Change(["10.9.0.0/16"], "load_balancer", "haproxy.cfg", "::1 10.9.0.0/16"),
    "load_balancer_refused": Change([{"path": "/mine"}], "load_balancer", "haproxy.cfg", "str /mine"),
    "load_balancer_hsts": Change(77, "load_balancer", "haproxy.cfg", "max-age=77"),
    "load_balancer_http_port": Change(8081, "load_balancer", "haproxy.cfg", ":8081"),
    "backup_repository": Change("/mine/repository", "backup", "files", "/mine/repository"),
    "backup_secrets": Change({"MINE_KEY": "x"}, "backup", "files", "MINE_KEY"),
    "backup_calendar": Change("*:7", "backup", "units", "*:7"),
    "backup_retention": Change({"daily": 77}, "backup_repository", "retention", "77"),
    "database_url": Change("postgresql://other.example/x", "app", "environment", "postgresql://other.example/x"),
}
# What a change wants beside it.
BESIDES = {"certificates_files": FILES}
# On a host of its own, as others change what its items do not say.
ALONE = ("redis_instances",)


def rows() -> list[str]:
    """Return the variables of the table, of which a row may have several."""
    table = README.split("What you are likely to change")[1].split("\n\n")[1]
    return [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]


def test_every_variable_of_the_table_is_tried() -> None:
    assert len(rows()) > 30
    # One more is named in the text of a row.
    assert set(rows()) == set(CHANGES) - {"load_balancer_unlimited_clients"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return by host what roles make of the production inventory: `untouched`, one for each of ALONE, and `together`.

    A host for each variable would take minutes; what a variable changes is told by words that no other one brings.
    """
    folder = tmp_path_factory.mktemp("site")
    inventory = folder / "inventory"
    inventory.mkdir()
    for name in ("base", "production/group_vars"):
        (inventory / Path(name).name).symlink_to(PROJECT / "inventory" / name)
    # Where a play, unlike a role, looks for them.
    (folder / "templates").mkdir()
    for template in (path for role in MADE for path in (PROJECT / f"roles/{role}/templates").glob("*.j2")):
        (folder / "templates" / template.name).symlink_to(template)
    values = {name: change.value for name, change in CHANGES.items()}
    together = {name: value for name, value in values.items() if name not in ALONE}
    hosts = {name: {**FILLED, name: values[name]} for name in ALONE}
    hosts |= {"untouched": FILLED, "together": {**FILLED, **BESIDES, **together}}
    names = ("redis", "app", "database", "load_balancer", "backup_repository")
    groups = {group: {"hosts": dict.fromkeys(hosts)} for group in names}
    (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "children": groups}}))
    instance = yaml.safe_load((PROJECT / "playbooks/tasks/redis_instance.yml").read_text())[0]["vars"]
    plays = [
        {
            "hosts": "all:!localhost",
            "gather_facts": False,
            "connection": "local",
            "tasks": [
                {
                    "ansible.builtin.import_role": {"name": f"quantdesk.redis.{role}", "tasks_from": SMALL[role]},
                    "when": False,
                },
                {
                    "ansible.builtin.copy": {
                        "dest": f"{folder}/{{{{ inventory_hostname }}}}.{role}",
                        "content": "{{ told | to_json }}",
                    },
                    "vars": {
                        "role_path": str(PROJECT / "roles" / role),
                        "told": {name: f"{{{{ {expression} }}}}" for name, expression in parts.items()},
                        **({**instance, "redis_instance": "{{ redis_instances[0] }}"} if role == "redis" else {}),
                    },
                },
            ],
        }
        for role, parts in MADE.items()
    ]
    (folder / "tell.yml").write_text(yaml.safe_dump(plays))
    code, output = ansible("ansible-playbook", "-i", str(inventory), str(folder / "tell.yml"))
    assert code == 0, "".join(output.partition("[ERROR]")[1:])[:3000]
    return {
        host: {
            f"{role} {part}": json.dumps(value)
            for role in MADE
            for part, value in json.loads((folder / f"{host}.{role}").read_text()).items()
        }
        for host in hosts
    }


@pytest.mark.parametrize("name", CHANGES)
def test_the_variable_has_the_effect_that_its_row_names(made: dict[str, dict[str, str]], name: str) -> None:
    _, role, part, then = CHANGES[name]
    before, after = (made[host][f"{role} {part}"] for host in ("untouched", name if name in ALONE else "together"))
    assert then not in before
    assert then in after
