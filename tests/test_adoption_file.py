"""What playbooks/adopt.yml writes and says of servers that this bundle did not make: invented ones, and a real one."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_built_in import BY_NAME
from ansible_collections.quantdesk.redis.plugins.plugin_utils.adoption import directives, files
from ansible_collections.quantdesk.redis.plugins.plugin_utils.adoption.judgement import judge
from ansible_collections.quantdesk.redis.plugins.plugin_utils.adoption.rendering import (
    as_host_vars,
    as_next_steps,
    as_summary,
)
from ports import free_port
from test_bad_input import SECRET, names, run, variables

from conftest import PROJECT, ansible, load, server_command

pytestmark = pytest.mark.slow

for library in ("redis_defaults", "redis_conf", "redis_acl", "resp", "processes", "redis_started", "redis_answers"):
    load(f"plugins/module_utils/{library}.py")
load("plugins/module_utils/redis_data.py")
survey = load("plugins/module_utils/redis_host.py").survey
resp = load("plugins/module_utils/resp.py")
inputs = load("plugins/test/inputs.py")
filters = load("plugins/filter/redis.py")

HASH, OTHER = "0" * 63 + "1", "f" * 64
OPEN = {"name": "default", "rules": "on nopass sanitize-payload ~* &* +@all"}
LOCKED = {"name": "default", "rules": f"on sanitize-payload #{HASH} ~* &* +@all"}


def server(port: int = 6379, **changes: Any) -> dict[str, Any]:
    """Return a server as redis_survey describes it: Debian's, with a password and snapshots."""
    return {
        "pid": 100 + port,
        "program": "/usr/bin/redis-check-rdb",
        "version": "7.0.15",
        "kind": "redis",
        "unit": "redis-server.service",
        "unit_file": "/lib/systemd/system/redis-server.service",
        "unit_enabled": True,
        "ours": False,
        "container": "",
        "user": "redis",
        "cwd": "/var/lib/redis",
        "config_file": "/etc/redis/redis.conf",
        "config_problem": "",
        "port": port,
        "tls_port": 0,
        "addresses": [f"127.0.0.1:{port}"],
        "socket": "",
        "login": "accepted",
        "login_as": "default",
        "login_problem": "",
        "loading": False,
        "role": "master",
        "primary": "",
        "replicas": [],
        "cluster": False,
        "keys": 1000,
        "databases": {"0": 1000},
        "used_memory": 2_000_000,
        "modules": [],
        "functions": 0,
        "renamed": {},
        "users": [LOCKED],
        "data": {
            "dir": "/var/lib/redis",
            "dbfilename": "dump.rdb",
            "appendonly": False,
            "appenddirname": "appendonlydir",
            "appendfilename": "appendonly.aof",
            "save": "3600 1 300 100 60 10000",
        },
        "clients": [],
        **changes,
        "settings": {"bind": "127.0.0.1 -::1", "daemonize": "yes", **changes.get("settings", {})},
    }


class Description(NamedTuple):
    """A host in lines for the terminal, the text of its file, or none, and how its servers are told from others."""

    summary: list[str]
    text: str
    adoptable: list[str]
    refused: list[str]


def described(*servers: dict[str, Any], memory: int = 4000, version: str = "7.0", **more: Any) -> Description:
    """Return a host as it is described."""
    return described_survey({"servers": [*servers], "files": [], "listeners": [], **more}, memory, version)


def described_survey(survey: dict[str, Any], memory: int, version: str = "7.0") -> Description:
    """Return a host as it is described, of a survey."""
    host = judge("redis1", survey, memory, version)
    return Description(as_summary(host), as_host_vars(host) or "", host.adoptable_labels, host.refused_labels)


