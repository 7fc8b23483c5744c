"""What is on a host already: how it is told, and that no role overwrites it or is shut out by it unawares."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
from test_bad_input import SECRET, run, variables

from conftest import PROJECT, ansible, collections, load

look = load("plugins/module_utils/host_neighbours.py")
judge = load("plugins/filter/neighbours.py")

MARKER = "Ansible managed"
ALLOW = [{"name": "redis", "ports": [6380], "from": ["10.0.0.5"]}]


# --- Packet filters ---


def filters(rules: str) -> dict[str, Any]:
    """Have the kernel take rules in a network of their own, and return what is read from its answer."""
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", "nft --file - && nft --json list ruleset"],
        input=rules,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        if "Operation not permitted" in done.stderr or "not found" in done.stderr:
            pytest.skip("a network namespace with rules of its own is not permitted here")
        raise AssertionError(done.stderr)
    quiet = {"active": False, "open": True, "accepts": [], "unknown": []}
    found: dict[str, Any] = look.packet_filter(json.loads(done.stdout))
    return {**found, "made": [], "ufw": quiet, "firewalld": quiet}


def chain(*rules: str, policy: str = "drop", before: str = "") -> str:
    """Return a table with one input chain."""
    lines = ["type filter hook input priority 0", f"policy {policy}", *rules]
    return "\n".join(["table inet filter {", before, "chain input {", *lines, "}", "}", ""])


ESTABLISHED = "ct state established,related accept"
OPEN, SHUT, DOUBTFUL = "open", "shut", "doubtful"
RULES = [
    ("", OPEN),
    (chain(ESTABLISHED, policy="accept"), OPEN),
    (chain(ESTABLISHED, 'iifname "lo" accept', "tcp dport 22 accept"), SHUT),
    (chain(ESTABLISHED, "udp dport 6380 accept", "meta l4proto { icmp, ipv6-icmp } accept"), SHUT),
    (chain("tcp dport { 22, 6380 } accept"), OPEN),
    (chain("tcp dport 6000-7000 accept"), OPEN),
    (chain("ip saddr 10.0.0.0/8 tcp dport 6380 accept"), OPEN),
    # From some addresses: which ones those are is not looked at.
    (chain("ip saddr 10.0.0.0/8 accept"), OPEN),
    (chain("ct state new tcp dport 22 accept"), SHUT),
    (chain("ct state invalid drop", "tcp dport 6380 drop", policy="accept"), SHUT),
    (chain("tcp dport 22 accept", "reject", policy="accept"), SHUT),
    (chain("tcp dport 6380 counter accept", "counter drop", policy="accept"), OPEN),
    (chain("accept", "drop"), OPEN),
    (chain("tcp dport vmap { 22 : accept, 6380 : accept }"), DOUBTFUL),
    (chain("tcp dport @ports accept", before="set ports {\ntype inet_service\n}"), DOUBTFUL),
    (chain("tcp dport != 6380 accept"), DOUBTFUL),
    (chain("tcp dport vmap { 22 : drop }", policy="accept"), OPEN),
    # Other chains of it, and the same for chains that are not called.
    (chain("jump more", before="chain more {\ntcp dport 6380 accept\n}"), OPEN),
    (chain("jump more", before="chain more {\ntcp dport 22 accept\n}"), SHUT),
    (chain("tcp dport 22 accept", before="chain more {\ntcp dport 6380 accept\n}"), SHUT),
    (chain("jump more", policy="accept", before="chain more {\ndrop\n}"), SHUT),
    # What is passed on to containers is not what comes in.
    ("table ip filter {\nchain forward {\ntype filter hook forward priority 0\npolicy drop\n}\n}\n", OPEN),
    (
        "table ip nat {\nchain pre {\ntype nat hook prerouting priority -100\ntcp dport 80 dnat to 10.0.0.2\n}\n}\n",
        OPEN,
    ),
]


@pytest.mark.parametrize(("rules", "wanted"), RULES)
def test_what_other_tables_drop(rules: str, wanted: str) -> None:
    survey = {"filters": filters(rules)}
    shut = judge.shut_ports(survey, "quantdesk", ALLOW)
    doubtful = judge.doubtful_ports(survey, "quantdesk", ALLOW)
    assert (bool(shut), bool(doubtful)) == (wanted == SHUT, wanted == DOUBTFUL)
    if wanted != OPEN:
        assert "table inet filter, chain input, drops 6380" in shut + doubtful


def test_our_own_table_is_not_in_its_own_way() -> None:
    rules = chain("tcp dport 22 accept").replace("inet filter", "inet quantdesk")
    survey = {"filters": filters(rules)}
    assert judge.shut_ports(survey, "quantdesk", ALLOW) == ""
    # But it may be another's of that name.
    assert judge.foreign_table(survey, "quantdesk") == "table inet quantdesk"
    assert judge.foreign_table({"filters": {**survey["filters"], "made": ["quantdesk"]}}, "quantdesk") == ""
    assert judge.foreign_table(survey, "managed") == ""


UFW = """Status: active
Logging: on (low)
Default: deny (incoming), allow (outgoing), deny (routed)
New profiles: skip

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW IN    Anywhere
6000:6010/tcp              ALLOW IN    10.0.0.0/8
80,81/tcp                  ALLOW IN    Anywhere
53/udp                     ALLOW IN    Anywhere
9000                       LIMIT IN    Anywhere
Nginx HTTPS                ALLOW IN    Anywhere
7000/tcp                   DENY IN     Anywhere
10.0.0.1 8000/tcp on eth0  ALLOW IN    10.0.0.5
22/tcp (v6)                ALLOW IN    Anywhere (v6)

