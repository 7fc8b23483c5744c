"""What tests/lint sees of a call from a module into a library of modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECT

pytestmark = pytest.mark.slow

# A module, with a library whose functions and classes have types.
SOURCE = (PROJECT / "plugins/modules/write_files.py").read_text() + (
    "\nfrom ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import Candidate, text_of\n"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mypy keeps what it has read, for all runs of this file."""
    return tmp_path_factory.mktemp("mypy")


def check(source: str, folder: Path, cache: Path) -> str:
    """Return what mypy prints of a module, with the settings of tests/lint."""
    file = folder / "changed.py"
    file.write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--cache-dir", cache, file],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_module_as_it_is_passes(tmp_path: Path, cache: Path) -> None:
    assert "Success: no issues found" in check(SOURCE, tmp_path, cache)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("text_of(1)", 'Argument 1 to "text_of" has incompatible type "int"'),
        ("text_of()", 'Missing positional argument "path"'),
        ("len(text_of('x'))", 'Argument 1 to "len" has incompatible type "str | None"'),
        ("Candidate('x', 'y').no_such_thing", '"Candidate" has no attribute "no_such_thing"'),
        ("AnsibleModule({}).exit_jsn()", '"AnsibleModule" has no attribute "exit_jsn"'),
    ],
)
def test_a_wrong_call_is_refused(tmp_path: Path, cache: Path, call: str, problem: str) -> None:
    assert problem in check(f"{SOURCE}\n\n{call}\n", tmp_path, cache)


def test_a_library_that_is_not_there_is_refused(tmp_path: Path, cache: Path) -> None:
    source = SOURCE.replace("module_utils.redis_files import", "module_utils.no_such_file import")
    said = check(source, tmp_path, cache)
    assert "error: Skipping analyzing" in said
    assert "no_such_file" in said
