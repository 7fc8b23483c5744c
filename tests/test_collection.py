"""This checkout as the collection quantdesk.redis: what is built, and what a foreign project gets of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_bad_input import OWN, variables

from conftest import PROJECT

pytestmark = pytest.mark.slow

TOOLS = Path(sys.executable).parent
# A checkout of an operator has more than git knows of.
PRIVATE = (
    *("inventory/acme/group_vars/all/vault.yml", "inventory/production/pki/ca.key", ".lab/secrets/redis_password"),
    *("output/site.log", ".build/wheels.tar", ".venv/bin/python", "roles/redis/__pycache__/x.pyc"),
)
# What of the checkout is part of the collection.
BUILT = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "requirements.yml"),
    *("databackup/src", "docs", "inventory/base", "meta", "playbooks", "plugins", "roles"),
)
ACTIONS = sorted(path.stem for path in PROJECT.glob("plugins/action/*.py"))
MODULES = sorted(path.stem for path in PROJECT.glob("plugins/modules/*.py"))
ROLES = sorted(path.parent.parent.name for path in PROJECT.glob("roles/*/meta/main.yml"))


def run(folder: Path, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of Ansible in a folder, without anything that this checkout has set."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_") and name != "PYTHONPATH"
    }
    return subprocess.run(
        [TOOLS / program, *words], cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """All files that git knows."""
    done = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if os.path.lexists(PROJECT / name)]


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory, tracked: list[str]) -> Path:
    """The collection, built of a copy of this checkout that has an operator's own files, too."""
    folder = tmp_path_factory.mktemp("a checkout")
    for name in (*tracked, *PRIVATE):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in PRIVATE:
            path.write_text("of this site alone\n")
        else:
            shutil.copy2(PROJECT / name, path, follow_symlinks=False)
    done = run(folder, "ansible-galaxy", "collection", "build", "--output-path", folder / "built")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "built").iterdir()
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tarball: Path) -> Path:
    """A foreign project: the collection, installed without a network, and playbooks and an inventory of its own."""
    folder = tmp_path_factory.mktemp("foreign project")
    (folder / "ansible.cfg").write_text("[defaults]\ncollections_path = collections\ninventory = hosts.yml\n")
    done = run(folder, "ansible-galaxy", "collection", "install", "--offline", "-p", "collections", tarball)
    assert done.returncode == 0, done.stdout + done.stderr
    hosts = {"cache1": {**variables(), "redis_maxmemory": "64mb"}, "cache2": {**variables(), "redis_maxmemory": "much"}}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"cache": {"hosts": hosts}}))
    tasks: list[dict[str, Any]] = [
        {
            "name": "Check the inputs",
            "ansible.builtin.include_role": {"name": "quantdesk.redis.redis", "tasks_from": "preflight"},
        }
    ]
    plays = [
        {"name": "Inputs", "hosts": "cache", "gather_facts": False, "tasks": tasks},
        {"name": "Redis", "hosts": "cache", "gather_facts": False, "roles": ["quantdesk.redis.redis"]},
    ]
    (folder / "cache.yml").write_text(yaml.safe_dump(plays[1:], sort_keys=False))
    (folder / "inputs.yml").write_text(yaml.safe_dump(plays[:1], sort_keys=False))
    return folder


def test_it_is_built_of_what_belongs_to_it_and_of_nothing_else(tarball: Path, tracked: list[str]) -> None:
    with tarfile.open(tarball) as archive:
        built = {member.name for member in archive if not member.isdir()} - {"MANIFEST.json", "FILES.json"}
    belongs = {name for name in tracked if name.startswith(tuple(f"{part}/" for part in BUILT)) or name in BUILT}
    belongs -= {name for name in belongs if name.endswith("README.in.md")} | {"docs/role_readme.py"}
    assert built - belongs == set()
    assert belongs - built == set()


def test_a_foreign_playbook_finds_the_role(project: Path) -> None:
    done = run(project, "ansible-playbook", "--syntax-check", "cache.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_foreign_inventory_is_checked_by_the_roles_preflight(project: Path) -> None:
    done = run(project, "ansible-playbook", "inputs.yml")
    assert done.returncode != 0
    said = [line.strip()[2:] for line in done.stdout.splitlines() if line.strip().startswith("- ")]
    wrong = [line for line in said if line.startswith("redis_maxmemory: found 'much'; expected a size")]
    assert [line.endswith("[cache2]") for line in wrong] == [True], done.stdout + done.stderr
    # This machine may have a Redis of its own.
    assert [line for line in said if not OWN.match(line) and line not in wrong] == []


def test_each_module_and_action_shows_its_documentation(project: Path) -> None:
    names = [f"quantdesk.redis.{name}" for name in sorted({*MODULES, *ACTIONS})]
    done = run(project, "ansible-doc", "--json", *names)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == names
    assert [name for name, text in found.items() if not text["doc"]["short_description"]] == []


def test_each_role_shows_its_inputs(project: Path) -> None:
    done = run(project, "ansible-doc", "--json", "-t", "role", *(f"quantdesk.redis.{name}" for name in ROLES))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == [f"quantdesk.redis.{name}" for name in ROLES]
    assert [name for name, text in found.items() if not text["entry_points"]["main"]["options"]] == []