def instances(*servers: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """Return the instances of the file that is written for a host."""
    found: list[dict[str, Any]] = yaml.safe_load(described(*servers, **more).text)["redis_instances"]
    return found


def instance(**changes: Any) -> dict[str, Any]:
    """Return the only instance of the file for a host with one server."""
    (found,) = instances(server(**changes))
    return found


def comment(key: str, **changes: Any) -> str:
    """Return what stands beside a key in the file."""
    text = described(server(**changes)).text
    return re.search(rf"^ +(?:- )?{key}: ?[^#]*(?:# (.*))?$", text, re.MULTILINE)[1] or ""  # type: ignore[index]


def said(**changes: Any) -> str:
    """Return what is said on the terminal of a host with one server."""
    return "\n".join(described(server(**changes)).summary)


def test_a_server_is_described_as_it_is() -> None:
    assert instance(settings={"maxmemory": "104857600", "maxmemory-policy": "volatile-lru", "hz": "20"}) == {
        "name": "",
        "adopt": "keep",
        "adopt_from": 6379,
        "port": 6379,
        "tls_port": 6380,
        "bind": ["127.0.0.1", "-::1"],
        "maxmemory": "100mb",
        "maxmemory_policy": "volatile-lru",
        "appendonly": False,
        "appendfsync": "everysec",
        "save": ["3600 1", "300 100", "60 10000"],
        "maxclients": 10000,
        "tcp_keepalive": 300,
        "client_output_buffer_limits": ["normal 0 0 0", "replica 256mb 64mb 60", "pubsub 32mb 8mb 60"],
        "io_threads": 1,
        "default_user": True,
        "default_rules": "~* &* +@all",
        "previous_hashes": {"default": [HASH]},
        "settings": {"hz": 20},
    }


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"settings": {"bind": "* -::*"}}, "bind", ["0.0.0.0", "-::"]),
        ({"settings": {"bind": "10.0.0.1"}}, "bind", ["10.0.0.1"]),
        ({"settings": {"maxmemory": "1500000001"}}, "maxmemory", "1500000001"),
        ({"settings": {"maxmemory": "3145728"}}, "maxmemory", "3mb"),
        # Without a limit: twice what is in use, at least 512 MiB, at most three quarters of the host.
        ({"used_memory": 1}, "maxmemory", "512mb"),
        ({"used_memory": 1000 << 20}, "maxmemory", "2gb"),
        ({"used_memory": 3000 << 20}, "maxmemory", "3000mb"),
        ({"settings": {"maxmemory": "1000"}, "used_memory": 900}, "maxmemory", "1mb"),
        ({"data": {"appendonly": True, "save": ""}}, "appendonly", True),
        ({"data": {"appendonly": True, "save": ""}}, "save", []),
        # The role refuses what would be lost by a restart where nothing may be evicted.
        ({"data": {"appendonly": False, "save": ""}}, "appendonly", True),
        (
            {"data": {"appendonly": False, "save": ""}, "settings": {"maxmemory-policy": "allkeys-lru"}},
            "appendonly",
            False,
        ),
        ({"settings": {"appendfsync": "always"}}, "appendfsync", "always"),
        ({"settings": {"tcp-keepalive": "0"}}, "tcp_keepalive", 300),
        (
            {"settings": {"client-output-buffer-limit": "normal 0 0 0 slave 1048576 1000 5 pubsub 0 0 0"}},
            "client_output_buffer_limits",
            ["normal 0 0 0", "replica 1mb 1000 5", "pubsub 0 0 0"],
        ),
        ({"tls_port": 6390}, "port", 6379),
        ({"tls_port": 6390}, "tls_port", 6390),
        ({"tls_port": 6390}, "adopt_from", 6379),
        ({"tls_port": 6390}, "tls_auth_clients", True),
        ({"tls_port": 6390, "settings": {"tls-auth-clients": "optional"}}, "tls_auth_clients", False),
        ({"port": 6380}, "tls_port", 6381),
        # yes and no, numbers and texts as what they are.
        (
            {"settings": {"lazyfree-lazy-expire": "yes", "databases": "32", "notify-keyspace-events": "AKE"}},
            "settings",
            {"databases": 32, "lazyfree-lazy-expire": True, "notify-keyspace-events": "AKE"},
        ),
        ({"settings": {"notify-keyspace-events": "no"}}, "settings", {"notify-keyspace-events": False}),
        (
            {"settings": {"unixsocket": "/var/run/redis/redis.sock", "unixsocketperm": "770"}},
            "settings",
            {"unixsocket": "/var/run/redis/redis.sock", "unixsocketperm": "770"},
        ),
    ],
)
def test_an_input_has_the_value_of_the_server_or_the_nearest_that_the_role_takes(
    changes: dict[str, Any], key: str, value: Any
) -> None:
    assert instance(**changes)[key] == value


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({}, "port", "bundle: 0 (off); controls 3, 5 fail today; 0 once no client uses it"),
        ({}, "tls_port", "bundle: the same; new, beside the plaintext port".replace("the same", "6380")),
        ({}, "bind", "bundle: 127.0.0.1 and private_address"),
        ({}, "maxmemory", "bundle: 512mb; it has no limit today, and the bundle requires one"),
        ({}, "maxmemory_policy", "bundle: allkeys-lru"),
        ({}, "appendonly", "bundle: true"),
        ({}, "appendfsync", "bundle: the same"),
        ({"users": [OPEN]}, "default_user", "bundle: true; control 17 fails today"),
        ({}, "default_rules", "bundle: this environment's keys and channels, no scripts"),
    ],
)
def test_beside_a_line_stand_the_default_and_what_fails_today(changes: dict[str, Any], key: str, words: str) -> None:
    assert comment(key, **changes) == words


