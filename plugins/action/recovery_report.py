"""Report a rebuild: how long it took by phase, how old the restored data are, and what was expected and found.

    recovery_report:
      environment: lab
      phases:                        # seconds since the epoch, or ISO times; what lies between two is shown as such
        - {name: redis, began: 1769868320.1, ended: 1769868341.4}
      restored:                      # what `databackup restore NAME --json` has printed, by host
        - {host: redis1, result: {...}}
      lost_at: 2026-01-31T14:05:12Z  # when the outage began; without it, the beginning of the rebuild counts
      rto_limit: 90                  # seconds; both may be left out
      rpo_limit: 900
      write: [output/rebuild.json, output/rebuild.html, output/rebuild.txt]

The other options: `title`; `expect_data: false` where nothing is to be restored; `fail: false` to go on after a rebuild
that is not as it should be. It runs on the controller alone and asks no host.

It prints the report as text, writes the files, whole or not at all, with folders that are missing, and only then fails:
when a limit was not kept, when other data were found than expected, or when no data were restored. Limits are held
against seconds as shown, with one decimal. In check mode nothing is written.

It returns `ok`, `problems`, `notes`, `verdict`, `rto_seconds`, `rpo_seconds` (of the oldest data), `outage_seconds`
(from `lost_at` to the end), `phases`, `restored`, `text` (lines), and `changed`: whether a file was written.
A task that fails leaves out `phases`, `restored` and `text`: they are in print above it, and in the files.

The HTML page has no script and asks for nothing from anywhere: it can be mailed, printed, and opened without a network.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

Report = dict[str, Any]

BETWEEN = "between"
# Less than this between two phases would be shown as 0.0 s.
LEAST_GAP = 0.05
DIGEST_WIDTH = 12
BACKUP_WIDTH = 8
LABEL_WIDTH = 36
BAR_WIDTH = 30
# From here on seconds alone tell a person little.
MINUTES = 120
# The last second that datetime can hold.
LAST = 253402300799
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class Bad(ValueError):
    """Input that is no report; the message names item and key, what was found and what was expected."""


def refuse(where: str, found: Any, expected: str) -> Bad:
    """Return the error for a value that is not what it should be."""
    shown = "nothing" if found is None else clean(found if isinstance(found, str) else repr(found), 60, quote=True)
    return Bad(f"{where}: found {shown}; expected {expected}")


# Reading the input.


def text(value: Any, where: str, *, empty: bool = False) -> str:
    """Return a text, which may be empty only where that is said."""
    if not isinstance(value, str) or not (value or empty):
        raise refuse(where, value, "a text")
    return str(value)


def mapping(value: Any, where: str, keys: str) -> dict[str, Any]:
    """Return a mapping with all these keys."""
    if not isinstance(value, dict):
        raise refuse(where, value, f"a mapping with {keys}")
    for key in keys.split(", "):
        if value.get(key) is None:
            raise refuse(f"{where}.{key}", None, f"a value: the keys are {keys}")
    return value


def sequence(value: Any, where: str, what: str) -> list[Any]:
    """Return a list."""
    if not isinstance(value, (list, tuple)):
        raise refuse(where, value, f"a list of {what}")
    return list(value)


def number(value: Any, where: str, what: str = "seconds, 0 or more") -> float:
    """Return a number of 0 or more; digits in quotes, as `-e` gives them, are one too."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = -1.0
        if math.isfinite(found) and found >= 0:
            return found
    raise refuse(where, value, what)


def whole(value: Any, where: str) -> int:
    """Return a whole number of 0 or more."""
    if not isinstance(value, bool) and isinstance(value, (int, str)) and re.fullmatch("[0-9]{1,18}", str(value)):
        return int(value)
    raise refuse(where, value, "a whole number, 0 or more")


def moment(value: Any, where: str) -> float:
    """Return a time as seconds since the epoch; without a zone it is UTC."""
    found: datetime | None = None
    if isinstance(value, datetime):
        found = value
    elif isinstance(value, date):
        # YAML makes a date of one that stands without quotes.
        found = datetime(value.year, value.month, value.day)
    elif isinstance(value, str) and not re.fullmatch(r"[0-9.]+(e[+]?[0-9]+)?", value, re.IGNORECASE):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            found = None
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            seconds = -1.0
        if 0 <= seconds <= LAST:
            return seconds
    if found is None or found.year < 1970:
        raise refuse(where, value, "a time such as 2026-01-31T14:00:00Z, or seconds since 1970")
    try:
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        raise refuse(where, value, "a time such as 2026-01-31T14:00:00Z, or seconds since 1970") from None


def data(value: Any, where: str) -> dict[str, Any]:
    """Return a number of keys with their digest."""
    given = mapping(value, where, "keys, digest")
    return {
        "keys": whole(given["keys"], f"{where}.keys"),
        "digest": text(given["digest"], f"{where}.digest", empty=True),
    }


