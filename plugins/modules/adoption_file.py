"""What the action plugin `adoption_file` takes. It runs on the controller: nothing of this file runs anywhere."""

from __future__ import annotations

DOCUMENTATION = r"""
module: adoption_file
short_description: Describe the Redis servers that a host has already as its host_vars
description:
  - Writes a file on the controller that describes each server in the inputs of the role redis, with the default and the
    controls of docs/controls.md that it fails beside each line. Passwords are never in it.
  - A file that is there already and differs is left alone; the new one is C(HOST.yml.new).
  - Runs on the controller. No host is queried.
options:
  host: {description: The host., type: str, required: true}
  survey: {description: What M(quantdesk.redis.redis_survey) has returned., type: dict, required: true}
  folder: {description: The folder for the file., type: path, required: true}
  memory: {description: "The host's memory in MiB, for servers without a limit.", type: int, default: 0}
  version: {description: The version of Redis that the role installs., type: str, default: "7.0"}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Describe what is there
  quantdesk.redis.adoption_file:
    host: redis1
    survey: "{{ survey }}"
    folder: output/adoption
"""

RETURN = r"""
file: {description: "The file, or nothing.", type: str, returned: always}
outcome: {description: Whether it was written., type: str, returned: always}
adoptable: {description: The servers that the role can take over., type: list, returned: always}
refused: {description: "The others, and why.", type: list, returned: always}
summary: {description: Lines for the terminal., type: list, elements: str, returned: always}
"""
