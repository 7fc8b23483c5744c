"""The roles' argument specs against their defaults, against what Ansible makes of them, and against the READMEs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from conftest import PROJECT, load

readme = load("docs/role_readme.py")
records = load("plugins/module_utils/redis_built_in.py")
ROLES = sorted(file.parent.parent for file in (PROJECT / "roles").glob("*/meta/argument_specs.yml"))
REQUIRED: dict[str, dict[str, Any]] = {
    "app": {
        "app_name": "example",
        "app_source": "app",
        "app_build_dir": "build",
        "app_command": "example",
        "app_ports": [8080],
    },
    "backup": {
        "backup_repository": "/srv/repository",
        "backup_master_password": "x" * 32,
        "backup_environment": "example",
    },
    "backup_repository": {"backup_repository_hosts": [{"name": "one", "key": "ssh-ed25519 AAAA"}]},
    "certificates": {"certificates_path": "/etc/ssl/example"},
    "database": {"database_name": "example", "database_password": "x" * 16, "database_clients": ["10.0.0.2"]},
    "firewall": {},
    "load_balancer": {"load_balancer_backends": [{"name": "a", "address": "10.0.0.2", "port": 8080}]},
}

for_each_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def options(role: Path | str) -> dict[str, dict[str, Any]]:
    """Return the inputs of a role's spec."""
    found: dict[str, dict[str, Any]] = readme.read_spec(PROJECT / "roles" / role)["options"]
    return found


def errors(role: str, **values: Any) -> list[str]:
    """Return what Ansible has against some inputs of a role."""
    result = ArgumentSpecValidator(options(role)).validate(
        {**REQUIRED[role], **values}, validate_role_argument_spec=True
    )
    return list(result.error_messages)


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of a run that begins each role on this machine, as a host of its name.

    It ends each after the validation, which alone runs for a tag that nobody has.
    """
    # What the roles' defaults take from the inventory.
    inventory = {"private_address": "10.0.0.1", "certificates_path": "/etc/ssl/example"}
    content = [
        {
            "name": role,
            "hosts": role,
            "gather_facts": False,
            "vars": {**inventory, **required},
            "roles": [f"quantdesk.redis.{role}"],
        }
        for role, required in REQUIRED.items()
    ]
    play = tmp_path_factory.mktemp("entered") / "play.yml"
    play.write_text(yaml.safe_dump(content))
    return subprocess.run(
        [
            *(Path(sys.executable).parent / "ansible-playbook", "-i", ",".join(REQUIRED)),
            *("-e", "ansible_connection=local", "--check", "--tags", "nobody-has-this", play),
        ],
        cwd=PROJECT,
        # Each role is entered, whatever became of the ones before.
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_ANY_ERRORS_FATAL": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout


@for_each_role
def test_the_spec_has_the_inputs_and_defaults_of_the_role_and_no_others(role: Path) -> None:
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    spec = {name: option["default"] for name, option in options(role).items() if "default" in option}
    # As JSON, so that true is not 1.
    assert {n: json.dumps(v) for n, v in spec.items()} == {n: json.dumps(v) for n, v in defaults.items()}


@for_each_role
def test_what_is_commented_out_is_in_the_spec_without_a_default(role: Path) -> None:
    lines = (role / "defaults/main.yml").read_text()
    commented = set(re.findall(rf"^# ({role.name}_\w+):", lines, re.MULTILINE))
    assert commented == {name for name, option in options(role).items() if "default" not in option}


@for_each_role
def test_every_input_has_the_roles_prefix_a_type_and_a_description(role: Path) -> None:
    for name, option in options(role).items():
        assert name.startswith(f"{role.name}_")
        assert {"type", "description"} <= set(option), name
        assert "elements" in option or option["type"] != "list", name
        assert not (option.get("required") and "default" in option), name


def words(value: Any) -> set[str]:
    """Return the words in a file of Ansible's, comments aside."""
    if isinstance(value, dict):
        return set().union(*(words(part) for pair in value.items() for part in pair))
    return set().union(*map(words, value)) if isinstance(value, list) else set(re.findall(r"\w+", str(value)))


@for_each_role
def test_the_preflight_checks_every_input(role: Path) -> None:
    folders = [role / "tasks", role / "vars", PROJECT / "playbooks"]
    names = {"preflight.yml", "peers.yml", "inputs.yml", "adoption.yml"}
    files = [file for folder in folders for file in folder.glob("**/*.yml") if file.name in names]
    found = set().union(*(words(yaml.load(file.read_text(), readme.Loader)) for file in files))
    derived = {name for name, option in options(role).items() if option["type"] == "bool" or "choices" in option}
    derived |= {user.password for user in records.BUILT_IN}
    assert [name for name in options(role) if name not in found | derived] == []


@for_each_role
def test_passwords_are_hidden(role: Path) -> None:
    names = [name for name, option in options(role).items() if option["type"] == "str"]
    secret = [name for name in names if re.search(r"(password|passphrase|token)$", name)]
    assert [name for name in secret if not options(role)[name].get("no_log")] == []


def test_readmes_are_as_they_would_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert readme.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("role", REQUIRED)
def test_a_role_is_entered_with_what_is_required_and_nothing_else(entered: str, role: str) -> None:
    assert re.search(rf"^{role} +: ok=[1-9].* unreachable=0 +failed=0 ", entered, re.MULTILINE), entered
    play = entered.split(f"\nPLAY [{role}] ")[1].split("\nPLAY ")[0]
    assert f"TASK [quantdesk.redis.{role} : Validating arguments against arg spec 'main'" in play


