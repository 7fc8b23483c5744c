"""What the action plugin `recovery_report` takes. It runs on the controller: nothing of this file runs anywhere."""

from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_report
short_description: Report how long a rebuild took, and which data it restored
description:
  - Prints the report as text, writes the files, and only then fails, when a limit was not kept, when other data were
    found than expected, or when no data were restored.
  - Runs on the controller. No host is queried. In check mode no file is written.
options:
  environment: {description: Which site it is., type: str, required: true}
  title: {description: The report's title., type: str}
  phases:
    description: What was done.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: The phase., type: str, required: true}
      began: {description: "Its beginning, in seconds of the epoch or as ISO time.", type: raw, required: true}
      ended: {description: Its end., type: raw, required: true}
  restored:
    description: What C(databackup --json restore) has printed on each host.
    type: list
    elements: dict
    suboptions:
      host: {description: The host., type: str, required: true}
      result: {description: What was printed., type: dict, required: true}
  lost_at: {description: When the outage began; the beginning of the rebuild by default., type: raw}
  rto_limit: {description: The limit for the time from O(lost_at) to the end in seconds., type: raw}
  rpo_limit: {description: The limit for the age of the restored data in seconds., type: raw}
  expect_data: {description: Whether something is to be restored., type: bool, default: true}
  write: {description: "Files for the report; their names end in .json, .html or .txt.", type: raw}
  fail: {description: Whether the task fails where the rebuild is not as it should be., type: bool, default: true}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Report the rebuild
  quantdesk.redis.recovery_report:
    environment: lab
    phases: [{name: redis, began: 1769868320.1, ended: 1769868341.4}]
    restored: [{host: redis1, result: "{{ restored.result }}"}]
    rto_limit: 90
    write: [output/rebuild.json, output/rebuild.html]
"""

RETURN = r"""
ok: {description: Whether all was as it should be., type: bool, returned: always}
problems: {description: What was not., type: list, elements: str, returned: always}
notes: {description: What else to know., type: list, elements: str, returned: always}
verdict: {description: The report in one sentence., type: str, returned: always}
rto_seconds: {description: The time from the outage to the end., type: float, returned: always}
rpo_seconds: {description: The age of the oldest data., type: float, returned: always}
text: {description: The lines of the report., type: list, elements: str, returned: success}
"""
