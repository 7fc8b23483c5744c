"""Each module documents exactly the options that it takes."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import PROJECT, load

MODULES = sorted((PROJECT / "plugins/modules").glob("*.py"))
ACTIONS = sorted(path.stem for path in PROJECT.glob("plugins/action/*.py"))


def constants(file: Path) -> dict[str, Any]:
    """Return the texts that Ansible reads as documentation, parsed."""
    tree = ast.parse(file.read_text())
    return {
        node.targets[0].id: yaml.safe_load(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()
        if node.targets[0].id in ("DOCUMENTATION", "EXAMPLES", "RETURN")
    }


@pytest.mark.parametrize("file", MODULES, ids=[file.stem for file in MODULES])
def test_its_documentation_can_be_read_and_its_example_uses_it(file: Path) -> None:
    texts = constants(file)
    assert texts["DOCUMENTATION"]["module"] == file.stem
    options = set(texts["DOCUMENTATION"]["options"])
    for fragment in texts["DOCUMENTATION"].get("extends_documentation_fragment", []):
        shared = load(f"plugins/doc_fragments/{fragment.rpartition('.')[2]}.py").ModuleDocFragment.DOCUMENTATION
        options |= set(yaml.safe_load(shared)["options"])
    for task in texts.get("EXAMPLES", []):
        assert set(task[f"quantdesk.redis.{file.stem}"] or {}) <= options | {"owner", "group", "mode"}
    assert options or "argument_spec={}" in file.read_text()


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_takes_what_is_documented_for_it(name: str) -> None:
    options = constants(PROJECT / f"plugins/modules/{name}.py")["DOCUMENTATION"]["options"]
    assert set(options) == load(f"plugins/action/{name}.py").ActionModule._VALID_ARGS
