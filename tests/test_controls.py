"""The controls: the checks that have them, docs/controls.md and the mutations of the audit are about the same ones."""

from __future__ import annotations

import re
from typing import Any

import audit_mutate
import pytest
import yaml

from conftest import PROJECT, load

records = load("plugins/module_utils/redis_built_in.py")
checks = load("plugins/module_utils/redis_checks.py")

TEXT = (PROJECT / "docs/controls.md").read_text()
BUILT_IN = {right.control for user in records.BUILT_IN for right in user.rights}
BUILT_IN = (BUILT_IN | {user.compared for user in records.BUILT_IN}) - {None}
REDIS = {check.control for check in checks.CHECKS} - {None}
# Of the other roles, by the files that hold their checks.
FILES = [
    *PROJECT.glob("roles/*/tasks/verify.yml"),
    *PROJECT.glob("roles/*/vars/**/*.yml"),
    PROJECT / "playbooks/verify.yml",
    PROJECT / "playbooks/tasks/knock.yml",
]


def numbers(value: Any) -> set[int]:
    """Return the controls of all checks in a file of Ansible's."""
    if isinstance(value, list):
        return set().union(*map(numbers, value))
    if not isinstance(value, dict):
        return set()
    own = value.get("control", []) if "name" in value else []
    return set(own if isinstance(own, list) else [own]).union(*map(numbers, value.values()))


def documented() -> set[int]:
    """Return the numbers of the table in docs/controls.md, whose first column may hold several."""
    cells = re.findall(r"^\| ([0-9, ]+) \|", TEXT, re.MULTILINE)
    return {int(number) for cell in cells for number in cell.split(",")}


MUTATED = {mutation.control for mutation in audit_mutate.MUTATIONS}
ASKED = REDIS.union(*(numbers(yaml.safe_load(file.read_text())) for file in FILES))


def test_every_control_that_is_asked_is_documented_and_every_documented_one_is_asked() -> None:
    assert documented() == ASKED


def test_every_control_has_a_mutation_or_a_reason_why_the_lab_has_none() -> None:
    assert sorted(ASKED - MUTATED - set(audit_mutate.UNREACHED)) == []
    assert sorted((MUTATED | set(audit_mutate.UNREACHED)) - ASKED) == []
    assert sorted(MUTATED & set(audit_mutate.UNREACHED)) == []


def test_what_goes_along_with_a_mutation_is_a_control() -> None:
    assert {number for mutation in audit_mutate.MUTATIONS for number in mutation.along} <= ASKED


@pytest.mark.parametrize("control", sorted(BUILT_IN))
def test_a_mutation_gives_a_user_of_each_record_a_right_too_many(control: int) -> None:
    users = {
        user.name for user in records.BUILT_IN if control in {user.compared, *(one.control for one in user.rights)}
    }
    mutations = [mutation.name for mutation in audit_mutate.MUTATIONS if mutation.control == control]
    assert [name for name in mutations if name.split(" gets ")[0] in users]


def test_the_controls_of_built_in_users_are_rows_of_the_audit() -> None:
    assert BUILT_IN
    assert BUILT_IN <= REDIS


def test_the_table_of_users_is_made_from_the_records() -> None:
    assert records.table() in TEXT, (
        "docs/controls.md: replace its table of users by what redis_built_in.table() returns"
    )
