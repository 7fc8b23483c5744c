"""Inputs whose type YAML, `-e` or an environment has changed work as the right type does, or are refused by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from databackup.catalog import Backup, choose
from databackup.errors import Failed
from jinja2 import nodes
from test_argument_specs import ROLES, options
from test_bad_input import names, run, variables

from conftest import PROJECT, load

inputs = load("plugins/test/inputs.py")
checks = load("plugins/action/checks.py")

SPECS = {role.name: options(role) for role in ROLES}
BOOLEANS = {name: role for role, spec in SPECS.items() for name, option in spec.items() if option["type"] == "bool"}
# Of playbooks, by -e.
ASKED = {"restore_list", "restore_confirm", "repair_confirm", "rebuild_over_data", "preflight_backup"}
WORDS = {"yes": ("yes", "no"), "python": ("True", "False"), "on": ("ON", "off"), "digits": ("1", "0")}

# --- No text is taken for true because it is not empty ---

# Keys whose values are expressions without braces.
BARE = {"when", "that", "found", "equals", "changed_when", "failed_when", "until"}
PLACES = [
    *(path for kind in ("tasks", "vars", "handlers", "defaults") for path in PROJECT.glob(f"roles/*/{kind}/**/*.yml")),
    *PROJECT.glob("playbooks/**/*.yml"),
]


class Loader(yaml.SafeLoader):
    """Reads the tags of Ansible as well."""


Loader.add_constructor("!unsafe", lambda loader, node: str(node.value))


def expressions(value: Any, key: str = "") -> Iterator[str]:
    """Yield the templates within a file's content, with braces."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from expressions(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from expressions(item, key)
    elif isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield value
        elif key in BARE:
            yield f"{{{{ ({value}) }}}}"


def unconverted(template: str, wanted: set[str]) -> Iterator[str]:
    """Yield the wanted variables whose truth a template takes as it stands."""

    def walk(node: nodes.Node, parents: tuple[nodes.Node, ...]) -> Iterator[str]:
        if isinstance(node, nodes.Name) and node.name in wanted:
            above = [
                parent for parent in parents if not (isinstance(parent, nodes.Filter) and parent.name == "default")
            ]
            last = above[-1]
            # As a whole it goes to a module or a keyword, which convert it by themselves.
            whole = isinstance(last, nodes.Output) and len(last.nodes) == 1
            converted = isinstance(last, nodes.Filter) and last.name == "bool"
            judged = isinstance(last, nodes.Test) and last.name in ("quantdesk.redis.true_or_false", "defined")
            # Shown, in a message.
            shown = isinstance(last, nodes.Filter) and last.name == "string"
            if not (whole or converted or judged or shown):
                yield node.name
        for child in node.iter_child_nodes():
            yield from walk(child, (*parents, node))

    # Ansible takes a backslash in an expression for itself.
    plain = re.sub(r"(?<!\\)\\(?![\\'\"])", r"\\\\", template)
    yield from walk(jinja2.Environment(extensions=["jinja2.ext.do"]).parse(plain), ())


def test_no_expression_takes_the_truth_of_an_input_that_may_be_text() -> None:
    found = []
    for path in PLACES:
        for template in expressions(yaml.load(path.read_text(), Loader)):
            found += [f"{path.relative_to(PROJECT)}: {name}" for name in unconverted(template, {*BOOLEANS, *ASKED})]
    for path in PROJECT.glob("roles/*/templates/*"):
        found += [f"{path.relative_to(PROJECT)}: {name}" for name in unconverted(path.read_text(), set(BOOLEANS))]
    assert found == []


@pytest.mark.parametrize(
    "template",
    ["{{ 'a' if x else 'b' }}", "{{ not x }}", "{% if x %}{% endif %}", "{{ (y and x) }}", "{{ x }} {{ y }}"],
)
def test_the_search_finds_what_is_not_converted(template: str) -> None:
    assert list(unconverted(template, {"x"})) == ["x"]


