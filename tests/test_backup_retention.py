"""Which backups stay: by when they arrived, whatever a host says of their times."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import load

retention = load("plugins/module_utils/backup_retention.py")
load("plugins/module_utils/backup_places.py")
load("plugins/module_utils/redis_files.py")
module = load("plugins/modules/backup_repository.py")

DAY = 86400.0
NOW = 1_800_000_000.0


def arrived(*days_ago: float, series: str = "redis") -> list[Any]:
    """Return backups that came so many days ago; each is called after that."""
    return [retention.Arrived(str(days), series, NOW - days * DAY) for days in days_ago]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"last": 2}, {"0", "0.1"}),
        ({"daily": 3}, {"0", "1", "2"}),
        ({"daily": 2, "last": 1}, {"0", "1"}),
        ({"within": "36h"}, {"0", "0.1", "1"}),
        ({"yearly": 9}, {"0", "400"}),
        ({"hourly": 3}, {"0", "0.1", "1"}),
    ],
)
def test_a_policy_keeps_the_last_of_each_period(policy: dict[str, Any], expected: set[str]) -> None:
    assert retention.kept(arrived(400, 2, 1, 0.1, 0), policy) == expected


def test_each_series_is_counted_by_itself() -> None:
    backups = arrived(0, 1) + arrived(5, 6, series="wheels")
    assert retention.kept(backups, {"last": 1}) == {"0", "5"}


def snapshot(number: int, kind: str, stated: float) -> dict[str, Any]:
    """Return a snapshot as restic lists it."""
    tags = ["databackup", kind, "source=redis", "environment=lab"]
    when = time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime(stated))
    return {"id": identity(number), "time": when, "hostname": "redis1", "paths": [f"/{kind}"], "tags": tags}


def identity(number: int) -> str:
    """Return the id of a snapshot."""
    return f"{number:08d}".ljust(64, "0")


def backup(number: int, stated: float) -> list[dict[str, Any]]:
    """Return the two snapshots of a backup."""
    data, manifest = snapshot(number, "data", stated), snapshot(number + 500, "manifest", stated)
    manifest["tags"].append(f"data={data['id'][:8]}")
    return [data, manifest]


def test_backups_from_the_future_push_nothing_out() -> None:
    """A stolen host adds many that say that they are younger than all; genuine ones of each day stay."""
    genuine = [item for day in range(5) for item in backup(day, NOW - day * DAY)]
    forged = [item for number in range(20) for item in backup(100 + number, NOW + 3000 * DAY + number)]
    arrivals = {identity(n + shift): NOW - n * DAY for n in range(5) for shift in (0, 500)}
    arrivals |= {identity(100 + n + shift): NOW + n for n in range(20) for shift in (0, 500)}
    old, orphans = module.doomed(genuine + forged, arrivals, {"daily": 5}, NOW + 60)
    # The last of each day: today's is a forged one, those of the four days before stay with their data.
    assert not {item["id"] for item in genuine[2:]} & {*old, *orphans}
    assert module.odd_times(genuine + forged, arrivals) == 20


def test_data_go_with_their_manifest_and_left_overs_only_after_a_day() -> None:
    snapshots = [*backup(1, NOW), *backup(2, NOW - 2 * DAY)]
    young, old_one, foreign = (dict(snapshots[0], id=identity(n)) for n in (11, 12, 13))
    foreign["tags"] = ["somebody"]
    arrivals = {item["id"]: NOW for item in snapshots[:2]} | {item["id"]: NOW - 2 * DAY for item in snapshots[2:]}
    arrivals |= {young["id"]: NOW - 60, old_one["id"]: NOW - 2 * DAY, foreign["id"]: NOW - 99 * DAY}
    old, orphans = module.doomed([*snapshots, young, old_one, foreign], arrivals, {"last": 1}, NOW)
    assert set(old) == {snapshots[2]["id"], snapshots[3]["id"]}
    assert orphans == [old_one["id"]]


def test_a_copy_is_known_by_the_id_that_it_had() -> None:
    data, manifest = backup(1, NOW)
    copied = dict(data, id=identity(77), original=data["id"])
    arrivals = {copied["id"]: NOW - 9 * DAY, manifest["id"]: NOW}
    assert module.doomed([copied, manifest], arrivals, {"last": 1}, NOW) == ([], [])


class Copies:
    """A repository with copies, as `date_copies` uses one."""

    def __init__(self, folder: Path, snapshots: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.found = snapshots
        for item in snapshots:
            (folder / item["id"]).touch()

    def snapshots(self) -> list[dict[str, Any]]:
        return self.found

    @contextmanager
    def folder_of(self, name: str) -> Iterator[int]:
        assert name == "snapshots"
        handle = os.open(self.folder, os.O_RDONLY)
        yield handle
        os.close(handle)

    def arrivals(self) -> dict[str, float]:
        return {item["id"]: (self.folder / item["id"]).stat().st_mtime for item in self.found}


def test_migrated_backups_from_the_future_push_nothing_out(tmp_path: Path) -> None:
    """Before the migration any host wrote what it liked, such as 48 backups of redis1 of the next years."""
    now = time.time()
    genuine = [item for hour in range(1, 6) for item in backup(hour, now - hour * 3600)]
    forged = [item for number in range(48) for item in backup(100 + number, now + (number + 1) * DAY * 30)]
    snapshots = genuine + forged
    came = {item["id"]: module.at(item) for item in genuine} | {item["id"]: now - 60 for item in forged}
    copies = Copies(tmp_path, [dict(item, id="c" + item["id"][1:], original=item["id"]) for item in snapshots])
    module.date_copies(copies, came)
    arrivals = copies.arrivals()
    old, orphans = module.doomed(copies.found, arrivals, {"last": 8, "hourly": 48}, now)
    # The last of each hour; the forged ones share the one of now, and an hour ago may be the same.
    lost = {item["original"] for item in copies.found if item["id"] in {*old, *orphans}}
    assert not lost & {item["id"] for item in genuine[2:]}
    assert module.odd_times(copies.found, arrivals) == 48
    assert max(arrivals.values()) <= now


def test_a_copy_counts_from_when_it_was_made(tmp_path: Path) -> None:
    made = float(int(time.time())) - 40 * DAY
    copies = Copies(tmp_path, [dict(item, original=item["id"]) for item in backup(1, made)])
    module.date_copies(copies, {item["original"]: made + 5 for item in copies.found})
    assert [round(when - made) for when in copies.arrivals().values()] == [0, 0]
    assert module.odd_times(copies.found, copies.arrivals()) == 0


@pytest.mark.parametrize("told", ["0000-01-01T00:00:00Z", "", "9999-99-99T00:00:00Z"])
def test_a_time_that_is_none_stops_nothing(tmp_path: Path, told: str) -> None:
    snapshots = [dict(item, time=told, original=item["id"]) for item in backup(1, NOW)]
    copies = Copies(tmp_path, snapshots)
    module.date_copies(copies, dict.fromkeys(copies.arrivals(), NOW))
    assert module.odd_times(snapshots, copies.arrivals()) == 1


def test_a_backup_without_a_host_is_listed() -> None:
    class Listed:
        host, there = "redis1", True

        def snapshots(self) -> list[dict[str, Any]]:
            found = backup(1, NOW)
            for item in found:
                del item["hostname"]
            return found

    assert [(item["host"], item["said"]) for item in module.listed(Listed())["backups"]] == [("redis1", "")]
