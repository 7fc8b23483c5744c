"""A host as the text of its file and as lines for a terminal, by the templates beside this file.

Each value that a template prints goes through `printable.clean`, so that it is in one line without control characters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.quantdesk.redis.plugins.plugin_utils.printable import clean
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import clients, survey, words, yaml_lines
from .files import Outcome
from .model import Host, Instance

TEMPLATES = Path(__file__).parent / "templates"


def comment(text: str, indent: int = 0) -> str:
    """Return a text of a template as a comment of YAML, with the end of its last line."""
    return "\n".join(yaml_lines.comment(text, indent)) + "\n"


def instance_lines(instance: Instance) -> list[str]:
    """Return the lines of an instance as an item of redis_instances."""
    lines = [line for item in instance.inputs for line in yaml_lines.input_lines(item, indent=4)]
    return yaml_lines.list_item(lines, indent=2)


@cache
def environment() -> Environment:
    """Return Jinja with the templates and filters of both texts."""
    jinja = Environment(
        # What it renders is YAML and text for a terminal.
        autoescape=False,
        loader=FileSystemLoader(TEMPLATES),
        finalize=clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: tuple[Callable[..., Any], ...] = (
        *(words.one_line, words.plural, words.readable, survey.label, survey.number, survey.truth),
        *(clients.descriptions, clients.foreign_addresses, clients.in_plaintext),
        *(comment, instance_lines, yaml_lines.block),
    )
    jinja.filters |= {function.__name__: function for function in filters}
    return jinja


def as_host_vars(host: Host) -> str | None:
    """Return the text of a host's file, or None where no server can be adopted."""
    return environment().get_template("host_vars.yml.j2").render(host=host) if host.instances else None


def as_summary(host: Host) -> list[str]:
    """Return the servers of a host and its data without a server, as lines for a terminal."""
    return environment().get_template("summary.txt.j2").render(host=host).splitlines()


def as_next_steps(host: Host, path: Path, outcome: Outcome, check: bool) -> list[str]:
    """Return where the file is and the operator's next steps, as lines for a terminal; see files.place for `check`."""
    template = environment().get_template("next_steps.txt.j2")
    return template.render(host=host, path=path, outcome=outcome, check=check).splitlines()
