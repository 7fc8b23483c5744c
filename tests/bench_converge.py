"""Time the role redis against a minimal playbook, alternating, on the lab's bare host.

    python tests/bench_converge.py [ROUNDS]

Needs a lab that is up (`make up`). Each round purges Redis from the host before each first converge. Prints the median
seconds of a first converge and of one that changes nothing, for both, and the ratios.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PURGE = (
    "systemctl stop redis-server 2>/dev/null; export DEBIAN_FRONTEND=noninteractive; "
    "apt-get purge -qq -y redis-server redis-tools >/dev/null 2>&1; apt-get autoremove -qq -y >/dev/null 2>&1; "
    "rm -rf /etc/redis /var/lib/redis /var/log/redis /etc/redis-admin.env /usr/local/sbin/redis-admin "
    "/etc/systemd/system/redis*; systemctl daemon-reload"
)


def shell(command: str) -> None:
    """Run a command as root on the bare host."""
    subprocess.run(
        ["ssh", "-F", PROJECT / ".lab" / os.environ.get("LAB", "") / "ssh/config", "outsider", "sudo", "bash"],
        input=command,
        text=True,
        check=True,
    )


def converge(name: str, changes: bool) -> float:
    """Return the seconds that a playbook took; raises RuntimeError when it failed, or changed what it should not."""
    began = time.monotonic()
    done = subprocess.run(
        [PROJECT / ".venv/bin/ansible-playbook", f"tests/bench/{name}.yml", "-e", "@tests/bench/vars.yml"],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    if done.returncode != 0 or (not changes and "changed=0" not in done.stdout):
        raise RuntimeError(f"{name} failed, or changed what it should not:\n{done.stdout[-3000:]}")
    return seconds


def main(rounds: int) -> None:
    """Measure, and print a line for each kind of run."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(1, rounds + 1):
        for name in ("control", "role"):
            print(f"round {number} of {rounds}: {name}", flush=True)
            shell(PURGE)
            seconds.setdefault(("first", name), []).append(converge(name, changes=True))
            for _ in range(2):
                seconds.setdefault(("no-op", name), []).append(converge(name, changes=False))
    shell(PURGE)
    for kind in ("first", "no-op"):
        control, role = (statistics.median(seconds[kind, name]) for name in ("control", "role"))
        print(f"{kind:6} converge: control {control:5.1f} s, role {role:5.1f} s, ratio {role / control:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