def read_phases(value: Any) -> list[tuple[float, float, str]]:
    """Return phases as beginning, end and name, the first one first."""
    phases = []
    for place, item in enumerate(sequence(value, "phases", "phases")):
        where = f"phases[{place}]"
        given = mapping(item, where, "name, began, ended")
        name = text(given["name"], f"{where}.name")
        where = f"{where} ({clean(name, 60)})"
        began, ended = (moment(given[key], f"{where}.{key}") for key in ("began", "ended"))
        if ended < began:
            raise refuse(f"{where}.ended", given["ended"], f"not before its beginning, {given['began']}")
        phases.append((began, ended, name))
    if not phases:
        raise refuse("phases", [], "one phase at least")
    return sorted(phases, key=lambda phase: phase[0])


def read_restored(value: Any) -> list[dict[str, Any]]:
    """Return what was restored, one entry for each source of each host."""
    entries = []
    for place, item in enumerate(sequence(value, "restored", "results with their hosts")):
        where = f"restored[{place}]"
        given = mapping(item, where, "host, result")
        host = text(given["host"], f"{where}.host")
        where = f"{where}.result"
        result = mapping(
            given["result"],
            where,
            "source, backup, host, time, items, bytes, in_backup, expected, found, compared, seconds",
        )
        if result["compared"] not in ("digest", "count"):
            raise refuse(f"{where}.compared", result["compared"], "digest or count")
        seconds = mapping(result["seconds"], f"{where}.seconds", "total")
        entry: dict[str, Any] = {"host": host}
        entry["source"] = text(result["source"], f"{where}.source")
        entry["backup"] = text(result["backup"], f"{where}.backup")
        entry["backup_of"] = text(result["host"], f"{where}.host")
        entry["at"] = moment(result["time"], f"{where}.time")
        entry["time"] = clock(entry["at"])
        entry |= {key: whole(result[key], f"{where}.{key}") for key in ("items", "bytes")}
        entry |= {key: data(result[key], f"{where}.{key}") for key in ("in_backup", "expected", "found")}
        entry["compared"] = str(result["compared"])
        entry["kept"] = text(result.get("kept") or "", f"{where}.kept", empty=True)
        entry["seconds"] = {str(key): number(took, f"{where}.seconds.{key}") for key, took in seconds.items()}
        entries.append(entry)
    return entries


# How things are said.


def clean(value: Any, width: int = 0, *, quote: bool = False) -> str:
    """Return a value as one line that is safe to print, cut to a width; in quotes where it was none of ours."""
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))
    if width and len(line) > width:
        line = line[: width - 1] + "…"
    return f"'{line}'" if quote else line


def clock(seconds: float) -> str:
    """Return a time in UTC, to the second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def took(seconds: float) -> str:
    """Return seconds with one decimal, and what that is in minutes or more when nobody would guess it."""
    shown = f"{seconds:.1f} s"
    return shown if seconds < MINUTES else f"{shown} ({span(seconds)})"


def span(seconds: float) -> str:
    """Return seconds as the two largest units: `1 h 12 min`."""
    left = round(seconds)
    words: list[str] = []
    for size, unit in UNITS:
        if left >= size or (unit == "s" and not words):
            words.append(f"{left // size} {unit}")
            left %= size
        elif words:
            break
    return " ".join(words[:2])


def size(count: int) -> str:
    """Return bytes in MiB."""
    return f"{count / 1048576:.1f} MiB"


def many(count: int, noun: str) -> str:
    """Return `1 item` or `2 items`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def name_of(entry: dict[str, Any]) -> str:
    """Return which source of which host an entry is about."""
    return clean(f"{entry['source']} on {entry['host']}")


# What is reported.


def timeline(phases: list[tuple[float, float, str]]) -> tuple[list[dict[str, Any]], float, float]:
    """Return phases and what lies between them, and when the first began and the last ended."""
    began, ended = phases[0][0], max(phase[1] for phase in phases)
    rows: list[dict[str, Any]] = []
    whole_time = ended - began

    def add(start: float, end: float, name: str, *, gap: bool) -> None:
        rows.append(
            {
                "name": name,
                "gap": gap,
                "at": round(start - began, 1),
                "seconds": round(end - start, 1),
                "share": round((end - start) / whole_time, 4) if whole_time else 0.0,
            }
        )

    reached = began
    for start, end, name in phases:
        if start - reached >= LEAST_GAP:
            add(reached, start, BETWEEN, gap=True)
        add(start, end, name, gap=False)
        reached = max(reached, end)
    return rows, began, ended


