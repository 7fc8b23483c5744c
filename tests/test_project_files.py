"""Files that tools and people look for in a repository: hooks, CI, the execution environment, and the changelog."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from conftest import PROJECT

WORKFLOWS = sorted((PROJECT / ".github/workflows").glob("*.yml"))
CHANGES = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def read(path: str | Path) -> Any:
    """Return a YAML file of the project."""
    return yaml.safe_load((PROJECT / path).read_text())


def linters(*words: str) -> subprocess.CompletedProcess[str]:
    """Call tests/lint."""
    return subprocess.run([PROJECT / "tests/lint", *words], capture_output=True, text=True, check=False)


def pinned() -> dict[str, str]:
    """Return the versions of the controller's Python packages."""
    return dict(
        re.findall(r"^([a-z0-9-]+)==(\S+)", (PROJECT / "requirements/controller.txt").read_text(), re.MULTILINE)
    )


def test_each_linter_is_a_hook() -> None:
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    names = linters("--list").stdout.split()
    assert len(names) > 4
    assert [hook["entry"] for hook in hooks] == [f"tests/lint {name}" for name in names]
    assert {repo["repo"] for repo in read(".pre-commit-config.yaml")["repos"]} == {"local"}


def test_an_unknown_linter_is_refused() -> None:
    done = linters("spelling")
    assert done.returncode == 2
    assert done.stderr.startswith("tests/lint: found 'spelling'; expected one of: yamllint ")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_only_and_runs_actions_of_known_content(workflow: Path) -> None:
    content = read(workflow)
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert "permissions" not in job
        for step in job["steps"]:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}"))


def test_ci_runs_the_commands_of_the_readme() -> None:
    steps = [step for path in WORKFLOWS for job in read(path)["jobs"].values() for step in job["steps"]]
    commands = {
        "github": [step["run"] for step in steps if "run" in step],
        "gitlab": [line for job in read(".gitlab-ci.yml").values() if "script" in job for line in job["script"]],
    }
    for where, lines in commands.items():
        found = [line.removeprefix("sudo ") for line in lines]
        assert {"make lint", "make test"} <= set(found), where


def test_the_execution_environment_has_what_a_controller_has() -> None:
    needs = read("execution-environment.yml")["dependencies"]
    wanted = re.findall(r"^[a-z-]+", (PROJECT / "requirements/controller.in").read_text(), re.MULTILINE)
    versions = dict(item.split("==") for item in (needs["ansible_core"]["package_pip"], *needs["python"]))
    assert {*versions} == {*wanted, "ansible-core"} - {"ansible"}
    assert versions == {name: pinned()[name] for name in versions}
    assert read(needs["galaxy"])["collections"]


def test_requires_ansible_admits_the_pinned_one_and_no_older_ones() -> None:
    admitted = SpecifierSet(read("meta/runtime.yml")["requires_ansible"])
    version = pinned()["ansible-core"]
    assert version in admitted
    series, minor, _ = version.split(".")
    assert f"{series}.{int(minor) - 1}.99" not in admitted


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    lines = (PROJECT / "CHANGELOG.md").read_text().splitlines()
    assert lines[0] == "# Changelog"
    releases: list[str] = []
    kinds: dict[str, list[str]] = {}
    for number, line in enumerate(lines[1:], 2):
        if line.startswith("## "):
            assert re.fullmatch(r"## (\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d)", line), number
            releases.append(line)
            kinds[line] = []
        elif line.startswith("### "):
            assert line.removeprefix("### ") in CHANGES, number
            kinds[releases[-1]].append(line.removeprefix("### "))
            assert lines[number + 1].startswith("- "), number
        elif line.startswith("- "):
            assert kinds[releases[-1]], number
    assert releases[0] == "## [Unreleased]"
    assert len(set(releases)) == len(releases)
    for found in kinds.values():
        assert found == sorted(set(found), key=CHANGES.index)
