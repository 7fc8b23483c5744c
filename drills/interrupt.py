"""Kill site.yml at each task that changes something, run it again, and check hosts and data.

    python -m drills.interrupt [--places N] [--moment during] [--record FILE]

A first run on bare hosts records its places: the tasks that changed something, on each host. The hosts are then made
anew, and site.yml runs again and again, each time killed at the next place, with its connections, as a controller dies.
No run in between is completed. From the moment that Redis runs, each interruption is preceded by a write. At the end
site.yml runs to its end and once more, which must change nothing; verify.yml must pass, and every key must be there.

It takes as many runs as there are places: about three quarters of an hour. `--places 10` takes ten of them, evenly
spread. The lab is its own (LAB=9), and removed at the end; KEEP=1 keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from drills import report

PROJECT: Final = Path(__file__).resolve().parent.parent
# Seconds after which a run that hangs is ended.
PATIENCE: Final = 900
# Seconds from the start of a task to its interruption with --moment during: within the module, on the host.
WITHIN: Final = 0.5
KILLED: Final = -signal.SIGKILL


class Failed(Exception):
    """A run ended otherwise than it must; the message says how."""


@dataclass(frozen=True)
class Place:
    """A task on a host, as the callback writes it."""

    host: str
    task: str
    path: str

    @classmethod
    def read(cls, line: str) -> Place:
        """Return the place of a line."""
        return cls(**json.loads(line))

    @property
    def line(self) -> str:
        """The line of the place."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        """Return it for people, and for a table."""
        return f"{self.task.replace(' | ', ', ')} [{self.host}]"


@dataclass
class Interruption:
    """A run that was killed, and where."""

    place: str
    seconds: float
    # The key that was written before the run; empty where Redis did not run yet.
    key: str = ""


@dataclass
class Result:
    """All that the drill found."""

    places: int
    met: list[Interruption] = field(default_factory=list)
    # Places that no run came to: those before them had been done together with others.
    passed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def spread(places: Sequence[Place], count: int) -> list[Place]:
    """Return so many of the places, evenly spread, the last one among them; all for 0."""
    if count <= 0 or count >= len(places):
        return list(places)
    return [places[(number + 1) * len(places) // count - 1] for number in range(count)]


def distinct(lines: Sequence[str]) -> list[Place]:
    """Return the recorded places, each once, in their order."""
    return [Place.read(line) for line in dict.fromkeys(line for line in lines if line)]


def after(places: Sequence[Place], met: Place) -> list[Place]:
    """Return the places that are still to come when one was met."""
    return list(places[places.index(met) + 1 :])


def problem(output: str) -> str:
    """Return the last thing that a failed run said, in a few lines."""
    found = output.rpartition("fatal: ")[2].split("PLAY RECAP")[0] if "fatal: " in output else output[-1500:]
    return "\n".join(line for line in found.splitlines() if line.strip())[:1500]


class Lab:
    """The lab, and runs of playbooks against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = os.environ.get("LAB", "9")
        self.state = PROJECT / ".lab" / self.number
        inventories = [PROJECT / "inventory/lab", PROJECT / "molecule/recovery/inventory"]
        (folder / "cp").mkdir()
        self.environment = {
            **os.environ,
            "LAB": self.number,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_INVENTORY": ",".join(map(str, inventories)),
            "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "drills/callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "interrupt",
            "ANSIBLE_FORCE_COLOR": "0",
            # Connections outlive the process that opened them, but not the machine.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        }

    def play(self, *words: str, **environment: str) -> tuple[int, str]:
        """Run playbooks and return the exit code, negative for a signal, and the output."""
        with open(self.folder / "output", "w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                [Path(sys.executable).parent / "ansible-playbook", *words],
                cwd=PROJECT,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return 1, f"fatal: it did not end within {PATIENCE} s\n" + Path(output.name).read_text(
                    encoding="utf-8"
                )[-1000:]
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            return code, Path(output.name).read_text(encoding="utf-8")

    def done(self, *words: str, **environment: str) -> str:
        """Run playbooks to their end and return the output; raises Failed."""
        code, output = self.play(*words, **environment)
        if code != 0:
            raise Failed(f"{' '.join(words)} ended with {code}: {problem(output)}")
        return output

    def cut(self) -> None:
        """End the connections that a killed run has left."""
        for path in (self.folder / "cp").iterdir():
            subprocess.run(
                ["ssh", "-o", f"ControlPath={path}", "-O", "exit", "host"], capture_output=True, check=False, timeout=30
            )

    def fresh(self) -> None:
        """Make bare hosts, and a controller that has no authority and no built release; raises Failed."""
        self.done("molecule/default/destroy.yml")
        for name in ("pki", "build"):
            shutil.rmtree(self.state / name, ignore_errors=True)
        self.done("molecule/default/create.yml")

    def redis(self, *words: str) -> str | None:
        """Return what Redis on redis1 answers to its admin; None where it does not."""
        command = [
            "ssh",
            "-F",
            str(self.state / "ssh/config"),
            "redis1",
            "sudo",
            "timeout",
            "10",
            "redis-admin",
            *words,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else None


def say(text: str, began: float) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - began:4.0f}s] {text}", flush=True)


def chain(lab: Lab, places: list[Place], moment: str, began: float) -> Result:
    """Kill a run at each place, one after another, and return what came of it."""
    result, left = Result(len(places)), list(places)
    at, met = lab.folder / "at", lab.folder / "met"
    seconds = {"INTERRUPT_SECONDS": str(WITHIN)} if moment == "during" else {}
    while left:
        key = f"drill:interrupt:{len(result.met)}"
        written = lab.redis("SET", key, "1") == "OK"
        at.write_text("".join(f"{place.line}\n" for place in left))
        met.unlink(missing_ok=True)
        started = time.monotonic()
        code, output = lab.play("playbooks/site.yml", INTERRUPT_AT=str(at), INTERRUPT_MET=str(met), **seconds)
        lab.cut()
        if code == 0:
            break
        if code != KILLED or not met.exists():
            where = result.met[-1].place if result.met else "no interruption yet"
            result.failures.append(f"the run after {where} ended with {code}: {problem(output)}")
            break
        place = Place.read(met.read_text())
        result.passed += map(str, left[: left.index(place)])
        left = after(left, place)
        result.met.append(Interruption(str(place), round(time.monotonic() - started, 1), key if written else ""))
        say(f"killed {len(result.met)}, {len(left)} to come: {place}{', a key was written' if written else ''}", began)
    result.passed += map(str, left)
    return result


def conclude(lab: Lab, result: Result) -> None:
    """Complete the last run, and check hosts and data; notes failures in the result."""
    try:
        lab.done("playbooks/site.yml")
        again = lab.done("playbooks/site.yml")
        changed = dict(re.findall(r"^(\S+)\s+: ok=\d+\s+changed=([1-9]\d*)", again, re.MULTILINE))
        if changed:
            tasks = re.findall(r"TASK \[(.*?)\] \*+\n(?:ok.*\n)*changed", again)
            result.failures.append(f"a second run changed something on {', '.join(changed)}: {'; '.join(tasks)}")
        lab.done("playbooks/verify.yml")
    except Failed as error:
        result.failures.append(str(error))
    lost = [one.key for one in result.met if one.key and lab.redis("EXISTS", one.key) != "1"]
    if lost:
        result.failures.append(f"keys that were written and are gone: {', '.join(lost)}")


def table(result: Result) -> str:
    """Return the interruptions as a table."""
    rows = [(one.place, one.seconds, one.key or "-") for one in result.met]
    return report.table(("killed at", "seconds", "key written before"), rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--places", type=int, default=0, help="so many, evenly spread; all by default")
    parser.add_argument(
        "--moment",
        choices=["after", "during"],
        default="after",
        help="when the task has ended and nothing has followed from it (default), or while it runs on the host",
    )
    parser.add_argument("--record", type=Path, help="the places of an earlier run, or where to keep those of this one")
    return parser.parse_args(arguments)


def record(lab: Lab, file: Path | None, began: float) -> list[Place]:
    """Return the places of a whole run; raises Failed."""
    if file and file.exists():
        return distinct(file.read_text().splitlines())
    lab.fresh()
    say("bare hosts; a run without an interruption, to learn its places", began)
    seen = lab.folder / "record"
    lab.done("playbooks/site.yml", INTERRUPT_RECORD=str(seen))
    places = distinct(seen.read_text().splitlines())
    if file:
        file.write_text("".join(f"{place.line}\n" for place in places))
    return places


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill and return the exit code."""
    given = parse(arguments)
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="interrupt.") as name:
        lab = Lab(Path(name))
        try:
            known = record(lab, given.record, began)
            places = spread(known, given.places)
            say(f"{len(known)} places, of which {len(places)} are taken; bare hosts again", began)
            lab.fresh()
            result = chain(lab, places, given.moment, began)
            say("no interruption any more: twice to the end, and verify.yml", began)
            conclude(lab, result)
        finally:
            lab.cut()
            if not os.environ.get("KEEP"):
                lab.play("molecule/default/destroy.yml")
    keys = sum(bool(one.key) for one in result.met)
    text = f"# site.yml, killed at {len(result.met)} of {result.places} places\n\n{table(result)}"
    text += f"\n\n{len(result.passed)} places were done together with others before a run came to them."
    text += f"\n{keys} keys were written between the runs."
    print(f"\n{text}\n")
    for failure in result.failures:
        print(f"FAILED: {failure}")
    print("Hosts as declared, second run changed nothing, no key lost." if not result.failures else "")
    data: dict[str, Any] = {"moment": given.moment, "recorded": len(known), **asdict(result)}
    folder = report.write("drills", "interrupt", data, text)
    print(f"Written: {folder}/interrupt.json, interrupt.md")
    return 1 if result.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"FAILED: {error}")