def judge(entry: dict[str, Any], limit: float | None, since: str) -> list[str]:
    """Return what is wrong with the data of one source."""
    problems = []
    found, expected = entry["found"], entry["expected"]
    if not entry["equal"]:
        both = [
            f"{many(side['keys'], 'item')} with digest {clean(side['digest'][:DIGEST_WIDTH]) or '(none)'}"
            for side in (found, expected)
        ]
        problems.append(f"{name_of(entry)}: found {both[0]}; expected {both[1]}")
    if limit is not None and entry["rpo_seconds"] > limit:
        problems.append(
            f"{name_of(entry)}: the data are from {took(entry['rpo_seconds'])} before {since}; "
            f"expected {took(limit)} at most (rpo_limit)"
        )
    return problems


def remark(entry: dict[str, Any], since: str) -> list[str]:
    """Return what an operator should know of the data of one source, although it is no fault."""
    notes = []
    gone = entry["in_backup"]["keys"] - entry["expected"]["keys"]
    if gone > 0:
        have = "has" if gone == 1 else "have"
        notes.append(
            f"{name_of(entry)}: {gone} of the {many(entry['in_backup']['keys'], 'key')} in the backup {have} "
            f"expired since, or will within seconds; {many(entry['expected']['keys'], 'key')} were expected."
        )
    if entry["compared"] == "count":
        notes.append(f"{name_of(entry)}: items were only counted; their content was not compared.")
    if entry["in_backup"]["keys"] == 0:
        notes.append(f"{name_of(entry)}: the backup is empty.")
    if entry["ahead"]:
        notes.append(
            f"{name_of(entry)}: the backup was made {took(entry['ahead'])} after {since}: "
            "that was later than told, or clocks differ."
        )
    if entry["backup_of"] != entry["host"]:
        notes.append(f"{name_of(entry)}: the backup is one of {clean(entry['backup_of'])}.")
    if entry["kept"]:
        notes.append(f"{name_of(entry)}: what was there before is kept in {clean(entry['kept'])}.")
    return notes


def assess(arguments: dict[str, Any]) -> Report:
    """Return the whole report; raises Bad for input that is none."""
    environment = text(arguments.get("environment"), "environment")
    title = text(arguments.get("title") or f"Rebuild of {environment}", "title")
    phases, began, ended = timeline(read_phases(arguments.get("phases")))
    restored = read_restored(arguments.get("restored") or [])
    limits = {
        key: None if arguments.get(key) in (None, "") else number(arguments[key], key)
        for key in ("rto_limit", "rpo_limit")
    }
    lost_at = None if arguments.get("lost_at") in (None, "") else moment(arguments["lost_at"], "lost_at")
    if lost_at is not None and lost_at > ended:
        raise refuse("lost_at", clock(lost_at), f"a time before the end of the rebuild, {clock(ended)}")
    until = began if lost_at is None else lost_at
    since = "the rebuild began" if lost_at is None else "the loss"

    rto = round(ended - began, 1)
    problems, notes = [], []
    if limits["rto_limit"] is not None and rto > limits["rto_limit"]:
        problems.append(f"rebuilt in {took(rto)}; expected {took(limits['rto_limit'])} at most (rto_limit)")
    for entry in restored:
        age = round(until - entry["at"], 1)
        entry["rpo_seconds"], entry["ahead"] = max(age, 0.0), max(-age, 0.0)
        parts = ("keys",) if entry["compared"] == "count" else ("keys", "digest")
        entry["equal"] = all(entry["found"][part] == entry["expected"][part] for part in parts)
        problems += judge(entry, limits["rpo_limit"], since)
        notes += remark(entry, since)
    if not restored and arguments.get("expect_data", True):
        problems.append("no data were restored; expected those of one source at least (expect_data)")
    oldest = min(restored, key=lambda entry: float(entry["at"]), default=None)

    report: Report = {
        "report": title,
        "environment": environment,
        "ok": not problems,
        "problems": problems,
        "notes": notes,
        "began": clock(began),
        "ended": clock(ended),
        "lost_at": None if lost_at is None else clock(lost_at),
        "data_as_of": oldest and oldest["time"],
        "rto_seconds": rto,
        **limits,
        "rpo_seconds": oldest and oldest["rpo_seconds"],
        "outage_seconds": None if lost_at is None else round(ended - lost_at, 1),
        "phases": phases,
        "restored": restored,
    }
    # Positions in the picture of what was lost, in seconds from the loss.
    marks = {"began": began - until, "ended": ended - until, "data": [entry.pop("at") - until for entry in restored]}
    report["verdict"] = verdict(report)
    report["text"] = as_lines(report)
    report["marks"] = marks
    return report


def since_of(report: Report) -> str:
    """Return what the age of the data is counted to."""
    return "the loss" if report["lost_at"] else "the rebuild began"


def facts(report: Report) -> str:
    """Return in one sentence how long it took and how old the data are."""
    words = f"Rebuilt in {took(report['rto_seconds'])}"
    restored = report["restored"]
    if not restored:
        return f"{words}; no data were restored" + (", and none were expected" if report["ok"] else "")
    oldest = min(restored, key=lambda entry: str(entry["time"]))
    which = f" (the oldest, of {name_of(oldest)})" if len({entry["time"] for entry in restored}) > 1 else ""
    return (
        f"{words}; the data are as of {oldest['time']}{which}, {took(report['rpo_seconds'])} before {since_of(report)}"
    )


