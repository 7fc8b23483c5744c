"""Call own modules, actions, filters, tests, lookups, roles and module_utils by their full names; can be run again.

    python collection17.convert.py [CHECKOUT]

Changes files that git knows, in place, and prints what it could not decide.
"""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
FULL = "quantdesk.redis."
TASK_LISTS = ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always")


def stems(folder: str) -> set[str]:
    return {p.stem for p in (ROOT / "plugins" / folder).glob("*.*") if p.suffix in (".py", ".yml") and p.stem[0] != "_"}


def contained(folder: str, function: str) -> set[str]:
    names: set[str] = set()
    for path in (ROOT / "plugins" / folder).glob("*.py"):
        text = path.read_text()
        names |= set(re.findall(r'"([a-z_0-9]+)":', text[text.rindex(f"def {function}") :]))
    return names


MODULES = stems("modules") | stems("action")
LOOKUPS = stems("lookup")
UTILS = stems("module_utils") | {p.name for p in (ROOT / "plugins/module_utils").iterdir() if p.is_dir() and p.name[0] != "_"}
FILTERS, TESTS = contained("filter", "filters"), contained("test", "tests")
ROLES = {p.name for p in (ROOT / "roles").iterdir() if (p / "tasks").is_dir()}


def either(names: set[str]) -> str:
    return "(?:" + "|".join(sorted(names, key=len, reverse=True)) + ")"


IN_TEXT = [
    # filters
    (re.compile(rf"(?<!\|)(\\?\|\s*)({either(FILTERS)})\b(?!\s*[=|]?=)(?!\.)(?! \|$)"), rf"\1{FULL}\2"),
    (re.compile(rf"((?<![\w.])map\(\s*')({either(FILTERS)})(?=')"), rf"\1{FULL}\2"),
    # tests
    (re.compile(rf"(\bis\s+(?:not\s+)?)({either(TESTS)})\b(?![.'])"), rf"\1{FULL}\2"),
    (re.compile(rf"((?<![\w.])(?:select|reject)\(\s*')({either(TESTS)})(?=')"), rf"\1{FULL}\2"),
    (re.compile(rf"((?<![\w.])(?:selectattr|rejectattr)\(\s*'[^']*',\s*')({either(TESTS)})(?=')"), rf"\1{FULL}\2"),
    # lookups
    (re.compile(rf"((?<![\w.])(?:lookup|query|q)\(\s*['\"])({either(LOOKUPS)})(?=['\"])"), rf"\1{FULL}\2"),
]


def expressions(text: str) -> str:
    for pattern, replacement in IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def names_in_yaml(text: str) -> str:
    """Tasks' modules and roles' names, by their places in the file."""
    edits: list[tuple[int, str]] = []

    def value_of(node: yaml.MappingNode, name: str) -> yaml.Node | None:
        return next((value for key, value in node.value if key.value == name), None)

    def role(node: yaml.Node | None) -> None:
        if isinstance(node, yaml.ScalarNode) and node.value in ROLES:
            mark = node.start_mark.index + (1 if node.style in ("'", '"') else 0)
            edits.append((mark, FULL))

    def task(node: yaml.Node) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in TASK_LISTS:
                tasks(value)
            elif key.value in MODULES and isinstance(value, (yaml.MappingNode, yaml.ScalarNode)):
                edits.append((key.start_mark.index, FULL))
            elif key.value in ("ansible.builtin.include_role", "ansible.builtin.import_role") and isinstance(
                value, yaml.MappingNode
            ):
                role(value_of(value, "name"))

    def tasks(node: yaml.Node | None) -> None:
        for item in node.value if isinstance(node, yaml.SequenceNode) else []:
            task(item)

    for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
        for item in document.value if isinstance(document, yaml.SequenceNode) else []:
            if not isinstance(item, yaml.MappingNode):
                continue
            roles = value_of(item, "roles")
            for entry in roles.value if isinstance(roles, yaml.SequenceNode) else []:
                role(value_of(entry, "role") or value_of(entry, "name") if isinstance(entry, yaml.MappingNode) else entry)
            task(item)
    for place, addition in sorted(set(edits), reverse=True):
        text = text[:place] + addition + text[place:]
    return text


def convert_yaml(path: Path, text: str) -> str:
    text = names_in_yaml(text)
    lines = []
    for line in text.splitlines(keepends=True):
        code, hash_, comment = line.partition(" #") if not line.lstrip().startswith("#") else ("", "", line)
        # A commented line of an inventory is one to be uncommented; other comments are English.
        if "{{" in comment:
            comment = expressions(comment)
        lines.append(expressions(code) + hash_ + comment)
    return "".join(lines)