@pytest.mark.parametrize("template", ["{{ x }}", "{{ not x | bool }}", "{{ 1 if x | default(false) | bool }}"])
def test_the_search_leaves_alone_what_is_converted(template: str) -> None:
    assert list(unconverted(template, {"x"})) == []


# --- The preflight ---

BACKUP: dict[str, Any] = {
    "backup_repository": "/srv/repository",
    "backup_master_password": "0123456789abcdef" * 2,
    "backup_environment": "test",
}
# Checks of several inputs have a name of their own.
REPORTED = {
    **dict.fromkeys(
        ("backup_limit_upload", "backup_limit_download", "backup_lock_timeout", "backup_answer_timeout"), "limits"
    ),
    "app_environment": "app_environment",
}
WRONG: dict[str, tuple[str, Any]] = {
    "true or false as another word": ("bool", "perhaps"),
    "true or false as another number": ("bool", 2),
    "true or false as nothing": ("bool", None),
    "a number with a fraction": ("int", 1.5),
    "a number with a blank": ("int", "1 2"),
    "a number as a time": ("int", "12:30"),
    "a number as nothing": ("int", None),
    "a list as a text": ("list", "one two"),
    "a list as nothing": ("list", None),
    "a mapping as a text": ("dict", "one=two"),
    "a mapping as nothing": ("dict", None),
}


def of_type(kind: str) -> list[str]:
    """Return the inputs of a type, of all roles."""
    return [name for spec in SPECS.values() for name, option in spec.items() if option["type"] == kind]


def default(name: str) -> Any:
    """Return the default of an input."""
    return next(spec[name].get("default") for spec in SPECS.values() if name in spec)


def as_text(name: str, words: tuple[str, str]) -> str:
    """Return what a boolean input is by default, as a text; what depends on the host, as false."""
    return words[0] if default(name) is True else words[1]


def numbers_as_text() -> dict[str, str]:
    """Return the inputs with a number as default, with its digits as a text."""
    found = {name: default(name) for name in of_type("int")}
    return {name: str(value) for name, value in found.items() if isinstance(value, int)}


