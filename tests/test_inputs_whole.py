"""The Jinja tests that hold for lists, the edges of those for single values, and that none goes without a case."""

from __future__ import annotations

import ipaddress
import string
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st
from test_inputs import CASES, TESTS

from conftest import load

sizes = load("plugins/filter/sizes.py")

MORE: list[tuple[str, list[Any], list[Any]]] = [
    ("all_address", [[], ["10.0.0.1", "::1"]], [["10.0.0.1", "host"], ["10.0.0.0/8"], "10.0.0.1", {"10.0.0.1": 1}]),
    ("all_label", [[], ["redis", "the app"]], [["redis", 'a"b'], [1], "redis", None]),
    ("label", ["x" * 60], ["x" * 61, "é", 1]),
    ("one_line", ["é"], ["\x7f", "\x1b[31m", "a\r", "\u2028"]),
    ("environment", [{"_": "x", "A": 1}], [None, {"": "x"}, {"A-B": "x"}, {"A": "x\x1b"}, {"A=B": "x"}]),
]
MORE += [
    ("address", [], ["::1%x\nprotected-mode no", "fe80::1%a b", "fe80::1%eth0"]),
    ("network", [], ["fe80::1%x\n}", "fe80::%a b/64"]),
    ("port", [], ["\N{ARABIC-INDIC DIGIT ONE}"]),
    ("redis_size", [], ["\N{ARABIC-INDIC DIGIT ONE}mb"]),
    ("count", [], ["1\N{ARABIC-INDIC DIGIT ONE}"]),
    ("all_save_point", [], [["1\N{ARABIC-INDIC DIGIT ONE} 1"]]),
    ("environment", [{"A": True, "B": 1.5}], [{"A": None}, {"A": datetime(2026, 1, 31)}, {"A": [1]}, {"A": {"b": 1}}]),
]
MORE += [
    (
        "acl_rules",
        ["~* &* +@all", "~qd:x:* resetchannels -@all +client|setname", "%R~a +get", "allkeys"],
        ["", "on", "~*  +get"],
    ),
    (
        "acl_rules",
        [],
        ["+get >x", "nopass", "#" + "0" * 64, "(~x +get)", "~a\n+get", '~"a" +get', "+GET", "reset", 1, None],
    ),
    (
        "acl_users",
        [
            [],
            [{"name": "a", "password": "x", "rules": "+get"}],
            [{"name": "a", "password_hashes": ["0" * 64], "rules": "+get", "enabled": False}],
            [{"name": "a", "password": "x", "password_hashes": ["0" * 64], "rules": "+get"}],
        ],
        ["a", [{}], [{"name": "a", "rules": "+get"}]],
    ),
    (
        "acl_users",
        [],
        [[{"name": "a b", "password": "x", "rules": "+get"}], [{"name": "a", "password": "x", "rules": "on"}]],
    ),
    (
        "acl_users",
        [],
        [
            [{"name": "a", "password_hashes": [], "rules": "+get"}],
            [{"name": "a", "password_hashes": "0" * 64, "rules": "+get"}],
            [{"name": "a", "password": "x", "rules": "+get", "enabled": "no"}],
            [{"name": "a", "password": "x", "rules": "+get", "more": 1}],
        ],
    ),
    (
        "all_password_hashes",
        [[], [["0" * 64]], [["0" * 64, "f" * 64], ["a" * 64]]],
        [[[]], ["0" * 64], [["0" * 63]], [["A" * 64]], [["#" + "0" * 64]], [["0" * 64 + "\n"]], {"a": ["0" * 64]}],
    ),
    ("all_acl_pattern", [[], ["qd:*", "a?[bc]"]], ["qd:*", ["a b"], ["a'"], ['a"'], ["a\\"], ["(a)"], [""], [1]]),
    (
        "all_acl_command",
        [[], ["get", "client|setname"]],
        ["get", ["GET"], ["@all"], ["+get"], ["get x"], ["a|b|c"], [""]],
    ),
    (
        "all_output_buffer_limit",
        [[], ["normal 0 0 0"]],
        [["normal 0 0"], ["slave 1 1 1"], ["pubsub 1x 1 1"], ["normal 0 0 a"]],
    ),
    ("all_output_buffer_limit", [["pubsub 32mb 8mb 60"]], ["pubsub 32mb 8mb 60", [1]]),
    ("redis_value", ["a", 1, True, None, ["a", 1]], ["a\nb", "a\0", [["a"]], {"a": 1}, "\x1b"]),
    (
        "true_or_false",
        [True, False, 0, 1, "yes", "No", "ON", "off", "true", "False", "1", "0"],
        ["", "y", "t", "perhaps", 2, -1, 1.0, None, [], [True], " true", "true\n"],
    ),
    ("all_host_name", [["redis1", "*.example.com", "2001:db8::1"], []], ["redis1", ["a b"], ["-a"], ["a" * 254]]),
    (
        "moment",
        ["2026-01-31T14:00:00Z", "2026-01-31 14:00", "2026-01-31T14:00:00+01:00", datetime(2026, 1, 31)],
        ["2026-01-31", "14:00", "2026-02-31 14:00", "2026-01-31T14:00:00Z --host x", 845, None, date(2026, 1, 31)],
    ),
    ("past", ["2026-01-31T14:00:00Z", "1769868320.5", 1769868320], ["2126-01-31T14:00:00Z", "9769868320", True, "x"]),
    (
        "redis_directive",
        ["maxmemory", "MaxMemory", "slave-priority", "replica-priority", "dir"],
        ["maxmemroy", "", "a b", None],
    ),
]
PRINTABLE = "".join(sorted(set(string.ascii_letters + string.digits + string.punctuation) - set("'\"\\")))


