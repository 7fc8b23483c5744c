"""The rules as a kernel takes them, in a network of its own: what is let in and out, and what is found to differ."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import PROJECT, ansible_plays, load

nftables = load("plugins/module_utils/nftables.py")

# Runs in a network namespace of its own, after the table has been loaded from standard input.
INSIDE = """
import json, os, socket, subprocess, sys
sys.path.insert(0, "tests")
from conftest import load
nftables = load("plugins/module_utils/nftables.py")
subprocess.run("ip link set lo up; ip address add 192.0.2.1/32 dev lo", shell=True, check=True)
rules = sys.stdin.read()
nftables.load(rules)

def connect(user, port, address="192.0.2.1"):
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(int(sys.argv[3]))\\n"
        "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3); print('connected')\\n"
        "except OSError as error: print(error.strerror or type(error).__name__)"
    )
    words = ["/usr/bin/python3", "-c", code, address, str(port), str(user)]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()

def serve(port):
    listener = socket.create_server(("0.0.0.0", port))
    listeners.append(listener)

listeners = []
"""
NOBODY = 65534


def inside(rules: str, code: str) -> Any:
    """Load rules in a network of its own, run code there, and return what it prints as JSON."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", INSIDE + code],
        cwd=PROJECT,
        input=rules,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed: Operation not permitted" in done.stderr:
        pytest.skip("a network namespace with rules of its own is not permitted here")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OUTGOING = [
    {"user": "nobody", "name": "redis", "ports": [6380], "to": ["192.0.2.1"]},
    {"user": "nobody", "name": "dns", "ports": [53], "to": ["192.0.2.0/24", "2001:db8::/32"], "protocol": "udp"},
    {"user": "no-such-user", "name": "other", "ports": [1], "to": ["192.0.2.1"]},
]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The role's files by name, as its templates make them."""
    folder = tmp_path_factory.mktemp("firewall")
    role = PROJECT / "roles/firewall"
    template = "{{{{ lookup('ansible.builtin.template', '{}') }}}}"
    names = {
        "rules": f"{role}/templates/rules.nft.j2",
        "closed": f"{role}/templates/closed.nft.j2",
        "unit": f"{role}/templates/nftables.service.j2",
        "follow": f"{role}/templates/follow.conf.j2",
    }
    variables = {
        **yaml.safe_load((role / "defaults/main.yml").read_text()),
        **yaml.safe_load((role / "vars/main.yml").read_text()),
        "firewall_table": "example",
        "firewall_allow": [{"name": "redis", "ports": [6380], "from": ["10.0.0.5", "2001:db8::5"]}],
        "firewall_ssh_from": ["192.0.2.0/24"],
        "firewall_outgoing": OUTGOING,
        "ansible_managed": "Ansible managed",
    }
    tasks = [
        {"ansible.builtin.copy": {"dest": str(folder / name), "content": template.format(path)}}
        for name, path in names.items()
    ]
    outcome = ansible_plays(folder, {"files": {"vars": variables, "tasks": tasks}})
    assert outcome["files"][0], outcome["files"][1]
    return {name: Path(folder, name).read_text() for name in names}


@pytest.fixture(scope="module")
def rules(rendered: dict[str, str]) -> str:
    """The rules as a host without `no-such-user` gets them."""
    assert nftables.unknown_users(rendered["rules"]) == ["no-such-user"]
    return str(nftables.without(rendered["rules"], ["no-such-user"]))


def test_a_user_connects_to_what_is_declared_and_to_nothing_else(rules: str) -> None:
    code = f"""
for port in (6380, 6381): serve(port)
print(json.dumps([[connect(user, port) for port in (6380, 6381)] for user in ({NOBODY}, 0)]
      + [connect({NOBODY}, 6381, "127.0.0.1")]))
"""
    nobody, root, loopback = inside(rules, code)
    assert nobody == ["connected", "No route to host"]
    # Nobody else is concerned.
    assert root == ["connected", "connected"]
    assert loopback == "No route to host"


