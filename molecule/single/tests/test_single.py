"""One machine in all groups: each service has what it asked for, none has taken another's away, all by IPv6 alone."""

from __future__ import annotations

import http.client
import json
import subprocess
from typing import Any

import pytest
from testinfra.host import Host
from traffic import ask, log_in

from conftest import ADDRESSES, ENGINE, LAB, PREFIX, as_user, assert_confined, changed, connect, eventually, playbook

SUBJECTS = {
    *("redis-cache", "redis-state", "quantdesk", "database", "load_balancer"),
    *("backup", "backup_repository", "certificates", "firewall"),
}


@pytest.fixture(scope="module")
def desk1() -> Host:
    """The machine."""
    return connect("desk1")


def healthy() -> bool:
    """Return whether the application answers through the balancer and is well."""
    try:
        return ask("GET", "/health")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def verified() -> tuple[int, list[dict[str, Any]]]:
    """Run verify.yml; return its exit code and its checks."""
    report = LAB / "single.json"
    done = playbook("verify.yml", "-e", f"verify_report={report}")
    assert report.exists(), done.stdout
    checks: list[dict[str, Any]] = json.loads(report.read_text())["checks"]
    return done.returncode, checks


def test_every_role_is_verified_on_the_one_machine() -> None:
    code, checks = verified()
    assert [f"{check['check']}: {check['found']}" for check in checks if check["verdict"] == "FAILED"] == []
    assert code == 0
    asked = [check for check in checks if check["host"] == "desk1" and check["verdict"] == "ok"]
    assert {check["subject"] for check in asked} >= SUBJECTS
    # Of what they ask, the outsider has tried every door that is closed to it.
    doors = next(check for check in checks if check["host"] == "outsider" and 29 in check["control"])
    assert {door.rsplit(":", 1)[1].split()[0] for door in doors["check"].split(",")} == {"6380", "6381", "3002", "5432"}


@pytest.mark.parametrize(
    ("unit", "user", "exposure"),
    [
        ("redis-server@cache", "redis-cache", 9),
        ("redis-server@state", "redis-state", 9),
        ("quantdesk@3002", "quantdesk", 13),
        ("postgresql@15-main", "postgres", 16),
    ],
)
def test_services_are_as_confined_as_on_hosts_of_their_own(desk1: Host, unit: str, user: str, exposure: int) -> None:
    assert_confined(desk1, unit, user, exposure)


def test_the_packet_filter_lets_in_what_each_of_them_asked_for(desk1: Host) -> None:
    rules = desk1.check_output("nft list chain inet quantdesk input")
    for comment in ("redis", "quantdesk", "postgresql", "https", "ssh"):
        assert f'comment "{comment}"' in rules
    # And holds each service's user to what it needs.
    rules = desk1.check_output("nft list chain inet quantdesk output")
    for user in ("quantdesk", "haproxy"):
        assert f"skuid {desk1.user(user).uid} reject" in rules


def test_an_order_goes_from_the_balancer_to_the_database_and_back(desk1: Host) -> None:
    token = (LAB / "secrets/admin_token").read_text().strip()
    status, _, body = ask("PUT", "/api/prices/SINGLE", {"price": "12.5"}, token)
    assert status == 200, body
    cookie = log_in("alice")
    order = {"symbol": "SINGLE", "side": "buy", "quantity": "2"}
    status, _, made = ask("POST", "/api/orders", order, headers={"Cookie": cookie})
    assert status == 201, made
    asked = "select count(*) from orders where symbol = 'SINGLE'"
    assert int(desk1.check_output("sudo -u postgres psql -At quantdesk -c %s", asked)) >= 1


def test_each_instance_of_redis_has_its_own_keys() -> None:
    address = ADDRESSES["desk1"]
    as_admin = as_user("desk1", "admin", address)
    sessions = {port: [key for key in as_admin("KEYS *", port=port) if ":session:" in key] for port in (6380, 6381)}
    assert sessions[6380] == []
    assert sessions[6381] != []


def test_the_outsider_reaches_https_and_nothing_else(desk1: Host) -> None:
    knock = "python3 -c \"import socket; socket.create_connection(('%s', %s), 1.5)\""
    outsider = connect("outsider")
    address = ADDRESSES["desk1"]
    assert ":" in address
    assert outsider.run(knock % (address, 443)).rc == 0
    for port in (3002, 5432, 6380, 6381):
        assert "TimeoutError" in outsider.run(knock % (address, port)).stderr, port
        assert desk1.run(knock % (address, port)).rc == 0, port


def test_every_source_has_a_backup_and_one_is_restored(desk1: Host) -> None:
    listed = json.loads(desk1.check_output("databackup --json list"))
    assert {backup["source"] for backup in listed["backups"]} == {
        *("redis-cache", "redis-state", "quantdesk-database", "wheels"),
    }
    admin = as_user("desk1", "admin", ADDRESSES["desk1"])
    assert admin("SET qd:lab:kept 1", port=6381) == ["OK"]
    desk1.check_output("databackup backup redis-state")
    assert admin("DEL qd:lab:kept", port=6381) == ["1"]
    words = ["restore_target=desk1", "restore_source=redis-state", "restore_confirm=true"]
    done = playbook("restore.yml", *(word for order in words for word in ("-e", order)))
    assert done.returncode == 0, done.stdout
    assert admin("GET qd:lab:kept", port=6381) == ["1"]


def test_all_of_it_comes_back_after_a_boot_and_a_run_changes_nothing() -> None:
    subprocess.run([ENGINE, "restart", "-t", "20", f"{PREFIX}desk1"], check=True, capture_output=True)
    assert eventually(healthy, bool, 120)
    result = playbook("site.yml")
    assert result.returncode == 0, result.stdout
    assert set(changed(result.stdout).values()) == {0}, result.stdout
