"""Lookup: a variable of the role redis for each instance of the host. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_each
short_description: A variable of the role redis, for each instance of the host
description:
  - Returns the value that a variable has for each item of C(redis_instances). The item's value of an input, named
    there without C(redis_), comes before the inventory's value for the host, and before the role's default.
  - So one task can be about all instances of a host, where the role would be included once for each.
options:
  _terms: {description: The variable., required: true}
"""

EXAMPLES = r"""
- name: Show the units
  ansible.builtin.debug:
    msg: "{{ query('quantdesk.redis.redis_each', '__redis_unit') }}"
"""

RETURN = r"""
_raw: {description: "The values, in the order of C(redis_instances).", type: list, elements: raw}
"""

from typing import Any  # noqa: E402 - Ansible wants the documentation first

from ansible.errors import AnsibleUndefinedVariable  # noqa: E402
from ansible.plugins.lookup import LookupBase  # noqa: E402


class LookupModule(LookupBase):
    """What Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return the values; raises AnsibleUndefinedVariable for a variable that there is not."""
        values = variables or {}
        (name,) = terms
        if name not in values:
            raise AnsibleUndefinedVariable(f"'{name}' is undefined")
        instances = self._templar.template(values.get("redis_instances", [{}]))
        return [self._value(str(name), values, instance) for instance in instances]

    def _value(self, name: str, values: dict[str, Any], instance: dict[str, Any]) -> Any:
        own = {f"redis_{key}": value for key, value in instance.items()}
        templar = self._templar.copy_with_new_env(available_variables={**values, **own})
        return templar.template(values[name])