def verdict(report: Report) -> str:
    """Return the one line that is read first."""
    problems = report["problems"]
    if len(problems) == 1:
        return f"NOT as it should be: {problems[0]}."
    if problems:
        return f"NOT as it should be: {len(problems)} problems."
    words = facts(report)
    restored = report["restored"]
    if restored:
        words += "; nothing else is missing"
        if any(entry["compared"] == "count" for entry in restored):
            words += " by count"
        gone = sum(max(entry["in_backup"]["keys"] - entry["expected"]["keys"], 0) for entry in restored)
        if gone:
            words += f", except {many(gone, 'key')} that {'has' if gone == 1 else 'have'} expired since"
    return f"{words}."


def kept_limit(seconds: float, limit: float | None) -> str:
    """Return a limit and whether it was kept."""
    return "no limit set" if limit is None else f"limit {took(limit)}: {'kept' if seconds <= limit else 'NOT kept'}"


def short_digest(entry: dict[str, Any]) -> str:
    """Return the digest as the text shows it."""
    if entry["compared"] == "count":
        return "not compared"
    found, expected = entry["found"]["digest"], entry["expected"]["digest"]
    return clean(found[:DIGEST_WIDTH]) if found == expected else "DIFFERS"


# Text.


def columns(rows: Sequence[Sequence[str]], right: Iterable[int]) -> list[str]:
    """Return rows as the lines of an aligned table; the columns named are aligned to the right."""
    ends = set(right)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in ends else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def bar(phase: dict[str, Any], rto: float) -> str:
    """Return where a phase lies in the whole, as a line of characters."""
    if not rto:
        return f"[{'#' * BAR_WIDTH}]"
    start = min(round(phase["at"] / rto * BAR_WIDTH), BAR_WIDTH - 1)
    end = max(min(round((phase["at"] + phase["seconds"]) / rto * BAR_WIDTH), BAR_WIDTH), start + 1)
    mark = "." if phase["gap"] else "#"
    return f"[{' ' * start}{mark * (end - start)}{' ' * (BAR_WIDTH - end)}]"


def as_lines(report: Report) -> list[str]:
    """Return the report as lines of text, the verdict first."""
    lines = [clean(report["verdict"])]
    problems = report["problems"]
    if problems:
        lines += [f"  - {clean(problem)}." for problem in problems] if len(problems) > 1 else []
        lines.append(f"{facts(report)}.")
    lines.append(f"{clean(report['report'])}: from {report['began']} to {report['ended']}.")
    if report["outage_seconds"] is not None:
        lines.append(f"Out of service since {report['lost_at']}, for {took(report['outage_seconds'])}.")
    rto, rpo = report["rto_seconds"], report["rpo_seconds"]
    lines.append(f"RTO {took(rto)}, {kept_limit(rto, report['rto_limit'])}.")
    if rpo is not None:
        lines.append(f"RPO {took(rpo)}, {kept_limit(rpo, report['rpo_limit'])}.")

    table: list[tuple[str, ...]] = [("PHASE", "BEGAN", "SECONDS", "SHARE", "")]
    for phase in report["phases"]:
        name = clean(phase["name"], LABEL_WIDTH)
        table.append(
            (
                f"({name})" if phase["gap"] else name,
                f"+{phase['at']:.1f}",
                f"{phase['seconds']:.1f}",
                f"{phase['share']:.0%}",
                bar(phase, rto),
            )
        )
    lines += ["", *columns(table, (1, 2, 3))]

    if report["restored"]:
        table = [("SOURCE", "HOST", "DATA AS OF", "LOST", "FOUND", "EXPECTED", "SIZE", "DIGEST", "TOOK", "BACKUP")]
        for entry in report["restored"]:
            table.append(
                (
                    clean(entry["source"], LABEL_WIDTH),
                    clean(entry["host"], LABEL_WIDTH),
                    entry["time"],
                    f"{entry['rpo_seconds']:.1f} s",
                    str(entry["found"]["keys"]),
                    str(entry["expected"]["keys"]),
                    size(entry["bytes"]),
                    short_digest(entry),
                    f"{entry['seconds']['total']:.1f} s",
                    clean(entry["backup"][:BACKUP_WIDTH]),
                )
            )
        lines += ["", *columns(table, (3, 4, 5, 6, 8))]
    if report["notes"]:
        lines += ["", *map(clean, report["notes"])]
    return lines


def as_text(report: Report) -> str:
    """Return the report as a text file."""
    return "\n".join(report["text"]) + "\n"


def as_json(report: Report) -> str:
    """Return the report as one JSON document."""
    # The text is the same once more, and marks are for the picture.
    document = {key: value for key, value in report.items() if key not in ("text", "marks")}
    return json.dumps(document, indent=2) + "\n"


