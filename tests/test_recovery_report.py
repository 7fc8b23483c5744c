"""The report of a rebuild: what it says of phases and data, what it refuses, and its files."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.quantdesk.redis.plugins.plugin_utils.printable import clean
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery.inputs import BadInput, read
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery.judgement import Report, judge
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery.pictures import axis
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery.rendering import (
    as_html,
    as_json,
    as_text,
    environment,
)
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery.words import span
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from test_checks import play

from conftest import load

reports = load("plugins/action/recovery_report.py")

START = datetime(2026, 1, 31, 14, 5, 20, tzinfo=UTC).timestamp()
LOST = "2026-01-31T14:05:12Z"
DIGEST, OTHER = "3f9c2b7e51d0" * 5, "0011aabbccdd" * 5
HOSTILE = "</title><script>alert(1)</script>\"'&\x1b[2J\u202eevil {{ 1 }} https://example.com/x"


def phase(name: str, began: float, ended: float) -> dict[str, Any]:
    """Return a phase; its times count from the beginning of the rebuild."""
    return {"name": name, "began": START + began, "ended": START + ended}


PHASES = [phase("redis", 0, 20), phase("restore of redis", 20, 50), phase("verify", 54, 80)]


def restored(host: str = "redis1", **changes: Any) -> dict[str, Any]:
    """Return what a host's restore has printed."""
    facts = {"keys": 1000, "digest": DIGEST}
    result = {
        "source": "sessions",
        "backup": "ab12cd34" * 8,
        "host": host,
        "time": "2026-01-31T14:00:00.123456+00:00",
        "age_seconds": 330,
        "items": 1000,
        "bytes": 12 * 1048576,
        "in_backup": facts,
        "expected": facts,
        "found": facts,
        "compared": "digest",
        "kept": "",
        "seconds": {"fetch": 2.11, "exchange": 0.4, "load": 1.9, "compare": 1.3, "total": 5.8},
    }
    return {"host": host, "result": {**result, **changes}}


def options(**changes: Any) -> dict[str, Any]:
    """Return options of the task."""
    return {"environment": "lab", "phases": PHASES, "restored": [restored()], "lost_at": LOST, **changes}


def judged(**changes: Any) -> Report:
    """Return a report."""
    return judge(read(options(**changes)))


def report(**changes: Any) -> dict[str, Any]:
    """Return a report as Ansible gets it, with its text."""
    found = judged(**changes)
    return {**found.document(), "text": as_text(found).splitlines()}


class Page(HTMLParser):
    """What stands in a page: its elements with their attributes, and the texts in each kind of element."""

    VOID = frozenset(("meta",))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that is closed at once."""
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        """Find that elements are closed in the order in which they were opened."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append((tuple(self.open), data))

    def within(self, *tags: str) -> str:
        """Return all text that stands within elements of all these kinds, a line for each."""
        return "\n".join(words for path, words in self.texts if set(tags) <= set(path))

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def page(**changes: Any) -> Page:
    """Return the page of a report, read."""
    return Page(as_html(judged(**changes)))


# What it says.


def test_the_first_line_is_the_verdict() -> None:
    found = report(rto_limit=90, rpo_limit="900")
    assert found["text"][0] == (
        "Rebuilt in 80.0 s; the data are as of 2026-01-31T14:00:00Z, 311.9 s (5 min 12 s) before the loss; "
        "nothing else is missing."
    )
    assert (found["ok"], found["problems"], found["notes"]) == (True, [], [])
    assert (found["rto_seconds"], found["rpo_seconds"], found["outage_seconds"]) == (80.0, 311.9, 88.0)
    assert "RTO 80.0 s, limit 90.0 s: kept." in found["text"]
    assert "RPO 311.9 s (5 min 12 s), limit 900.0 s (15 min): kept." in found["text"]
    assert f"Out of service since {LOST}, for 88.0 s." in found["text"]


