"""The repository that all hosts shared is copied into those of its hosts, with a real restic, as a plain user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import load

pytestmark = pytest.mark.slow

load("plugins/module_utils/backup_retention.py")
load("plugins/module_utils/backup_places.py")
load("plugins/module_utils/redis_files.py")
module = load("plugins/modules/backup_repository.py")

OLD, NEW = "the-old-one", "the-new-one"
RUN = SimpleNamespace(check_mode=False, params={"lock_timeout": 0})


def restic(folder: Path, *words: str, content: str = "") -> str:
    """Run restic as an earlier version of a host did."""
    return subprocess.run(
        ["restic", "-r", str(folder), "--no-cache", "--quiet", *words],
        env={**os.environ, "RESTIC_PASSWORD": OLD},
        capture_output=True,
        text=True,
        check=True,
        input=content,
    ).stdout


def backup(folder: Path, when: str, host: str = "redis1", environment: str = "lab") -> str:
    """Make a snapshot that tells a time, and return its id."""
    before = {path.name for path in (folder / "snapshots").iterdir()}
    tags = f"databackup,manifest,source=redis,environment={environment}"
    content = os.urandom(2000).hex()
    words = ["backup", "--stdin", "--stdin-filename", "/redis.json", "--time", when, "--host", host, "--tag", tags]
    restic(folder, *words, content=content)
    return next(path.name for path in (folder / "snapshots").iterdir() if path.name not in before)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that users other than root reach, with the repository of before."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    # This machine's own may be root's.
    (folder / "scratch").mkdir()
    (folder / "scratch").chmod(0o1777)
    monkeypatch.setattr(module, "SCRATCH", str(folder / "scratch"))
    restic(folder / "single", "init")
    yield folder
    shutil.rmtree(folder)


def own(place: Path, host: str = "redis1") -> Any:
    """Return a host's repository, which is not there yet."""
    folder = place / host
    folder.mkdir(mode=0o750)
    shutil.chown(folder, "nobody")
    return module.Repository(host, NEW, str(folder), "nobody")


def test_what_cannot_be_read_is_named_and_the_others_are_copied(place: Path) -> None:
    single = place / "single"
    kept = [backup(single, "2026-01-01 10:00:00"), backup(single, "2026-01-02 10:00:00")]
    packs = {path for path in (single / "data").rglob("*") if path.is_file()}
    lost = backup(single, "2026-01-03 10:00:00")
    for path in {path for path in (single / "data").rglob("*") if path.is_file()} - packs:
        path.unlink()
    old = module.Single(str(single), OLD, [])
    repository = own(place)
    done = module.migrated(RUN, repository, old, old.sorted("lab")[0]["redis1"])
    assert "1 of 3 snapshots were not copied" in done["failed"], done
    assert f'backup_repository_single_without: ["{lost[:8]}"]' in done["failed"]
    assert module.originals(repository) == set(kept)
    # Left out by name, the rest is whole.
    old = module.Single(str(single), OLD, [lost[:8]])
    done = module.migrated(RUN, repository, old, old.sorted("lab")[0]["redis1"])
    assert done == {"snapshots": 2, "copied": 0, "changed": False}


def test_a_copy_from_the_future_counts_from_when_its_file_came(place: Path) -> None:
    single = place / "single"
    made = backup(single, "2026-01-01 10:00:00")
    forged = backup(single, "2099-01-01 10:00:00")
    old = module.Single(str(single), OLD, [])
    repository = own(place)
    module.migrated(RUN, repository, old, old.sorted("lab")[0]["redis1"])
    arrivals = repository.arrivals()
    came = {item["original"]: arrivals[item["id"]] for item in repository.snapshots()}
    assert came[forged] <= time.time()
    assert time.gmtime(came[made])[:3] in ((2026, 1, 1), (2025, 12, 31))
    assert module.odd_times(repository.snapshots(), arrivals) == 1


def test_a_repository_is_made_before_anything_is_copied(place: Path) -> None:
    backup(place / "single", "2026-01-01 10:00:00")
    repository = own(place)
    old = module.Single(str(place / "single"), OLD, [])
    assert module.initialised(RUN, repository, old) == {"changed": True}
    assert repository.snapshots() == []
    assert module.initialised(RUN, repository, old) == {"changed": False}


def test_backups_of_other_environments_are_counted(place: Path) -> None:
    single = place / "single"
    backup(single, "2026-01-01 10:00:00")
    backup(single, "2026-01-01 10:00:00", environment="staging")
    backup(single, "2026-01-01 10:00:00", host="../../etc")
    found, left = module.Single(str(single), OLD, []).sorted("lab")
    assert {host: len(items) for host, items in found.items()} == {"redis1": 1}
    assert left == {"staging": 1, "none": 1}


def test_a_wrong_password_is_named(place: Path) -> None:
    with pytest.raises(module.Refused, match="expected backup_single_password to be the backup_password"):
        module.Single(str(place / "single"), "another", []).sorted("lab")
