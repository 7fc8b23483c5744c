"""What programs print is read in English and as UTF-8 with replacements, on every host: none is left to the locale."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from databackup.service import Unit

from databackup import programs as databackup_programs

from conftest import PROJECT, load

programs = load("plugins/module_utils/programs.py")
app_units = load("plugins/module_utils/app_units.py")
nftables = load("plugins/module_utils/nftables.py")
redis_unit = load("plugins/module_utils/redis_unit.py")
app_deployment = load("plugins/modules/app_deployment.py")

# What runs on the hosts, and what Ansible runs on the controller.
SOURCES = sorted(
    path for place in ("plugins", "roles/*/files", "databackup/src") for path in PROJECT.glob(f"{place}/**/*.py")
)
STARTS = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}


def faults(source: str) -> Iterator[str]:
    """Yield the calls that leave the language or the encoding of a program's output to the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        where = f"line {node.lineno}"
        if ast.unparse(node.func).startswith("subprocess.") and node.func.attr in STARTS:
            captures = "PIPE" in " ".join(given.values()) or {"capture_output", "encoding", "text"} & set(given)
            if node.func.attr.startswith(("get", "check_output")) or {"text", "universal_newlines"} & set(given):
                yield f"{where}: text in the locale's encoding; expected encoding and errors"
            if ("encoding" in given) != ("errors" in given):
                yield f"{where}: encoding and errors go together"
            if captures and "env" not in given:
                yield f"{where}: output in the locale's language; expected env with LC_ALL"
        if node.func.attr == "run_command" and "environ_update" not in given:
            yield f"{where}: output in the locale's language; expected environ_update with LC_ALL"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_output_is_left_to_the_locale(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert list(faults(source)) == []
    starts = re.search(r"\benv=|environ_update=", source)
    assert starts is None or re.search(r"LC_ALL|ENGLISH", source), "an environment without LC_ALL"


@pytest.mark.parametrize(
    "call",
    [
        "subprocess.run(words, capture_output=True, text=True)",
        "subprocess.run(words, capture_output=True, env=plain, encoding='utf-8')",
        "subprocess.run(words, capture_output=True, encoding='utf-8', errors='replace')",
        "subprocess.check_output(words, env=plain)",
        "subprocess.Popen(words, stdout=subprocess.PIPE)",
        "module.run_command(words)",
    ],
)
def test_the_check_finds_what_is_left_to_it(call: str) -> None:
    assert list(faults(call)) != []


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that print the language they were given, and a byte of another encoding than this host's."""
    for name in ("systemctl", "journalctl", "dpkg-query", "nft", "stat"):
        file = tmp_path / name
        file.write_text('#!/bin/sh\nprintf "ii %s\\n" "language:$LC_ALL"\nprintf "gr\\374n\\n"\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")


SAID = "ii language:C\ngr\N{REPLACEMENT CHARACTER}n"


@pytest.mark.usefixtures("told")
def test_a_program_speaks_english_and_its_bytes_are_replaced() -> None:
    assert programs.run(["systemctl"]).stdout.strip() == SAID
    assert databackup_programs.run(["systemctl"]).stdout.strip() == SAID


@pytest.mark.usefixtures("told")
def test_a_journal_with_other_bytes_does_not_end_what_reports_it() -> None:
    assert app_units.systemctl("status").stdout.strip() == SAID
    assert app_units.journal("one.service", 0) == SAID
    assert redis_unit.evidence({"unit": "one.service", "log_file": ""}).strip() == SAID
    assert redis_unit.refusal({"unit": "one.service", "log_file": ""}) == ""
    assert Unit("one.service", []).last_words() == SAID.replace("\n", " / ")


@pytest.mark.usefixtures("told")
def test_answers_are_read_in_english() -> None:
    assert app_deployment.missing(["language:C", "other"]) == ["other"]
    assert nftables.run("nft").stdout.strip() == SAID


def scripts(node: Any) -> Iterator[str]:
    """Yield the shell scripts within a file of tasks."""
    if isinstance(node, list):
        for item in node:
            yield from scripts(item)
    elif isinstance(node, dict):
        shell = node.get("ansible.builtin.shell")
        if shell is not None:
            yield str(shell["cmd"] if isinstance(shell, dict) else shell)
        for value in node.values():
            yield from scripts(value)


def reads_output(script: str) -> bool:
    """Return whether a script reads what a program prints."""
    own = re.sub(r"{{.*?}}|{%.*?%}", "", script, flags=re.DOTALL)
    return re.search(r"\$\([^(]|[^|]\| *[a-z]", own) is not None


def all_scripts() -> Iterator[tuple[str, str]]:
    """Yield each script of roles and playbooks, with where it is."""
    for path in sorted([*PROJECT.glob("roles/*/files/**/*.sh"), *PROJECT.glob("roles/*/templates/*.sh.j2")]):
        yield str(path.relative_to(PROJECT)), path.read_text(encoding="utf-8")
    for path in sorted([*PROJECT.glob("roles/*/tasks/*.yml"), *PROJECT.glob("playbooks/**/*.yml")]):
        for number, script in enumerate(scripts(yaml.safe_load(path.read_text(encoding="utf-8")))):
            if "lookup('ansible.builtin.template'" not in script:
                yield f"{path.relative_to(PROJECT)}:{number}", script


@pytest.mark.parametrize(
    "script", [pytest.param(text, id=where) for where, text in all_scripts() if reads_output(text)]
)
def test_a_script_that_reads_output_has_it_in_english(script: str) -> None:
    assert re.search(r"^ *export LC_ALL=C$", script, re.MULTILINE)
