"""The drills and the bench would notice: what they count, and that they leave nothing running."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from drills import cold, interrupt, outage, report, servers
from drills.client import percentile
from drills.outage import Outcome, Sample, Timeline
from drills.report import Aim
from drills.sequence import Checker

CHANNELS = ("price:A", "price:B")


def checked(*messages: tuple[str, int] | str, last: int = 3) -> Checker:
    """Return a checker that took messages, and gaps (a channel alone)."""
    checker = Checker(CHANNELS)
    for message in messages:
        if isinstance(message, str):
            checker.gap(message)
        else:
            checker.message(*message)
    checker.finish({"price:A": last})
    return checker


def test_whole_sequence_has_nothing_missing() -> None:
    tally = checked(("price:A", 1), ("price:B", 1), ("price:A", 2), ("price:A", 3)).tally
    assert (tally.messages, tally.told, tally.untold, tally.duplicates) == (4, 0, 0, 0)


def test_hole_without_a_gap_message_is_not_told() -> None:
    tally = checked(("price:A", 1), ("price:A", 3)).tally
    assert (tally.told, tally.untold) == (0, 1)
    assert tally.examples == ["price:A: 3 after 1"]


def test_gap_message_tells_of_the_hole_behind_it() -> None:
    tally = checked(("price:A", 1), "price:A", ("price:A", 3)).tally
    assert (tally.told, tally.untold) == (1, 0)


def test_gap_message_of_another_channel_tells_nothing() -> None:
    tally = checked(("price:A", 1), "price:B", ("price:A", 3)).tally
    assert (tally.told, tally.untold) == (0, 1)


def test_gap_message_is_used_up_by_the_next_message() -> None:
    tally = checked("price:A", ("price:A", 1), ("price:A", 3)).tally
    assert (tally.told, tally.untold) == (0, 1)


def test_missing_end_counts() -> None:
    assert checked(("price:A", 1)).tally.untold == 2
    assert checked(("price:A", 1), "price:A").tally.told == 2


def test_message_that_comes_twice_counts() -> None:
    checker = checked(("price:A", 1), ("price:A", 2), ("price:A", 2), ("price:A", 3))
    assert checker.tally.duplicates == 1
    assert checker.progress == 3


@pytest.mark.parametrize(
    ("value", "met", "far"), [(0.5, True, False), (1.0, True, False), (2.0, False, False), (4.0, False, True)]
)
def test_aim_at_most(value: float, met: bool, far: bool) -> None:
    aim = Aim("latency", value, 1.0)
    assert (aim.met, aim.missed_by_far) == (met, far)


def test_aim_that_could_not_be_measured_is_missed_by_far() -> None:
    assert Aim("ratio", math.nan, 5.0, at_least=True).missed_by_far
    assert report.finish([Aim("ratio", math.nan, 5.0, at_least=True)], []) == 1


def test_errors_are_missed_by_far() -> None:
    assert Aim("errors", 1, 0).missed_by_far


def test_percentile_is_a_value_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.99) == 99
    assert percentile(values[:1], 0.5) == 1
    assert math.isnan(percentile([], 0.5))


def sample(
    start: float, latency_ms: float = 1.0, connection: int = 0, queued: bool = False, cache: str = "HIT"
) -> Sample:
    """Return a read that succeeded."""
    return Sample(connection, start, latency_ms, "read", 200, cache, queued)


def test_backlog_ends_with_the_first_request_in_time_of_every_connection() -> None:
    samples = [
        sample(10.0, connection=0, queued=True),
        sample(10.1, connection=0, queued=True),
        sample(10.2, connection=0),
        sample(10.0, connection=1),
        sample(11.0, connection=1, queued=True),
        sample(12.0, connection=0),
    ]
    assert outage.when_caught_up(samples, 10.0) == 10.2
    assert outage.when_caught_up([], 10.0) == 10.0


def test_outage_reports_errors_stale_reads_and_missing_log_lines() -> None:
    failed = Sample(0, 1.0, 5.0, "write", 503, "", False)
    stale = Sample(0, 2.0, 5.0, "read after write", 200, "HIT", False, stale=True)
    phases = {"before": (0.0, 3.0), "down": (3.0, 6.0)}
    found = Outcome("killed", Timeline(back=6.0), [failed, stale, sample(4.0), sample(6.5)], 2, 0, [], phases)
    missed = {aim.name.partition(": ")[2].split(" ")[0] for aim in found.aims() if not aim.met}
    assert found.to_first_hit == pytest.approx(0.501)
    assert missed == {"errors", "reads", "p99", "more"}
    assert [aim.value for aim in found.aims()[-2:]] == [1, 1]


def test_reads_of_prices_are_found_in_a_log_of_statements() -> None:
    log = """