25/tcp                     ALLOW OUT   Anywhere
"""
FIREWALLD = """public{}
  target: default
  interfaces: eth0
  services: dhcpv6-client http ssh
  ports: 3002/tcp 4000-4010/tcp 53/udp
  rich rules:
\trule family="ipv4" source address="10.0.0.0/8" port port="3003" protocol="tcp" accept

trusted
  target: ACCEPT
  ports: 6380/tcp
"""


@pytest.mark.parametrize(
    ("port", "passes"),
    [
        (22, True),
        (6005, True),
        (81, True),
        (443, True),
        (53, False),
        (9000, True),
        (7000, False),
        (8000, True),
        (25, False),
    ],
)
def test_what_ufw_lets_in(port: int, passes: bool) -> None:
    found = look.ufw(UFW)
    assert found["active"]
    assert judge._within(port, found["accepts"]) is passes
    assert found["unknown"] == []
    assert not look.ufw("Status: inactive\n")["active"]
    assert look.ufw(UFW.replace("deny (incoming)", "allow (incoming)"))["open"]


@pytest.mark.parametrize(("heading", "default"), [(" (active)", "x"), (" (default, active)", "public"), ("", "public")])
def test_what_firewalld_lets_in(heading: str, default: str) -> None:
    found = look.firewalld(FIREWALLD.format(heading), default)
    passing = [port for port in (22, 53, 80, 3002, 3003, 4005, 6380) if judge._within(port, found["accepts"])]
    assert passing == [22, 80, 3002, 3003, 4005]
    assert (found["active"], found["open"], found["unknown"]) == (True, False, [])
    assert not look.firewalld()["active"]


@pytest.mark.parametrize("manager", ["ufw", "firewalld"])
def test_the_command_that_opens_a_port_is_named(manager: str) -> None:
    found = filters("")
    found[manager] = {"active": True, "open": False, "accepts": [[22, 22]], "unknown": []}
    said = judge.shut_ports({"filters": found}, "quantdesk", ALLOW)
    assert said.startswith(f"{manager} is active and drops 6380 (")
    assert {"ufw": "ufw allow 6380/tcp; or ufw disable", "firewalld": "--add-port=6380/tcp"}[manager] in said
    # A name of an application may stand for the port.
    found[manager]["unknown"] = ["Shop"]
    assert judge.shut_ports({"filters": found}, "quantdesk", ALLOW) == ""
    assert f"{manager} is active" in judge.doubtful_ports({"filters": found}, "quantdesk", ALLOW)


def test_services_that_a_first_run_shuts_are_named() -> None:
    listeners = [
        {"port": port, "address": address, "program": program}
        for address, port, program in (
            ("0.0.0.0", 22, "sshd"),
            ("0.0.0.0", 6380, "redis-server"),
            ("0.0.0.0", 8080, "nginx"),
            ("::", 8080, "nginx"),
            ("10.0.0.9", 9100, "node_exporter"),
            ("127.0.0.1", 25, "exim4"),
            ("::1", 25, "exim4"),
            ("127.0.0.53", 53, "systemd-resolve"),
        )
    ]
    survey = {"listeners": listeners, "filters": {"made": []}}
    assert judge.cut_off(survey, "quantdesk", ALLOW, [22]) == "8080 of nginx, 9100 of node_exporter"
    # Later runs shut nothing that was not shut already.
    assert judge.cut_off({**survey, "filters": {"made": ["quantdesk"]}}, "quantdesk", ALLOW, [22]) == ""
    assert judge.cut_off({}, "quantdesk", ALLOW, [22]) == ""


# --- Users, files, ports ---


@pytest.mark.parametrize(
    ("user", "foreign"),
    [
        (None, False),
        ({"uid": 998, "home": "/var/lib/app", "shell": "/usr/sbin/nologin"}, False),
        ({"uid": 105, "home": "/opt/app", "shell": "/bin/false"}, False),
        ({"uid": 1001, "home": "/home/app", "shell": "/bin/bash"}, True),
        ({"uid": 1001, "home": "/home/app", "shell": "/usr/sbin/nologin"}, True),
        ({"uid": 998, "home": "/opt/app", "shell": "/bin/sh"}, True),
    ],
)
def test_a_person_is_no_user_of_a_role(user: dict[str, Any] | None, foreign: bool) -> None:
    assert bool(judge.foreign_user({"users": {"app": user} if user else {}}, "app")) is foreign


def test_files_in_the_places_of_the_application() -> None:
    unit = "/etc/systemd/system/app.service"
    survey = {
        "unmarked": [unit, "/etc/systemd/system/other.service", "/etc/app/app.env"],
        "folders": {"/opt/app": ["app.py", "current", "releases"], "/opt/other": ["x"]},
    }
    assert judge.foreign_app(survey, "app", "/opt/app") == f"{unit}, /etc/app/app.env, /opt/app/app.py"
    assert judge.foreign_app({"folders": {"/opt/app": ["current", "releases"]}}, "app", "/opt/app") == ""
    assert judge.foreign_app({}, "app", "/opt/app") == ""


def test_a_file_is_known_by_its_marker(tmp_path: Path) -> None:
    (tmp_path / "a.service").write_text(f"# {MARKER}\n[Unit]\n")
    (tmp_path / "b.service").write_text("[Unit]\n")
    (tmp_path / "c.service").symlink_to("b.service")
    (tmp_path / "d.service").mkdir()
    assert look.unmarked(MARKER, f"{tmp_path}/*.service") == [f"{tmp_path}/b.service"]


# --- HAProxy ---


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        (None, "missing"),
        (f"# {MARKER}\nglobal\n", "ours"),
        ("global\n", "package"),
        ("global\nfrontend shop\n  bind *:80\n", "foreign"),
    ],
)
def test_whose_configuration_of_haproxy_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, origin: str
) -> None:
    file = tmp_path / "haproxy.cfg"
    if text is not None:
        file.write_text(text)
    packaged = hashlib.md5(b"global\n", usedforsecurity=False).hexdigest()
    known = f" /etc/logrotate.d/haproxy 0123\n {file} {packaged}\n"
    monkeypatch.setattr(look, "output", lambda *words: known if words[0] == "dpkg-query" else "")
    found = look.haproxy(MARKER, str(file))
    assert found["origin"] == origin
    assert found["sections"] == (["frontend shop"] if origin == "foreign" else [])


# --- PostgreSQL ---

HBA = """# PostgreSQL Client Authentication Configuration File
local   all             postgres                                peer
local   all             all                                     peer
host    all             all             127.0.0.1/32            {0}
host    all             all             ::1/128                 {0}
local   replication     all                                     peer
host    replication     all             127.0.0.1/32            {0}
host    replication     all             ::1/128                 {0}
"""
SHOP = {
    "databases": {"postgres": "postgres", "shop": "shop"},
    "roles": {"postgres": True, "shop": False, "boss": True},
    "listen": "localhost,10.0.0.9",
    "connections": 200,
}


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hba: str, told: Any = None, conf: str = "") -> Any:
    """Make the folder of a cluster, and return what is known of it."""
    folder = tmp_path / "15/main"
    folder.mkdir(parents=True)
    (folder / "postgresql.conf").write_text(conf or "#port = 1\nport = 5433  # x\ninclude_dir = 'conf.d'\n")
    (folder / "pg_hba.conf").write_text(hba)
    monkeypatch.setattr(look, "output", lambda *words: json.dumps(told) if told else "")
    (found,) = look.clusters(MARKER, str(tmp_path))
    return found


@pytest.mark.parametrize(
    ("hba", "told", "words"),
    [
        (HBA.format("scram-sha-256"), {**SHOP, "databases": {"postgres": "postgres"}, "roles": {"postgres": True}}, ""),
        (HBA.format("md5"), {**SHOP, "databases": {"postgres": "postgres"}, "roles": {"postgres": True}}, ""),
        (f"# {MARKER}\n", SHOP, ""),
        (HBA.format("md5"), SHOP, "databases shop and users shop, boss"),
        (HBA.format("trust"), {**SHOP, "databases": {}, "roles": {}}, "a pg_hba.conf that was edited"),
        (HBA.format("md5"), None, "which does not run"),
    ],
)
def test_what_is_in_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hba: str, told: Any, words: str) -> None:
    found = made(tmp_path, monkeypatch, hba, told)
    assert (found["port"], found["conf.d"]) == (5433, True)
    said = judge.foreign_cluster(found)
    assert words in said
    assert bool(said) is bool(words)


def test_clusters_and_their_ports() -> None:
    survey = {
        "postgresql": [{"version": "13", "name": "main", "port": 5432}, {"version": "15", "name": "main", "port": 5433}]
    }
    assert judge.others_on_port(survey, 15, "5432") == "cluster 13/main"
    assert judge.others_on_port(survey, 15, 5433) == ""
    assert judge.cluster_of(survey, 15)["port"] == 5433
    assert judge.cluster_of(survey, 17) == {}


@pytest.mark.parametrize(
    ("database", "user", "words"),
    [
        ("app", "app", ""),
        ("shop", "app", "database shop of shop"),
        ("shop", "shop", ""),
        ("app", "boss", "user boss with rights of an administrator"),
        ("app", "shop", "user shop, who owns shop"),
    ],
)
def test_names_that_others_have(database: str, user: str, words: str) -> None:
    cluster = {"ours": False, **SHOP}
    assert judge.foreign_names(cluster, database, user) == words
    assert judge.foreign_names({**cluster, "ours": True}, database, user) == ""


def test_addresses_that_others_come_by() -> None:
    cluster = {"ours": False, **SHOP}
    assert judge.not_listening(cluster, ["127.0.0.1", "10.0.0.9"]) == ""
    assert judge.not_listening(cluster, ["127.0.0.1"]) == "10.0.0.9"
    assert judge.not_listening({**cluster, "listen": "*"}, ["127.0.0.1", "10.0.0.9"]) == "*"


def test_lines_of_others_stay_in_pg_hba_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["comment"] = lambda text: f"# {text}"
    template = environment.from_string((PROJECT / "roles/database/templates/pg_hba.conf.j2").read_text())
    values = {"ansible_managed": MARKER, "database_name": "app", "database_user": "app", "database_listen": []}
    theirs = HBA.format("md5") + "host shop shop 10.0.0.0/24 md5\n"

    def render(kept: str) -> str:
        return template.render(values, database_clients=["10.0.0.5"], __database_kept=kept)

    first = render(made(tmp_path, monkeypatch, theirs, SHOP)["kept"])
    assert first.endswith(theirs)
    # A second run finds them again.
    second = made(tmp_path / "again", monkeypatch, first)
    assert second["ours"]
    assert render(second["kept"]) == first
    # What lets all local users in by their names would win over a password of theirs.
    own = first.removesuffix(theirs)
    assert "local    all  all" not in own
    assert "hostssl  app  app  10.0.0.5/32  scram-sha-256" in own
    assert "local    all  all" in render("")
    assert "From before" not in render("")


# --- PostgreSQL, after an upgrade of the distribution ---


def old_and_new(*clusters: tuple[str, str, str]) -> dict[str, Any]:
    """Return a host's survey with clusters: version, whose it is (ours, empty, full, unknown), and its start."""
    return {
        "postgresql": [
            {
                "version": version,
                "name": "main",
                "port": 5432,
                "start": start,
                "program": True,
                "data": f"/var/lib/postgresql/{version}/main",
                "ours": whose == "ours",
                "hba": "ours" if whose == "ours" else "package",
                "known": whose in ("empty", "full"),
                "databases": {"shop": "shop"} if whose == "full" else {},
                "roles": {},
            }
            for version, whose, start in clusters
        ]
    }


