"""What the action plugin `databackup` takes. It runs the command of that name: nothing of this file runs anywhere."""

from __future__ import annotations

DOCUMENTATION = r"""
module: databackup
short_description: Run databackup on a host, and show its progress
description:
  - The run is a unit of systemd's on the host. A controller that goes away does not end it in the middle, and a second
    task finds it and reports it.
  - In check mode a restore is a dry run, a repair only reports its steps, a diagnosis is made, and nothing else is
    run.
options:
  command: {description: "Of databackup, such as C(restore).", type: str, required: true}
  name: {description: The source., type: str}
  arguments: {description: More words of the command line., type: list, elements: str}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Restore Redis as it was at a moment
  quantdesk.redis.databackup:
    command: restore
    name: redis
    arguments: [--as-of, "2026-01-31T14:00:00Z"]
"""

RETURN = r"""
result: {description: What C(databackup --json) printed., type: dict, returned: success}
rc: {description: Its exit code., type: int, returned: always}
began: {description: "Seconds of the epoch, by the controller's clock.", type: float, returned: always}
ended: {description: The same for its end., type: float, returned: always}
"""
