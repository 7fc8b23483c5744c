"""The packet filter: who is let in, who is dropped, and that nobody else's rules are touched."""

from __future__ import annotations

import subprocess

import pytest
from testinfra.host import Host

from conftest import ADDRESSES, PREFIX, REDIS_ADDRESS, eventually

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


def test_other_tables_survive_a_reload_and_ours_survives_a_flush(redis1: Host, outsider: Host) -> None:
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
            assert knock(outsider, REDIS_ADDRESS, 6380) == "time-out"
    finally:
        redis1.run("nft delete table inet foreign")
        redis1.check_output("systemctl disable --now nftables")
    # Nor does a stop of our own unit open the host.
    redis1.check_output("systemctl stop nftables-quantdesk")
    assert redis1.check_output("nft --stateless list table inet quantdesk") == rules
    redis1.check_output("systemctl start nftables-quantdesk")


def test_a_host_whose_rules_do_not_load_comes_up_closed_and_can_be_repaired(
    redis1: Host, outsider: Host, app1: Host
) -> None:
    redis1.check_output("cp -a /etc/nftables-quantdesk.conf /root/ && echo 'no rules' >> /etc/nftables-quantdesk.conf")
    try:
        restart("redis1")
        booted = eventually(lambda: knock(outsider, REDIS_ADDRESS, 22), lambda answer: answer == "connected", 60)
        assert booted == "connected"
        server = ["podman", "exec", f"{PREFIX}redis1", "systemctl", "is-active", "redis-server"]
        assert eventually(lambda: said(server), lambda state: state == "active", 60) == "active"
        # Redis serves, and nobody reaches it: neither a stranger nor who is let in otherwise.
        assert knock(outsider, REDIS_ADDRESS, 6380) == "time-out"
        assert knock(app1, REDIS_ADDRESS, 6380) == "time-out"
        assert redis1.run("systemctl is-failed nftables-quantdesk").stdout.strip() == "failed"
    finally:
        said(["podman", "exec", f"{PREFIX}redis1", "mv", "/root/nftables-quantdesk.conf", "/etc/"])
        redis1.check_output("systemctl restart nftables-quantdesk")
    assert knock(outsider, REDIS_ADDRESS, 6380) == "time-out"
    assert knock(app1, REDIS_ADDRESS, 6380) == "connected"


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


def said(words: list[str]) -> str:
    """Return what a program on this machine prints."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def restart(name: str) -> None:
    """Let a host boot again."""
    subprocess.run(["podman", "restart", "--time", "20", f"{PREFIX}{name}"], check=True, capture_output=True)
