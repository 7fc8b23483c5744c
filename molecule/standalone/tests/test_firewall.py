"""The packet filter: who is let in, who is dropped, and that nobody else's rules are touched."""

from __future__ import annotations

import socket
import subprocess

import pytest
from testinfra.host import Host

from conftest import ADDRESSES, ENGINE, PREFIX, REDIS_ADDRESS, eventually, health

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


def tables(host: Host) -> str:
    """Return the names of a host's tables."""
    found: str = host.check_output("nft list tables")
    return found


def test_other_tables_survive_a_reload_and_ours_survives_a_flush(redis1: Host) -> None:
    redis1.check_output("systemctl start nftables && nft add table inet foreign")
    rules = redis1.check_output("nft --stateless list table inet quantdesk")
    try:
        redis1.check_output("systemctl reload nftables-quantdesk")
        assert "table inet foreign" in tables(redis1)
        # Debian's own unit flushes everything, whoever made it; by the end of the same job ours is there again.
        for action in ("reload", "restart", "stop", "start"):
            redis1.check_output(f"nft add table inet foreign; systemctl {action} nftables")
            assert "table inet foreign" not in tables(redis1)
            assert redis1.check_output("nft --stateless list table inet quantdesk") == rules
    finally:
        redis1.run("nft delete table inet foreign")
        redis1.check_output("systemctl disable --now nftables")
    # Nor does a stop of our own unit open the host.
    redis1.check_output("systemctl stop nftables-quantdesk")
    assert redis1.check_output("nft --stateless list table inet quantdesk") == rules
    redis1.check_output("systemctl start nftables-quantdesk")


def test_a_host_whose_rules_do_not_load_comes_up_closed_and_can_be_repaired(outsider: Host, app1: Host) -> None:
    # The application's port: Redis' own unit would shut strangers out by itself.
    app1.check_output("cp -a /etc/nftables-quantdesk.conf /root/ && echo 'no rules' >> /etc/nftables-quantdesk.conf")
    try:
        subprocess.run([ENGINE, "restart", "-t", "20", f"{PREFIX}app1"], check=True, capture_output=True)
        state = eventually(lambda: inside("app1", "systemctl", "is-active", "quantdesk@3002"), "active".__eq__, 90)
        assert state == "active"
        assert inside("app1", "systemctl", "is-active", "nftables-quantdesk") == "failed"
        # It serves, and nobody reaches it; ssh is the way to repair it.
        assert knock(outsider, ADDRESSES["app1"], 3002) == "time-out"
        assert knock(outsider, ADDRESSES["app1"], 22) == "connected"
        assert "policy drop" in inside("app1", "nft", "list", "chain", "inet", "quantdesk", "forward")
        with pytest.raises(OSError, match="timed out"):
            socket.create_connection((ADDRESSES["app1"], 3002), 2)
    finally:
        inside("app1", "mv", "/root/nftables-quantdesk.conf", "/etc/nftables-quantdesk.conf")
        inside("app1", "systemctl", "restart", "nftables-quantdesk")
    assert inside("app1", "systemctl", "is-active", "nftables-quantdesk") == "active"
    # Without the table, it is reached: what is asked about is the packet filter.
    inside("app1", "nft", "delete", "table", "inet", "quantdesk")
    try:
        assert knock(outsider, ADDRESSES["app1"], 3002) == "connected"
    finally:
        inside("app1", "systemctl", "reload", "nftables-quantdesk")
    assert eventually(lambda: health(app1)[0], lambda code: code == 200, 60) == 200


def test_a_host_passes_nothing_on(redis1: Host) -> None:
    # Two networks behind it that only it connects.
    for number in (1, 2):
        redis1.check_output(
            f"ip netns add side{number} && ip link add side{number} type veth peer name eth0 netns side{number}"
            f" && ip address add 10.99.{number}.1/24 dev side{number} && ip link set side{number} up"
            f" && ip -n side{number} address add 10.99.{number}.2/24 dev eth0 && ip -n side{number} link set eth0 up"
            f" && ip -n side{number} route add default via 10.99.{number}.1"
        )
    forward = redis1.check_output("cat /proc/sys/net/ipv4/ip_forward")
    ask = "ip netns exec side1 timeout 2 python3 -c %s"
    send = "import socket; socket.create_connection(('10.99.2.2', 9), 1)"
    try:
        redis1.check_output("echo 1 > /proc/sys/net/ipv4/ip_forward")
        # Nobody listens there: what is passed on is refused, what is dropped says nothing.
        assert "TimeoutError" in redis1.run(ask, send).stderr
        # The packets are what is asked about: without the rule they are passed on.
        redis1.check_output("nft add chain inet quantdesk forward '{ policy accept ; }'")
        assert "ConnectionRefusedError" in redis1.run(ask, send).stderr
    finally:
        redis1.run("systemctl reload nftables-quantdesk")
        redis1.run(f"ip netns delete side1; ip netns delete side2; echo {forward} > /proc/sys/net/ipv4/ip_forward")


def test_the_application_connects_to_what_is_declared_and_to_nothing_else(app1: Host) -> None:
    as_app = "runuser -u quantdesk -- python3 -c %s %s %s"
    for address, port in ((ADDRESSES["outsider"], "22"), (REDIS_ADDRESS, "22"), ("127.0.0.1", "22")):
        assert "No route to host" in app1.check_output(as_app, KNOCK, address, port)
        # Others are not concerned.
        assert knock(app1, address, int(port)) == "connected"
    assert app1.check_output(as_app, KNOCK, REDIS_ADDRESS, "6380") == "connected"


def inside(name: str, *words: str) -> str:
    """Return what a program of a host prints, whatever its packet filter lets in."""
    command = [ENGINE, "exec", f"{PREFIX}{name}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