def test_phases_come_in_order_with_what_lies_between() -> None:
    found = report(phases=PHASES[::-1])["phases"]
    assert [(row["name"], row["at"], row["seconds"], row["gap"]) for row in found] == [
        ("redis", 0.0, 20.0, False),
        ("restore of redis", 20.0, 30.0, False),
        ("between", 50.0, 4.0, True),
        ("verify", 54.0, 26.0, False),
    ]
    assert [row["share"] for row in found] == [0.25, 0.375, 0.05, 0.325]


def test_phases_that_overlap_count_once_in_the_whole() -> None:
    found = report(phases=[phase("long", 0, 60), phase("within", 10, 20), phase("after", 60.01, 70)])
    assert found["rto_seconds"] == 70.0
    assert [row["name"] for row in found["phases"]] == ["long", "within", "after"]


def test_times_may_be_texts_numbers_or_dates_of_yaml() -> None:
    phases = [
        {"name": "a", "began": str(START), "ended": "2026-01-31T14:05:30Z"},
        {"name": "b", "began": "2026-01-31T15:05:30+01:00", "ended": datetime(2026, 1, 31, 14, 5, 40)},
    ]
    found = report(phases=phases, lost_at=date(2026, 1, 31), restored=[restored(time="2026-01-30 23:59:50")])
    assert (found["rto_seconds"], found["lost_at"]) == (20.0, "2026-01-31T00:00:00Z")
    assert found["rpo_seconds"] == 10.0


def test_a_rebuild_of_no_time_at_all_is_one() -> None:
    found = report(phases=[phase("nothing", 0, 0)])
    assert (found["rto_seconds"], found["phases"][0]["share"]) == (0.0, 0.0)
    assert page(phases=[phase("nothing", 0, 0)]).within("svg")


@pytest.mark.parametrize("lost_at", [None, ""])
def test_without_the_time_of_the_loss_the_age_counts_to_the_beginning(lost_at: str | None) -> None:
    found = report(lost_at=lost_at)
    assert (found["rpo_seconds"], found["outage_seconds"]) == (319.9, None)
    assert "319.9 s (5 min 20 s) before the rebuild began; nothing else" in found["text"][0]


def test_the_oldest_data_count_and_are_named() -> None:
    data = [restored(), restored("db1", source="orders", time="2026-01-31T13:00:00Z"), restored("redis2")]
    found = report(restored=data)
    assert found["rpo_seconds"] == 3912.0
    assert "as of 2026-01-31T13:00:00Z (the oldest, of orders on db1), 3912.0 s (1 h 5 min) before" in found["verdict"]


def test_limits_are_held_against_what_is_shown() -> None:
    assert report(phases=[phase("a", 0, 90.04)], rto_limit=90)["ok"]
    assert report(restored=[restored(time="2026-01-31T14:00:00Z")], rpo_limit=312)["ok"]
    assert not report(phases=[phase("a", 0, 90.06)], rto_limit=90)["ok"]


def test_one_problem_is_in_the_verdict() -> None:
    found = report(rto_limit=60)
    assert found["text"][:2] == [
        "FAILED: rebuilt in 80.0 s; expected 60.0 s at most (rto_limit).",
        "Rebuilt in 80.0 s; the data are as of 2026-01-31T14:00:00Z, 311.9 s (5 min 12 s) before the loss.",
    ]
    assert "RTO 80.0 s, limit 60.0 s: NOT kept." in found["text"]


