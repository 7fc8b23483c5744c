"""Names of earlier versions: the preflight refuses each, says what it is called now, and shows no secret."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_bad_input import SECRET, names, problems, run, variables

from conftest import PROJECT, load

renamed = load("plugins/plugin_utils/renamed.py")
readme = load("docs/role_readme.py")
BASE = [yaml.safe_load(file.read_text())["all"] for file in sorted((PROJECT / "inventory/base").glob("*.yml"))]
GROUPS = {group for part in BASE for group in part.get("children", {})}


def inputs() -> set[str]:
    """Return the names of all inputs of roles, and of all variables of inventory/base."""
    specs = [
        readme.read_spec(file.parent.parent)["options"] for file in PROJECT.glob("roles/*/meta/argument_specs.yml")
    ]
    groups = [group for part in BASE for group in part.get("children", {}).values()]
    return {name for given in [*specs, *(part.get("vars", {}) for part in [*BASE, *groups])] for name in given}


INPUTS = inputs()


def host(**values: Any) -> dict[str, Any]:
    """Return variables of a host as Ansible has them, with its own."""
    magic = {"inventory_hostname": "one", "ansible_play_hosts_all": ["one", "two"], "groups": {"all": ["one", "two"]}}
    return {**magic, **values}


def found(**values: Any) -> list[tuple[str, str, str]]:
    """Return what is found among a host's variables."""
    return [(finding.where, finding.rule, finding.name) for finding in renamed.findings(host(**values))]


@pytest.mark.parametrize("name", sorted(renamed.SET))
def test_an_old_name_is_no_input_today(name: str) -> None:
    assert name not in INPUTS
    for file in (*PROJECT.glob("roles/*/tasks/*.yml"), *PROJECT.glob("roles/*/defaults/*.yml")):
        assert re.search(rf"^\s*{name}:|{{{{ *{name}\b", file.read_text(), re.MULTILINE) is None, file


@pytest.mark.parametrize(("old", "new"), sorted(renamed.RENAMED.items()))
def test_a_new_name_is_an_input_today(old: str, new: str) -> None:
    assert new in INPUTS, old


def test_a_new_group_and_fact_are_there_and_the_old_ones_are_not() -> None:
    assert set(renamed.GROUPS.values()) <= GROUPS
    assert not GROUPS & renamed.GROUPS.keys()
    tasks = "".join(file.read_text() for file in PROJECT.glob("roles/*/tasks/*.yml"))
    for old, new in renamed.FACTS.items():
        assert f"    {new}: " in tasks
        assert f"{old}" not in tasks


@pytest.mark.parametrize("name", sorted(renamed.REPLACED))
def test_what_takes_the_place_of_an_old_name_is_there(name: str) -> None:
    base = "".join(file.read_text() for file in (PROJECT / "inventory/base").glob("*.yml"))
    told = re.findall(r"\b(?:app|backup|load_balancer|redis)_[a-z_]+", renamed.REPLACED[name].replace("playbooks/", ""))
    assert [word for word in told if word not in INPUTS | GROUPS and f"{word}:" not in base] == []


def test_todays_names_are_no_finding() -> None:
    values = {name: "{{ " + name + " }}" for name in INPUTS}
    assert found(**values, groups={group: ["one"] for group in GROUPS}) == []


@pytest.mark.parametrize(
    "value",
    [
        "{{ app_outgoing + [] }}",
        ["x", {"a": "{% if app_outgoing %}x{% endif %}"}],
        "{{ hostvars['two'].app_outgoing }}",
        "{{ hostvars['two']['app_outgoing'] }}",
    ],
)
def test_a_template_that_refers_to_an_old_name_is_found_at_any_depth(value: Any) -> None:
    assert found(mine=value) == [("mine", "must not refer to app_outgoing", "app_outgoing")]


@pytest.mark.parametrize(
    "value",
    [
        "app_outgoing",
        "/srv/app_outgoing/{{ x }}",
        "{{ '/srv/app_outgoing' }}",
        "{{ app_outgoing_more }}",
        "{{ my_app_outgoing }}",
    ],
)
def test_other_names_and_paths_are_no_reference(value: str) -> None:
    assert found(mine=value) == []


def test_a_group_is_named_by_its_hosts_or_by_the_first_of_the_run() -> None:
    group = ("group backup_vault", "must not be in the inventory", "backup_vault")
    assert found(groups={"backup_vault": ["one"]}) == [group]
    assert found(groups={"backup_vault": ["two"]}) == []
    assert found(groups={"backup_vault": ["three"]}) == [group]
    assert found(groups={"backup_vault": []}) == [group]