UPGRADE = "pg_upgradecluster -v 17 15 main; systemctl disable postgresql@15-main"


@pytest.mark.parametrize(
    ("clusters", "version", "undecided", "steps"),
    [
        # A bare host, and one of the package's own cluster.
        ([], "17", "", None),
        ([("17", "empty", "auto")], "17", "", None),
        # Right after the upgrade: without the new version, with its empty cluster, with one that nobody knows.
        (
            [("15", "ours", "auto")],
            "15",
            "",
            f"apt-get install postgresql-17; {UPGRADE}",
        ),
        ([("15", "ours", "auto"), ("17", "empty", "auto")], "15", "", f"pg_dropcluster --stop 17 main; {UPGRADE}"),
        ([("15", "ours", "auto"), ("17", "full", "auto")], "15", "", f"pg_renamecluster 17 main other; {UPGRADE}"),
        ([("15", "ours", "auto"), ("17", "unknown", "auto")], "15", "", f"pg_renamecluster 17 main other; {UPGRADE}"),
        # pg_upgradecluster has run, and the old cluster is kept; then it was taken away.
        ([("15", "ours", "manual"), ("17", "ours", "auto")], "17", "", None),
        ([("17", "ours", "auto")], "17", "", None),
        # Somebody went back to the old one.
        (
            [("15", "ours", "auto"), ("17", "ours", "manual")],
            "15",
            "",
            f"pg_renamecluster 17 main other; {UPGRADE}",
        ),
        # Whoever else was there stays, and nothing of it is ours.
        ([("15", "full", "auto")], "17", "", None),
        # The data are in one of them, and nothing says in which.
        ([("15", "ours", "auto"), ("17", "ours", "auto")], "17", "15/main (auto) and 17/main (auto)", None),
        ([("15", "ours", "manual"), ("17", "ours", "manual")], "17", "15/main (manual) and 17/main (manual)", None),
        ([("15", "ours", "manual"), ("17", "full", "auto")], "15", "15/main (manual)", None),
        ([("15", "ours", "manual")], "15", "15/main (manual)", None),
        # As it ever was: the only cluster, of the distribution's version, however it starts.
        ([("17", "ours", "manual")], "17", "", None),
    ],
)
def test_our_data_are_served_from_the_cluster_that_they_are_in(
    clusters: list[tuple[str, str, str]], version: str, undecided: str, steps: str | None
) -> None:
    survey = old_and_new(*clusters)
    assert judge.serving_version(survey, 17) == version
    assert judge.undecided_clusters(survey, 17) == undecided
    if steps:
        assert judge.upgrade_steps(survey, 17) == steps
    assert judge.serving_version({}, 17) == "17"