def test_several_problems_follow_the_verdict_and_name_their_source() -> None:
    data = [restored(), restored("db1", source="orders", found={"keys": 7, "digest": OTHER})]
    found = report(restored=data, rpo_limit=300)
    assert found["ok"] is False
    assert found["text"][:4] == [
        "FAILED: 3 problems.",
        "  - sessions on redis1: the data are from 311.9 s (5 min 12 s) before the loss; "
        "expected 300.0 s (5 min) at most (rpo_limit).",
        "  - orders on db1: found 7 items with digest 0011aabbccdd; expected 1000 items with digest 3f9c2b7e51d0.",
        "  - orders on db1: the data are from 311.9 s (5 min 12 s) before the loss; "
        "expected 300.0 s (5 min) at most (rpo_limit).",
    ]
    assert [entry["equal"] for entry in found["restored"]] == [True, False]
    assert any("orders" in line and "DIFFERS" in line for line in found["text"])


def test_the_same_number_of_other_data_is_a_problem() -> None:
    assert not report(restored=[restored(found={"keys": 1000, "digest": OTHER})])["ok"]


def test_what_was_only_counted_is_said_to_be() -> None:
    found = report(restored=[restored(compared="count", found={"keys": 1000, "digest": ""})])
    assert found["ok"]
    assert found["verdict"].endswith("nothing else is missing by count.")
    assert found["notes"] == ["sessions on redis1: items were only counted; their content was not compared."]
    assert any("not compared" in line and "redis1" in line for line in found["text"])
    assert not report(restored=[restored(compared="count", found={"keys": 999, "digest": DIGEST})])["ok"]


def test_keys_that_have_expired_since_are_told() -> None:
    less = {"keys": 988, "digest": OTHER}
    found = report(restored=[restored(expected=less, found=less)])
    assert found["ok"]
    assert found["verdict"].endswith("nothing else is missing, except 12 keys that have expired since.")
    note = (
        "sessions on redis1: 12 of the 1000 keys in the backup have expired since, or will within seconds; "
        "988 keys were expected."
    )
    assert found["notes"] == [note]
    assert note in found["text"]
    assert note in page(restored=[restored(expected=less, found=less)]).within("li").replace("\xa0", " ")


def test_other_things_to_know_are_told() -> None:
    none = {"keys": 0, "digest": ""}
    changes = {"in_backup": none, "expected": none, "found": none, "kept": "/var/lib/redis/old"}
    found = report(restored=[restored(host="redis9", **changes)])
    assert found["notes"] == [
        "sessions on redis9: the backup is empty.",
        "sessions on redis9: the earlier data are kept in /var/lib/redis/old.",
    ]
    entry = {"host": "redis1", "result": restored("redis9", time="2026-01-31T14:05:22Z")["result"]}
    found = report(restored=[entry])
    assert found["rpo_seconds"] == 0.0
    assert found["notes"] == [
        "sessions on redis1: the backup was made 10.0 s after the loss: that was later than told, or clocks differ.",
        "sessions on redis1: the backup is one of redis9.",
    ]
    assert page(restored=[entry]).within("svg")


def test_no_data_are_a_problem_unless_none_are_expected() -> None:
    found = report(restored=[])
    assert found["problems"] == ["no data were restored; expected those of one source at least (expect_data)"]
    assert found["text"][1] == "Rebuilt in 80.0 s; no data were restored."
    found = report(restored=None, expect_data=False, rpo_limit=1)
    assert (found["ok"], found["rpo_seconds"]) == (True, None)
    assert found["text"][0] == "Rebuilt in 80.0 s; no data were restored, and none were expected."
    assert "Phases" in page(restored=None, expect_data=False).within("h2")


def test_the_tables_of_the_text_are_aligned_and_bars_lie_one_after_the_other() -> None:
    lines = report(restored=[restored(), restored("a-host-with-a-long-name", bytes=5)])["text"]
    head = next(i for i, line in enumerate(lines) if line.startswith("PHASE"))
    bars = [re.search(r"\[(.*)\]$", line) for line in lines[head + 1 : head + 5]]
    assert [match and match[1] for match in bars] == [
        "########                      ",
        "        ###########           ",
        "                   .          ",
        "                    ##########",
    ]
    assert [line.split("[")[0].split()[-1] for line in lines[head + 1 : head + 5]] == ["25%", "38%", "5%", "32%"]
    head = next(i for i, line in enumerate(lines) if line.startswith("SOURCE"))
    column = lines[head].index("DIGEST")
    assert [line[column : column + 14] for line in lines[head + 1 : head + 3]] == ["3f9c2b7e51d0  "] * 2
    assert "  12.0 MiB  " in lines[head + 1]
    assert "   0.0 MiB  " in lines[head + 2]
    assert not any(line.endswith(" ") for line in lines)
    assert not any(DIGEST in line for line in lines)