@pytest.mark.parametrize("name", ["backup_vault.yml", "backup_vault"])
def test_a_file_of_a_group_that_is_called_otherwise_is_found(tmp_path: Path, name: str) -> None:
    """Ansible would not read it any more, and would say nothing."""
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/backup_repository.yml").touch()
    (tmp_path / "hosts.yml").touch()
    sources = [str(tmp_path), "one,two"]
    assert found(ansible_inventory_sources=sources) == []
    (tmp_path / "group_vars" / name).touch()
    expected = [(str(tmp_path / "group_vars" / name), "must not be there", "backup_vault")]
    assert found(ansible_inventory_sources=sources) == expected
    assert found(ansible_inventory_sources=[str(tmp_path / "hosts.yml")]) == expected


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("backup_vault_path", "/srv/b", True),
        ("app_outgoing", [{"ports": [53]}], True),
        ("backup_vault_single_password", "sesame", False),
        ("vault_something", "sesame", False),
        ("backup_vault_path", "{{ anything }}", False),
        ("app_health_url", "https://me:sesame@example.com/", False),
        # As Ansible has what ansible-vault has encrypted within a file.
        ("backup_vault_path", object(), False),
        ("app_outgoing", [{"name": object()}], False),
    ],
)
def test_a_value_that_may_be_secret_is_not_shown(name: str, value: Any, shown: bool) -> None:
    assert renamed.is_shown(name, value) is shown


OLD = {
    "app_outgoing": [{"user": "quantdesk", "name": "dns"}],
    "app_health_url": "http://127.0.0.1:3002/health",
    "mine": "{{ groups['backup_vault'] | first }}",
}
EXPECTED = [
    (
        "app_outgoing must not be set: it is called app_firewall_outgoing now;"
        " found [{'user': 'quantdesk', 'name': 'dns'}]. [old]"
    ),
    (
        "app_health_url must not be set: app_ports and app_health_path take its place;"
        " found 'http://127.0.0.1:3002/health'. [old]"
    ),
    "mine must not refer to backup_vault: the group is called backup_repository now. [old]",
    "backup_vault_path must not be set: it is called backup_repository_path now; found '/srv/b'. [kept]",
    "group backup_vault must not be in the inventory: the group is called backup_repository now. [kept]",
    "backup_vault_single_password must not be set: it is called backup_repository_single_password now. [HOSTS]",
    "load_balancer_outgoing must not be set: it is called load_balancer_firewall_outgoing now; found []. [HOSTS]",
    "redis_maxmemory: found 'lots'; expected a size from 1mb up",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The preflight over the inventory of an earlier version, with a vault file, a value of -e and one bad value."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "group_vars/all").mkdir(parents=True)
    vault, key = folder / "group_vars/all/vault.yml", folder / "key"
    vault.write_text(f"backup_vault_single_password: {SECRET}\n")
    key.write_text("key")
    words = ["--vault-password-file", str(key)]
    subprocess.run([Path(sys.executable).parent / "ansible-vault", "encrypt", *words, vault], check=True)
    words += ["-e", json.dumps({"load_balancer_outgoing": []})]
    return run(
        folder,
        {"old": {**variables("redis_maxmemory", "lots"), **OLD}},
        {"fine": variables()},
        *words,
        backup_vault={"kept": {**variables(), "backup_vault_path": "/srv/b"}},
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", EXPECTED, ids=lambda line: line.split()[0])
def test_the_preflight_refuses_an_old_name_with_all_else(report: subprocess.CompletedProcess[str], line: str) -> None:
    assert report.returncode != 0
    line = line.replace("HOSTS", "old, fine, kept")
    assert [one for one in problems(report.stdout) if one.startswith(line)], report.stdout


@pytest.mark.slow
def test_nothing_changes_and_no_secret_is_shown(report: subprocess.CompletedProcess[str]) -> None:
    assert set(re.findall(r"changed=(\d+)", report.stdout)) == {"0"}
    assert SECRET not in report.stdout + report.stderr


@pytest.mark.slow
def test_the_names_of_today_pass(tmp_path: Path) -> None:
    backups = {"backup_repository_path": "/srv/b", "backup_repository_single_password": SECRET}
    hosts = {"one": {**variables(), "app_firewall_outgoing": [], "load_balancer_firewall_outgoing": []}}
    result = run(tmp_path, hosts, hosts, backup_repository={"kept": {**variables(), **backups}})
    if result.returncode != 0:
        assert names(result, "one") == names(result, "kept") == []
    else:
        assert "No problem found." in result.stdout
