"""An inventory outside the checkout, named in the ways that there are: the same values, or a refusal that says why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import PROJECT, ansible

pytestmark = pytest.mark.slow

TOLD = ("app_source", "app_build_dir", "app_auth_keys", "certificates_ca_dir", "redis_maxmemory", "app_ports")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of the production inventory, filled in, in a folder with a blank in its name."""
    inventory = tmp_path / "our sites/mine"
    shutil.copytree(PROJECT / "inventory/production", inventory, symlinks=True)
    # As the README says.
    (inventory / "base").unlink()
    (inventory / "base").symlink_to(PROJECT / "inventory/base")
    main = inventory / "group_vars/all/main.yml"
    text = main.read_text()
    for line in ("# certificates_ca_dir: ", "# app_auth_keys: "):
        assert line in text
        text = text.replace(line, line.removeprefix("# "))
    main.write_text(text)
    (inventory / "issuer-keys.json").write_text('{"keys": []}')
    return inventory


def test_the_values_are_the_same_however_it_is_named(site: Path) -> None:
    told = {name: f"{{{{ {name} }}}}" for name in TOLD}
    copy = {"dest": str(site.parent / "{{ inventory_hostname }}.json"), "content": "{{ told | to_json }}"}
    task = {"ansible.builtin.copy": copy, "vars": {"told": told}}
    play = {"hosts": "app1.example.com", "gather_facts": False, "connection": "local", "tasks": [task]}
    (site.parent / "tell.yml").write_text(yaml.safe_dump([play]))
    found = []
    for cwd, named in ((PROJECT, str(site)), (site.parent, "mine"), (site, ".")):
        code, output = ansible("ansible-playbook", "-i", named, site.parent / "tell.yml", cwd=cwd)
        assert code == 0, output
        found.append(json.loads((site.parent / "app1.example.com.json").read_text()))
    assert found[0]["app_source"] == f"{PROJECT}/app"
    assert found[0]["app_build_dir"] == f"{PROJECT}/.build"
    assert found[0]["app_auth_keys"] in ('{"keys": []}', {"keys": []})
    assert found[0]["certificates_ca_dir"] == "~/quantdesk-pki"
    assert found[1:] == found[:1] * 2


def test_its_file_of_hosts_alone_is_refused_and_the_folder_is_asked_for(site: Path) -> None:
    # Of a file, Ansible reads the group_vars beside it, and not the other files of the folder.
    code, output = ansible(
        "ansible-playbook", "-i", "mine/hosts.yml", PROJECT / "playbooks/preflight.yml", cwd=site.parent
    )
    words = " ".join(output.split())
    assert code != 0
    assert "inventory/base: found" in words
    assert "expected the folder of the inventory, as in -i inventory/mine" in words
    assert "PLAY [Preflight]" in words
    assert "Gather facts" not in words


@pytest.mark.parametrize("named", ["mine", "mine/hosts.yml"])
def test_a_vault_file_in_clear_is_found_however_the_inventory_is_named(site: Path, named: str) -> None:
    tasks = yaml.safe_load((PROJECT / "playbooks/verify.yml").read_text())
    control = next(
        task for play in tasks for task in play.get("tasks", ()) if task["name"] == "Check the inventory's vault files"
    )
    play = {"hosts": "all:!localhost", "gather_facts": False, "tasks": [control]}
    (site.parent / "control.yml").write_text(yaml.safe_dump([play]))
    vault = site / "group_vars/all/vault.yml"
    vault.write_text("vault_nothing: in clear\n")
    code, output = ansible("ansible-playbook", "-i", named, site.parent / "control.yml", cwd=site.parent)
    assert code != 0
    assert "vault files that are not encrypted: found 'vault.yml'" in " ".join(output.split())
    password = site.parent / "password"
    password.write_text("correct-horse-battery\n")
    vaulted = ("--vault-password-file", password)
    subprocess.run([Path(sys.executable).parent / "ansible-vault", "encrypt", *vaulted, vault], check=True)
    code, output = ansible("ansible-playbook", "-i", named, *vaulted, site.parent / "control.yml", cwd=site.parent)
    assert code == 0, output
