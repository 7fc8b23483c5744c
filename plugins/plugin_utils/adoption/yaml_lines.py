"""Values as YAML in lines of a limited width, with comments; no text of a value becomes a template of Ansible's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from .model import Input
from .words import failing

# Columns of a line; a value that is longer in one word goes beyond.
WIDTH = 118


def scalar(value: Any) -> str:
    """Return a value as YAML, in one line; a text that Ansible would take for a template is marked as none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9/.][A-Za-z0-9/. _+-]*[A-Za-z0-9/]|[A-Za-z]", text) and yaml.safe_load(text) == text:
        return text
    mark = "!unsafe " if re.search(r"\{[{%#]", text) else ""
    return mark + json.dumps(text).replace("\x7f", "\\x7f")


def flow(value: Any) -> str:
    """Return a value as YAML in one line, lists and mappings included."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    return scalar(value)


def nested(value: Any) -> bool:
    """Tell whether a list or mapping is better read in several lines."""
    if isinstance(value, Mapping):
        return True
    return any(isinstance(item, (Mapping, list)) for item in value)


def block(value: Any, key: str, indent: int = 0) -> list[str]:
    """Return the lines of `key: value`, in one line where it fits."""
    margin = " " * indent
    short = f"{margin}{key}: {flow(value)}"
    if not value or not isinstance(value, (Mapping, list)) or (len(short) <= WIDTH and not nested(value)):
        return [short]
    lines = [f"{margin}{key}:"]
    if isinstance(value, Mapping):
        for name, item in value.items():
            lines += block(item, scalar(name), indent + 2)
        return lines
    for item in value:
        if isinstance(item, Mapping):
            parts = (line for name, part in item.items() for line in block(part, scalar(name), indent + 4))
            lines += list_item(parts, indent + 2)
        else:
            lines.append(f"{margin}  - {flow(item)}")
    return lines


def list_item(lines: Iterable[str], indent: int) -> list[str]:
    """Return the lines of a mapping as an item of a list; they are indented by two columns more than the item."""
    first, *rest = lines
    return [f"{' ' * indent}- {first.strip()}", *rest]


def comment(text: str, indent: int = 0) -> list[str]:
    """Return a comment of as many lines as it takes."""
    margin = " " * indent + "# "
    lines, line = [], margin
    for word in text.split():
        if len(line) + len(word) > WIDTH and line != margin:
            lines.append(line.rstrip())
            line = margin
        line += f"{word} "
    return [*lines, line.rstrip()]


def remark(item: Input) -> str:
    """Return the text of the comment on an input: the bundle's default, the controls that fail, and its note."""
    parts = [f"bundle: {item.default}" if item.default else "", failing(item.fails), item.note]
    return "; ".join(part for part in parts if part)


def input_lines(item: Input, indent: int) -> list[str]:
    """Return the lines of an input, with the comment beside the first one, or above where there is no room."""
    first, *rest = block(item.value, item.name, indent)
    text = remark(item)
    if not text:
        return [first, *rest]
    if len(first) + 4 + len(text) <= WIDTH:
        return [f"{first}  # {text}", *rest]
    return [*comment(text, indent), first, *rest]