@pytest.mark.parametrize(
    ("directive", "value", "words"),
    [
        ("protected-mode", "no", "protected-mode: today no; the bundle sets its own value (control 27 fails today)"),
        ("enable-debug-command", "yes", "(control 26 fails today)"),
        ("tls-protocols", "TLSv1.1 TLSv1.2", "(control 6 fails today)"),
        ("timeout", "30", "timeout: today 30; the bundle sets its own value"),
        ("requirepass", "(hidden)", "its file holds the password in clear (control 34 fails today)"),
        ("min-replicas-to-write", "1", "not taken over, as without replicas every write would be refused"),
        ("masterauth", "sesame", "masterauth: not taken over, as topology standalone has no primary"),
        ("server-threads", "4", "server-threads: Redis 7 does not know it"),
        ("unixsocket", "/srv/redis.sock", "unixsocket /srv/redis.sock: the unit may not write there"),
        ("proc-title-template", "a\nb", "proc-title-template: its value cannot be in one line"),
    ],
)
def test_what_is_not_kept_is_named_on_the_terminal_and_in_the_file(directive: str, value: str, words: str) -> None:
    found = described(server(settings={directive: value}))
    assert "will be otherwise after the first run" in "\n".join(found.summary)
    assert words in "\n".join(found.summary)
    assert words in re.sub(r"\n +# ", " ", found.text)
    assert directive not in yaml.safe_load(found.text)["redis_instances"][0].get("settings", {})
    assert "sesame" not in found.text + "\n".join(found.summary)


def test_nothing_is_said_of_places_and_of_what_is_kept() -> None:
    places = {"dir": "/srv", "dbfilename": "x.rdb", "logfile": "/x", "pidfile": "/x", "aclfile": "/x", "hz": "20"}
    found = described(server(settings=places))
    assert "otherwise" not in "\n".join(found.summary).lower()
    assert yaml.safe_load(found.text)["redis_instances"][0]["settings"] == {"hz": 20}


def test_every_directive_of_the_role_has_an_input_or_is_known_not_to_be_kept() -> None:
    text = (PROJECT / "roles/redis/vars/main/main.yml").read_text()
    own = text.split("__redis_own_directives: >-")[1].split("__redis_version:")[0]
    forbidden = own.split("__redis_forbidden:")[1]
    managed = set(re.findall(r"^ +'?([a-z-]+)'?: ", own.split("# What redis_settings")[0], re.MULTILINE))
    assert len(managed) > 30
    known = set(directives.INPUTS) | set(directives.FIXED) | directives.PLACES
    assert managed - known == set()
    assert set(directives.INPUTS.values()) <= filters.instance_inputs()
    refused = set(re.findall(r"^  ([a-z-]+): ", forbidden, re.MULTILINE))
    assert len(refused) > 8
    assert refused - set(directives.LEFT_OUT) - directives.PLACES == {"requirepass"}


