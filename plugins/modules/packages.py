"""What the action plugin `packages` takes. It calls ansible.builtin.apt: nothing of this file runs anywhere."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Install packages by apt once it can do its work
description:
  - Calls M(ansible.builtin.apt). Where all packages are there, apt is not run at all.
  - Waits for another program's lock, such as that of unattended-upgrades after the first boot, and shows who holds it.
  - A source that does not answer is a warning where apt can install the packages without it; otherwise the error names
    it, and its reason.
options:
  name:
    description: Names of packages, or C(name=version) for one that must have that version.
    type: list
    elements: str
    required: true
  state: {description: Whether newer versions are installed., type: str, choices: [present, latest], default: present}
  install_recommends: {description: Whether recommended packages come along; as apt has it by default., type: bool}
  policy_rc_d: {description: The exit code of policy-rc.d meanwhile; 101 starts no service., type: int}
  cache_valid_time: {description: Seconds that apt's lists are good for., type: float, default: 3600}
  lock_timeout: {description: Seconds to wait for another program that installs packages., type: float, default: 600}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install Redis, and start no service
  quantdesk.redis.packages:
    name: [redis-server, redis-tools]
    policy_rc_d: 101
"""

RETURN = r"""
missing: {description: The packages that were not there., type: list, elements: str, returned: always}
"""