@pytest.fixture(scope="module")
def preflight(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One preflight of hosts that have all inputs of a type in the same way."""
    good = {**variables(), **BACKUP}
    hosts = {
        f"wrong{i}": {**good, **dict.fromkeys(of_type(kind), value)} for i, (kind, value) in enumerate(WRONG.values())
    }
    hosts |= {kind: {**good, **{n: as_text(n, words) for n in BOOLEANS}} for kind, words in WORDS.items()}
    hosts["numbers"] = {**good, **numbers_as_text()}
    hosts["unquoted"] = {**good, "redis_appendfsync": False, "redis_password": 12345678901234567890}
    hosts["times"] = {**good, "backup_calendar": 750, "app_environment": {"AT": "{{ now() }}"}}
    hosts["undescribed"] = {**good, "redis_maxmemory": "lots", "backup_calendar": ""}
    groups = {"database": hosts, "load_balancer": hosts, "backup_repository": hosts}
    return run(tmp_path_factory.mktemp("types"), hosts, hosts, **groups)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name"),
    [pytest.param(i, n, id=f"{case}-{n}") for i, (case, (kind, _)) in enumerate(WRONG.items()) for n in of_type(kind)],
)
def test_a_value_of_another_type_is_refused_by_name(
    preflight: subprocess.CompletedProcess[str], number: int, name: str
) -> None:
    found = names(preflight, f"wrong{number}")
    assert REPORTED.get(name, name) in found, found


@pytest.mark.slow
@pytest.mark.parametrize("host", [*WORDS, "numbers"])
def test_a_text_that_says_the_same_is_taken(preflight: subprocess.CompletedProcess[str], host: str) -> None:
    assert re.search(rf"^{host} +: ok=[1-9]", preflight.stdout, re.MULTILINE), "the host was not asked"
    assert names(preflight, host) == []


@pytest.mark.slow
def test_what_yaml_reads_otherwise_without_quotes_is_refused_with_that_reason(
    preflight: subprocess.CompletedProcess[str],
) -> None:
    assert "redis_appendfsync: found False; expected everysec, always or 'no', in quotes" in preflight.stdout
    assert "redis_password: found a hidden number of 20 characters instead of a text in quotes" in preflight.stdout
    assert "backup_calendar: found 750; expected a calendar of systemd" in preflight.stdout
    assert names(preflight, "times") == ["app_environment", "backup_calendar"]


@pytest.mark.slow
def test_an_instance_that_cannot_be_described_does_not_end_the_report(
    preflight: subprocess.CompletedProcess[str],
) -> None:
    assert names(preflight, "undescribed") == ["redis_maxmemory", "backup_calendar"]


def test_a_secret_without_quotes_is_named_a_number_and_not_shown() -> None:
    assert checks.hide(1234567890123456) == "a hidden number of 16 characters instead of a text in quotes"


# --- Times ---


@pytest.mark.parametrize(
    "value",
    ["2026-01-31T14:05:00Z", "2026-01-31 14:05", "2026-01-31T14:05-05:00", datetime(2026, 1, 31, 14, tzinfo=UTC)],
)
def test_a_date_with_its_time_is_a_moment(value: Any) -> None:
    assert inputs.TestModule().tests()["moment"](value)
    assert inputs.is_past(value)


@pytest.mark.parametrize(
    "value", ["2026-01-31", date(2026, 1, 31), 845, "14:05", "", None, "2026-02-31T14:05:00Z", True]
)
def test_a_date_that_was_cut_at_its_blank_is_none(value: Any) -> None:
    assert not inputs.TestModule().tests()["moment"](value)
    assert not inputs.is_past(value)


def test_an_outage_began_in_the_past() -> None:
    assert inputs.is_past("1769868320.1")
    assert not inputs.is_past((datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert not inputs.is_past("9769868320")


def test_a_backup_is_chosen_by_a_date_with_its_time_alone() -> None:
    there = [Backup("a" * 64, datetime(2026, 1, 31, 12, tzinfo=UTC), "one", {}, False)]
    assert choose(there, "", "2026-01-31T14:05:00Z", "redis") is there[0]
    with pytest.raises(Failed, match=r"found '2026-01-31'; expected a date with its time"):
        choose(there, "", "2026-01-31", "redis")


# --- What is made of them ---

# What other tasks have found out, as far as templates need it.
FOUND: dict[str, Any] = {
    "__app_built": {"release": "1.0.0-abc", "path": "/nonexistent"},
    "__app_seen": {"before": ""},
    "__redis_looked": {"rc": 0, "stdout_lines": ["installed=5:7.0.15", "offered=5:7.0.16", "installed_fixed=yes"]},
}
FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "python_version": "3.11.2",
    "architecture": "x86_64",
}
# Templates that no variable of the role holds.
MORE = {
    "load_balancer": {"haproxy.cfg": "lookup('ansible.builtin.template', 'haproxy.cfg.j2')"},
    "certificates": {"installed": "__certificates_public | map(attribute='name')"},
}
# Those that tasks alone take: their expressions are judged above.
IN_TASKS = {"app_migrate_once", "app_candidate", "redis_kernel"} | {
    name for name in BOOLEANS if name.endswith("_no_log")
}


def expressions_of(role: str) -> dict[str, str]:
    """Return what a role makes of its inputs, by name."""
    files = [PROJECT / f"roles/{role}/vars/main.yml", *PROJECT.glob(f"roles/{role}/vars/main/*.yml")]
    own = [name for file in files if file.is_file() for name in yaml.load(file.read_text(), Loader)]
    return {**{name: name for name in own}, **MORE.get(role, {})}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the roles make of their inputs, for hosts that differ in one boolean input, or have all numbers as text."""
    folder = tmp_path_factory.mktemp("rendered")
    for role in SPECS:
        place = folder / "roles" / role
        (place / "tasks").mkdir(parents=True)
        for part in ("defaults", "vars", "templates", "files"):
            if (PROJECT / "roles" / role / part).exists():
                (place / part).symlink_to(PROJECT / "roles" / role / part)
        asked = [{"name": name, "found": text, "expected": "-"} for name, text in expressions_of(role).items()]
        (place / "tasks/main.yml").write_text(
            json.dumps([{"quantdesk.redis.checks": {"subject": role, "checks": asked}}])
        )
    good = {**variables(), **BACKUP, "app_tls_cert_file": "/etc/ssl/host.crt", "backup_ssh_user": "backups"}
    pki = PROJECT / "tests/inventory/pki/ca.crt"
    good |= {"certificates_source": "files", "certificates_files": dict.fromkeys(("ca", "cert", "key"), str(pki))}
    hosts: dict[str, dict[str, Any]] = {}
    for name, role in BOOLEANS.items():
        flipped = default(name) is not True
        for kind, value in {"before": not flipped, "native": flipped, "text": ("no", "yes")[flipped]}.items():
            hosts[f"{name}-{kind}"] = {**good, "tested_role": role, name: value}
    for role in SPECS:
        own = {name: text for name, text in numbers_as_text().items() if name in SPECS[role]}
        hosts[f"{role}-numbers"] = {**good, "tested_role": role, **{name: int(text) for name, text in own.items()}}
        hosts[f"{role}-texts"] = {**good, "tested_role": role, **own}
    play = {
        "hosts": "all",
        "gather_facts": False,
        "any_errors_fatal": False,
        "vars": {"checks_deferred": "rendered", **FOUND},
        "tasks": [
            {"ansible.builtin.set_fact": {**FACTS, "cacheable": True}},
            {"ansible.builtin.include_role": {"name": "{{ tested_role }}"}},
            {
                "quantdesk.redis.checks": {
                    "report": "Rendered",
                    "success": "",
                    "failure": "",
                    "write": [str(folder / "report.json")],
                },
                "run_once": True,
            },
        ],
    }
    (folder / "play.yml").write_text(json.dumps([play]))
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "hosts.json", folder / "play.yml"],
        cwd=PROJECT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(folder / "roles"),
            "ANSIBLE_FORKS": "4",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    report = folder / "report.json"
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, dict[str, str]] = {}
    for check in json.loads(report.read_text())["checks"]:
        # The host's own name is in some, and what is made from it.
        text = re.sub(r"[0-9a-f]{32,}", "DIGEST", check["found"].replace(check["host"], "HOST"))
        found.setdefault(check["host"], {})[check["check"]] = text
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", BOOLEANS)
def test_a_boolean_input_as_text_does_what_it_does_as_such(rendered: dict[str, dict[str, str]], name: str) -> None:
    native, text = rendered[f"{name}-native"], rendered[f"{name}-text"]
    assert {key: text[key] for key in native if native[key] != text[key]} == {}
    # It is seen there at all.
    assert (native != rendered[f"{name}-before"]) is (name not in IN_TASKS)


def plain_numbers(text: str) -> str:
    """Return a text without the quotes around digits."""
    return re.sub(r"'([0-9]+)'", r"\1", text)


@pytest.mark.slow
@pytest.mark.parametrize("role", SPECS)
def test_a_number_as_text_does_what_it_does_as_such(rendered: dict[str, dict[str, str]], role: str) -> None:
    numbers, texts = rendered[f"{role}-numbers"], rendered[f"{role}-texts"]
    assert {key: texts[key] for key in numbers if plain_numbers(numbers[key]) != plain_numbers(texts[key])} == {}