# The page.


class Bar(NamedTuple):
    """A row of a picture: from where to where, in seconds, and what stands over it."""

    label: str
    start: float
    end: float
    look: str
    value: str


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return positions of an axis and how they are called, at most seven, counted from 0."""
    step = next((step for step in TICKS if (high - low) / step <= 6), 0.0)
    if not step:
        step = 86400.0
        while (high - low) / step > 6:
            step *= 2
    unit_size, unit = next((pair for pair in UNITS if step >= pair[0]), UNITS[-1])
    first = math.ceil(low / step - 1e-9)
    return [
        (i * step, f"{i * step / unit_size:g} {unit}".replace("-", "\N{MINUS SIGN}"))
        for i in range(first, math.floor(high / step + 1e-9) + 1)
    ]


def html(value: Any, width: int = 0) -> str:
    """Return a value as it may stand in HTML, in an attribute too."""
    return escape(clean(value, width), quote=True)


def prose(value: Any) -> str:
    """Return a sentence as HTML, with times and numbers that no line end divides."""
    words = re.sub(r"(?<=\d) (?=(s|min|h|d|MiB)\b)", "\N{NO-BREAK SPACE}", html(value))
    return re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", r"<time>\g<0></time>", words)


def picture(name: str, title: str, description: str, bars: list[Bar], zero: str = "") -> str:
    """Return rows of bars over one axis as SVG; texts keep their size however wide the page is."""
    low, high = min(row.start for row in bars), max(row.end for row in bars)
    length = (high - low) or 1.0
    row_height, top = 40, 4
    foot = top + row_height * len(bars) + 4
    parts = [
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" width="100%" height="{foot + 24}">',
        f'<title id="{name}-title">{html(title)}</title>',
        f'<desc id="{name}-desc">{html(description)}</desc>',
        '<defs><pattern id="' + name + '-hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect class="hatch-ground" width="6" height="6"/>'
        '<rect class="hatch" width="2" height="6"/></pattern></defs>',
    ]
    for at, words in ticks(low, high):
        share = (at - low) / length * 100
        anchor = "start" if share < 4 else "end" if share > 96 else "middle"
        shown = zero if zero and at == 0 else words
        strong = " zero" if zero and at == 0 else ""
        parts.append(
            f'<line class="grid{strong}" x1="{share:.2f}%" x2="{share:.2f}%" y1="{top}" y2="{foot}"/>'
            f'<text class="tick{strong}" x="{share:.2f}%" y="{foot + 17}" text-anchor="{anchor}">{html(shown)}</text>'
        )
    for i, row in enumerate(bars):
        y = top + i * row_height
        width = min(max((row.end - row.start) / length * 100, 0.5), 100.0)
        start = min((row.start - low) / length * 100, 100 - width)
        fill = f' fill="url(#{name}-hatch)"' if row.look == "gap" else ""
        parts.append(
            f"<g><title>{html(row.label)}: {html(row.value)}</title>"
            # No line of the axis runs through words.
            f'<rect class="clear" x="0" y="{y}" width="100%" height="20"/>'
            f'<text class="label" x="0" y="{y + 15}">{html(row.label, LABEL_WIDTH)}</text>'
            f'<text class="value" x="100%" y="{y + 15}" text-anchor="end">{html(row.value)}</text>'
            f'<rect class="track" x="0" y="{y + 21}" width="100%" height="12" rx="3"/>'
            f'<rect class="{row.look}"{fill} x="{start:.2f}%" y="{y + 21}" width="{width:.2f}%" height="12" rx="3"/>'
            "</g>"
        )
    return "\n".join([*parts, "</svg>"])


def html_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Return a table of cells that are HTML already; the first of each row is its head."""
    ends = set(right)

    def look(i: int) -> str:
        return ' class="number"' if i in ends else ""

    lines = [f'<div class="scroll" role="region" tabindex="0" aria-label="{html(caption)}">', "<table>"]
    lines.append(f"<caption>{html(caption)}</caption>")
    lines.append(
        "<thead><tr>"
        + "".join(f'<th scope="col"{look(i)}>{html(head)}</th>' for i, head in enumerate(heads))
        + "</tr></thead><tbody>"
    )
    for row in rows:
        cells = [f"<td{look(i)}>{cell}</td>" for i, cell in enumerate(row) if i]
        lines.append(f'<tr><th scope="row">{row[0]}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def tile(head: str, value: str, below: str, state: str = "") -> str:
    """Return one large number with what it is."""
    return (
        f'<div class="tile {state}"><dt>{html(head)}</dt><dd class="big">{html(value)}</dd>'
        f'<dd class="below">{prose(below)}</dd></div>'
    )


def tiles(report: Report) -> str:
    """Return the numbers that the page begins with."""
    rto, rpo, restored = report["rto_seconds"], report["rpo_seconds"], report["restored"]

    def state(seconds: float | None, limit: float | None) -> str:
        return "" if seconds is None or limit is None else "good" if seconds <= limit else "bad"

    parts = [
        tile(
            "Rebuilt in (RTO)",
            span_or_seconds(rto),
            limit_words(rto, report["rto_limit"]),
            state(rto, report["rto_limit"]),
        )
    ]
    if rpo is not None:
        words = limit_words(rpo, report["rpo_limit"])
        parts.append(tile("Writes lost (RPO)", span_or_seconds(rpo), words, state(rpo, report["rpo_limit"])))
    if report["outage_seconds"] is not None:
        parts.append(tile("Out of service", span_or_seconds(report["outage_seconds"]), f"since {report['lost_at']}"))
    if restored:
        found, expected = (sum(entry[side]["keys"] for entry in restored) for side in ("found", "expected"))
        equal = all(entry["equal"] for entry in restored)
        words = f"of {expected} expected, {size(sum(entry['bytes'] for entry in restored))}"
        parts.append(tile("Items found", str(found), words, "good" if equal else "bad"))
    return f'<dl class="tiles">{"".join(parts)}</dl>'


def span_or_seconds(seconds: float) -> str:
    """Return seconds as a large number shows them."""
    return f"{seconds:.1f} s" if seconds < MINUTES else span(seconds)


def limit_words(seconds: float, limit: float | None) -> str:
    """Return exact seconds where the large number has none, and the limit."""
    return (f"{seconds:.1f} s, " if seconds >= MINUTES else "") + kept_limit(seconds, limit)


def phase_section(report: Report) -> str:
    """Return the picture of the phases with its table."""
    phases = report["phases"]
    bars = [
        Bar(
            phase["name"],
            phase["at"],
            phase["at"] + phase["seconds"],
            "gap" if phase["gap"] else "phase",
            f"{phase['seconds']:.1f} s · {phase['share']:.0%}",
        )
        for phase in phases
    ]
    longest = max((phase for phase in phases if not phase["gap"]), key=lambda phase: float(phase["seconds"]))
    description = (
        f"{many(sum(not phase['gap'] for phase in phases), 'phase')} in {report['rto_seconds']:.1f} seconds. "
        f"The longest is {clean(longest['name'])}, with {longest['seconds']:.1f} seconds. The table has every number."
    )
    rows = [
        (
            f"<em>{html(phase['name'])}</em>" if phase["gap"] else html(phase["name"]),
            f"+{phase['at']:.1f} s",
            f"{phase['seconds']:.1f} s",
            f"{phase['share']:.0%}",
        )
        for phase in phases
    ]
    rows.append(("<strong>all</strong>", "", f"<strong>{report['rto_seconds']:.1f} s</strong>", ""))
    return (
        '<section class="pair"><h2>Phases</h2><figure>'
        + picture("phases", "Phases of the rebuild", description, bars)
        + "</figure>"
        + html_table("Phases of the rebuild", ("Phase", "Began", "Took", "Share"), rows, (1, 2, 3))
        + "</section>"
    )


def loss_section(report: Report) -> str:
    """Return the picture of what time was lost, with its table."""
    marks, since = report["marks"], since_of(report)
    lost = report["lost_at"] or report["began"]
    spans = [
        (
            Bar(f"{entry['source']} on {entry['host']}: writes lost", min(at, 0.0), 0.0, "loss", ""),
            (entry["time"], lost) if at < 0 else (lost, lost),
            entry["rpo_seconds"],
        )
        for entry, at in zip(report["restored"], marks["data"], strict=True)
    ]
    if marks["began"] > 0:
        waited = Bar("out of service, not yet rebuilding", 0.0, marks["began"], "gap", "")
        spans.append((waited, (lost, report["began"]), marks["began"]))
    work = Bar("rebuild", marks["began"], marks["ended"], "phase", "")
    spans.append((work, (report["began"], report["ended"]), report["rto_seconds"]))
    bars = [row._replace(value=span_or_seconds(seconds)) for row, _, seconds in spans]
    rows = [
        (
            f"{html(row.label)}<small>{when(*ends)}</small>",
            f"{seconds:.1f} s" + (f"<small>{span(seconds)}</small>" if seconds >= MINUTES else ""),
        )
        for row, ends, seconds in spans
    ]
    description = (
        f"The data are as of {report['data_as_of']}, {report['rpo_seconds']:.1f} seconds before {since}. "
        f"The rebuild ended at {report['ended']}. The table has every number."
    )
    return (
        '<section class="pair"><h2>From the last backup to service</h2><figure>'
        + picture("loss", "What time was lost", description, bars, "loss" if report["lost_at"] else "begin")
        + "</figure>"
        + html_table("What time was lost", ("What", "Time"), rows, (1,))
        + "</section>"
    )


def when(began: str, ended: str) -> str:
    """Return two times as HTML."""
    return f"<time>{began}</time> to <time>{ended}</time>"


def digest_cell(entry: dict[str, Any]) -> str:
    """Return digests, short, with the whole ones in their titles."""

    def code(side: str) -> str:
        whole_digest = entry[side]["digest"]
        return f'<code title="{html(whole_digest)}">{html(whole_digest[:DIGEST_WIDTH])}</code>'

    if entry["compared"] == "count":
        return f"{code('in_backup')}<small>of the backup; only counted here</small>"
    if entry["found"]["digest"] == entry["expected"]["digest"]:
        return f"{code('found')}<small>as expected</small>"
    return f'{code("found")}<small class="bad">expected {code("expected")}</small>'


def data_section(report: Report) -> str:
    """Return the table of the data."""
    rows = []
    for entry in report["restored"]:
        items = many(entry["in_backup"]["keys"], "item")
        steps = ", ".join(
            f"{html(step)}\N{NO-BREAK SPACE}{seconds:.1f}"
            for step, seconds in entry["seconds"].items()
            if step != "total"
        )
        bad = "" if entry["found"]["keys"] == entry["expected"]["keys"] else ' class="bad"'
        rows.append(
            (
                f"{html(entry['source'])}<small>on {html(entry['host'])}</small>",
                f"<time>{entry['time']}</time><small>{took(entry['rpo_seconds'])} before {since_of(report)}</small>",
                f"<span{bad}>{entry['found']['keys']}</span>"
                f"<small>of {entry['expected']['keys']} expected, {items} in the backup</small>",
                digest_cell(entry),
                prose(size(entry["bytes"])),
                f"{entry['seconds']['total']:.1f} s<small>{steps}</small>",
                f'<code title="{html(entry["backup"])}">{html(entry["backup"][:BACKUP_WIDTH])}</code>'
                f"<small>of {html(entry['backup_of'])}</small>",
            )
        )
    heads = ("Source", "Data as of", "Items found", "Digest", "Size", "Restored in", "Backup")
    return f"<section><h2>Data</h2>{html_table('Data, expected and found', heads, rows)}</section>"


STYLE = """
:root { color-scheme: light dark; --ground: #f4f5f7; --card: #fff; --ink: #1a1e24; --soft: #55606c; --line: #d6dbe1;
  --track: #edf0f3; --phase: #2a66c8; --gap: #8b96a3; --loss: #b45309; --good: #17703a; --good-soft: #e5f3ea;
  --bad: #b3261e; --bad-soft: #fbe9e7; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #0f1216; --card: #181c22; --ink: #e7eaee; --soft: #9ba6b2; --line: #313842; --track: #242a32;
    --phase: #6ea8ff; --gap: #77828f; --loss: #f0a24c; --good: #58c27d; --good-soft: #15291d; --bad: #ff8a80;
    --bad-soft: #331a19; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.05rem; }
.when { margin: .25rem 0 1.25rem; color: var(--soft); }
.verdict { margin: 0 0 1.25rem; padding: .9rem 1.1rem; border-left: 5px solid; border-radius: 6px;
  overflow-wrap: anywhere; }
.verdict strong { display: block; font-size: 1.05rem; }
.verdict.good { border-color: var(--good); background: var(--good-soft); }
.verdict.good strong { color: var(--good); }
.verdict.bad { border-color: var(--bad); background: var(--bad-soft); }
.verdict.bad strong, .bad { color: var(--bad); }
.verdict.bad, .tile.bad { color: var(--ink); }
.verdict p, .verdict ul { margin: .25rem 0 0; }
.verdict ul, .notes ul { padding-left: 1.2rem; }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
section { margin: 0 0 1.25rem; padding: 1.1rem 1.25rem 1.25rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem; margin: 0 0 1.25rem; }
.tile { padding: .8rem 1.1rem; }
.tile dt { color: var(--soft); font-size: .85rem; }
.tile dd { margin: 0; }
.tile .big { font-size: 1.65rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile .below { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.tile.good .big { color: var(--good); }
.tile.bad .big { color: var(--bad); }
figure { margin: 0 0 .5rem; min-width: 0; }
time { white-space: nowrap; }
svg { display: block; overflow: visible; font-size: 13px; }
svg text { fill: var(--ink); }
svg .clear { fill: var(--card); }
svg .value { font-variant-numeric: tabular-nums; }
svg .value, svg .tick { fill: var(--soft); }
svg .tick { font-size: 12px; }
svg .grid { stroke: var(--line); }
svg .grid.zero { stroke: var(--ink); stroke-dasharray: 3 3; }
svg .tick.zero { fill: var(--ink); font-weight: 600; }
svg .track { fill: var(--track); fill-opacity: .7; }
svg .phase { fill: var(--phase); }
svg .loss { fill: var(--loss); }
svg .hatch-ground { fill: var(--track); }
svg .hatch { fill: var(--gap); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-size: .85em; font-weight: 600; white-space: nowrap; }
tbody th { min-width: 8rem; font-weight: 600; overflow-wrap: break-word; }
.pair tbody th { font-weight: 400; }
.number { text-align: right; white-space: nowrap; }
small { display: block; color: var(--soft); font-size: .85em; font-weight: 400; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.notes ul { margin: 0; overflow-wrap: anywhere; }
@media (min-width: 60rem), print {
  .pair { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); column-gap: 2.5rem; }
  .pair h2 { grid-column: 1 / -1; } }
@media print {
  @page { margin: 14mm; }
  body { padding: 0; background: #fff; font-size: 10pt; }
  main { max-width: none; }
  .tiles, .verdict, section, .when { margin-bottom: .6rem; }
  section { padding: .7rem 1rem; }
  table { font-size: 9pt; }
  th, td { padding: .2rem .45rem .2rem 0; }
  tbody th { min-width: 0; }
  .pair { column-gap: 1rem; }
  svg { font-size: 8.5pt; }
  svg .tick { font-size: 8pt; }
  .tiles { grid-template-columns: repeat(4, 1fr); gap: .6rem; }
  .tile { padding: .5rem .7rem; }
  .tile .big { font-size: 1.3rem; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .scroll { overflow: visible; }
  section, .tile, .verdict { break-inside: avoid; } }
"""


def as_html(report: Report) -> str:
    """Return the report as one page that needs nothing else."""
    good = report["ok"]
    head = "As it should be" if good else "NOT as it should be"
    banner = [f'<div class="verdict {"good" if good else "bad"}" role="status">']
    banner.append(f"<strong>{'✓' if good else '✗'} {head}</strong>")
    banner.append(f"<p>{prose(report['verdict'] if good else facts(report) + '.')}</p>")
    if not good:
        banner.append("<ul>" + "".join(f"<li>{prose(problem)}.</li>" for problem in report["problems"]) + "</ul>")
    banner.append("</div>")
    sections = [phase_section(report)]
    if report["restored"]:
        sections += [loss_section(report), data_section(report)]
    if report["notes"]:
        notes = "".join(f"<li>{prose(note)}</li>" for note in report["notes"])
        sections.append(f'<section class="notes"><h2>To know</h2><ul>{notes}</ul></section>')
    title = html(report["report"])
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Whatever a host has sent: a browser loads and runs nothing.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{title}: {head}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body><main>",
            f"<h1>{title}</h1>",
            f'<p class="when">Environment {html(report["environment"])}, {when(report["began"], report["ended"])}</p>',
            *banner,
            tiles(report),
            *sections,
            "</main></body>",
            "</html>",
            "",
        ]
    )


