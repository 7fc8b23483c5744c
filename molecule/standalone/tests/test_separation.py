"""Instances of one host are separate: what breaks into one has nothing of the other.

The second instance is one of an earlier version, which shared the user, the folders and the logs of the first; one run
gives it its own. It keeps no data by itself: none may be lost in the restart that this takes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from conftest import PROJECT, RedisCli, as_user, assert_confined, converge

INSTANCES = [
    {"name": "", "tls_port": 6380, "maxmemory": "64mb", "maxmemory_policy": "allkeys-lru"},
    {"name": "state", "tls_port": 6381, "maxmemory": "32mb", "appendonly": False, "save": []},
]
# Made of the first instance's files, as an earlier version had them.
EARLIER = r"""
set -eu
install -d -o redis -g redis -m 0750 /var/lib/redis-state
sed -e 's/^tls-port .*/tls-port 6381/' -e 's#/var/lib/redis#&-state#' -e 's#/run/redis/#/run/redis-state/#' \
  -e 's#users.acl#users-state.acl#' -e 's#redis-server.log#redis-server-state.log#' \
  -e 's/^appendonly .*/appendonly no/' -e '/^save /d' /etc/redis/redis.conf >/root/earlier.conf
echo 'save ""' >>/root/earlier.conf
echo 'slowlog-max-len 77' >>/root/earlier.conf
install -o redis -g redis -m 0600 /root/earlier.conf /etc/redis/redis-state.conf
install -o redis -g redis -m 0600 /etc/redis/users.acl /etc/redis/users-state.acl
install -m 0600 /etc/redis-admin.env /etc/redis-admin-state.env
sed -e 's#/etc/redis/redis.conf#/etc/redis/redis-state.conf#' -e 's/^RuntimeDirectory=redis$/&-state/' \
  -e 's/^StateDirectory=redis$/&-state/' -e '/^Alias=/d' /etc/systemd/system/redis-server.service \
  >/etc/systemd/system/redis-server@state.service