def test_what_the_rules_shut_off_from_a_user_is_named_and_what_is_away_is_not(rules: str) -> None:
    code = """
for port in (6380, 6381): serve(port)
endpoints = [[f"URL_{port}", "192.0.2.1", port] for port in (6380, 6381, 6382)] + [["NAMED", "nowhere.invalid", 1]]
words = ["/usr/bin/python3", "roles/app/files/reach.py", "nobody", json.dumps(endpoints)]
print(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
"""
    assert inside(rules, code) == ["URL_6381: 192.0.2.1:6381 (No route to host)"]


def test_answers_of_a_confined_user_get_out(rules: str) -> None:
    code = f"""
serve(3002)
pid = os.fork()
if not pid:
    os.setgid({NOBODY}); os.setuid({NOBODY})
    taken, _ = listeners[0].accept()
    taken.sendall(b"hello"); taken.close(); os._exit(0)
print(json.dumps(socket.create_connection(("192.0.2.1", 3002), 5).recv(5).decode()))
"""
    assert inside(rules, code) == "hello"


def test_nothing_is_passed_on_and_both_families_are_closed(rendered: dict[str, str], rules: str) -> None:
    for text in (rules, rendered["closed"]):
        policies = inside(text, "print(json.dumps(nftables.answer('example', nftables.live('example'))['policies']))")
        assert policies == {"input": "drop", "forward": "drop"}


def test_until_the_rules_are_loaded_ssh_alone_is_let_in(rendered: dict[str, str]) -> None:
    chain = inside(rendered["closed"], "print(json.dumps(nftables.live('example').rules('input')))")
    assert [rule for rule in chain if "dport" in rule and "tcp" in rule] == [
        "ip saddr 192.0.2.0/24 tcp dport 22 accept"
    ]


def test_what_somebody_changed_is_found_whatever_a_file_of_the_host_holds(rules: str) -> None:
    code = """
should = nftables.wanted("example", rules)
def found(command):
    nftables.load(rules)
    if command: subprocess.run(["nft", command], check=True)
    return nftables.differences("example", should, nftables.live("example"))
print(json.dumps([found(command) for command in (
    "", "insert rule inet example input tcp dport 6381 accept", "flush chain inet example forward",
    "add chain inet example forward { policy accept ; }", "delete table inet example",
    "flush chain inet example output", "add table inet example { flags dormant ; }")]))
"""
    same, more, flushed, opened, gone, free, dormant = inside(rules, code)
    assert same == flushed == []
    assert more == ["+ tcp dport 6381 accept"]
    assert opened[-1] == "+ type filter hook forward priority filter; policy accept;"
    assert gone == ["- table inet example"]
    assert [line[:1] for line in free] == ["-"] * 5
    assert dormant == ["+ flags dormant"]


def test_a_file_that_others_may_write_or_own_is_another_one(rules: str, tmp_path: Path) -> None:
    code = f"""
packet_filter = load("plugins/modules/packet_filter.py")
file = {{"path": {str(tmp_path / "nftables-example.conf")!r}, "content": rules, "mode": "0644"}}
found = [packet_filter.differs(file)]
open(file["path"], "w").write(rules)
for mode, owner in ((0o644, 0), (0o666, 0), (0o644, {NOBODY}), (0o644, 0)):
    os.chown(file["path"], owner, 0)
    os.chmod(file["path"], mode)
    found.append(packet_filter.differs(file))
print(json.dumps(found))
"""
    assert inside(rules, code) == [True, False, True, True, False]


def test_what_a_release_will_need_is_opened_before_it_is_tried(rules: str) -> None:
    more = rules.replace("tcp dport { 6380 } accept", "tcp dport { 6380, 6390 } accept")
    more = re.sub(r'(.*skuid "nobody" ip daddr .*tcp.*6390.*\n)', r"\1", more)
    code = f"""
serve(6390)
packet_filter = load("plugins/modules/packet_filter.py")
files = [{{"path": "/etc/nftables-example.conf", "content": {more!r}}}]
params = {{"table": "example", "files": files}}
before = connect({NOBODY}, 6390)
checked = packet_filter.attempt(params, True)
still = connect({NOBODY}, 6390)
opened = packet_filter.attempt(params, False)
print(json.dumps([before, checked, still, opened, connect({NOBODY}, 6390), packet_filter.attempt(params, False)]))
"""
    before, checked, still, opened, after, again = inside(rules, code)
    assert (before, still, after) == ("No route to host", "No route to host", "connected")
    assert checked == opened
    assert [rule for rule in opened if "6390" in rule] == opened
    assert again == []