WRITERS = {".json": as_json, ".html": as_html, ".txt": as_text}


def destinations(value: Any) -> list[Path]:
    """Return the files to write; raises Bad for one that cannot be."""
    paths = [Path(str(path)).expanduser() for path in (value if isinstance(value, list) else [value]) if path]
    for path in paths:
        if path.suffix not in WRITERS or path.is_dir():
            raise Bad(f"write: found {str(path)!r}; expected a file that ends in .json, .html or .txt")
    return paths


def write(path: Path, content: str) -> bool:
    """Put a text in place of a file in one step, unless it is there already; tell whether it was not."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    wanted = content.encode("utf-8", "replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_bytes() == wanted:
            return False
        try:
            partial.write_bytes(wanted)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise Bad(f"write: {path} cannot be written: {error.strerror}") from error
    return True


class ActionModule(ActionBase):
    """Runs on the controller alone."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(
        (
            *("environment", "title", "phases", "restored", "lost_at", "rto_limit", "rpo_limit"),
            *("expect_data", "write", "fail"),
        )
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print and write the report; raises AnsibleActionFail for input that is none."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            files = destinations(arguments.get("write"))
            for key in ("expect_data", "fail"):
                try:
                    arguments[key] = boolean(arguments.get(key, True))
                except TypeError:
                    raise refuse(key, arguments[key], "true or false") from None
            report = assess(arguments)
            # First of all: what comes after may fail.
            for i, line in enumerate(report["text"]):
                self._display.display(line, color=("green" if report["ok"] else "red") if i == 0 else None)
            changed = False
            for path in files:
                changed |= self._task.check_mode or write(path, WRITERS[path.suffix](report))
                self._display.display(f"In {path}" + (", were this no check" if self._task.check_mode else ""))
        except Bad as error:
            raise AnsibleActionFail(str(error)) from error
        result = {key: value for key, value in report.items() if key != "marks"}
        result |= {"changed": changed, "msg": "\n".join(report["text"])}
        if arguments["fail"] and not report["ok"]:
            # Ansible shows all that a failed task returns: the problems would be out of sight above that.
            result = {key: value for key, value in result.items() if key not in ("phases", "restored", "text")}
            result |= {"failed": True, "msg": "\n".join([report["verdict"], *(f"  - {p}" for p in report["problems"])])}
        return result
