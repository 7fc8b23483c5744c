"""Runs with --limit: what hosts must know of those that it leaves out is asked for before anything changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_bad_input import SECRET, problems, run, variables

from conftest import PROJECT

pytestmark = pytest.mark.slow

SSH = {
    "backup_repository": "rclone:lab/one",
    "backup_master_password": SECRET * 2,
    "backup_ssh_host": "192.0.2.51",
    "backup_sources": [],
}
# The one line that this machine, which no run has been on, has in the report of a run with a limit.
HOST_KEY = "backup_ssh_host_keys: found 'no key, neither here nor on the host'; expected the public key of 192.0.2.51"
OTHERS = "keys of hosts that are not in this run: found 'no key of "


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("one", rf"{HOST_KEY}.*with backup1 in it\. \[one\]"),
        ("two,backup1", rf"{OTHERS}one'; .*with one in it\. \[backup1\]"),
    ],
)
def test_a_run_that_leaves_out_who_it_must_learn_of_is_refused(tmp_path: Path, limit: str, expected: str) -> None:
    # What the backup host tells in a run that it is part of.
    told = "{{ ['ssh-ed25519 AAAA'] if 'backup1' in ansible_play_hosts_all else [] }}"
    good = {**variables(), **SSH, "backup_ssh_host_keys": told}
    words = ["--limit", limit, "-e", "preflight_backup=true"]
    result = run(tmp_path, {"one": good}, {"two": good}, *words, backup_repository={"backup1": good})
    assert result.returncode != 0
    found = problems(result.stdout)
    assert len(found) == 1, result.stdout
    assert re.match(expected, found[0]), found
    assert set(re.findall(r"changed=(\d+)", result.stdout)) == {"0"}


def test_every_playbook_that_makes_backups_asks() -> None:
    for name in ("site", "backup", "rebuild"):
        text = (PROJECT / f"playbooks/{name}.yml").read_text()
        assert "preflight_backup: true" in text.split("import_playbook")[1], name


def test_an_old_repository_in_another_place_is_named(tmp_path: Path) -> None:
    """Earlier versions had it in backup_repository_path, which may have been any."""
    store = tmp_path / "store"
    (store / "repository").mkdir(parents=True)
    (store / "repository/config").write_text("x")
    backup1 = {**variables(), **SSH, "backup_repository_path": str(store)}
    words = ["--limit", "backup1", "-e", "preflight_backup=true"]
    result = run(tmp_path, {}, {}, *words, backup_repository={"backup1": backup1})
    assert any(
        line.startswith("backup_repository_single_path: ") and f"expected {store}/repository, where" in line
        for line in problems(result.stdout)
    ), result.stdout
    # As it is now, below backup_repository_path, it is right.
    backup1["backup_repository_single_path"] = f"{store}/repository"
    right = run(tmp_path, {}, {}, *words, backup_repository={"backup1": backup1})
    assert "backup_repository_single_path" not in "".join(line.split(":")[0] for line in problems(right.stdout)), (
        right.stdout
    )


def test_a_policy_that_the_backup_host_does_not_know_is_named(tmp_path: Path) -> None:
    """Maintenance goes by that host's, whatever a group or a host is given."""
    short = {"daily": 400}
    hosts = {
        "one": {**variables(), **SSH, "backup_retention": short},
        "two": {**variables(), **SSH},
    }
    backup1 = {**variables(), **SSH}
    result = run(tmp_path, hosts, {}, backup_repository={"backup1": backup1})
    found = [line for line in problems(result.stdout) if line.startswith("backup_retention: ")]
    assert len(found) == 1, result.stdout
    assert "found {'daily': 400}" in found[0]
    assert "set backup_retention in group_vars/all. [one]" in found[0]
    backup1["backup_retention"] = short
    hosts["two"]["backup_retention"] = short
    right = run(tmp_path, hosts, {}, backup_repository={"backup1": backup1})
    assert "backup_retention: " not in right.stdout


def test_a_host_of_an_earlier_version_is_not_converted_without_the_backup_host(tmp_path: Path) -> None:
    """It would be given the place of a repository for which the backup host has no account."""
    config = tmp_path / "databackup"
    (config / "ssh").mkdir(parents=True)
    (config / "ssh/known_hosts").write_text("192.0.2.51 ssh-ed25519 AAAA\n")
    (config / "ssh/id_ed25519.pub").write_text("ssh-ed25519 BBBB databackup@one\n")
    before = {"location": "sftp:backup-backup1@192.0.2.51:/repository", "password_file": "x"}
    (config / "repository.json").write_text(json.dumps(before, indent=4))
    words = ["--limit", "one", "-e", "preflight_backup=true", "-e", f"__backup_config={config}"]
    good = {**variables(), **SSH}
    refused = run(tmp_path, {"one": good}, {}, *words, backup_repository={"backup1": good})
    found = problems(refused.stdout)
    assert [line.split(";")[0] for line in found] == [f"backup_repository: found '{before['location']}'"], (
        refused.stdout
    )
    assert "backup1 makes an account for it" in found[0]
    (config / "repository.json").write_text(json.dumps({**before, "location": SSH["backup_repository"]}, indent=4))
    right = run(tmp_path, {"one": good}, {}, *words, backup_repository={"backup1": good})
    assert "backup_repository: " not in right.stdout, right.stdout