def test_a_tab_in_a_name_is_no_column() -> None:
    lines = report(phases=[phase("a\tb", 0, 10), phase("c", 10, 20)])["text"]
    head = next(i for i, line in enumerate(lines) if line.startswith("PHASE"))
    assert [line.split() for line in lines[head + 1 : head + 3]] == [
        ["a\ufffdb", "+0.0", "10.0", "50%", "[###############", "]"],
        ["c", "+10.0", "10.0", "50%", "[", "###############]"],
    ]


def test_data_of_the_very_moment_are_no_time_old() -> None:
    for seconds in (-0.04, 0, 0.04):
        found = report(restored=[restored(time=START + seconds)], lost_at=None)
        assert ", 0.0 s before the rebuild began" in found["text"][0]
        assert "-" not in f"{found['rpo_seconds']} {found['restored'][0]['ahead']}"


def test_the_text_holds_no_control_characters_of_hosts() -> None:
    found = report(environment=HOSTILE, phases=[phase(HOSTILE, 0, 1)], restored=[restored(HOSTILE, source=HOSTILE)])
    assert all(line.isprintable() for line in found["text"])


def test_json_holds_everything_whole() -> None:
    found = json.loads(as_json(judged(rto_limit=90)))
    assert found["restored"][0]["found"] == {"keys": 1000, "digest": DIGEST}
    assert found["restored"][0]["backup"] == "ab12cd34" * 8
    assert (found["rto_limit"], found["rpo_limit"], found["ok"]) == (90.0, None, True)
    assert (found["began"], found["ended"]) == ("2026-01-31T14:05:20Z", "2026-01-31T14:06:40Z")
    assert not {"text", "marks"} & set(found)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.6, "1 min"), (60, "1 min"), (3599, "59 min 59 s"), (3660, "1 h 1 min"), (90061, "1 d 1 h")],
)
def test_spans_have_two_units_at_most(seconds: float, words: str) -> None:
    assert span(seconds) == words


@given(st.floats(-1e7, 0), st.floats(0.01, 1e7))
def test_an_axis_has_few_ticks_all_within(low: float, high: float) -> None:
    found = axis(low, high)
    places = [at for at, _ in found]
    assert 1 <= len(places) <= 7
    assert places == sorted(set(places))
    slack = (high - low) * 1e-6
    assert all(low - slack <= at <= high + slack for at in places)
    assert len({words for _, words in found}) == len(found)


# The page.


def test_the_page_shows_each_phase_in_the_picture_and_in_the_table() -> None:
    found = page()
    for name in ("redis", "restore of redis", "between", "verify"):
        assert name in found.within("svg", "text").splitlines()
        assert name in found.within("table", "th").splitlines()
    assert "30.0 s" in found.within("table", "td")
    assert "30.0 s · 38%" in found.within("svg", "text")