def test_our_data_in_a_cluster_of_another_name_are_told() -> None:
    survey = old_and_new(("15", "ours", "auto"))
    survey["postgresql"][0]["name"] = "old"
    assert judge.undecided_clusters(survey, 17) == "15/old (auto)"
    # Beside the one that serves it is a copy, or whatever somebody keeps.
    survey["postgresql"] += old_and_new(("17", "ours", "auto"))["postgresql"]
    assert judge.undecided_clusters(survey, 17) == ""
    assert judge.serving_version(survey, 17) == "17"


def test_versions_are_numbers() -> None:
    survey = old_and_new(("9.6", "ours", "auto"), ("15", "ours", "auto"))
    assert judge.serving_version(survey, 17) == "15"


def test_a_cluster_that_was_upgraded_keeps_its_port_and_is_kept_from_starting() -> None:
    survey = old_and_new(("15", "ours", "manual"), ("17", "ours", "auto"), ("16", "full", "manual"))
    assert judge.upgraded_versions(survey, "17") == ["15"]
    assert judge.others_on_port(survey, "17", 5432) == "cluster 16/main"
    # Another's old cluster is where it was, and its port is not ours.
    other = old_and_new(("15", "full", "manual"))
    assert judge.others_on_port(other, "17", 5432) == "cluster 15/main"
    assert judge.upgraded_versions(other, "17") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"program": False}, "cluster 15/main in /var/lib/postgresql/15/main without postgresql-15"),
        ({"data": "", "program": False}, "cluster 15/main without its data"),
    ],
)
def test_old_data_without_what_reads_them_are_no_reason_for_an_empty_cluster(
    changes: dict[str, Any], words: str
) -> None:
    survey = old_and_new(("15", "ours", "auto"), ("17", "empty", "auto"))
    survey["postgresql"][0] |= changes
    assert judge.unusable_cluster(survey, 17) == words
    assert judge.serving_version(survey, 17) == "15"
    # The distribution's own is simply installed again.
    assert judge.unusable_cluster(survey, 15) == ""
    assert judge.unusable_cluster({}, 17) == ""