def test_users_are_counted_as_the_inventory_declares_them(rules: str) -> None:
    judge = load("plugins/filter/neighbours.py")
    confined = inside(rules, "print(json.dumps(nftables.confined(nftables.live('example'))))")
    assert confined == {"nobody": 3}
    assert judge.outgoing_rules(OUTGOING) == {"nobody": 3, "no-such-user": 1}
    free = re.sub(r'.*skuid "nobody" reject.*\n', "", rules)
    assert inside(free, "print(json.dumps(nftables.confined(nftables.live('example'))))") == {}


def test_rules_that_the_kernel_does_not_take_are_refused(rules: str) -> None:
    with pytest.raises(nftables.Refused, match="syntax error"):
        nftables.wanted("example", rules.replace("policy drop;", "policy perhaps;", 1))


ENVIRONMENT = {
    "REDIS_URL": "rediss://10.0.0.11:6380",
    "REDIS_STATE_URL": "rediss://u:p@10.0.0.12",
    "DATABASE_URL": "postgresql+asyncpg://u:p@db.example.com/quantdesk?sslmode=verify-full",
    "REDIS_SENTINELS": "10.0.0.11:26379, 10.0.0.13:26379",
    "LOG_LEVEL": "info",
}


def rule(port: int, *to: str, user: str = "app", **more: str) -> dict[str, Any]:
    """Return an item of firewall_outgoing."""
    return {"user": user, "name": "x", "ports": [port], "to": list(to), **more}


def dns(*to: str) -> list[dict[str, Any]]:
    """Return the items that let the application ask name servers."""
    return [rule(53, *to), rule(53, *to, protocol="udp")]


@pytest.mark.parametrize(
    ("outgoing", "shut"),
    [
        ([], "REDIS_URL: 10.0.0.11:6380, REDIS_STATE_URL: 10.0.0.12:6379, DATABASE_URL: db.example.com:5432"),
        ([rule(6380, "10.0.0.0/24", user="other")], "REDIS_URL: 10.0.0.11:6380"),
        (
            [rule(6380, "10.0.0.11"), rule(6379, "10.0.0.12"), rule(5432, "0.0.0.0/0")],
            "DATABASE_URL: db.example.com:5432",
        ),
        (
            [rule(6380, "10.0.0.11"), rule(6379, "10.0.0.12"), rule(5432, "0.0.0.0/0"), *dns("10.0.0.2")],
            "REDIS_SENTINELS: 10.0.0.11:26379",
        ),
        # By udp, nobody connects to Redis.
        ([rule(6380, "10.0.0.11", protocol="udp")], "REDIS_URL: 10.0.0.11:6380"),
        ([*(rule(port, "0.0.0.0/0") for port in (6380, 6379, 5432, 26379)), *dns("0.0.0.0/0")], ""),
    ],
)
def test_what_an_environment_names_and_the_rules_shut_is_found(outgoing: list[dict[str, Any]], shut: str) -> None:
    judge = load("plugins/filter/neighbours.py")
    found = judge.shut_off(ENVIRONMENT, outgoing, "app")
    assert found.startswith(shut)
    assert bool(found) is bool(shut)


NAMED = {"REDIS_URL": "rediss://redis.example.com:6380"}


@pytest.mark.parametrize(
    ("asked", "resolvers", "found"),
    [
        (dns("10.0.0.2"), [], ""),
        (dns("10.0.0.2"), ["10.0.0.2"], ""),
        (dns("10.0.0.2"), ["10.0.0.3", "10.0.0.2"], ""),
        (dns("127.0.0.53"), ["127.0.0.53"], ""),
        # systemd-resolved may ask them; the application asks it.
        (dns("10.0.0.2"), ["127.0.0.53"], "127.0.0.53"),
        (dns("10.0.0.2")[:1], ["10.0.0.2"], "10.0.0.2"),
        (dns("10.0.0.2")[1:], ["10.0.0.2"], "10.0.0.2"),
        (dns("10.0.0.2")[1:], [], "the name servers"),
        (dns("10.0.0.2", "2001:db8::/32"), ["2001:db8::53"], ""),
    ],
)
def test_names_need_the_name_servers_that_the_host_asks(
    asked: list[dict[str, Any]], resolvers: list[str], found: str
) -> None:
    judge = load("plugins/filter/neighbours.py")
    said = judge.shut_off(NAMED, [rule(6380, "10.0.0.0/24"), *asked], "app", resolvers)
    expected = f"REDIS_URL: redis.example.com:6380, whose address is resolved at port 53 of {found}, udp and tcp"
    assert said == (expected if found else "")
    # No port of it is open: that is what is said.
    assert judge.shut_off(NAMED, asked, "app", resolvers) == "REDIS_URL: redis.example.com:6380"