USERS: list[tuple[dict[str, Any], dict[str, Any] | None, str]] = [
    (
        {"name": "bob", "rules": f"on sanitize-payload #{HASH} #{OTHER} ~bob:* ~a &news -@all +get +client|id"},
        {
            "name": "bob",
            "password_hashes": [HASH, OTHER],
            "rules": "~a ~bob:* resetchannels &news -@all +client|id +get",
        },
        "",
    ),
    (
        {"name": "off", "rules": f"off #{HASH} %R~x &* -@all +@read"},
        {"name": "off", "password_hashes": [HASH], "rules": "%R~x &* -@all +@read", "enabled": False},
        "",
    ),
    ({"name": "open", "rules": "on nopass ~* &* +@all"}, None, "user open: logs in without a password today (control"),
    ({"name": "bare", "rules": "off resetchannels -@all"}, None, "user bare: left out, as it has no password"),
    (
        {"name": "a:b", "rules": f"on #{HASH} ~* +@all"},
        None,
        "left out, as its rules or its name are not what the role",
    ),
    (
        {"name": "q", "rules": f'on #{HASH} ~"x" +@all'},
        None,
        "left out, as its rules or its name are not what the role",
    ),
    ({"name": "s", "rules": f"on #{HASH} ~a +get (~b +set)"}, None, "left out, as it may do things by selectors"),
    ({"name": "n", "rules": "on nonsense"}, None, "user n: its rules are not understood"),
    (
        {"name": "raw", "rules": f"on skip-sanitize-payload #{HASH} ~* &* +@all"},
        {"name": "raw", "password_hashes": [HASH], "rules": "~* &* +@all"},
        "user raw: what it sends with RESTORE is checked",
    ),
]


@pytest.mark.parametrize(("user", "wanted", "words"), USERS, ids=[user["name"] for user, _, _ in USERS])
def test_a_user_keeps_its_rights_and_its_password_or_is_named(
    user: dict[str, Any], wanted: dict[str, Any] | None, words: str
) -> None:
    changes = {"users": [LOCKED, user]}
    extra = instance(**changes).get("extra_users", [])
    assert extra == ([wanted] if wanted else [])
    assert inputs.is_acl_users(extra)
    assert words in said(**changes)
    assert bool(words) == ("otherwise" in said(**changes))


def test_users_of_the_role_s_own_names_keep_a_password_only_where_it_opens_no_more_than_before() -> None:
    users = [{"name": name, "rules": f"on #{HASH} ~* &* +@all"} for name in BY_NAME]
    found = instance(users=users)
    assert found["previous_hashes"] == {"default": [HASH], "app": [HASH], "exporter": [HASH]}
    assert "extra_users" not in found
    assert "user app: the bundle has one of this name, with rights of its own; its old password stays" in said(
        users=users
    )
    assert "user admin: the bundle has one of this name, with rights of its own; its old password is not" in said(
        users=users
    )


def test_a_server_without_a_password_says_how_clients_get_one() -> None:
    found = instance(users=[OPEN])
    assert "previous_hashes" not in found
    assert found["default_user"] is True
    assert "AUTH default PASSWORD is accepted today with any password" in said(users=[OPEN])


def test_a_default_user_that_is_off_stays_off() -> None:
    assert instance(users=[{"name": "default", "rules": "off ~* &* +@all"}])["default_user"] is False


def test_commands_that_were_switched_off_are_taken_from_the_users() -> None:
    users = [LOCKED, {"name": "bob", "rules": f"on #{HASH} ~* &* +@all"}]
    found = instance(users=users, renamed={"FLUSHALL": "", "CONFIG": ""})
    assert found["default_rules"] == "~* &* +@all -config -flushall"
    assert found["extra_users"][0]["rules"] == "~* &* +@all -config -flushall"
    assert "CONFIG, FLUSHALL: switched off for everybody today" in said(
        users=users, renamed={"FLUSHALL": "", "CONFIG": ""}
    )