rm /root/earlier.conf
systemctl daemon-reload
systemctl enable --now --quiet redis-server@state
"""
GONE = r"""
systemctl disable --now --quiet redis-server@state
rm -rf /etc/redis-state /etc/redis-admin-state.env /var/lib/redis-state /var/log/redis-state \
  /usr/local/sbin/redis-admin-state /etc/logrotate.d/redis-server-state /etc/systemd/system/redisstate.slice \
  /etc/systemd/system/redis-server@state.service* /etc/redis/*-state.* /var/log/redis/redis-server-state.log*
systemctl daemon-reload
getent passwd redis-state >/dev/null && userdel redis-state || true
"""
# Each instance's user and places.
PLACES = {
    "redis": ("/etc/redis", "/var/lib/redis", "/var/log/redis"),
    "redis-state": ("/etc/redis-state", "/var/lib/redis-state", "/var/log/redis-state"),
}


def attack(host: Host, user: str, command: str) -> str:
    """Return what a command prints that runs with an instance's own rights, errors included."""
    words = f"setpriv --reuid={user} --regid={user} --init-groups -- sh -c {shlex.quote(command)} 2>&1"
    return str(host.run(words).stdout)


@pytest.fixture(scope="module")
def earlier(redis1: Host) -> Iterator[RedisCli]:
    """Both instances as the earlier version had them, the second one with data; returns redis-cli for either."""
    assert redis1.run("bash -c %s", EARLIER).rc == 0
    cli = as_user("redis1", "admin", "127.0.0.1")
    assert cli("SET kept:by:nobody 1", "CONFIG REWRITE", port=6381) == ["OK", "OK"]
    yield cli
    redis1.run("bash -c %s", GONE)
    converge()


def test_an_earlier_instance_was_its_neighbour_s_to_change(redis1: Host, earlier: RedisCli) -> None:
    # The attack, so that it is known to be one: the same as below.
    assert "user admin" in attack(redis1, "redis", "cat /etc/redis/users-state.acl")
    write = "echo '# mine' >>/etc/redis/redis-state.conf; tail -n 1 /etc/redis/redis-state.conf"
    assert attack(redis1, "redis", write) == "# mine\n"
    assert earlier("PING", port=6381) == ["PONG"]


@pytest.mark.usefixtures("earlier")
@pytest.mark.parametrize("put", ["ln -s /etc/shadow", "ln /etc/redis/users.acl"])
def test_a_link_that_redis_has_put_there_is_not_taken_along(redis1: Host, put: str) -> None:
    script = (PROJECT / "roles/redis/files/separate.sh").read_text()
    redis1.check_output(
        "getent passwd redis-state >/dev/null || useradd --system --home-dir /var/lib/redis-state redis-state;"
        " install -d -o redis-state -g redis-state -m 0700 /etc/redis-state;"
        " mv /etc/redis/redis-state.conf /root/kept.conf"
    )
    try:
        attack(redis1, "redis", f"{put} /etc/redis/redis-state.conf")
        done = redis1.run("bash -c %s separate.sh copy state", script)
        assert done.rc != 0
        assert "/etc/redis/redis-state.conf: found" in done.stderr
        assert "expected a plain file with one name" in done.stderr
        assert redis1.check_output("ls -A /etc/redis-state") == ""
    finally:
        redis1.check_output("rm -f /etc/redis/redis-state.conf; mv /root/kept.conf /etc/redis/redis-state.conf")


@pytest.fixture(scope="module")
def separate(redis1: Host, earlier: RedisCli) -> RedisCli:
    """Both instances after the run that separates them."""
    first = redis1.check_output("systemctl show redis-server --property MainPID")
    result = converge(redis_instances=INSTANCES)
    said = " ".join(result.stdout.split())
    assert "it runs as redis, and its user is redis-state" in said
    assert redis1.check_output("systemctl show redis-server --property MainPID") == first
    return earlier


def test_it_was_restarted_once_and_has_its_data_and_what_redis_had_written(redis1: Host, separate: RedisCli) -> None:
    assert separate("GET kept:by:nobody", port=6381) == ["1"]
    log = redis1.check_output("cd /var/log/redis-state; cat redis-server.log; zcat redis-server.log.1.gz")
    assert log.count("Ready to accept connections") == 2
    assert separate("CONFIG GET slowlog-max-len", port=6381) == ["slowlog-max-len", "77"]
    # It keeps no snapshot, as before: after a crash it would begin with old data.
    assert separate("CONFIG GET save", port=6381) == ["save", ""]
    assert redis1.check_output("ls -A /var/lib/redis-state") == ""


def test_each_has_a_user_and_folders_of_its_own(redis1: Host, separate: RedisCli) -> None:
    assert_confined(redis1, "redis-server@state", "redis-state", exposure=9)
    assert_confined(redis1, "redis-server", "redis", exposure=9)
    for user, places in PLACES.items():
        owners = redis1.check_output(f"find {' '.join(places)} -printf '%u\\n' | sort -u")
        assert owners == user
    assert redis1.check_output("ls /etc/redis | grep state || true") == ""
    assert separate("PING", "CONFIG REWRITE", "ACL SAVE", port=6381) == ["PONG", "OK", "OK"]


@pytest.mark.usefixtures("separate")
@pytest.mark.parametrize(("attacker", "victim"), [("redis", "redis-state"), ("redis-state", "redis")])
def test_neither_reaches_anything_of_the_other(redis1: Host, attacker: str, victim: str) -> None:
    folder, data, log = PLACES[victim]
    unit = "redis-server" + victim.replace("redis", "").replace("-", "@")
    pid = redis1.check_output("systemctl show %s --property MainPID --value", unit)
    for command in (
        f"cat {folder}/redis.conf",
        f"cat {folder}/users.acl",
        f"echo 'user evil on nopass ~* +@all' >>{folder}/users.acl",
        f"mv {folder}/users.acl {folder}/mine",
        f"ln -s /etc/shadow {folder}/link",
        f"ls {folder}",
        f"ls {data}",
        f"cat {log}/redis-server.log",
        f"echo x >>{log}/redis-server.log",
        f"cat /proc/{pid}/environ",
        f"ls /proc/{pid}/fd",
    ):
        assert "Permission denied" in attack(redis1, attacker, command), command
    assert "Operation not permitted" in attack(redis1, attacker, f"kill -0 {pid}")
    assert "Permission denied" in attack(redis1, attacker, f"echo x > /run/{victim}/s")
    assert "denied" in attack(redis1, attacker, f"cat /etc/redis-admin{victim.removeprefix('redis')}.env")


@pytest.mark.usefixtures("separate")
def test_logs_are_rotated_with_the_rights_of_each(redis1: Host) -> None:
    for user in PLACES:
        name = f"redis-server{user.removeprefix('redis')}"
        assert f"su {user} {user}" in redis1.file(f"/etc/logrotate.d/{name}").content_string
