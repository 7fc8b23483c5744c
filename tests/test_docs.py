"""The documentation against the project: commands, files and variables that it names exist."""

from __future__ import annotations

import re

from conftest import PROJECT

README = (PROJECT / "README.md").read_text()


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named >= {"up", "test", "down"}
    assert named <= targets


def test_files_of_the_readme_exist() -> None:
    named = set(re.findall(r"`((?:playbooks|roles|inventory|molecule|docs|requirements|plugins)/[\w./-]*)`", README))
    assert len(named) > 5
    assert [path for path in sorted(named) if not (PROJECT / path).exists()] == []


def test_files_of_contributing_exist() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:playbooks|roles|inventory|molecule|docs|plugins|tests)/[\w./-]*)", text))
    assert len(named) > 20
    assert [path for path in sorted(named) if "NAME" not in path and not (PROJECT / path.rstrip(".")).exists()] == []


def test_every_input_of_a_role_has_a_comment_and_its_name() -> None:
    for role in (PROJECT / "roles").iterdir():
        lines = (role / "defaults/main.yml").read_text().splitlines()
        inputs = [line.split(":")[0] for line in lines if re.match(r"^[a-z]\w*:", line)]
        assert inputs
        assert [name for name in inputs if not name.startswith(f"{role.name}_")] == []