def test_each_picture_has_a_name_a_description_and_a_table_beside_it() -> None:
    found = page()
    ids = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    pictures = found.all("svg")
    assert len(pictures) == len(found.all("figure")) == 2
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= ids
    assert len(ids) == sum("id" in attributes for _, attributes in found.elements)
    described = found.within("desc")
    assert "The longest is restore of redis, with 30.0 seconds." in described
    assert "The data are as of 2026-01-31T14:00:00Z, 311.9 seconds before the loss." in described
    assert len(found.all("table")) == 3
    assert len(found.all("caption")) == 3
    assert found.all("html") == [{"lang": "en"}]
    assert not found.open


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    text = as_html(judged())
    assert not re.search(r"https?://|//[a-z]|@import|javascript:", text)
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#phases-hatch", "#loss-hatch"}
    found = Page(text)
    names = {name for name, _ in found.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use", "a"}
    assert not {key for _, attributes in found.elements for key in attributes if key in ("src", "href", "style")}
    assert not {key for _, attributes in found.elements for key in attributes if key.startswith("on")}
    assert {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"} in (
        found.all("meta")
    )
    style = found.within("style")
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_what_comes_from_hosts_is_text_in_the_page() -> None:
    harmless = page()
    entry = restored(HOSTILE, source=HOSTILE, backup=HOSTILE, kept=HOSTILE, found={"keys": 1, "digest": HOSTILE})
    entry["result"]["seconds"] = {HOSTILE: 1, "total": 2}
    phases = [{**each, "name": HOSTILE} for each in PHASES]
    found = page(environment=HOSTILE, title=HOSTILE, phases=phases, restored=[entry])
    allowed = {name for name, _ in harmless.elements} | {"li", "ul"}
    assert {name for name, _ in found.elements} <= allowed
    keys = {key for _, attributes in harmless.elements for key in attributes}
    assert {key for _, attributes in found.elements for key in attributes} <= keys
    everything = "".join(words for _, words in found.texts)
    assert "<script>alert(1)</script>\"'&\ufffd[2J\ufffdevil {{ 1 }}" in everything
    assert "\x1b" not in everything
    assert any(attributes["title"].startswith("</title><script>") for attributes in found.all("code"))


def elements(name: str) -> tuple[list[tuple[str, list[str]]], str]:
    """Return the elements of a page that has a name in every place, with their attributes, and its heading."""
    entry = restored(name, source=name, backup=name, kept=name)
    entry["result"]["seconds"] = {name + "1": 1, "total": 2}
    phases = [{**each, "name": name} for each in PHASES]
    found = page(environment=name, title=name, phases=phases, restored=[entry])
    return [(kind, sorted(attributes)) for kind, attributes in found.elements], found.within("h1")


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1) | st.sampled_from([HOSTILE, "</svg><b>", '" onload="x', "]]>", "<!--", "&lt;", "\t", "\n"]))
def test_no_name_changes_what_a_page_consists_of(name: str) -> None:
    found, heading = elements(name)
    assert found == elements("redis")[0]
    assert "".join(heading.splitlines()) == clean(name)


def test_templates_escape_by_themselves_all_but_the_text() -> None:
    jinja = environment()
    names = jinja.list_templates()
    assert callable(jinja.autoescape)
    assert {name for name in names if not jinja.autoescape(name)} == {"report.css", "report.txt.j2"}
    assert jinja.from_string("<p title='{{ x }}'>{{ x }}").render(x="<b>'\n") == "<p title='&lt;b&gt;&#39;\ufffd'>" + (
        "&lt;b&gt;&#39;\ufffd"
    )
    with pytest.raises(UndefinedError):
        jinja.from_string("{{ rebuild.nothing }}").render(rebuild={})


def test_whole_digests_are_in_titles_and_short_ones_in_view() -> None:
    found = page(restored=[restored(found={"keys": 1000, "digest": OTHER})])
    assert [code["title"] for code in found.all("code")] == [OTHER, DIGEST, "ab12cd34" * 8]
    assert found.within("code").splitlines() == [OTHER[:12], DIGEST[:12], "ab12cd34"]


def test_the_page_says_by_words_whether_all_is_well() -> None:
    assert page().within("strong").splitlines()[0] == "✓ As it should be"
    found = page(rto_limit=60)
    assert found.within("strong").splitlines()[0] == "✗ FAILED"
    assert found.within("title").startswith("Rebuild of lab: FAILED")
    assert "limit 60.0 s: NOT kept" in found.within("dl").replace("\xa0", " ")


