"""The packet filter: who is let in, who is dropped, and that nobody else's rules are touched."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from conftest import ADDRESSES, REDIS_ADDRESS, eventually

KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
    print("connected")
except TimeoutError:
    print("time-out")
except OSError as error:
    print(error)
"""


def knock(host: Host, address: str, port: int) -> str:
    """Return what a TCP connection from a host comes to."""
    answer: str = host.check_output("python3 -c %s %s %s", KNOCK, address, str(port))
    return answer


@pytest.mark.parametrize("port", [6379, 6380])
def test_a_stranger_times_out(outsider: Host, port: int) -> None:
    assert knock(outsider, REDIS_ADDRESS, port) == "time-out"


def test_the_application_host_gets_in(app1: Host) -> None:
    assert knock(app1, REDIS_ADDRESS, 6380) == "connected"


def test_a_port_that_is_not_declared_is_dropped_for_the_application_host_too(app1: Host) -> None:
    assert knock(app1, REDIS_ADDRESS, 6379) == "time-out"


def test_a_stranger_does_not_reach_the_application(outsider: Host) -> None:
    assert knock(outsider, ADDRESSES["app1"], 3002) == "time-out"


def test_ssh_stays_open(outsider: Host) -> None:
    assert knock(outsider, REDIS_ADDRESS, 22) == "connected"


def test_ipv6_is_dropped_as_well(redis1: Host, outsider: Host) -> None:
    link_local = redis1.check_output("ip -6 -brief address show dev eth0 scope link | awk '{print $3}' | cut -d/ -f1")
    assert knock(outsider, f"{link_local}%eth0", 22) == "connected"
    assert knock(outsider, f"{link_local}%eth0", 6380) == "time-out"


def test_other_tables_survive_a_reload_and_ours_survives_a_flush(redis1: Host) -> None:
    redis1.check_output(
        "systemctl start nftables && systemctl restart nftables-quantdesk && nft add table inet foreign"
    )
    try:
        redis1.check_output("systemctl reload nftables-quantdesk")
        assert "table inet foreign" in redis1.check_output("nft list tables")
        # Debian's own unit flushes everything, whoever made it; ours comes back after it, by a job of its own.
        for action in ("reload", "restart"):
            redis1.check_output(f"systemctl {action} nftables")
            assert "table inet foreign" not in redis1.check_output("nft list tables")
            tables = eventually(lambda: redis1.check_output("nft list tables"), lambda found: "quantdesk" in found)
            assert "table inet quantdesk" in tables
    finally:
        redis1.run("nft delete table inet foreign")
        redis1.check_output("systemctl disable --now nftables")
        redis1.check_output("systemctl start nftables-quantdesk")
