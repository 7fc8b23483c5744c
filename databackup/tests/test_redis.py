"""The program databackup with real Redis servers and a real restic repository; faults: test_faults.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from databackup import catalog
from databackup.redis import kind as redis_kind
from databackup.redis import rdb
from databackup.restic import Restic
from databackup.settings import Repository
from host import REDIS_8, REPOSITORY_PASSWORD, VALKEY_8, Host, Process, make_repository

pytestmark = pytest.mark.slow


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
    monkeypatch.setattr(redis_kind, "Unit", Process)
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
    with pytest.raises(rdb.Damaged, match="truncated"):
        rdb.summarize(iter([whole[:-9]]))


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (REDIS_8, rdb.Origin("Redis", "8.0.2", 12)),
        (VALKEY_8, rdb.Origin("Valkey", "8.1.1", 11)),
        (b"VALKEY080" + VALKEY_8[9:], rdb.Origin("Valkey", "8.1.1", 80)),
        # Cut within what it says of itself.
        (REDIS_8[:24], rdb.Origin("Redis", "", 12)),
        (REDIS_8[:9], rdb.Origin("Redis", "", 12)),
        (REDIS_8[:8], None),
        (REDIS_8.replace(b"8.0.2", b"later"), rdb.Origin("Redis", "", 12)),
        (b"", None),
        (b"*2\r\n$6\r\nSELECT\r\n", None),
    ],
)
def test_the_first_bytes_say_who_wrote_a_snapshot(head: bytes, wanted: rdb.Origin | None) -> None:
    assert rdb.origin(head) == wanted


@pytest.mark.parametrize(
    ("origin", "installed", "wanted"),
    [
        (("Redis", "7.0.15", 10), (7, 0, 15), False),
        (("Redis", "7.2.6", 11), (7, 0, 15), True),
        (("Redis", "7.2.6", 11), (7, 2, 0), False),
        (("Valkey", "8.1.1", 11), (7, 2, 0), False),
        (("Redis", "8.0.2", 12), (7, 2, 0), True),
        (("Redis", "8.0.2", 12), (7, 4, 1), False),
        (("Valkey", "9.0.1", 80), (8, 0, 2), True),
        # That Redis has no such format: the number is damaged.
        (("Redis", "7.0.15", 12), (7, 0, 15), False),
        # A format that is not known here, of the version that is installed.
        (("Redis", "9.0.0", 20), (9, 0, 0), False),
        (("Redis", "9.1.0", 20), (9, 0, 0), True),
    ],
)
def test_what_an_installed_server_does_not_read(
    origin: tuple[str, str, int], installed: tuple[int, ...], wanted: bool
) -> None:
    assert rdb.Origin(*origin).beyond(installed) is wanted


def test_a_snapshot_of_a_newer_server_is_no_damage_to_a_backup() -> None:
    for size in (7, 4096):
        with pytest.raises(rdb.Newer, match=r"written by Redis 8.0.2 \(RDB format 12\); the newest .* reads is 11"):
            rdb.summarize(REDIS_8[i : i + size] for i in range(0, len(REDIS_8), size))


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
