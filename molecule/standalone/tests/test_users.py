"""Redis' users: what each may, and what it may not, by trying it."""

from __future__ import annotations

import subprocess

import pytest
from testinfra.host import Host

from conftest import LAB, RedisCli, as_user

OWN = "qd:lab:users:test"
# User, command, how the answer begins.
ALLOWED = [
    ("default", "PING", "PONG"),
    ("default", f"SET {OWN} 1", "OK"),
    ("default", "INFO server", "# Server"),
    ("default", f"PUBLISH {OWN} x", ""),
    ("default", "MULTI", "OK"),
    ("app", f"SET {OWN} 1", "OK"),
    ("app", f"GET {OWN}", "1"),
    ("app", f"PUBLISH {OWN} x", ""),
    ("app", f"EVAL \"return redis.call('INCRBY', KEYS[1], 1)\" 1 {OWN}:count", ""),
    ("app", "SCAN 0 MATCH qd:lab:* COUNT 1", ""),
    ("exporter", "INFO memory", "# Memory"),
    ("exporter", "SLOWLOG LEN", ""),
    ("exporter", "LATENCY LATEST", ""),
    ("backup", "INFO replication", "# Replication"),
    ("backup", "REPLCONF listening-port 1", "OK"),
    ("replica", "PING", "PONG"),
    ("replica", "REPLCONF capa eof", "OK"),
    ("sentinel", "ROLE", "master"),
    ("sentinel", "PUBLISH __sentinel__:hello x", "0"),
    ("admin", "CONFIG GET port", "port"),
    ("admin", "ACL WHOAMI", "admin"),
    # As app itself it would go on listening.
    ("admin", "ACL DRYRUN app PSUBSCRIBE qd:lab:*", "OK"),
]
REFUSED = [
    ("default", "CONFIG GET *"),
    ("default", "ACL LIST"),
    ("default", "KEYS nobody*"),
    ("default", "DEBUG SLEEP 0"),
    ("default", "MODULE LIST"),
    # Of other environments, not even names.
    ("default", "GET qd:production:price:x"),
    ("default", "SET qd:production:price:x 1"),
    ("default", "SCAN 0"),
    ("default", "RANDOMKEY"),
    ("default", "PUBLISH qd:production:ws:x x"),
    ("default", "SUBSCRIBE qd:production:ws:x"),
    ("default", "PSUBSCRIBE *"),
    ("default", "PUBSUB CHANNELS"),
    ("default", "CLIENT TRACKING on BCAST"),
    ("default", 'EVAL "return 1" 0'),
    ("default", "FUNCTION LIST"),
    ("default", "SCRIPT FLUSH"),
    ("default", "SORT qd:lab:users:test BY nobody*"),
    ("app", "CONFIG GET *"),
    ("app", "KEYS nobody*"),
    ("app", "DEBUG SLEEP 0"),
    ("app", "ACL WHOAMI"),
    ("app", "SCRIPT FLUSH"),
    ("app", "FUNCTION LIST"),
    ("app", "EVAL \"return redis.call('GET', KEYS[1])\" 1 somebody:else"),
    ("app", "GET somebody:else"),
    ("app", "SET qd:production:price:x 1"),
    ("app", "PUBLISH somebody:else x"),
    ("app", "SUBSCRIBE somebody:else"),
    ("app", "PSUBSCRIBE *"),
    ("app", "REPLICAOF NO ONE"),
    ("app", "SAVE"),
    ("exporter", f"GET {OWN}"),
    ("exporter", "CONFIG GET *"),
    ("exporter", "SLOWLOG GET"),
    ("exporter", "CLIENT LIST"),
    ("exporter", "SUBSCRIBE x"),
    ("backup", f"GET {OWN}"),
    ("backup", "CONFIG GET *"),
    ("backup", "BGSAVE"),
    ("backup", "SHUTDOWN NOSAVE"),
    ("replica", f"GET {OWN}"),
    ("replica", "INFO"),
    ("replica", "SUBSCRIBE x"),
    ("sentinel", f"GET {OWN}"),
    ("sentinel", "CONFIG GET *"),
    ("sentinel", "ACL LIST"),
    ("sentinel", "PUBLISH qd:lab:ws:x x"),
    ("sentinel", "SUBSCRIBE qd:lab:ws:x"),
]


@pytest.mark.parametrize(("user", "command", "begins"), ALLOWED, ids=[f"{u}-{c}" for u, c, _ in ALLOWED])
def test_may(user: str, command: str, begins: str) -> None:
    answer = as_user("redis1", user, "127.0.0.1")(command)
    assert answer
    assert answer[0].startswith(begins)
    assert not answer[0].startswith(("NOPERM", "NOAUTH", "WRONGPASS", "ERR"))


@pytest.mark.parametrize(("user", "command"), REFUSED, ids=[f"{u}-{c}" for u, c in REFUSED])
def test_may_not(user: str, command: str) -> None:
    # DEBUG is off for everybody, which Redis says before it looks at the user.
    refusals = ("NOPERM", "ERR DEBUG command not allowed")
    assert as_user("redis1", user, "127.0.0.1")(command)[0].startswith(refusals)


def test_a_script_gives_no_rights() -> None:
    app = as_user("redis1", "app", "127.0.0.1")
    for call in ("'FLUSHALL'", "'KEYS', '*'", "'GET', 'somebody:else'"):
        answer = app(f'EVAL "return redis.call({call})" 0')
        assert "The user executing the script can't" in answer[0]


def test_a_refusal_is_in_the_acl_log(redis_cli: RedisCli) -> None:
    assert redis_cli("ACL LOG RESET") == ["OK"]
    as_user("redis1", "app", "127.0.0.1")("FLUSHALL")
    entry = redis_cli("ACL LOG 1")
    assert {"flushall", "app", "command"} <= set(entry)


def test_the_acl_file_holds_hashes_only(redis1: Host) -> None:
    lines = redis1.check_output("cat /etc/redis/users.acl").splitlines()
    assert {line.split()[1] for line in lines} == {user for user, _, _ in ALLOWED}
    assert all(" #" in line and " >" not in line and "nopass" not in line for line in lines)


def test_root_has_the_admin_s_login_and_nobody_else(redis1: Host) -> None:
    assert redis1.check_output("redis-admin ACL WHOAMI") == "admin"
    file = redis1.file("/etc/redis-admin.env")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    done = subprocess.run(
        ["ssh", "-F", LAB / "ssh/config", "redis1", "/usr/local/sbin/redis-admin PING"],
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert b"PONG" not in done.stdout


def test_a_user_that_somebody_adds_by_hand_gets_no_channels(redis_cli: RedisCli) -> None:
    try:
        assert redis_cli("ACL SETUSER by-hand on nopass +subscribe +ping") == ["OK"]
        assert "has no permissions to access the 'anything' channel" in " ".join(
            redis_cli("ACL DRYRUN by-hand SUBSCRIBE anything")
        )
    finally:
        assert redis_cli("ACL DELUSER by-hand") == ["1"]
