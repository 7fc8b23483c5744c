"""Write each role's README.md from its meta/argument_specs.yml and its README.in.md.

    python docs/role_readme.py [--check]

The spec gives the title, the description and the table of inputs, which takes the place of the line `<!-- inputs -->`.
All else is README.in.md as it is. A role that has only one of the two files is left out, and said so. With --check
nothing is written: it names the files that differ from what would be, and ends with 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parent.parent / "roles"
SPEC, SOURCE, RESULT = "meta/argument_specs.yml", "README.in.md", "README.md"
PLACEHOLDER = "<!-- inputs -->"
NOTE = f"<!-- Made by docs/role_readme.py from {SOURCE} and {SPEC}. -->"


class Loader(yaml.SafeLoader):
    """Reads what Ansible reads: texts marked !unsafe, which it does not template."""


def read_text(loader: Loader, node: yaml.ScalarNode) -> str:
    """Return a text as it stands."""
    return str(loader.construct_scalar(node))


Loader.add_constructor("!unsafe", read_text)


def read_spec(role: Path) -> dict[str, Any]:
    """Return the spec of a role's entry point main."""
    document = yaml.load((role / SPEC).read_text(encoding="utf-8"), Loader)
    spec: dict[str, Any] = document["argument_specs"]["main"]
    return spec


def paragraphs(description: str | list[str]) -> list[str]:
    """Return a description, which may be one text or several, as texts of one line."""
    return [" ".join(text.split()) for text in ([description] if isinstance(description, str) else description)]


def code(value: Any) -> str:
    """Return a value as it would stand in an inventory, in one line."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return f"`{text}`"


def type_of(option: dict[str, Any]) -> str:
    """Return an input's type in words: `list of int`, `str: a, b`, `str, secret`."""
    words: str = option.get("type", "str")
    if "elements" in option:
        words += f" of {option['elements']}"
    if option.get("no_log"):
        words += ", secret"
    if "choices" in option:
        words += ": " + ", ".join(code(choice) for choice in option["choices"])
    return words


def default_of(option: dict[str, Any]) -> str:
    """Return an input's default, or that it has none."""
    if option.get("required"):
        return "**required**"
    return code(option["default"]) if "default" in option else "none"


def rows(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each input, required ones first, each followed by the keys that it holds."""
    for name, option in sorted(options.items(), key=lambda item: not item[1].get("required", False)):
        yield f"`{prefix}{name}`", type_of(option), default_of(option), " ".join(paragraphs(option["description"]))
        inside = f"{prefix}{name}{'[]' if option.get('type') == 'list' else ''}."
        yield from rows(option.get("options", {}), inside)


def table(options: dict[str, Any]) -> str:
    """Return the inputs as a table in Markdown."""
    lines = [("name", "type", "default", "description"), ("---",) * 4, *rows(options)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def render(role: Path) -> str:
    """Return what the role's README.md is to be; raises ValueError if the table has no place, or several."""
    spec = read_spec(role)
    body = (role / SOURCE).read_text(encoding="utf-8").strip()
    if body.split("\n").count(PLACEHOLDER) != 1:
        raise ValueError(f"{role / SOURCE}: expected one line {PLACEHOLDER}, where the table of inputs belongs")
    parts = [
        NOTE,
        f"# {role.name}",
        f"{spec['short_description'].rstrip('.')}.",
        *paragraphs(spec["description"]),
        body.replace(PLACEHOLDER, table(spec["options"])),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None, roles: Path = ROLES) -> int:
    """Write or compare the README.md of every role, and return the exit code."""
    parser = argparse.ArgumentParser(description="Write each role's README.md from its argument_specs.yml.")
    parser.add_argument("--check", action="store_true", help="write nothing; name files that differ, and end with 1")
    check = parser.parse_args(arguments).check
    differ = []
    for role in sorted(path for path in roles.iterdir() if path.is_dir()):
        missing = [name for name in (SPEC, SOURCE) if not (role / name).exists()]
        if missing:
            print(f"{role.name}: left out, there is no {' and no '.join(missing)}", file=sys.stderr)
            continue
        file = role / RESULT
        wanted = render(role)
        if not file.exists() or file.read_text(encoding="utf-8") != wanted:
            differ.append(file)
            if not check:
                file.write_text(wanted, encoding="utf-8")
    for file in differ:
        print(f"{file}: {'differs; run python docs/role_readme.py' if check else 'written'}")
    return int(check and bool(differ))


if __name__ == "__main__":
    sys.exit(main())
