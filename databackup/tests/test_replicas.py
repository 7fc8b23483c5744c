"""Who backs the data up where there is a replica."""

from __future__ import annotations

import pytest

from databackup.redis.backup import left_to_replica

ONLINE = "ip=10.0.0.2,port=6380,state=online,offset=9,lag=0"


@pytest.mark.parametrize(
    ("told", "peers", "by"),
    [
        ({"role": "master", "slave0": ONLINE}, ["10.0.0.2"], "10.0.0.2"),
        ({"role": "master", "slave0": ONLINE}, [], ""),
        ({"role": "master", "slave0": ONLINE}, ["10.0.0.3"], ""),
        ({"role": "master", "slave0": ONLINE.replace("online", "wait_bgsave")}, ["10.0.0.2"], ""),
        ({"role": "master", "slave0": ONLINE.replace("lag=0", "lag=60")}, ["10.0.0.2"], ""),
        ({"role": "slave"}, ["10.0.0.2"], ""),
        ({"role": "master", "slave_read_only": "1"}, ["10.0.0.2"], ""),
    ],
)
def test_a_primary_leaves_it_to_a_replica_that_is_well_and_backs_itself_up(
    told: dict[str, str], peers: list[str], by: str
) -> None:
    assert left_to_replica(told, peers) == by
