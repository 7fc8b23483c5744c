"""Lookup: the users that the role redis makes, with the inventory's values. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
name: redis_built_in_users
short_description: The built-in users of the role redis
description:
  - Returns each built-in user as the module redis_users takes it, with its name, password, rules and whether it is
    enabled, from its record in C(module_utils/redis_built_in.py) and from the inputs that the record names.
  - One whose password is empty is among them, with that password.
options:
  _terms: {description: None.}
  names_only: {description: "Return their names, for which no input is needed.", type: bool, default: false}
"""

EXAMPLES = r"""
- name: Name the users
  ansible.builtin.debug:
    msg: "{{ query('quantdesk.redis.redis_built_in_users', names_only=true) }}"
"""

RETURN = r"""
_raw: {description: The users., type: list, elements: dict}
"""

from typing import Any  # noqa: E402 - Ansible wants the documentation first

from ansible.errors import AnsibleUndefinedVariable  # noqa: E402
from ansible.plugins.lookup import LookupBase  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_built_in import BUILT_IN, declared  # noqa: E402


class LookupModule(LookupBase):
    """What Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return the users; raises AnsibleUndefinedVariable for an input that is not there."""
        self.set_options(direct=kwargs)
        if self.get_option("names_only"):
            return [user.name for user in BUILT_IN]
        values = variables or {}
        names = [name for user in BUILT_IN for name in user.inputs]
        for name in names:
            if name not in values:
                raise AnsibleUndefinedVariable(f"'{name}' is undefined")
        inputs = {name: self._templar.template(values[name]) for name in names}
        return declared(inputs)