def test_what_an_environment_names_and_nobody_connects_to_needs_no_rule() -> None:
    judge = load("plugins/filter/neighbours.py")
    environment = {
        "ALLOWED_ORIGINS": "https://desk.example.com,https://other.example.com",
        "AUTH_ISSUER": "https://login.example.com/realms/desk",
        "DATABASE_URL": "postgresql://%2Frun%2Fpostgresql/quantdesk",
    }
    assert judge.shut_off(environment, [rule(6380, "10.0.0.11")], "app") == ""


def test_name_servers_are_read_as_the_c_library_reads_them(tmp_path: Path) -> None:
    look = load("plugins/module_utils/host_neighbours.py")
    file = tmp_path / "resolv.conf"
    file.write_text("# nameserver 10.0.0.9\nsearch example.com\nnameserver 127.0.0.53\nnameserver\tfe80::1%eth0\n")
    assert look.resolvers(str(file)) == ["127.0.0.53", "fe80::1"]
    assert look.resolvers(str(tmp_path / "none")) == []


LINKS = [
    {"ifname": "lo", "flags": ["LOOPBACK", "UP"], "addr_info": [{"scope": "host"}]},
    {"ifname": "eth0", "flags": ["BROADCAST", "UP"], "addr_info": [{"scope": "global"}, {"scope": "link"}]},
    {"ifname": "docker0", "flags": ["BROADCAST", "UP"], "addr_info": [{"scope": "global"}]},
    {"ifname": "eth1", "flags": ["BROADCAST"], "addr_info": [{"scope": "global"}]},
    {"ifname": "eth2", "flags": ["BROADCAST", "UP"], "addr_info": [{"scope": "link"}]},
]


def test_a_host_that_passes_packets_on_is_known() -> None:
    look = load("plugins/module_utils/host_neighbours.py")
    judge = load("plugins/filter/neighbours.py")
    assert look.interfaces(LINKS) == ["eth0", "docker0"]
    passing = {"forwarding": {"on": True, "between": ["eth0", "docker0"]}}
    assert judge.passes_on(passing) == "eth0, docker0"
    assert judge.passes_on({"forwarding": {"on": False, "between": ["eth0", "docker0"]}}) == ""
    assert judge.passes_on({"forwarding": {"on": True, "between": []}}) == ""
    assert judge.passes_on({}) == ""


TLS, PLAIN = {"haproxy": {"backends": "TLS"}}, {"haproxy": {"backends": "plaintext"}}
BARE: dict[str, Any] = {"haproxy": {"origin": "missing"}}


@pytest.mark.parametrize(
    ("survey", "balancers", "needed"),
    [
        ({}, [], False),
        ({"tls_required": []}, [TLS, BARE], False),
        ({"tls_required": ["/etc/app/app.env"]}, [TLS, PLAIN], True),
        # A run that leaves a balancer out goes by what the host itself has.
        ({"tls_required": []}, [TLS, {}], True),
        ({"tls_required": ["/etc/app/app.env"]}, [TLS, {}], False),
        ({"tls_required": ["/etc/other/other.env"]}, [{}], True),
    ],
)
def test_plaintext_is_taken_for_as_long_as_a_balancer_needs_it(
    survey: dict[str, Any], balancers: list[dict[str, Any]], needed: bool
) -> None:
    judge = load("plugins/filter/neighbours.py")
    assert judge.plaintext_needed(survey, balancers, "/etc/app/app.env") is needed
