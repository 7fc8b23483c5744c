"""What is pinned twice is pinned alike, and the locks name no place to fetch from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ansible
import pytest
import yaml

from conftest import PROJECT

COLLECTIONS = yaml.safe_load((PROJECT / "requirements.yml").read_text())["collections"]
LOCKS = [*(PROJECT / "requirements").glob("*.txt"), PROJECT / "app/requirements.txt"]


@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda collection: collection["name"])
def test_requirements_yml_names_the_versions_that_ansible_brings(collection: dict[str, str]) -> None:
    folder = Path(ansible.__file__).parents[1] / "ansible_collections" / collection["name"].replace(".", "/")
    installed = json.loads((folder / "MANIFEST.json").read_text())["collection_info"]["version"]
    assert collection["version"] == installed


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(PROJECT)))
def test_a_lock_has_hashes_and_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert len(re.findall(r"^[a-z0-9-]+(\[.*\])?==", text, re.MULTILINE)) > 5
    assert "--hash=sha256:" in text
    assert not re.search(r"index-url|find-links|https?://", text)


# Of one host, while others may be down, which the preflight would not have; they check their own orders. adopt.yml is
# for hosts that the preflight refuses. backup_maintain.yml is run by a timer, whatever other hosts are like just then.
ALONE = {"adopt.yml", "backup_maintain.yml", "restore.yml", "repair.yml"}
# Plays that backup.yml and rebuild.yml share. To run them alone is for docs/recovery.md to say.
SHARED = {"backup_migrate.yml", "backup_prepare.yml"}


@pytest.mark.parametrize("playbook", sorted((PROJECT / "playbooks").glob("*.yml")), ids=lambda path: path.name)
def test_every_playbook_begins_with_the_preflight(playbook: Path) -> None:
    if playbook.name in {"preflight.yml", *ALONE, *SHARED}:
        return
    first = yaml.safe_load(playbook.read_text())[0]["ansible.builtin.import_playbook"]
    while first != "preflight.yml":
        first = yaml.safe_load((PROJECT / "playbooks" / first).read_text())[0]["ansible.builtin.import_playbook"]
