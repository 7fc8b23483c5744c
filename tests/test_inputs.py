"""The Jinja tests and filters for inputs."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from conftest import load

inputs = load("plugins/test/inputs.py")
sizes = load("plugins/filter/sizes.py")
TESTS = inputs.TestModule().tests()

CASES: list[tuple[str, list[Any], list[Any]]] = [
    ("port", [1, 6379, 65535, "6380"], [0, -1, 65536, "http", "", None, True, 1.5, "0x10", "80\n"]),
    ("port_or_off", [0, "0", 6379], [-1, False, "off", 70000]),
    ("redis_size", [1, "512mb", "1GB", "64k", 4096], [0, "0mb", "lots", "512 mb", "-1", 1.5, True, "1tb", "", None]),
    ("address", ["10.0.0.1", "::1"], ["10.0.0", "10.0.0.1/24", "localhost", "", None]),
    (
        "host_name",
        ["redis1", "Redis_One", "a.b-c_d", "x" * 77, "10.0.0.1", "2001:DB8::5", "*.example.com", 7],
        ["", "a b", "a/b", "../a", ".a", "a..b", "-a", "a-", "bücher", "x" * 254, "a\nb", "a:b", None],
    ),
    ("network", ["10.0.0.1", "10.0.0.0/8", "::/0"], ["10.0.0.1/8", "everyone", ""]),
    ("one_line", ["a", "a b"], ["", "a\nb", "a\tb", "a\0b", 1, None]),
    (
        "password",
        ["0123456789abcdef", "a" * 512],
        ["short", "0123456789 abcdef", '0123456789"abcdef', "a" * 513, 10**20],
    ),
    ("password", ["0123456789ab$def#"], ["0123456789\\abcdef", "0123456789'abcdef", "0123456789\nabcdef", "é" * 20]),
    ("label", ["redis", "the app_1-a"], ["", 'a"b', "a;b", "a\nb", "x" * 61]),
    ("count", [1, "10"], [0, -1, "", "many", True, 1.5]),
    ("absolute_path", ["/etc/a.crt"], ["a.crt", "", "/etc/a b", "/a\nb", "/a'b"]),
    ("environment", [{}, {"A_1": "x y"}], [{"A": ""}, {"A": "x\ny"}, {"1A": "x"}, {"A B": "x"}, ["A"], "A=1"]),
    ("all_port", [[], [1, 2]], [[0], "80", None, {"a": 1}, 80]),
    ("all_network", [["10.0.0.0/8"]], [["x"], "10.0.0.0/8"]),
    ("all_save_point", [[], ["3600 1"]], [["3600"], ["0 1"], "3600 1", ["1 1 1"], ["a b"]]),
]


@pytest.mark.parametrize(("name", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_takes_what_is_right_and_refuses_the_rest(name: str, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not TESTS[name](value)] == []
    assert [value for value in bad if TESTS[name](value)] == []


def test_an_address_is_covered_by_a_network_that_holds_it() -> None:
    assert TESTS["covering"](["192.0.2.0/24", "10.0.0.0/8"], "10.1.2.3")
    assert not TESTS["covering"](["192.0.2.0/24"], "10.1.2.3")
    assert not TESTS["covering"](["0.0.0.0/0"], "::1")


@pytest.mark.parametrize(("size", "count"), [("1k", 1000), ("1kb", 1024), ("512mb", 2**29), ("2GB", 2**31), (7, 7)])
def test_a_size_is_what_redis_takes_it_for(size: str | int, count: int) -> None:
    assert sizes.redis_bytes(size) == count


@given(st.text(max_size=12))
def test_a_text_that_is_no_size_is_refused_by_test_and_filter_alike(text: str) -> None:
    try:
        count = sizes.redis_bytes(text)
    except AnsibleFilterError:
        assert not TESTS["redis_size"](text)
    else:
        assert TESTS["redis_size"](text) == (count > 0)
