"""Times of backups where a host or the controller has a time zone of its own, and changes the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery import inputs as report
from databackup.redis import log
from test_backup_retention import module, retention
from test_inputs import inputs

from databackup import catalog

# As POSIX writes New York and Kolkata: they need no file of the host.
ZONES = ["UTC0", "EST5EDT,M3.2.0,M11.1.0", "IST-5:30"]
# New York's clock went from 01:59:59 to 01:00:00 at 06:00 UTC of this day, and forward at 07:00 UTC of the other one.
BACK, FORWARD = datetime(2026, 11, 1, 6, tzinfo=UTC), datetime(2026, 3, 8, 7, tzinfo=UTC)


@pytest.fixture(params=ZONES, ids=["UTC", "New York", "Kolkata"], autouse=True)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The time zone of this process."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("change", [BACK, FORWARD], ids=["back", "forward"])
def test_the_same_backups_are_kept_in_every_zone(change: datetime) -> None:
    # One each half hour of the three days around the change.
    times = {f"{half}": change.timestamp() + half * 1800 for half in range(-72, 72)}
    backups = [retention.Arrived(name, "redis", at) for name, at in times.items()]
    newest = max(times.values())
    hourly = {newest - hours * 3600 for hours in range(24)}
    # The last one of each of three days in UTC, of which two are among the hourly ones.
    daily = {newest - newest % 86400 - 86400 - 1800}
    assert {times[name] for name in retention.kept(backups, {"hourly": 24, "daily": 3})} == hourly | daily


@pytest.mark.parametrize("change", [BACK, FORWARD], ids=["back", "forward"])
@pytest.mark.parametrize("minutes", [-90, -30, 30, 90])
def test_a_time_without_a_zone_is_utc_wherever_it_is_read(change: datetime, minutes: int) -> None:
    seconds = change.timestamp() + minutes * 60
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for written in (text, f"{text}Z", f"{text}+00:00", f"{text}.000000000Z"):
        assert catalog.parse_time(written).timestamp() == seconds
    assert module.at({"time": f"{text}.123456789Z"}) == pytest.approx(seconds, abs=1)
    assert inputs.as_moment(text).timestamp() == seconds
    assert report.moment(text, "lost_at") == seconds


@pytest.mark.parametrize("change", [BACK, FORWARD], ids=["back", "forward"])
@pytest.mark.parametrize("minutes", [-90, -30, 30, 90])
def test_redis_log_is_read_in_the_zone_of_the_host(change: datetime, minutes: int) -> None:
    seconds = int(change.timestamp()) + minutes * 60
    line = time.strftime("812:M %d %b %Y %H:%M:%S.123 # Truncating the AOF", time.localtime(seconds))
    # In the hour that comes twice, the log does not tell which of both it is.
    assert seconds in log.times_of(line)