def test_a_server_that_tells_no_users_says_what_to_do() -> None:
    assert "make that redis_password for the first run" in said(users=[])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"container": "docker"}, "container: found docker; expected a server of the host itself"),
    ({"kind": "sentinel"}, "kind: found sentinel; expected redis"),
    ({"kind": "valkey", "version": "8.1.1"}, "kind: found valkey; expected redis"),
    (
        {"login": "refused", "login_problem": "WRONGPASS"},
        "login: found WRONGPASS; expected redis_adopt_username and redis_adopt_password that log in there",
    ),
    ({"login": "unreachable"}, "login: found unreachable"),
    ({"loading": True}, "data: found still being loaded"),
    ({"role": "slave", "primary": "10.0.0.9:6379"}, "role: found a replica of 10.0.0.9:6379"),
    ({"cluster": True}, "cluster mode: found"),
    ({"modules": ["ReJSON"]}, "modules: found ReJSON"),
    ({"renamed": {"KEYS": "secret-keys", "DEBUG": ""}}, "renamed commands: found KEYS"),
    ({"version": "8.0.2"}, "version: found 8.0.2; expected 7.0 or older: the new server cannot read the data"),
    ({"version": "7.2.4"}, "version: found 7.2.4"),
    ({"port": 0, "socket": "/run/x"}, "port: found no port in plaintext"),
    (
        {"settings": {"maxmemory": "1048576"}, "used_memory": 9 << 20},
        "data: found 9 MiB in memory; expected that they fit",
    ),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_adopted_is_named_as_the_role_names_it_and_has_no_file(
    changes: dict[str, Any], words: str
) -> None:
    found = described(server(**changes))
    assert found.text == ""
    assert (len(found.adoptable), len(found.refused)) == (0, 1)
    assert any(line.strip().startswith(f"cannot be adopted: old server's {words}") for line in found.summary)
    # Beside one that can.
    both = described(server(**changes), server(6400))
    assert [item["adopt_from"] for item in yaml.safe_load(both.text)["redis_instances"]] == [6400]
    assert f"old server's {words}" in re.sub(r"\n# ", " ", both.text)


@pytest.mark.parametrize(
    ("version", "bundle"), [("7.2.4", "7.2.5"), ("6.2.0", "7.0"), ("", "7.0"), ("7.0.20", "7.0.15")]
)
def test_data_that_the_bundle_s_redis_reads_are_no_obstacle(version: str, bundle: str) -> None:
    assert described(server(version=version), version=bundle).adoptable == ["port 6379"]


def test_several_servers_become_instances_with_names_and_ports_of_their_own() -> None:
    found = instances(
        server(6379),
        server(6380, unit="redis-server@state.service", config_file="/etc/redis/redis-state.conf"),
        server(6390, unit="", config_file="/srv/redis/sessions.conf"),
        server(6391, unit="redis-state.service", config_file="", clients=[{"address": "10.0.0.9"}]),
        listeners=[{"port": 6381, "address": "0.0.0.0", "pid": 1, "program": "/usr/bin/other", "unit": ""}],
    )
    assert [(item["name"], item["adopt_from"], item["tls_port"]) for item in found] == [
        ("port6379", 6379, 6382),
        ("state", 6380, 6383),
        ("sessions", 6390, 6384),
        ("port6391", 6391, 6385),
    ]
    assert filters.unknown_inputs(found) == []


def test_instances_of_the_bundle_itself_are_left_alone() -> None:
    found = described(server(6380, ours=True), server(6379))
    assert found.summary[0] == "redis1: 1 server that this bundle did not make, and 1 instance of its own"
    assert found.adoptable == ["port 6379"]
    alone = described(server(6380, ours=True))
    assert (alone.summary, alone.text) == (["redis1: no Redis found but 1 instance of its own"], "")


def test_a_host_without_redis_is_told_of_and_data_without_a_server_too() -> None:
    file = {"path": "/srv/redis/x.rdb", "kind": "rdb", "rdb_version": 10, "redis_version": "7.0.15", "bytes": 2048}
    assert described().summary == ["redis1: no Redis found"]
    assert described(files=[file, {**file, "ours": True}]).summary == [
        "redis1: no Redis found",
        "  data without a server: /srv/redis/x.rdb (a snapshot, format 10, of Redis 7.0.15, 2.0 KiB)",
    ]


