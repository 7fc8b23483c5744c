"""Which backups stay: by when they arrived, whatever a host says of their times."""

from __future__ import annotations

import time
from typing import Any

import pytest

from conftest import load

retention = load("plugins/module_utils/backup_retention.py", "ansible.module_utils.backup_retention")
load("plugins/module_utils/backup_places.py", "ansible.module_utils.backup_places")
load("plugins/module_utils/redis_files.py", "ansible.module_utils.redis_files")
module = load("plugins/modules/backup_repository.py", "backup_repository")

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