# What it refuses.


def without(key: str, inner: str = "") -> list[dict[str, Any]]:
    """Return a result that has lost a key."""
    entry = restored()
    place = entry["result"]
    if inner:
        place[key] = {name: value for name, value in place[key].items() if name != inner}
    else:
        del place[key]
    return [entry]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"environment": None}, "environment: found nothing; expected a text"),
    ({"phases": None}, "phases: found nothing; expected a list of phases"),
    ({"phases": []}, "phases: found '[]'; expected one phase at least"),
    ({"phases": ["redis"]}, "phases[0]: found 'redis'; expected a mapping with name, began, ended"),
    ({"phases": [PHASES[0], {"name": "x", "began": 1}]}, "phases[1].ended: found nothing; expected a value"),
    ({"phases": [phase("late", 9, 8)]}, f"phases[0] (late).ended: found '{START + 8}'; expected not before"),
    (
        {"phases": [{"name": "x", "began": "noon", "ended": 1}]},
        "phases[0] (x).began: found 'noon'; expected a time such",
    ),
    ({"phases": [{"name": "x", "began": True, "ended": 1}]}, "phases[0] (x).began: found 'True'; expected a time such"),
    ({"phases": [{"name": "x", "began": -5, "ended": 1}]}, "phases[0] (x).began: found '-5'; expected a time such"),
    ({"phases": [{"name": "x", "began": float("nan"), "ended": 1}]}, "phases[0] (x).began: found 'nan'; expected a"),
    ({"phases": [{"name": "x", "began": 1, "ended": 1e300}]}, "phases[0] (x).ended: found '1e+300'; expected a time"),
    ({"phases": [{"name": "x", "began": "1.2.3", "ended": 1}]}, "phases[0] (x).began: found '1.2.3'; expected a time"),
    ({"phases": [{"name": "", "began": 1, "ended": 1}]}, "phases[0].name: found ''; expected a text"),
    ({"restored": restored()}, "restored: found '{"),
    (
        {"restored": [{"host": "redis1"}]},
        "restored[0].result: found nothing; expected a value: the keys are host, result",
    ),
    ({"restored": [{"host": "redis1", "result": "{}"}]}, "restored[0].result: found '{}'; expected a mapping with"),
    ({"restored": without("time")}, "restored[0].result.time: found nothing; expected a value: the keys are source"),
    ({"restored": without("found", "digest")}, "restored[0].result.found.digest: found nothing; expected a value"),
    ({"restored": without("seconds", "total")}, "restored[0].result.seconds.total: found nothing; expected a value"),
    ({"restored": [restored(), restored(time="soon")]}, "restored[1].result.time: found 'soon'; expected a time such"),
    ({"restored": [restored(bytes=-1)]}, "restored[0].result.bytes: found '-1'; expected a whole number, 0 or more"),
    ({"restored": [restored(items=1.5)]}, "restored[0].result.items: found '1.5'; expected a whole number"),
    ({"restored": [restored(compared="no")]}, "restored[0].result.compared: found 'no'; expected digest or count"),
    ({"restored": [restored(seconds={"total": "long"})]}, "restored[0].result.seconds.total: found 'long'; expected s"),
    ({"restored": [restored(kept=["a"])]}, "restored[0].result.kept: found '['a']'; expected a text"),
    ({"lost_at": "yesterday"}, "lost_at: found 'yesterday'; expected a time such as 2026-01-31T14:00:00Z"),
    ({"lost_at": START + 81}, "lost_at: found '2026-01-31T14:06:41Z'; expected a time before the end of the rebuild"),
    ({"rto_limit": "90s"}, "rto_limit: found '90s'; expected seconds, 0 or more"),
    ({"rpo_limit": -1}, "rpo_limit: found '-1'; expected seconds, 0 or more"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message.split(";")[0] for _, message in REFUSED])
