"""A report as text, as an HTML page and as JSON, by the templates beside this file.

Whatever a host has sent is data. Each value that a template prints goes through `printable.clean`, so that it is one
line without control characters, and in HTML and SVG through Jinja's autoescaping as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.quantdesk.redis.plugins.plugin_utils.printable import clean
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from . import pictures, words
from .judgement import DIGEST_WIDTH, Report

TEMPLATES = Path(__file__).parent / "templates"
BACKUP_WIDTH = 8
LABEL_WIDTH = 36


def finalize(value: Any) -> Any:
    """Return a value as a template may print it; markup has been through this already."""
    return value if isinstance(value, Markup) else clean(value)


def prose(value: str) -> Markup:
    """Return a sentence as HTML, with times and numbers that no line end divides."""
    sentence = re.sub(r"(?<=\d) (?=(s|min|h|d|MiB)\b)", "\N{NO-BREAK SPACE}", escape(clean(value)))
    return Markup(re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", r"<time>\g<0></time>", sentence))


def columns(lines: str, right: tuple[int, ...] = ()) -> str:
    """Align lines of cells that tabs divide; the columns named are aligned to the right."""
    rows = [line.split("\t") for line in lines.splitlines()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        + "\n"
        for row in rows
    )


@cache
def environment() -> Environment:
    """Return Jinja with the templates and filters of a report."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2", "svg.j2"], default=True, disabled_extensions=["txt.j2", "css"]),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: tuple[Callable[..., str], ...] = (
        *(words.clipped, words.clock, words.duration, words.exact_limit, words.limit, words.mebibytes, words.percent),
        *(words.plural, words.rounded, words.seconds, columns, prose, pictures.text_bar),
    )
    jinja.filters |= {function.__name__: function for function in filters}
    jinja.globals |= {
        "BACKUP_WIDTH": BACKUP_WIDTH,
        "DIGEST_WIDTH": DIGEST_WIDTH,
        "LABEL_WIDTH": LABEL_WIDTH,
        "MINUTES": words.MINUTES,
        "pictures": pictures,
    }
    return jinja


def as_text(report: Report) -> str:
    """Return the report as text, the verdict first."""
    return environment().get_template("report.txt.j2").render(report=report, rebuild=report.rebuild)


def as_html(report: Report) -> str:
    """Return the report as one page that needs nothing else."""
    return environment().get_template("report.html.j2").render(report=report, rebuild=report.rebuild)


def as_json(report: Report) -> str:
    """Return the report as one JSON document."""
    return json.dumps(report.document(), indent=2) + "\n"