CLIENTS = [
    {"address": "10.0.0.21", "name": "worker", "user": "default", "db": 2, "tls": False, "library": "redis-py 5"},
    {"address": "127.0.0.1", "name": "", "user": "default", "db": 0, "tls": False, "library": ""},
    {"address": "10.0.0.5", "name": "", "user": "bob", "db": 0, "tls": True, "library": ""},
    {"address": "::ffff:10.0.0.6", "name": "", "user": "bob", "db": 0, "tls": True, "library": ""},
    {"address": "10.0.0.11", "name": "", "user": "bob", "db": 0, "tls": True, "library": ""},
    {"address": "/run/redis/redis.sock", "name": "", "user": "bob", "db": 0, "tls": False, "library": ""},
]


def test_clients_are_listed_and_proposed_beside_those_of_the_inventory() -> None:
    own = ["127.0.0.1:6379", "10.0.0.11:6379"]
    text = described(server(clients=CLIENTS, addresses=own)).text
    values = yaml.safe_load(text)
    assert values["redis_clients_seen"] == ["10.0.0.5", "10.0.0.6", "10.0.0.21"]
    assert values["redis_clients"].startswith("{{ (redis_clients_seen + (groups['redis'] + groups['app']")
    assert "# port 6379: 10.0.0.21, as default, in plaintext, database 2, named worker, with redis-py 5\n" in text
    assert "# port 6379: 10.0.0.5, as bob, over TLS\n" in text
    assert "# port 6379: this host, as default, in plaintext\n" in text
    assert "6 clients, 3 in plaintext" in said(clients=CLIENTS)


def test_without_a_client_elsewhere_the_inventory_decides() -> None:
    text = described(server(clients=CLIENTS[1:2])).text
    assert set(yaml.safe_load(text)) == {"redis_instances"}
    assert "redis_clients stays what your inventory says" in text


def test_other_changes_are_named() -> None:
    changes = {
        "replicas": ["10.0.0.2:6379"],
        "tls_port": 6390,
        "user": "root",
        "config_problem": "line 3: unbalanced quotes",
    }
    for words in (
        "its replicas (10.0.0.2:6379) are cut off",
        "its certificate is another one",
        "it runs as root today, and as redis from now on (control 31 fails today)",
        "its file is not understood in full: line 3: unbalanced quotes",
    ):
        assert words in said(**changes)


EVIL = "{{ lookup('pipe', 'id') }}"


def test_no_text_of_a_host_becomes_a_template_or_a_line(tmp_path: Path) -> None:
    line = f"x\n{EVIL}\nredis_password: evil\x1b[31m\x85\u2028redis_port: 1"
    text = described(
        server(
            unit=line,
            config_file=line,
            version=f"7.0{line}",
            config_problem=line,
            settings={"syslog-ident": EVIL, line: line, "proc-title-template": "{title}: # 'a' \"b\" \\", "hz": line},
            users=[LOCKED, {"name": "bob", "rules": f"on #{HASH} ~{{{{x}}}}:* +get"}, {"name": line, "rules": line}],
            clients=[{**CLIENTS[0], "name": line, "library": line, "user": line}],
        ),
        server(6400, login="refused", login_problem=line, unit=line),
    ).text
    assert all(character.isprintable() or character == "\n" for character in text)
    folder = tmp_path / "host_vars"
    folder.mkdir()
    (folder / "localhost.yml").write_text(text)
    (tmp_path / "hosts.yml").write_text("all: {hosts: {localhost: }}\n")
    shown = ["{{ redis_instances | to_json }}", "{{ hostvars.localhost.redis_password | default('none') }}"]
    code, output = ansible(
        "ansible", "-i", str(tmp_path / "hosts.yml"), "localhost", "-m", "debug", "-a", json.dumps({"msg": shown})
    )
    assert code == 0, output
    assert "uid=" not in output
    found, password = yaml.safe_load(output.split("=>", 1)[1])["msg"]
    assert password == "none"
    (one,) = json.loads(found)
    assert one["settings"] == {"syslog-ident": EVIL, "proc-title-template": "{title}: # 'a' \"b\" \\"}
    assert [user["name"] for user in one["extra_users"]] == ["bob"]
    assert one["extra_users"][0]["rules"] == "~{{x}}:* resetchannels -@all +get"