2026-01-01 LOG:  execute __asyncpg_stmt_1__: SELECT prices.price, prices.version
\tFROM prices
\tWHERE prices.symbol = $1
2026-01-01 LOG:  execute __asyncpg_stmt_2__: SELECT orders.id FROM orders WHERE orders.id = $1
2026-01-01 LOG:  statement: INSERT INTO prices (symbol) VALUES ('A')
SELECT prices.price FROM prices WHERE prices.symbol = 'A'
"""
    assert len(cold.READS.findall(log)) == 2


def test_table_aligns_its_columns() -> None:
    lines = report.table(("name", "value"), [("a", 1234.5), ("longer", math.nan)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "1,234" in lines[2]


def use_and_fail(started: list[servers.Redis]) -> None:
    """Start Redis, use it, stop it with a signal, and fail."""
    with servers.workspace() as workspace:
        redis = workspace.redis(tls=True)
        started.append(redis)
        assert redis.answers()
        assert redis.ask("SET", "key", "value") == "OK"
        assert redis.calls()["set"] == 1
        redis.process.signal(signal.SIGSTOP)
        raise RuntimeError("on purpose")


def test_servers_end_with_a_run_that_fails() -> None:
    started: list[servers.Redis] = []
    with pytest.raises(RuntimeError, match="on purpose"):
        use_and_fail(started)
    assert not started[0].process.running
    assert not started[0].answers()


def test_server_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    process = servers.Process(
        ["sh", "-c", "echo what went wrong; exit 3"], tmp_path / "log", environment=dict(os.environ)
    )
    with pytest.raises(servers.NotStarted, match="what went wrong"):
        process.wait_until(lambda: False, "a server")


PLACES = [interrupt.Place(host, f"task {number}", f"/site.yml:{number}") for number in range(5) for host in ("a", "b")]


@pytest.mark.parametrize(
    ("count", "taken"), [(0, range(10)), (99, range(10)), (1, [9]), (3, [2, 5, 9]), (5, range(1, 10, 2))]
)
def test_places_are_spread_over_the_whole_run(count: int, taken: Sequence[int]) -> None:
    assert interrupt.spread(PLACES, count) == [PLACES[number] for number in taken]


def test_a_place_is_taken_once_and_those_before_it_are_done() -> None:
    assert interrupt.distinct([PLACES[0].line, PLACES[1].line, PLACES[0].line, ""]) == PLACES[:2]
    assert interrupt.after(PLACES, PLACES[7]) == PLACES[8:]
    assert interrupt.after(PLACES, PLACES[9]) == []


SITE = """
- hosts: localhost
  gather_facts: false
  tasks:
    - {name: Look, ansible.builtin.command: "true", changed_when: false}
    - {name: One, ansible.builtin.command: "touch {{ folder }}/one"}
    - {name: Two, ansible.builtin.shell: "cd {{ folder }}; touch two; sleep 3; touch late"}
    - {name: Three, ansible.builtin.command: "touch {{ folder }}/three"}
"""


def test_a_run_is_killed_at_a_recorded_place_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "site.yml").write_text(SITE)
    playbook = Path(sys.executable).parent / "ansible-playbook"

    def run(folder: str, **environment: str) -> tuple[int, set[str]]:
        (tmp_path / folder).mkdir()
        given = {name: str(tmp_path / value) for name, value in environment.items() if name != "INTERRUPT_SECONDS"}
        done = subprocess.run(
            [playbook, "-i", "localhost,", "-c", "local", "-e", f"folder={tmp_path / folder}", tmp_path / "site.yml"],
            cwd=tmp_path,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(servers.PROJECT / "ansible.cfg"),
                "ANSIBLE_CALLBACK_PLUGINS": str(servers.PROJECT / "drills/callback"),
                "ANSIBLE_CALLBACKS_ENABLED": "interrupt",
                "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
                **{**environment, **given},
            },
            capture_output=True,
            check=False,
            start_new_session=True,
        )
        return done.returncode, {path.name for path in (tmp_path / folder).iterdir()}

    assert run("whole", INTERRUPT_RECORD="places") == (0, {"one", "two", "late", "three"})
    places = interrupt.distinct((tmp_path / "places").read_text().splitlines())
    assert [place.task for place in places] == ["One", "Two", "Three"]
    (tmp_path / "at").write_text("".join(f"{place.line}\n" for place in places[1:]))
    code, left = run("after", INTERRUPT_AT="at", INTERRUPT_MET="met")
    assert (code, left) == (interrupt.KILLED, {"one", "two", "late"})
    assert interrupt.Place.read((tmp_path / "met").read_text()) == places[1]
    code, left = run("during", INTERRUPT_AT="at", INTERRUPT_MET="met", INTERRUPT_SECONDS="1")
    assert code == interrupt.KILLED
    assert "three" not in left
    assert "late" not in left