@pytest.mark.parametrize(
    ("role", "values"),
    [
        # Extra variables come as text.
        ("firewall", {"firewall_ssh_ports": ["22", 2222]}),
        ("firewall", {"firewall_allow": [{"name": "redis", "ports": ["6380", 6381], "from": ["10.0.0.5"]}]}),
        ("firewall", {"firewall_allow": [{"name": "redis", "ports": [], "from": []}]}),
        ("certificates", {"certificates_host": "false", "certificates_days": "90"}),
        ("certificates", {"certificates_files": {"ca": "ca.crt"}, "certificates_source": "files"}),
        ("app", {"app_environment": {"LEVEL": 3, "DEBUG": False}, "app_keep_releases": "2"}),
        ("app", {"app_fatal_exit_codes": [78, "CONFIG", "SIGKILL"], "app_ports": ["3002", 3003]}),
        ("database", {"database_port": "5433", "database_settings": {"work_mem": "8MB", "jit": False}}),
        (
            "load_balancer",
            {"load_balancer_refused": [{"path": "/a/*", "methods": ["PUT"]}], "load_balancer_port": "8443"},
        ),
    ],
)
def test_takes_what_the_role_takes(role: str, values: dict[str, Any]) -> None:
    assert errors(role, **values) == []


@pytest.mark.parametrize(
    ("role", "values", "named"),
    [
        ("firewall", {"firewall_ssh_ports": ["ssh"]}, "firewall_ssh_ports"),
        ("firewall", {"firewall_allow": [{"name": "redis", "ports": [6380]}]}, "from"),
        ("certificates", {"certificates_source": "acme"}, "certificates_source"),
        ("certificates", {"certificates_files": {"crt": "host.crt"}}, "certificates_files.crt"),
        ("app", {"app_health_timeout": "soon"}, "app_health_timeout"),
        ("app", {"app_environment": ["TOKEN=sesame"]}, "app_environment"),
        ("app", {"app_environment": "sesame"}, "app_environment"),
        ("app", {"app_service_type": "forking"}, "app_service_type"),
        ("database", {"database_port": "sesam"}, "database_port"),
        ("load_balancer", {"load_balancer_backends": [{"name": "a"}]}, "address"),
        ("load_balancer", {"load_balancer_algorithm": "fair"}, "load_balancer_algorithm"),
    ],
)
def test_refuses_what_is_wrong_by_name_and_shows_no_secret(role: str, values: dict[str, Any], named: str) -> None:
    found = "\n".join(errors(role, **values))
    assert named in found
    assert "sesame" not in found


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    """Roles of which one has all that a README is made from."""
    files = {
        "whole/meta/argument_specs.yml": """
            argument_specs:
              main:
                short_description: Do it
                description: [In one way., In another.]
                options:
                  whole_items:
                    {type: list, elements: dict, default: [], description: Some.,
                     options: {key: {type: str, description: One., no_log: true}}}
                  whole_kind: {type: str, choices: [a, "b|c"], default: !unsafe "{{ x }}", description: [Which., One.]}
                  whole_name: {type: str, required: true, description: Name.}
                  whole_other: {type: bool, default: false, description: Other.}
                  whole_none: {type: str, description: None.}
        """,
        "whole/README.in.md": "## Before\n\n<!-- inputs -->\n\n## After\n",
        "bare/README.in.md": "nothing",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_readme_holds_description_text_and_inputs_with_required_ones_first(roles: Path) -> None:
    assert readme.main([], roles) == 0
    lines = (roles / "whole/README.md").read_text().split("\n")
    assert [line for line in lines[1:] if line] == [
        "# whole",
        "Do it.",
        "In one way.",
        "In another.",
        "## Before",
        "| name | type | default | description |",
        "| --- | --- | --- | --- |",
        "| `whole_name` | str | **required** | Name. |",
        "| `whole_items` | list of dict | `[]` | Some. |",
        "| `whole_items[].key` | str, secret | none | One. |",
        "| `whole_kind` | str: `a`, `b\\|c` | `{{ x }}` | Which. One. |",
        "| `whole_other` | bool | `false` | Other. |",
        "| `whole_none` | str | none | None. |",
        "## After",
    ]


def test_check_names_the_file_that_differs_and_writes_nothing(roles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = roles / "whole/README.md"
    assert readme.main(["--check"], roles) == 1
    assert str(file) in capsys.readouterr().out
    assert not file.exists()
    readme.main([], roles)
    assert readme.main(["--check"], roles) == 0
    file.write_text("by hand")
    assert readme.main(["--check"], roles) == 1
    assert file.read_text() == "by hand"


def test_a_role_without_a_spec_is_left_out_and_said_so(roles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readme.main([], roles) == 0
    assert "bare: left out, there is no meta/argument_specs.yml" in capsys.readouterr().err
    assert not (roles / "bare/README.md").exists()


def test_a_text_without_a_place_for_the_inputs_is_refused(roles: Path) -> None:
    (roles / "whole/README.in.md").write_text("no place")
    with pytest.raises(ValueError, match=r"README\.in\.md: expected one line <!-- inputs -->"):
        readme.main([], roles)
