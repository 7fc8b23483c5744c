"""The checks of redis_audit judge invented answers: each row fails for what it is about, and for nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from test_redis_built_in import values

from conftest import load

audit = load("plugins/module_utils/audit.py")
records = load("plugins/module_utils/redis_built_in.py")
cut = load("plugins/module_utils/redis_cut.py")
wanted = load("plugins/module_utils/redis_wanted.py")
seen_module = load("plugins/module_utils/redis_seen.py")
checks = load("plugins/module_utils/redis_checks.py")

Answer, Difference = seen_module.Answer, seen_module.Difference
V10 = "5:7.0.15-1~deb12u10"
APT: dict[str, Any] = {
    "installed": V10,
    "lacks": {V10: []},
    "newer": "",
    "archive": [],
    "problems": [],
    "differ": [],
    "left": [],
}
DIRECTIVES: dict[str, Any] = {
    "bind": ["127.0.0.1", "-::1"],
    "maxmemory-policy": "allkeys-lru",
    "appendonly": True,
    "appendfsync": "everysec",
    "save": ["3600 1", "300 100"],
    "maxclients": 10000,
}
LIVE = {
    "port": "0",
    "bind": "127.0.0.1 -::1",
    "protected-mode": "yes",
    "maxmemory": "67108864",
    "maxmemory-policy": "allkeys-lru",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "3600 1 300 100",
    "maxclients": "10000",
    "client-output-buffer-limit": "normal 0 0 0",
    "tls-replication": "yes",
    "enable-debug-command": "no",
    "enable-module-command": "no",
    "enable-protected-configs": "no",
}
SUM = hashlib.sha256(b"").hexdigest()
CERTIFICATE = {"names": ["redis1", "10.0.0.1"], "days": 90, "sha256": SUM}
PING = Answer(True, "", ["PONG"])
ALERT = Answer(False, "SSLError: [SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert")
CLOSED = Answer(False, "ConnectionRefusedError: [Errno 111] Connection refused")
RESET = Answer(True, "ConnectionResetError: [Errno 104] Connection reset by peer")
INFO = "# Server\r\nredis_version:7.0.15\r\n"
NOPERM = "error: NOPERM this user has no permissions to run the 'config|get' command"


def host(**changes: Any) -> Any:
    """Return what all instances of a host share."""
    known = {"topology": "standalone", "install": "package", "source_version": "", "version_accepted": ""}
    rest = {"packages": {}, "kernel": True, "somaxconn": 1024, "leave": frozenset(), "name": "redis1"}
    return wanted.Host(**{**known, **rest, **changes})


def instance(**changes: Any) -> Any:
    """Return what an instance is to be."""
    known: dict[str, Any] = {
        "subject": "redis",
        "unit": "redis-server.service",
        "user": "redis",
        "folder": "/etc/redis",
        "folder_mode": "2770",
        "conf": "/etc/redis/redis.conf",
        "acl": "/etc/redis/users.acl",
        "credentials": "/etc/redis-admin.env",
        "data": "/var/lib/redis",
        "log": "/var/log/redis/redis-server.log",
        "sizes": "/var/lib/databackup/redis.aof-sizes",
        "server": {"host": "127.0.0.1", "port": 6380, "ca_file": "/ca", "cert_file": "/crt", "key_file": "/key"},
        "port": 0,
        "tls_port": 6380,
        "tls_auth_clients": True,
        "names": ["redis1", "10.0.0.1"],
        "exposure": 0.9,
        "maxmemory": 67108864,
        "directives": DIRECTIVES,
        "users": [{"enabled": True, **user} for user in records.declared(values())],
    }
    return wanted.Instance(**{**known, **changes})


def answers(**changes: Any) -> dict[str, Any]:
    """Return what connections to a server as it should be are answered; names with blanks have underscores here."""
    told = [one for those in seen_module.wanted_rights(instance()).values() for one in those]
    known = {
        "local": Answer(True, "", ["PONG", INFO, LIVE], CERTIFICATE),
        "anonymous": Answer(True, "NOAUTH Authentication required."),
        "wrong": Answer(True, "ErrorReply: WRONGPASS invalid username-password pair or user is disabled."),
        "plaintext port": CLOSED,
        "plaintext": RESET,
        "tls 1.1": ALERT,
        "cbc": ALERT,
        "no certificate": RESET,
        "foreign certificate": RESET,
        "app": Answer(True, NOPERM, ["PONG", NOPERM]),
        "rights": Answer(True, "", ["OK" if one.may else "This user has no permissions to run it" for one in told]),
        "log": Answer(True, "", [[["count", 1, "object", "config|get", "username", "app"]]]),
    }
    return {**known, **{name.replace("_", " "): answer for name, answer in changes.items()}}


def live(**changes: str) -> dict[str, Any]:
    """Return answers of a server with other directives."""
    now = {**LIVE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return answers(local=Answer(True, "", ["PONG", INFO, now], CERTIFICATE))


def certified(**changes: Any) -> dict[str, Any]:
    """Return answers of a server with another certificate."""
    return answers(local=Answer(True, "", ["PONG", INFO, LIVE], {**CERTIFICATE, **changes}))


def allowed(user: str, *command: str) -> dict[str, Any]:
    """Return answers of a server where a user may what it should not, or may not what it should."""
    told = [one for those in seen_module.wanted_rights(instance()).values() for one in those]
    replies = list(answers()["rights"].replies)
    (place,) = (number for number, one in enumerate(told) if (one.user, one.command) == (user, command))
    replies[place] = "This user has no permissions" if replies[place] == "OK" else "OK"
    return answers(rights=Answer(True, "", replies))


@dataclass
class Case:
    """Something that is not as it should be, and the rows that say so."""

    row: str
    found: str
    # What is seen instead, by the names of Seen and Shared.
    seen: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    instance: dict[str, Any] = field(default_factory=dict)
    # Other rows that fail for the same thing.
    along: tuple[str, ...] = ()


def look(case: Case) -> Any:
    """Return all that is known of an instance, which is as it should be but for the case."""
    mine, its_host = instance(**case.instance), host(**case.host)
    shared = seen_module.Shared([mine], its_host)
    folders = ["redis 2770 /etc/redis", "redis 750 /var/lib/redis", "redis 750 /var/log/redis"]
    units = {mine.unit: {"ActiveState": "active", "UnitFileState": "enabled", "MainPID": "7"}}
    kernel = {"overcommit": "1", "somaxconn": "4096", "huge pages": "never"}
    vars(shared).update({"units": units, "kernel": kernel, "undeclared": [], "apt": APT, **case.shared})
    found = seen_module.Seen(mine, shared)
    vars(found).update(
        {
            "answers": answers(),
            "differences": (Difference(), Difference()),
            "exposure": "0.9",
            "process_user": "redis",
            "confinement": checks.CONFINED,
            "listening": ["127.0.0.1:6380", "[::1]:6380"],
            **{name: [] for name in ("readable", "foreign", "reached", "odd_files", "secrets")},
            "folders": folders,
            "passwords": (0, len(records.BUILT_IN)),
            "key": "440 root",
            "certificate": SUM,
            "cut": None,
            **case.seen,
        }
    )
    return found


def rows(case: Case) -> dict[str, dict[str, Any]]:
    """Return the rows, by name."""
    return {row["name"]: row for row in checks.rows(look(case), first=True)}


def users(**changes: list[str]) -> dict[str, Any]:
    """Return differences of users."""
    return {"differences": (Difference(users=changes), Difference())}


def config(**changes: Any) -> dict[str, Any]:
    """Return differences of directives."""
    return {"differences": (Difference(), Difference(**changes))}


CASES = [
    Case(
        "PING as admin, over TLS",
        "'WRONGPASS'",
        {"answers": answers(local=Answer(True, "WRONGPASS"))},
        along=(
            "version that runs",
            *("plaintext port", "names in the certificate", "days until the certificate ends", "replication over TLS"),
            *("certificate that is served", "bind", "protected-mode", "maxmemory", "maxmemory-policy", "appendonly"),
            *("commands for debugging, modules and protected settings", "appendfsync", "save", "maxclients"),
        ),
    ),
    Case(
        "version that runs",
        "'6.2.1'",
        {"answers": answers(local=Answer(True, "", ["PONG", "redis_version:6.2.1\r\n", LIVE], CERTIFICATE))},
    ),
    Case("security fixes", f"'{V10}, as it lacks some'", shared={"apt": {**APT, "lacks": {V10: ["it lacks some"]}}}),
    Case("security fixes", f"'{V10}, as the repository has 8'", shared={"apt": {**APT, "newer": "8"}}),
    Case("security fixes", "', as it is not installed'", shared={"apt": {**APT, "installed": ""}}),
    Case("security fixes", "'7.0.15'", host={"install": "source", "source_version": "7.0.15"}),
    Case(
        "security fixes (redis_version_accepted)",
        f"'{V10}, as it lacks some'",
        shared={"apt": {**APT, "lacks": {V10: ["it lacks some"]}}},
        host={"version_accepted": "another"},
    ),
    Case("archive that security fixes come from", "'it is old'", shared={"apt": {**APT, "archive": ["it is old"]}}),
    Case(
        "archive that security fixes come from",
        "'gone; /a is not as declared; /b is not as declared'",
        shared={"apt": {**APT, "problems": [{"problem": "gone"}], "differ": ["/a"], "left": ["/b"]}},
    ),
    Case("PING without a password", "'PONG'", {"answers": answers(anonymous=PING)}),
    Case("login with a wrong password", "'PONG'", {"answers": answers(wrong=PING)}),
    Case(
        "users, compared with the inventory",
        "'undeclared ann, missing exporter, different app'",
        users(removed=["ann"], added=["exporter"], updated=["app"]),
    ),
    Case(
        "users, compared with the inventory",
        "'found a link'",
        {"differences": (Difference("found a link"), Difference())},
        along=("rights of replica and sentinel",),
    ),
    Case("plaintext port", "'6379'", {"answers": live(port="6379")}),
    Case(
        "PING in plaintext to the TLS port",
        "'NOAUTH Authentication required.'",
        {"answers": answers(plaintext=Answer(True, "NOAUTH Authentication required."))},
    ),
    Case("PING in plaintext to port 6379", "'PONG'", {"answers": answers(plaintext_port=PING)}),
    Case("TLS 1.1 and older", "'a connection'", {"answers": {**answers(), "tls 1.1": PING}}),
    Case(
        "TLS 1.1 and older",
        "'refused: TimeoutError'",
        {"answers": {**answers(), "tls 1.1": Answer(False, "TimeoutError")}},
    ),
    Case("TLS 1.2 with CBC ciphers", "'a connection'", {"answers": answers(cbc=PING)}),
    Case(
        "no client certificate",
        "'NOAUTH Authentication required.'",
        {"answers": answers(no_certificate=Answer(True, "NOAUTH Authentication required."))},
    ),
    Case("client certificate of a foreign authority", "'PONG'", {"answers": answers(foreign_certificate=PING)}),
    Case("names in the certificate", "'redis1'", {"answers": certified(names=["redis1"])}),
    Case("days until the certificate ends", "29", {"answers": certified(days=29)}),
    Case("mode of the certificate's key", "'444 root'", {"key": "444 root"}),
    Case("mode of the certificate's key", "'400 ann'", {"key": "400 ann"}),
    Case("replication over TLS", "'no'", {"answers": live(tls_replication="no")}),
    Case("certificate that is served", "'an older one'", {"answers": certified(sha256="0" * 64)}),
    Case(
        "CONFIG GET as app",
        "{'maxmemory': '1'}",
        {"answers": answers(app=Answer(True, "", ["PONG", {"maxmemory": "1"}]))},
    ),
    Case("CONFIG GET as app", "'WRONGPASS'", {"answers": answers(app=Answer(True, "WRONGPASS"))}),
    Case("commands that app may not run", "'app may FLUSHALL'", {"answers": allowed("app", "FLUSHALL")}),
    Case(
        "scripts as app, EVAL by declaration", "'app may SCRIPT FLUSH'", {"answers": allowed("app", "SCRIPT", "FLUSH")}
    ),
    Case("keys that app reaches", "'app may not GET qd:lab:x'", {"answers": allowed("app", "GET", "qd:lab:x")}),
    Case(
        "channels that app reaches",
        "'app may SUBSCRIBE a-channel-of-nobody'",
        {"answers": allowed("app", "SUBSCRIBE", "a-channel-of-nobody")},
    ),
    Case("rights of default", "'default may SCAN 0'", {"answers": allowed("default", "SCAN", "0")}),
    Case("rights of exporter", "'exporter may SLOWLOG GET'", {"answers": allowed("exporter", "SLOWLOG", "GET")}),
    Case("rights of backup", "'backup may GET qd:lab:x'", {"answers": allowed("backup", "GET", "qd:lab:x")}),
    Case(
        "rights of replica and sentinel",
        "'sentinel'",
        users(updated=["sentinel"]),
        along=("users, compared with the inventory",),
    ),
    Case("ACL LOG", "'no entry of app'", {"answers": answers(log=Answer(True, "", [[]]))}),
    Case("directives, compared with the inventory", "'hz'", config(applied=["hz"])),
    Case(
        "directives, compared with the inventory",
        "'io-threads is 1, wanted 4'",
        config(restart=[{"directive": "io-threads", "running": "1", "wanted": "4"}]),
    ),
    Case(
        "directives, compared with the inventory", "'refused'", {"differences": (Difference(), Difference("refused"))}
    ),
    Case("listening sockets", "'0.0.0.0:6380'", {"listening": ["0.0.0.0:6380"]}),
    Case("bind", "'127.0.0.1'", {"answers": live(bind="127.0.0.1")}),
    Case("protected-mode", "'no'", {"answers": live(protected_mode="no")}),
    Case(
        "commands for debugging, modules and protected settings",
        "'local no no'",
        {"answers": live(enable_debug_command="local")},
    ),
    Case("maxmemory", "0", {"answers": live(maxmemory="0")}),
    Case("maxmemory-policy", "'noeviction'", {"answers": live(maxmemory_policy="noeviction")}),
    Case("appendonly", "'no'", {"answers": live(appendonly="no")}),
    Case("appendfsync", "'no'", {"answers": live(appendfsync="no")}),
    Case("save", "''", {"answers": live(save="")}),
    Case("maxclients", "9000", {"answers": live(maxclients="9000")}),
    Case(
        "client-output-buffer-limit",
        "'normal 0 0 0'",
        config(applied=["client-output-buffer-limit"]),
        along=("directives, compared with the inventory",),
    ),
    Case(
        "unit",
        "'failed, disabled'",
        shared={"units": {"redis-server.service": {"ActiveState": "failed", "UnitFileState": "disabled"}}},
    ),
    Case("unit", "'unknown, unknown'", shared={"units": {}}),
    Case("append-only file at the last start", "'cut'", {"cut": cut.Cut("cut", 90.0)}),
    Case("exposure in systemd-analyze security, of 10", "'1.0'", {"exposure": "1.0"}),
    Case("exposure in systemd-analyze security, of 10", "'unknown'", {"exposure": ""}),
    Case("user of the process", "'root'", {"process_user": "root"}),
    Case("confinement of the process", "'CapEff:1'", {"confinement": "CapEff:1"}),
    Case("files that others may read", "'/a /b'", {"readable": ["/a", "/b"]}),
    Case("configuration that another user of the host can read", "'/a'", {"foreign": ["/a"]}),
    Case(
        "access of other instances' users to its configuration, data and log",
        "'redis-x r /a, redis-x w /a'",
        {"reached": ["redis-x r /a", "redis-x w /a"]},
    ),
    Case(
        "owner and mode of its folders",
        "'redis 755 /var/lib/redis'",
        {"folders": ["redis 2770 /etc/redis", "redis 755 /var/lib/redis", "redis 750 /var/log/redis"]},
    ),
    Case("redis.conf and users.acl, which root reads and writes", "'/a: directory'", {"odd_files": ["/a: directory"]}),
    Case("passwords in the ACL file", "'1 clear, 7 hashed'", {"passwords": (1, 7)}),
    Case("passwords in the ACL file", "'0 clear, 6 hashed'", {"passwords": (0, 6)}),
    Case(
        "secrets on command lines, in the journal, log, unit and configuration",
        "'app in the journal'",
        {"secrets": ["app in the journal"]},
    ),
    Case(
        "kernel",
        "'overcommit 0, huge pages never, somaxconn 4096'",
        shared={"kernel": {"overcommit": "0", "huge pages": "never", "somaxconn": "4096"}},
    ),
    Case(
        "kernel",
        "'overcommit 1, huge pages madvise, somaxconn 4096'",
        shared={"kernel": {"overcommit": "1", "huge pages": "madvise", "somaxconn": "4096"}},
    ),
    Case(
        "kernel",
        "'overcommit 1, huge pages , somaxconn 128'",
        shared={"kernel": {"overcommit": "1", "huge pages": "", "somaxconn": "128"}},
    ),
    Case(
        "Sentinel without a password",
        "'nothing (Sentinel is not queried yet)'",
        host={"topology": "sentinel"},
        along=("Sentinel in plaintext",),
    ),
    Case(
        "Sentinel in plaintext",
        "'nothing (Sentinel is not queried yet)'",
        host={"topology": "sentinel"},
        along=("Sentinel without a password",),
    ),
    Case(
        checks.UNDECLARED, "'7 - 6399,8 by-hand.service -'", shared={"undeclared": ["7 - 6399", "8 by-hand.service -"]}
    ),
]
# What is about Ansible's output, and not about a host.
NEVER = {"a failing task prints no secret"}


def test_all_is_well_where_all_is_as_declared() -> None:
    found = rows(Case("", ""))
    assert [row for row in found.values() if row["verdict"] == "FAILED"] == []
    assert [name for name, row in found.items() if row["verdict"] == "n/a"] == [
        "Sentinel without a password",
        "Sentinel in plaintext",
        "a failing task prints no secret",
    ]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.row}-{case.found}" for case in CASES])
def test_a_row_fails_for_what_it_is_about_and_no_other_does(case: Case) -> None:
    found = rows(case)
    assert (found[case.row]["verdict"], found[case.row]["found"]) == ("FAILED", case.found)
    failed = {name for name, row in found.items() if row["verdict"] == "FAILED"}
    assert failed == {case.row, *case.along}


def test_a_server_is_queried_for_each_directive_that_a_row_reads() -> None:
    assert set(LIVE) <= set(seen_module.DIRECTIVES)


def test_each_row_has_a_case_in_which_it_fails() -> None:
    tried = {case.row for case in CASES}
    assert set(rows(Case("", ""))) - tried == NEVER


@pytest.mark.parametrize(
    ("name", "reason", "case"),
    [
        ("plaintext port", "redis_port is 6379, as declared", Case("", "", instance={"port": 6379})),
        ("PING in plaintext to port 6379", "6379 is a declared port", Case("", "", instance={"port": 6379})),
        ("TLS 1.1 and older", "redis_tls_port is 0", Case("", "", instance={"tls_port": 0})),
        ("no client certificate", checks.NO_MUTUAL_TLS, Case("", "", instance={"tls_auth_clients": False})),
        ("CONFIG GET as app", "there is no user app", Case("", "", instance={"users": []})),
        ("rights of exporter", "there is no user exporter", Case("", "", instance={"users": []})),
        ("rights of default", "redis_default_user is false", Case("", "", instance={"users": []})),
        ("ACL LOG", "there is no user app", Case("", "", instance={"users": []})),
        (
            "rights of replica and sentinel",
            "there is no user replica or sentinel, as topology standalone needs none",
            Case("", "", instance={"users": []}),
        ),
        (
            "rights of default",
            "the inventory has its own redis_default_rules",
            Case("", "", instance={"users": [{"name": "default", "enabled": True, "rules": "~* +@all"}]}),
        ),
        (
            "append-only file at the last start",
            "redis_appendonly is false",
            Case("", "", instance={"directives": {**DIRECTIVES, "appendonly": False}}),
        ),
        ("kernel", "redis1 is a container: its kernel belongs to another host", Case("", "", host={"kernel": False})),
        (
            "archive that security fixes come from",
            "built from source: fixes come with a new redis_source_version",
            Case("", "", host={"install": "source"}),
        ),
    ],
)
def test_what_has_no_place_is_not_applicable_and_says_why(name: str, reason: str, case: Case) -> None:
    row = rows(case)[name]
    assert (row["verdict"], row["found"]) == ("n/a", reason)


def test_a_version_that_was_accepted_by_name_passes() -> None:
    lacking = {"apt": {**APT, "lacks": {V10: ["it lacks some"]}}}
    case = Case("", "", shared=lacking, host={"version_accepted": V10})
    assert rows(case)["security fixes (redis_version_accepted)"]["verdict"] == "ok"


def test_a_file_that_was_cut_is_a_failure_for_a_day() -> None:
    for age, verdict in ((90.0, "FAILED"), (90000.0, "ok")):
        row = rows(Case("", "", {"cut": cut.Cut("cut at its end", age)}))["append-only file at the last start"]
        assert (row["verdict"], row["found"]) == (verdict, "'cut at its end'")


def test_what_cannot_be_asked_is_a_failed_row_that_says_so() -> None:
    def broken(_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "/a")

    row = audit.Check("a", 7, broken).row("redis", None).as_dict()
    assert (row["verdict"], row["control"], row["found"]) == (
        "FAILED",
        [7],
        "nothing ([Errno 13] Permission denied: '/a')",
    )


def test_the_first_instance_tells_of_its_host() -> None:
    names = [{row["name"] for row in checks.rows(look(Case("", "")), first=first)} for first in (True, False)]
    assert names[0] - names[1] == {checks.UNDECLARED}