def test_lines_are_short_enough_to_read() -> None:
    many = [{"name": f"user{i}", "rules": f"on #{HASH} ~a{i}:* &* -@all +get +set +del +expire"} for i in range(5)]
    text = described(server(users=[LOCKED, *many], clients=CLIENTS, renamed={"CONFIG": ""}, tls_port=6390)).text
    assert [line for line in text.splitlines() if len(line) > 120] == []


def test_the_file_says_the_same_of_the_same_servers() -> None:
    later: dict[str, Any] = {"pid": 7, "keys": 5, "used_memory": 1_000, "clients": [{**CLIENTS[0], "connections": 3}]}
    before: dict[str, Any] = {"clients": [{**CLIENTS[0], "connections": 1}]}
    assert described(server(**before)).text == described(server(**{**before, **later})).text


def test_a_file_is_written_once_and_never_over_another_one(tmp_path: Path) -> None:
    folder = tmp_path / "new/adoption"
    path, outcome = files.place(folder, "redis1", "a: 1\n", True)
    assert (outcome, folder.exists()) == ("written", False)
    path, outcome = files.place(folder, "redis1", "a: 1\n", False)
    assert (path, outcome) == (folder / "redis1.yml", "written")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert files.place(folder, "redis1", "a: 1\n", False) == (path, "unchanged")
    beside = folder / "redis1.yml.new"
    for text in ("a: 2\n", "a: 3\n"):
        assert files.place(folder, "redis1", text, False) == (beside, "beside")
        assert (path.read_text(), beside.read_text()) == ("a: 1\n", text)
    assert stat.S_IMODE(beside.stat().st_mode) == 0o600
    assert sorted(file.name for file in folder.iterdir()) == ["redis1.yml", "redis1.yml.new"]


@pytest.mark.parametrize(
    ("name", "outcome", "check", "lines"),
    [
        ("redis1.yml", "written", False, ["  written to /out/redis1.yml"]),
        ("redis1.yml", "written", True, ["  would be written to /out/redis1.yml"]),
        ("redis1.yml", "unchanged", False, ["  unchanged: /out/redis1.yml"]),
        ("redis1.yml", "unchanged", True, ["  unchanged: /out/redis1.yml"]),
        (
            "redis1.yml.new",
            "beside",
            False,
            ["  written to /out/redis1.yml.new", "    as redis1.yml is there and differs; it was left alone"],
        ),
    ],
)
def test_the_terminal_shows_where_the_file_is_and_what_comes_next(
    name: str, outcome: files.Outcome, check: bool, lines: list[str]
) -> None:
    host = judge("redis1", {"servers": [server()]})
    *found, last = as_next_steps(host, Path("/out") / name, outcome, check)
    assert found == lines
    assert last.startswith(
        "  next: go through it, copy it to host_vars/redis1.yml in your inventory, put the passwords"
    )


def test_a_name_of_a_host_is_no_path(tmp_path: Path) -> None:
    path, _ = files.place(tmp_path / "in", "../../etc/x", "a: 1\n", False)
    assert path.parent == tmp_path / "in"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(files.CannotWrite, match=r"adopt_folder: .*/file/redis1.yml cannot be written: File exists"):
        files.place(tmp_path / "file", "redis1", "a: 1\n", False)


def test_logins_are_those_of_the_host_and_of_each_instance() -> None:
    listed = [{"adopt_from": 6379, "adopt_password": "a"}, {"adopt_username": "x", "adopt_password": "b"}, {}]
    assert filters.adopt_logins(listed, "", "c", "") == [
        {"username": "default", "password": "a", "port": 6379},
        {"username": "x", "password": "b", "port": 0},
        {"username": "default", "password": "c", "port": 0},
    ]
    assert filters.adopt_logins([], "", "", "6379") == []


