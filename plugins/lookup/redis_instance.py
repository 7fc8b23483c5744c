"""Lookup: an input of the role redis, as one of `redis_instances` has it. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_instance
short_description: An input of the role redis for one instance
description:
  - Returns what the mapping in the variable C(redis_instance) says of an input, named there without C(redis_); else
    the inventory's value of the input for the host; else the role's default.
  - With it a variable may have the name of the input that it stands for, where Jinja alone would see a loop.
options:
  _terms: {description: "The input, by its whole name, such as redis_maxmemory.", required: true}
"""

EXAMPLES = r"""
- name: Redis
  ansible.builtin.include_role:
    name: quantdesk.redis.redis
  loop: "{{ redis_instances }}"
  loop_control: {loop_var: redis_instance}
  vars:
    redis_maxmemory: "{{ lookup('quantdesk.redis.redis_instance', 'redis_maxmemory') }}"
"""

RETURN = r"""
_raw: {description: The value., type: list, elements: raw}
"""

import multiprocessing  # noqa: E402 - Ansible wants the documentation first
from collections.abc import Mapping  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.errors import AnsibleUndefinedVariable  # noqa: E402
from ansible.plugins.lookup import LookupBase  # noqa: E402

DEFAULTS_FILE = str(Path(__file__).resolve().parents[2] / "roles/redis/defaults/main.yml")
PREFIX = "redis_"
# Each task has a process of its own, within which no value changes: a check of fifty inputs asks for each many times.
KNOWN: dict[tuple[str, str], Any] = {}
DECLARED: dict[str, Any] = {}
DEFAULTS: dict[str, Any] = {}


class LookupModule(LookupBase):
    """What Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return the value of each input; raises AnsibleUndefinedVariable for one that has none."""
        variables = variables or {}
        if multiprocessing.parent_process() is None:
            return [self._value(str(term), variables) for term in terms]
        found = []
        for term in terms:
            # The role is never applied to two instances in one task.
            key = (str(variables["inventory_hostname"]), str(term))
            if key not in KNOWN:
                KNOWN[key] = self._value(str(term), variables)
            found.append(KNOWN[key])
        return found

    def _value(self, name: str, variables: dict[str, Any]) -> Any:
        instance = variables.get("redis_instance", {})
        if isinstance(instance, str):
            instance = self._templar.template(instance)
        key = name.removeprefix(PREFIX)
        # What is no mapping is a problem in the preflight.
        if isinstance(instance, Mapping) and key in instance:
            return self._templar.template(instance[key])
        host = variables["inventory_hostname"]
        if host not in DECLARED or multiprocessing.parent_process() is None:
            DECLARED[host] = variables["hostvars"].raw_get(host)
        values = DECLARED[host] if name in DECLARED[host] else self._defaults()
        if name in values:
            return self._templar.template(values[name])
        raise AnsibleUndefinedVariable(f"'{name}' is undefined")

    def _defaults(self) -> dict[str, Any]:
        # Ansible copies a file that it has read already, every time.
        if not DEFAULTS:
            DEFAULTS.update(self._loader.load_from_file(DEFAULTS_FILE, trusted_as_template=True))
        return DEFAULTS
