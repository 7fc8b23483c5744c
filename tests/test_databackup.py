"""The program databackup with real Redis servers and a real restic repository; faults: test_databackup_faults.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from databackup import catalog, kinds, rdb
from databackup.restic import Restic
from databackup.settings import Repository
from databackup_host import REPOSITORY_PASSWORD, Host, Process, make_repository


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds nothing yet."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "password").write_text(f"{REPOSITORY_PASSWORD}\n")
    location, password, cache = (str(folder / name) for name in ("repository", "password", "cache"))
    make_repository(Restic(Repository(location, password, cache=cache)))
    return folder / "repository"


@pytest.fixture
def host(tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(kinds, "Unit", Process)
    shutil.copytree(empty, tmp_path / "repository")
    made = Host(tmp_path)
    try:
        made.fill()
        yield made
    finally:
        made.service.stop()


def test_a_restore_brings_back_all_types_and_keeps_what_was_there(host: Host) -> None:
    before = host.count()
    made = host.backup()
    host.call("FLUSHALL")
    host.call("SET", "later", "1")
    done = host.restore()
    assert done["found"] == done["expected"]
    assert done["in_backup"] == {"keys": made["items"], "digest": made["digest"]}
    assert host.count() == before
    assert (Path(done["kept"]) / "appendonlydir").is_dir()
    # With the append-only file on, too, the data are there after a restart.
    host.service.stop()
    host.service.start(60)
    assert host.count() == before


def test_a_restore_that_counts_counts_all_databases(host: Host) -> None:
    host.call("FLUSHALL")
    with host.client() as client:
        for number in ("0", "3"):
            client.call("SELECT", number)
            client.call("SET", "key", "value")
    made = host.backup()
    host.call("FLUSHALL")
    done = host.restore(verify="count")
    assert done["compared"] == "count"
    assert done["found"]["keys"] == made["items"] == 2


def test_the_digest_is_that_of_the_data_not_of_their_order(host: Host) -> None:
    first = host.backup()["digest"]
    host.service.stop()
    host.service.start(60)
    assert host.backup()["digest"] == first
    host.call("SADD", "s1", "one-more")
    assert host.backup()["digest"] != first


def test_a_cut_off_stream_is_no_snapshot(host: Host) -> None:
    backup = host.backup()
    whole = b"".join(host.restic.read(backup["data"], "/redis.rdb"))
    assert rdb.summarize(iter([whole])).digest == backup["digest"]
    assert rdb.summarize(whole[i : i + 7] for i in range(0, len(whole), 7)).keys == backup["items"]
    with pytest.raises(rdb.Damaged, match="cut off"):
        rdb.summarize(iter([whole[:-9]]))


def test_a_copy_of_the_repository_is_as_good(host: Host) -> None:
    """`restic copy` gives all snapshots new ids; nothing of it may be taken for the left-overs of a run."""
    made = host.backup()
    first = host.restic
    host.set_repository(location=str(host.folder / "copy"))
    make_repository(host.restic)
    source = ["--from-repo", first.repository.location, "--from-password-file", first.repository.password_file]
    host.restic.run("copy", *source, what="the copy")
    assert catalog.orphans(host.restic, datetime.now(UTC) + timedelta(hours=1)) == []
    host.call("FLUSHALL")
    done = host.restore()
    assert done["found"] == {"keys": made["items"], "digest": made["digest"]}