def test_data_without_a_folder_of_settings_are_told_where_nothing_is_ours() -> None:
    survey = {**old_and_new(("17", "empty", "auto")), "postgresql_lost": ["/var/lib/postgresql/15/main"]}
    assert judge.lost_data(survey) == "/var/lib/postgresql/15/main"
    survey["postgresql"][0]["ours"] = True
    assert judge.lost_data(survey) == ""


def test_what_a_cluster_has_and_how_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROGRAMS", "DATA"):
        monkeypatch.setattr(look, name, str(tmp_path / name))
    folder = tmp_path / "15/main"
    # Ours is in a file of its own, which wins.
    found = made(tmp_path, monkeypatch, f"# {MARKER}\n")
    assert (found["port"], found["start"], found["program"], found["data"]) == (5433, "auto", False, "")
    (folder / "conf.d").mkdir()
    (folder / "conf.d/managed.conf").write_text("port = '5434'\n")
    (folder / "start.conf").write_text("# This cluster was upgraded\n\nmanual\n")
    for path in ("PROGRAMS/15/bin/postgres", "DATA/15/main/PG_VERSION", "DATA/13/main/PG_VERSION"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (found,) = look.clusters(MARKER, str(tmp_path))
    assert (found["port"], found["start"], found["program"]) == (5434, "manual", True)
    assert found["data"] == str(tmp_path / "DATA/15/main")
    assert look.lost_data(str(tmp_path)) == [str(tmp_path / "DATA/13/main")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "postgresql.conf").write_text(f"data_directory = '{elsewhere}'\nport = 5433\n")
    (found,) = look.clusters(MARKER, str(tmp_path))
    # Without its include, the file of conf.d says nothing; and its folder of data is empty.
    assert (found["port"], found["data"]) == (5433, "")


# --- In the preflight ---

UNTIDY = {
    "ssh_connection": "",
    "users": {name: {"uid": 1001, "home": "/home/x", "shell": "/bin/bash"} for name in ("quantdesk",)},
    "folders": {"/opt/quantdesk": ["app.py"]},
    "unmarked": ["/etc/systemd/system/quantdesk.service"],
    "listeners": [
        {"port": port, "address": "0.0.0.0", "pid": 9, "program": "nginx", "unit": "nginx.service"}
        for port in (443, 3002)
    ],
    "haproxy": {"file": "/etc/haproxy/haproxy.cfg", "origin": "foreign", "sections": ["frontend {{ shop }}"]},
    "postgresql": [
        {
            "version": v,
            "name": "main",
            "port": 5432,
            "ours": False,
            "hba": "changed",
            "known": True,
            "conf.d": False,
            **SHOP,
        }
        for v in ("13", "15", "16", "17")
    ],
    "filters": {
        "tables": [{"family": "inet", "name": "quantdesk"}],
        "made": [],
        "chains": [],
        "ufw": {"active": True, "open": False, "accepts": [], "unknown": []},
        "firewalld": {"active": False, "open": False, "accepts": [], "unknown": []},
    },
}
FAKE = """from ansible.module_utils.basic import AnsibleModule
import json
AnsibleModule({{"files": {{"type": "list"}}}}).exit_json(**json.loads({!r}))
"""
BALANCER = {"load_balancer_http_port": 0, "load_balancer_stats_port": 0}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the preflight over hosts that say that they are untidy, without and with the permission to go on."""
    folder = tmp_path_factory.mktemp("untidy")
    answer = json.dumps({"changed": False, "listeners": UNTIDY["listeners"], "ansible_facts": {"host_survey": UNTIDY}})
    patch = pytest.MonkeyPatch()
    patch.setenv("ANSIBLE_COLLECTIONS_PATH", collections(folder, host_survey=FAKE.format(answer)))
    plain = {**variables(), **BALANCER}
    adopting = {**plain, "database_adopt": "keep", "load_balancer_adopt": "replace", "database_listen": ["127.0.0.1"]}
    both = {"one": plain, "two": adopting}
    try:
        done = run(folder, {"one": plain}, both, database=both, load_balancer=both, backup_repository=both)
    finally:
        patch.undo()
    assert done.returncode != 0
    assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}
    assert SECRET[:15] not in done.stdout
    said = " ".join(done.stderr.split())
    assert "services, on the host: found '3002 of nginx, 443 of nginx'; expected an item of firewall_allow" in said
    return done.stdout.rsplit("fatal:", 1)[1]


BOTH, ONE, TWO = "[one, two]", "[one]", "[two]"
SAID = [
    ("firewall_table, on the host: found 'table inet quantdesk'; expected a name that no other table has", BOTH),
    (
        "other packet filters, on the host: found 'ufw is active and drops 6380 (ufw allow 6380/tcp; or ufw disable)'",
        BOTH,
    ),
    ("app_user, on the host: found 'a user quantdesk with uid 1001", BOTH),
    (
        "files of the application, on the host: found '/etc/systemd/system/quantdesk.service, /opt/quantdesk/app.py'",
        BOTH,
    ),
    ("haproxy.cfg, on the host: found '/etc/haproxy/haproxy.cfg of somebody else, with frontend {{ shop }}'", ONE),
    ("main with databases shop and users shop, boss and a pg_hba.conf that was edited'; expected no cluster main", ONE),
    ("database_port, on the host: found 'cluster ", BOTH),
    ("database_listen, of the cluster on the host: found '10.0.0.9'; expected all addresses", TWO),
    ("database_max_connections, of the cluster on the host: found '100 instead of 200'", TWO),
    ("postgresql.conf, on the host: found 'no include_dir'", BOTH),
]


@pytest.mark.parametrize(("words", "hosts"), SAID, ids=[words.split(":")[0] for words, _ in SAID])
def test_an_untidy_host_is_refused_by_name(report: str, words: str, hosts: str) -> None:
    lines = [line for line in report.splitlines() if words in line]
    assert len(lines) == 1, report
    assert lines[0].endswith(hosts)


def test_our_data_in_a_cluster_from_before_an_upgrade_are_told_and_nothing_is_made_beside_them(tmp_path: Path) -> None:
    survey = old_and_new(("9.6", "ours", "auto"))
    survey["postgresql"][0] |= {"program": False, "conf.d": True, "kept": ""}
    answer = json.dumps({"changed": False, "listeners": [], "ansible_facts": {"host_survey": survey}})
    patch = pytest.MonkeyPatch()
    patch.setenv("ANSIBLE_COLLECTIONS_PATH", collections(tmp_path, host_survey=FAKE.format(answer)))
    one = {"one": variables()}
    try:
        done = run(tmp_path, one, one, database=one)
    finally:
        patch.undo()
    assert done.returncode != 0
    assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}
    report = " ".join(done.stdout.rsplit("fatal:", 1)[1].split())
    assert (
        "PostgreSQL, of the cluster with the data: found 'cluster 9.6/main in /var/lib/postgresql/9.6/main without "
        "postgresql-9.6'; expected its program and its data" in report
    )
    # Nor is the old cluster taken for another's, whose port is to be left to it.
    assert "database_port" not in report
    warned = " ".join(done.stderr.split())
    assert "PostgreSQL's version: found 'PostgreSQL 9.6'" in warned
    assert re.search(
        r"pg_upgradecluster -v [0-9]+ 9\.6 main; systemctl disable postgresql@9\.6-main; then site\.yml", warned
    )


def test_the_port_that_ansible_came_by_stays_open_in_the_plays_after_the_preflight(tmp_path: Path) -> None:
    found = {"ssh_connection": "192.0.2.1 50000 192.0.2.2 2222"}
    answer = json.dumps({"changed": False, "listeners": [], **found, "ansible_facts": {"host_survey": found}})
    role: dict[str, Any] = {"name": "quantdesk.redis.firewall", "tasks_from": "preflight"}
    again = {"import_role": role, "when": "not preflight_passed | default(false)"}
    plays = [
        {"hosts": "localhost", "gather_facts": False, "tasks": [{"import_role": role}]},
        # As roles have it in their own plays.
        {
            "hosts": "localhost",
            "gather_facts": False,
            "vars": {"preflight_passed": True},
            "tasks": [again, {"debug": {"msg": "open: {{ __firewall_ssh_ports | join(' ') }}"}}],
        },
    ]
    (tmp_path / "play.yml").write_text(json.dumps(plays))
    patch = pytest.MonkeyPatch()
    patch.setenv("ANSIBLE_COLLECTIONS_PATH", collections(tmp_path, host_survey=FAKE.format(answer)))
    try:
        code, said = ansible("ansible-playbook", "-e", "ansible_become=false", tmp_path / "play.yml")
    finally:
        patch.undo()
    assert code == 0, said
    assert "open: 22 2222" in said