@pytest.mark.parametrize(("name", "good", "bad"), MORE, ids=[case[0] for case in MORE])
def test_takes_what_is_right_and_refuses_the_rest(name: str, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not TESTS[name](value)] == []
    assert [value for value in bad if TESTS[name](value)] == []


def test_no_test_goes_without_a_case() -> None:
    assert set(TESTS) - {name for name, _, _ in [*CASES, *MORE]} == {"covering", "unencrypted_file"}


def test_a_covering_network_may_stand_anywhere_in_the_list_and_none_covers_nothing() -> None:
    assert TESTS["covering"](["10.0.0.0/8", "192.0.2.7"], "192.0.2.7")
    assert not TESTS["covering"](["192.0.2.7"], "192.0.2.8")
    assert not TESTS["covering"]([], "192.0.2.7")


@given(st.text(PRINTABLE, min_size=16, max_size=512))
def test_takes_every_password_of_harmless_characters(word: str) -> None:
    assert TESTS["password"](word)


@given(st.text(PRINTABLE, min_size=16, max_size=40), st.integers(0, 16), st.sampled_from(" '\"\\\n\t\0é\x7f"))
def test_refuses_a_password_with_one_harmful_character_anywhere(word: str, place: int, harmful: str) -> None:
    assert not TESTS["password"](word[:place] + harmful + word[place:])


@given(st.integers())
def test_takes_as_ports_the_numbers_from_1_to_65535_and_no_others(number: int) -> None:
    assert TESTS["port"](number) == TESTS["port"](str(number)) == (1 <= number <= 65535)


@given(st.ip_addresses())
def test_takes_every_address_also_as_a_network(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert TESTS["address"](str(address))
    assert TESTS["network"](str(address))
    assert TESTS["covering"]([str(address)], str(address))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("5", 5),
        ("5b", 5),
        ("5k", 5 * 1000),
        ("5m", 5 * 1000**2),
        ("5g", 5 * 1000**3),
        ("5kb", 5 * 1024),
        ("5mb", 5 * 1024**2),
        ("5gb", 5 * 1024**3),
    ],
)
def test_counts_each_unit_as_redis_does(size: str, count: int) -> None:
    assert sizes.redis_bytes(size) == sizes.redis_bytes(size.upper()) == count


@pytest.mark.parametrize("size", ["", "mb", "5tb", "5 mb", "-5mb", "5.5mb", "5mb\n", "0x5", None])
def test_refuses_what_redis_would_not_read(size: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"is no size such as 512mb"):
        sizes.redis_bytes(size)


def test_a_file_is_unencrypted_unless_ansible_vault_made_it(tmp_path: Path) -> None:
    clear, vault = tmp_path / "clear.yml", tmp_path / "vault.yml"
    clear.write_text("a: b\n")
    vault.write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    assert TESTS["unencrypted_file"](str(clear))
    assert not TESTS["unencrypted_file"](str(vault))
