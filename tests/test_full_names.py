"""Filters and tests of the collection are called by their full names; the short ones are not found."""

from __future__ import annotations

import re

from conftest import PROJECT, load

FILES = sorted(
    path
    for folder in ("inventory", "molecule", "playbooks", "roles")
    for path in (PROJECT / folder).rglob("*")
    if path.suffix in {".yml", ".j2"} and path.is_file() and not path.is_symlink()
)


def provided(folder: str, kind: str, function: str) -> set[str]:
    """Return the names that the collection's filters or tests have."""
    found: set[str] = set()
    for path in sorted((PROJECT / "plugins" / folder).glob("*.py")):
        module = load(f"plugins/{folder}/{path.name}")
        found |= set(getattr(getattr(module, kind)(), function)())
    return found


FILTERS = "|".join(sorted(provided("filter", "FilterModule", "filters"), key=len, reverse=True))
TESTS = "|".join(sorted(provided("test", "TestModule", "tests"), key=len, reverse=True))
SHORT = re.compile(
    rf"\|\s*(?:{FILTERS})\b(?!['\".:=-])|\bmap\(\s*'(?:{FILTERS})'"
    rf"|\bis\s+(?:not\s+)?(?:{TESTS})\b(?!['\".:-])|\b(?:select|reject)\(\s*'(?:{TESTS})'"
    rf"|\b(?:select|reject)attr\(\s*'[^']*'\s*,\s*'(?:{TESTS})'"
)


def short(text: str) -> list[str]:
    """Return what a text calls by a short name; comments are left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [match[0] for match in SHORT.finditer(lines)]


def test_filters_and_tests_are_called_by_their_full_names() -> None:
    found = {str(path.relative_to(PROJECT)): names for path in FILES if (names := short(path.read_text()))}
    assert found == {}


def test_a_short_name_is_noticed() -> None:
    assert short("that: a | redis_bytes == 1") == ["| redis_bytes"]
    assert short("that: a is not port and b | select('address') is quantdesk.redis.port") == [
        "is not port",
        "select('address'",
    ]
    assert short("a | map(attribute='port') | map(\n  'redis_bytes') | reject('quantdesk.redis.port')") == [
        "map(\n  'redis_bytes'"
    ]
    assert short("# a | redis_bytes\na: {port: 1, b: 'x is password.'}") == []
