"""Count the controller's CPU seconds of verify.yml for each Redis host, for few and for many hosts.

    python tests/bench_verify.py [FEW MANY]

Needs a lab that is up (`make up`). The hosts, 5 and 20 unless said otherwise, are names in an inventory for one
container, redis1: what a host costs the controller does not depend on where it is. Prints the seconds for each, and how
many times as much the many take as the few. Ends with 1 when verify.yml did not get to its report; that a check of a
container failed which twenty ask at once, such as by a time-out, is said and counts for nothing here.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
LAB = os.environ.get("LAB", "")
HOST = "redis1"
# What was aimed at: CPU seconds of a host, and of 20 hosts as many times those of 5.
AIM, GROWTH = 2.0, 4.2


def ansible(program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of Ansible as an operator does."""
    return subprocess.run(
        [PROJECT / ".venv/bin" / program, *words],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def described() -> dict[str, Any]:
    """Return what the lab's inventory says of the host, and of its clients."""
    wanted = ("private_address", "redis_clients", "ansible_port", "lab_dir")
    question = "msg={{ {" + ", ".join(f"'{name}': {name}" for name in wanted) + "} | to_json }}"
    done = ansible("ansible", HOST, "-o", "-m", "ansible.builtin.debug", "-a", question)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    message = json.loads(done.stdout.partition("=> ")[2])["msg"]
    found: dict[str, Any] = message if isinstance(message, dict) else json.loads(message)
    return found


def inventory(folder: Path, count: int) -> Path:
    """Make an inventory in which so many hosts are the one container, and return its folder."""
    known = described()
    names = [f"{HOST}-{number:02}" for number in range(1, count + 1)]
    place, pki = folder / str(count), folder / f"pki-{count}"
    place.mkdir()
    (pki / "hosts").mkdir(parents=True)
    (place / "base").symlink_to(PROJECT / "inventory/base")
    (place / "group_vars").symlink_to(PROJECT / "inventory/lab/group_vars")
    theirs = Path(known["lab_dir"]) / "pki"
    for file in theirs.glob("ca.*"):
        (pki / file.name).symlink_to(file)
    # Each name has the container's certificate.
    for name in names:
        for file in (theirs / "hosts").glob(f"{HOST}.*"):
            (pki / "hosts" / f"{name}{file.suffix}").symlink_to(file)
    shared = {
        "private_address": known["private_address"],
        "redis_clients": known["redis_clients"],
        "ansible_port": int(known["ansible_port"]),
        "redis_tls_server_name": HOST,
        "certificates_ca_dir": str(pki),
        # One connection for each, as hosts have.
        "ansible_control_path": f"{folder}/{{{{ inventory_hostname }}}}",
    }
    hosts = {"all": {"children": {"redis": {"hosts": {name: {} for name in names}, "vars": shared}}}}
    # JSON is YAML.
    (place / "hosts.yml").write_text(json.dumps(hosts))
    return place


def seconds(place: Path, count: int) -> float:
    """Return the CPU seconds of verify.yml; raises RuntimeError when it did not get to its report."""
    # A few at a time: sshd refuses many logins at once.
    warm = ansible("ansible", "all", "-i", place, "--forks", "4", "-m", "ansible.builtin.ping")
    if warm.returncode != 0:
        raise RuntimeError(warm.stdout + warm.stderr)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = ansible("ansible-playbook", "-i", place, "playbooks/verify.yml")
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    report = re.search(r"Verify: (\d+ problems?|.*all ok)", done.stdout)
    if report is None:
        raise RuntimeError(done.stdout[-5000:] + done.stderr[-500:])
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{count:3} hosts: {used:6.1f} CPU s, {used / count:5.2f} for each host; {wall:5.1f} s in all; {report[1]}",
        flush=True,
    )
    return used


def main(few: int, many: int) -> int:
    """Measure, and print a line for each and the ratio."""
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as folder:
        used = {count: seconds(inventory(Path(folder), count), count) for count in (few, many)}
    ratio, each = used[many] / used[few], used[many] / many
    print(f"{many} hosts take {ratio:.2f} times as much as {few} (aim for 5 and 20: {GROWTH} at most)")
    print(f"each of {many} hosts takes {each:.2f} CPU s (aim: {AIM:g} at most)")
    return 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]] or [5, 20]
    try:
        sys.exit(main(*numbers))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