def test_bad_input_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        read(options(**changes))
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["report.pdf", "report", "folder.html"])
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(BadInput) as refused:
        reports.destinations([str(tmp_path / "a.json"), str(tmp_path / name)])
    assert str(refused.value) == (
        f"write: found '{tmp_path / name}'; expected a file that ends in .json, .html or .txt"
    )


@pytest.mark.parametrize("value", [None, "", [], [""]])
def test_there_may_be_nothing_to_write(value: Any) -> None:
    assert reports.destinations(value) == []


def test_a_file_is_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "new" / "deep" / "report.txt"
    assert [reports.write(file, "old"), reports.write(file, "old")] == [True, False]
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(AnsibleActionFail, match=r"report\.txt cannot be written: No space left on device"):
        reports.write(file, "new")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


# In a play.


def task(**changes: Any) -> dict[str, Any]:
    """Return a task that reports."""
    return {"name": "Report", "quantdesk.redis.recovery_report": options(**changes), "register": "report"}


SHOW = {
    "name": "Show",
    "ansible.builtin.debug": {"msg": "{{ report.changed }} {{ report.ok }} {{ report.rto_seconds }}"},
}


def test_a_play_writes_all_forms_and_changes_nothing_again(tmp_path: Path) -> None:
    files = [tmp_path / "out" / "deep" / f"report.{ending}" for ending in ("json", "html", "txt")]
    again = task(write=[str(file) for file in files], rto_limit="90", title="Drill")
    code, output = play(tmp_path, [again, SHOW, again, SHOW])
    assert code == 0, output
    verdict = "Rebuilt in 80.0 s; the data are as of 2026-01-31T14:00:00Z, 311.9 s"
    assert output.count(verdict) == 2
    assert re.findall(r"msg: (True|False) (True|False) ([0-9.]+)", output) == [
        ("True", "True", "80.0"),
        ("False", "True", "80.0"),
    ]
    assert json.loads(files[0].read_text())["report"] == "Drill"
    assert "Drill: As it should be" in Page(files[1].read_text()).within("title")
    assert files[2].read_text().startswith(verdict)
    assert sorted(files[0].parent.iterdir()) == sorted(files)


def test_a_play_fails_after_the_files_are_there_with_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    code, output = play(tmp_path, [task(write=str(file), rto_limit=60, rpo_limit=60), SHOW])
    assert code != 0
    assert "FAILED: 2 problems." in output
    assert "  - rebuilt in 80.0 s; expected 60.0 s at most (rto_limit)" in output
    assert "expected 60.0 s at most (rpo_limit)" in output
    assert f"In {file}" in output
    assert json.loads(file.read_text())["ok"] is False
    # The result that Ansible prints after the problems is short.
    assert "in_backup" not in output


def test_a_play_may_go_on_and_check_mode_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.html"
    tasks = [{**task(write=[str(file)], restored=[], fail="no"), "check_mode": True}, SHOW]
    code, output = play(tmp_path, tasks)
    assert code == 0, output
    assert "FAILED: no data were restored; expected those of one source at least (expect_data)." in output
    assert "msg: True False 80.0" in output
    assert not file.parent.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"write": ["good.json", "report.xml"]}, "report.xml'; expected a file that ends in .json, .html or .txt"),
        ({"restored": without("expected")}, "restored[0].result.expected: found nothing; expected a value"),
        ({"expect_data": "perhaps"}, "expect_data: found 'perhaps'; expected true or false"),
        ({"wrote": []}, "wrote"),
    ],
)
def test_a_play_refuses_before_anything_is_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    good = tmp_path / "good.json"
    changes = {"write": [str(good)], **changes}
    if len(changes["write"]) > 1:
        changes["write"] = [str(tmp_path / name) for name in changes["write"]]
    code, output = play(tmp_path, [task(**changes)])
    assert code != 0
    assert message in output
    assert "Rebuilt in" not in output
    assert not good.exists()
