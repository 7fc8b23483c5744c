"""Ansible module: try something of an application in a unit that exists for that time only. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: app_trial
short_description: Run an application's job to its end, or a candidate until it is healthy, beside what runs
description:
  - Writes O(files) below /run/systemd/system, starts O(unit), and takes both away again, whatever came of it.
  - A job (Type=oneshot) must end with 0. A candidate, whose unit has a C(%i) for its port, gets a free port of loopback
    and must answer 200 at O(health_path), over TLS where its environment names a C(TLS_CERT_FILE).
  - What goes wrong fails the task with the last lines of the unit's journal.
options:
  unit:
    description: What to start, a service; with C(@) at the end of its name it is a candidate.
    type: str
    required: true
  socket: {description: "Whether a socket unit of the same name listens for the candidate.", type: bool, default: false}
  files:
    description: The unit's files.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where it is., type: path, required: true}
      content: {description: Its whole text., type: str, required: true}
      owner: {description: Who owns it., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode., type: str, default: "0644"}
  environment:
    description: The environment file.
    type: dict
    required: true
    suboptions:
      path: {description: Where it is., type: path, required: true}
      owner: {description: Who owns it., type: str, default: root}
      group: {description: Its group., type: str, default: root}
      mode: {description: Its mode., type: str, default: "0600"}
  environment_text:
    description: Its text, never shown. Not within O(environment), as Ansible writes that into the host's journal.
    type: str
    required: true
  health_path: {description: Where a candidate answers 200., type: str, default: /}
  timeout: {description: Seconds that it may take., type: float, default: 30}
  subject: {description: "What is tried, as the message on a failure begins.", type: str, required: true}
  otherwise: {description: What is so after a failure., type: str, default: ""}
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Try the release before it serves
  quantdesk.redis.app_trial:
    unit: example-candidate@.service
    files:
      - path: /run/systemd/system/example-candidate@.service
        content: "{{ lookup('template', 'example.service.j2') }}"
    environment: {path: /run/example-candidate.env}
    environment_text: "{{ lookup('template', 'environment.j2') }}"
    health_path: /health
    subject: example 1.0
"""

RETURN = r"""
seconds: {description: How long it took., type: float, returned: success}
"""

import socket  # noqa: E402 - Ansible wants the documentation first
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.app_units import (  # noqa: E402
    ENVIRONMENT_OPTIONS,
    FILE_OPTIONS,
    Unwell,
    certificate_file,
    environment_of,
    journal,
    put,
    show,
    systemctl,
    wait_healthy,
)


def free_port() -> int:
    """Return a port of loopback without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(unit: str, timeout: float) -> None:
    """Start a unit; for a job, that is until its end. Raises Unwell."""
    if systemctl("start", unit, timeout=timeout).returncode != 0:
        state = show(unit)
        ended = {"exit-code": "ended with an error", "timeout": "took too long"}.get(state.get("Result", ""), "failed")
        raise Unwell(f"{unit} {ended}" if state.get("LoadState") == "loaded" else f"{unit} cannot be loaded")


def run(params: dict[str, Any], units: list[str], port: int) -> None:
    """Start what is tried and see that it is good; raises Unwell."""
    deadline = time.monotonic() + params["timeout"]
    for unit in units:
        start(unit, params["timeout"])
    if port:
        scheme = "https" if certificate_file(params["environment_text"] or "") else "http"
        url = f"{scheme}://127.0.0.1:{port}{params['health_path']}"
        # It is never restarted: once it has ended, it will not answer.
        wait_healthy(
            url,
            units[-1],
            max(deadline - time.monotonic(), 1),
            lambda state: state not in ("active", "activating", "reloading"),
        )


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "socket": {"type": "bool", "default": False},
            "files": {"type": "list", "elements": "dict", "required": True, "options": FILE_OPTIONS},
            "environment": {
                "type": "dict",
                "required": True,
                "options": {**ENVIRONMENT_OPTIONS, "mode": {"type": "str", "default": "0600"}},
            },
            "environment_text": {"type": "str", "required": True, "no_log": True},
            "health_path": {"type": "str", "default": "/"},
            "timeout": {"type": "float", "default": 30.0},
            "subject": {"type": "str", "required": True},
            "otherwise": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=False, seconds=0.0)
    port = free_port() if "@." in params["unit"] else 0
    service = params["unit"].replace("@.", f"@{port}.")
    units = ([service.removesuffix(".service") + ".socket"] if params["socket"] else []) + [service]
    began, since = time.monotonic(), time.time()
    problem = log = ""
    try:
        for file in [environment_of(params), *params["files"]]:
            put(file, module)
        systemctl("daemon-reload")
        run(params, units, port)
    except (Unwell, OSError) as error:
        problem, log = str(error), journal(service, since)
    finally:
        # The socket first: a question that comes now would start the service again.
        systemctl("stop", *units)
        systemctl("reset-failed", *units)
        for file in [environment_of(params), *params["files"]]:
            Path(file["path"]).unlink(missing_ok=True)
        systemctl("daemon-reload")
    if problem:
        module.fail_json(
            msg=f"{params['subject']} did not become healthy: {problem}.\n{params['otherwise']}\nIts last lines:\n{log}"
        )
    module.exit_json(changed=False, seconds=round(time.monotonic() - began, 2))


if __name__ == "__main__":
    main()