IMPORTS = [
    (re.compile(rf"^(\s*from )ansible\.module_utils\.({either(UTILS)})(?=[ .])", re.M), r"\1ansible_collections.quantdesk.redis.plugins.module_utils.\2"),
    (re.compile(rf"^(\s*from )ansible\.module_utils( import {either(UTILS)}\b)", re.M), r"\1ansible_collections.quantdesk.redis.plugins.module_utils\2"),
]


def convert_python(path: Path, text: str) -> str:
    relative = path.relative_to(ROOT).as_posix()
    for pattern, replacement in IMPORTS:
        text = pattern.sub(replacement, text)
    text = re.sub(rf'(["\'])ansible\.module_utils\.({either(UTILS)})(?=["\'])', r"\1ansible_collections.quantdesk.redis.plugins.module_utils.\2", text)
    # Tests load plugins by their places; the name follows from it.
    text = re.sub(r"""\bload\(\s*(f?(["'])(?:plugins|playbooks|docs)/[^"']+\.py\2),\s*f?\2[^"']*\2,?\s*\)""", r"load(\1)", text)
    # What plugins of the controller share.
    shared = {p.name for p in (ROOT / "plugins/plugin_utils").glob("*") if p.is_dir() and p.name[0] != "_"}
    if shared:
        text = re.sub(r"(?:^# Ansible has no import path[^\n]*\n)?^sys\.path\.append\([^\n]*plugin_utils[^\n]*\)\n", "", text, flags=re.M)
        text = re.sub(rf"^(\s*from )({either(shared)})(?=[ .])", r"\1ansible_collections.quantdesk.redis.plugins.plugin_utils.\2", text, flags=re.M)
    if relative.startswith("plugins/modules/"):
        match = re.search(r'^DOCUMENTATION = r"""(.*?)"""', text, re.M | re.S)
        if match:
            told = re.sub(r"^( +)options:", r"\1suboptions:", match[1], flags=re.M)
            if "\nauthor:" not in told:
                told += "author: The quantdesk-redis maintainers (!UNKNOWN)\n"
            text = text[: match.start(1)] + told + text[match.end(1) :]
    if relative.startswith("plugins/"):
        # Examples in documentation.
        for name in ("EXAMPLES",):
            match = re.search(rf'^{name} = r?"""(.*?)"""', text, re.M | re.S)
            if match:
                text = text[: match.start(1)] + "\n" + expressions(names_in_yaml(match[1].lstrip("\n"))) + text[match.end(1) :]
        return text
    # In tests: tasks and expressions.
    text = re.sub(rf'((?:ansible_module|playbook_module)\(\s*")({either(MODULES)})(?=")', rf"\1{FULL}\2", text)
    text = re.sub(rf'("-m", ")({either(MODULES)})(?=")', rf"\1{FULL}\2", text)
    out = []
    for line in text.splitlines(keepends=True):
        code = line.lstrip()
        if not code.startswith("#") and ('"' in line or "'" in line):
            line = expressions(line)
        # A task: {"checks": {"subject": …}} and {"name": …, "redis_config": arguments}
        line = re.sub(rf'("name": [^{{}}]*?, ")({either(MODULES - {"checks"})})(?=": )', rf"\1{FULL}\2", line)
        line = re.sub(r'(")checks(": \{"(?:subject|report)")', rf"\1{FULL}checks\2", line)
        # A task that is changed.
        line = line.replace('"checks": {**REPORT["checks"]', f'"{FULL}checks": {{**REPORT["{FULL}checks"]')
        out.append(line)
    return "".join(out)


def main() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    changed = []
    for name in filter(None, files):
        path = ROOT / name
        if name.startswith("app/") or path.is_symlink() or not path.is_file():
            continue
        text = path.read_text(errors="surrogateescape")
        if path.suffix == ".yml" and name.startswith(("roles/", "playbooks/", "molecule/", "inventory/", "tests/", "drills/")):
            new = convert_yaml(path, text)
        elif path.suffix == ".j2":
            new = expressions(text)
        elif path.suffix == ".py" and name.startswith(("plugins/", "tests/", "molecule/", "drills/", "databackup/tests/")):
            new = convert_python(path, text)
        elif path.name in ("README.in.md", "README.md") and name.startswith("roles/"):
            new = "".join(expressions(line) if "{{" in line else line for line in text.splitlines(keepends=True))
        else:
            continue
        if new != text:
            path.write_text(new, errors="surrogateescape")
            changed.append(name)
    print(f"{len(changed)} files changed")
    python = [name for name in changed if name.endswith(".py")]
    if python:
        ruff = ROOT / ".venv/bin/ruff"
        subprocess.run([ruff, "check", "--quiet", "--fix", "--select", "I,F401", *python], cwd=ROOT, check=False)
        subprocess.run([ruff, "format", "--quiet", *python], cwd=ROOT, check=False)
    for name in changed:
        if name.endswith(".yml"):
            for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
                if len(line) > 140:
                    print(f"{name}:{number}: {len(line)} characters")


main()
