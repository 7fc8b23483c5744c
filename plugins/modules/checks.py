"""What the action plugin `checks` takes. It runs on the controller alone: nothing of this file runs anywhere."""

from __future__ import annotations

DOCUMENTATION = r"""
module: checks
short_description: Collect named checks on each host, and report those of all hosts in one message
description:
  - With O(checks), evaluates each check for a host. A role that is used on its own fails at once. In a play that sets
    the variable C(checks_deferred) to a name, results gather in each host's fact of that name.
  - With O(report), shows what has gathered for all hosts of the play, and fails where a check failed.
  - Runs on the controller. No host is queried.
options:
  subject: {description: "What the checks are about, such as a role.", type: str}
  inputs:
    description:
      - A role. Its inputs of the type bool, and those with choices, are checked as its argument spec declares them,
        before O(checks).
    type: str
  checks:
    description: The checks.
    type: list
    elements: dict
    suboptions:
      name: {description: "The variable, or what is asked of the host.", type: str, required: true}
      that: {description: A Jinja expression that must hold., type: str}
      found: {description: "A Jinja expression for the value shown; O(checks[].name) by default.", type: str}
      equals: {description: A Jinja expression for the value that is expected., type: str}
      expected: {description: What is expected; a noun phrase., type: str}
      problem: {description: "What was found by a check that has failed elsewhere. It is not evaluated.", type: str}
      control: {description: One or several numbers in docs/controls.md., type: raw}
      when: {description: A Jinja expression; the check is dropped where it does not hold., type: raw}
      otherwise: {description: "Why a dropped check does not apply: it is recorded as n/a.", type: str}
      after:
        description: Names of checks earlier in the list; where one of them has failed, this one says nothing new.
        type: list
        elements: str
      secret: {description: Show only the length of the value., type: bool, default: false}
      warn: {description: Warn instead of failing., type: bool, default: false}
  rows:
    description: In place of O(subject) and O(checks), checks that a module has judged on the host. Nothing of them is
      evaluated.
    type: list
    elements: dict
    suboptions:
      subject: {description: What the check is about., type: str, required: true}
      name: {description: The check., type: str, required: true}
      control: {description: One or several numbers in docs/controls.md., type: list, elements: int, required: true}
      found: {description: What was found., type: str, required: true}
      expected: {description: What is expected., type: str, required: true}
      verdict: {description: How it ended., type: str, choices: [ok, FAILED, n/a], required: true}
  renamed:
    description: Whether variables and groups of earlier versions' names are failed checks as well.
    type: bool
    default: false
  report: {description: The title of a report., type: str}
  success: {description: The last sentence of a report without problems., type: str}
  failure: {description: The last sentence of a report with problems., type: str}
  table: {description: Show every check., type: bool, default: false}
  write:
    description: "Files on the controller for the report: JSON where a name ends in .json, JUnit XML in .xml."
    type: raw
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Check the inputs
  quantdesk.redis.checks:
    subject: redis
    checks:
      - name: redis_maxmemory
        that: redis_maxmemory is quantdesk.redis.redis_size
        expected: a size such as 512mb

- name: Report
  quantdesk.redis.checks:
    report: Preflight
    success: No problem found.
    failure: Nothing has been changed on any host.
  run_once: true
"""

RETURN = r"""
msg: {description: The summary of a report., type: str, returned: with O(report)}
"""