# --- A real one: what section "Self-Hosted" of the runbook says, as it is typed ---
RUNBOOK = "bind 127.0.0.1  # or your server IP\n"
TYPED = "requirepass your-secure-password\nmaxmemory 512mb\nmaxmemory-policy allkeys-lru\n"


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A server that was set up by hand, with a client; returns its process and port."""
    folder, port = tmp_path_factory.mktemp("by-hand"), free_port()
    config = folder / "redis.conf"
    config.write_text(f"bind 127.0.0.1\nport {port}\ndir {folder}\n{TYPED}")
    process = subprocess.Popen([server_command(folder), str(config)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            client = resp.Client("127.0.0.1", port)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    with client:
        client.call("AUTH", "your-secure-password")
        client.call("SET", "a", "1")
        yield process.pid, port
    process.terminate()
    process.wait(10)


def test_the_runbook_s_comment_behind_a_value_stops_redis(tmp_path: Path) -> None:
    config = tmp_path / "redis.conf"
    config.write_text(f"{RUNBOOK}port {free_port()}\ndir {tmp_path}\n{TYPED}")
    done = subprocess.run(
        [server_command(tmp_path), str(config)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "#" in done.stdout + done.stderr


def test_what_the_runbook_sets_up_is_described_and_the_role_takes_it(by_hand: tuple[int, int], tmp_path: Path) -> None:
    pid, port = by_hand
    found = described_survey(survey([], [pid]), 4000)
    assert found.adoptable == [f"port {port}"]
    assert "your-secure-password" not in found.text + "\n".join(found.summary)
    values = yaml.safe_load(found.text)
    (one,) = values["redis_instances"]
    assert one["port"] == one["adopt_from"] == port
    assert (one["bind"], one["maxmemory"], one["maxmemory_policy"]) == (["127.0.0.1"], "512mb", "allkeys-lru")
    assert (one["appendonly"], one["save"]) == (False, ["3600 1", "300 100", "60 10000"])
    digest = resp_digest("your-secure-password")
    assert one["previous_hashes"] == {"default": [digest]}
    assert "settings" not in one
    assert "control 34 fails today" in "\n".join(found.summary)
    # Others with everything that the file can hold.
    rich = server(
        6400,
        users=[LOCKED, *(user for user, wanted, _ in USERS if wanted)],
        settings={"maxmemory": "1048576", "bind": "* -::*", "hz": "20", "oom-score-adj-values": "0 200 800"},
        clients=CLIENTS,
        unit="redis-server@rich.service",
    )
    more = yaml.safe_load(described(rich, server(6500)).text)
    del values["redis_instances"][0]["adopt"], values["redis_instances"][0]["adopt_from"]
    for item in more["redis_instances"]:
        del item["adopt"], item["adopt_from"]
    hosts = {"typed": {**variables(), **values}, "rich": {**variables(), **more}, "bad": variables("redis_bind", [])}
    for host in hosts.values():
        # As inventory/production has it.
        host["redis_ports"] = (
            "{{ redis_instances | default([{}]) | quantdesk.redis.redis_ports(redis_port, redis_tls_port) }}"
        )
    result = run(tmp_path, hosts, {})
    # One that is wrong, so that there is a report at all.
    assert names(result, "bad") == ["redis_bind"]
    assert names(result, "typed") == []
    assert names(result, "rich") == []
    assert SECRET not in result.stdout


def resp_digest(password: str) -> str:
    """Return a password's hash."""
    text: str = load("plugins/module_utils/redis_acl.py").digest(password)
    return text


def test_the_playbook_writes_and_prints_it_and_changes_nothing_else(by_hand: tuple[int, int], tmp_path: Path) -> None:
    _, port = by_hand
    (tmp_path / "hosts.yml").write_text("all: {children: {redis: {hosts: {localhost: }}}}\n")
    words = ("playbooks/adopt.yml", "-i", str(tmp_path / "hosts.yml"), "-e", "ansible_become=false")
    folder = tmp_path / "out"
    code, output = ansible("ansible-playbook", *words, "-e", f"adopt_folder={folder}")
    assert code == 0, output
    assert f"port {port}: Redis " in output
    assert f"written to {folder}/localhost.yml" in output
    assert "next: go through it, copy it to host_vars/localhost.yml" in output
    assert "your-secure-password" not in output + (folder / "localhost.yml").read_text()
    assert resp_digest("your-secure-password") not in output
    assert re.search(r"localhost +: ok=3 +changed=1 +unreachable=0 +failed=0 ", output)
