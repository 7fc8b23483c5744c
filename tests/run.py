"""Run all tests, once: linters, unit tests, the application's tests, and molecule's scenarios; or the parts named.

    python tests/run.py [--quick | PART…]

--quick runs what needs no lab, but for files of tests marked `slow`, and asks the hosts of `make up` when they are
there.

Hosts mostly wait for the controller and the controller for hosts, so several parts run at once: as many scenarios as
LABS (4 unless the environment says otherwise), each in a lab of its own beside the one of `make up`, and one after
another what needs no lab, at the lowest priority. What a part prints goes to output/PART.log, and is shown when it has
ended. Ends with the number of tests; fails if a part failed or ran none. Every lab that it made is removed at the end,
whatever happens. What took how long is written below output/times, for `make test-times`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import count
from times.record import Recorder

PROJECT = Path(__file__).resolve().parent.parent
OUTPUT = PROJECT / "output"
PYTEST = [sys.executable, "-m", "pytest", "-q", "--durations=5"]
UNIT = ["-p", "no:cacheprovider", "tests"]
DATABACKUP = ["-c", "databackup/pyproject.toml", "--rootdir", "databackup", "databackup/tests"]
# Of each run of Ansible: tests/callback has what these are.
ANSIBLE = {
    "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "tests/callback"),
    "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.timer,record_tasks,share_work",
    "TEST_MODULES": str(OUTPUT / "modules"),
    # For modules that run here, as the lab's hosts do by themselves.
    "TEST_COMPILED": str(OUTPUT / "modules/compiled"),
    "PYTHONPATH": str(PROJECT / "tests/python"),
}
# How often a line says what is going on, in seconds.
NEWS = 60
BEGAN = time.monotonic()


@dataclass
class Part:
    """Something that runs beside others; `command` is called with the number of its lab, or 0."""

    name: str
    command: Callable[[int], list[str]]
    environment: Callable[[int], dict[str, str]] = lambda lab: {}
    # Whether it needs a lab, and whether it must have run tests.
    lab: bool = False
    tests: bool = True
    # From 0, the first one to have the processor, to 19: what takes longest goes first.
    nice: int = 19


@dataclass
class Running:
    """A part that has begun."""

    part: Part
    lab: int
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        """What it prints."""
        return OUTPUT / f"{self.part.name}.log"

    def last_line(self) -> str:
        """Return the last thing that it said."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line.strip()[:90] for line in reversed(lines) if line.strip()), "")


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"\033[1m[{time.monotonic() - BEGAN:4.0f}s] {text}\033[0m", flush=True)


def pytest_part(name: str, *words: str) -> Part:
    """Return a part that runs pytest on this machine, two files at a time: most of them wait for servers."""
    return Part(name, lambda lab: [*PYTEST, "-n", "2", "--dist", "loadfile", *words, f"--junitxml=output/{name}.xml"])


def scenario(name: str, nice: int) -> Part:
    """Return a part that runs a scenario of molecule.

    molecule keeps what it believes of the hosts in the caller's home, by this folder's path. A run that was interrupted
    would leave "created" behind there, and the next one would create nothing: each run begins with a folder of its own.
    """
    return Part(
        name,
        lambda lab: ["molecule", "-c", "molecule/config.yml", "test", "-s", name, "--no-command-borders"],
        lambda lab: {"LAB": str(lab), "MOLECULE_EPHEMERAL_DIRECTORY": str(OUTPUT / "molecule" / name)},
        lab=True,
        nice=nice,
    )


def parts() -> list[Part]:
    """Return all parts, in the order in which they begin."""
    production = [f"playbooks/{name}.yml" for name in ("site", "verify", "rebuild", "restore", "repair", "adopt")]
    syntax = ["ansible-playbook", "-i", "inventory/production", *production, "--syntax-check"]
    return [
        scenario("recovery", nice=0),
        scenario("standalone", nice=5),
        scenario("scaled", nice=5),
        scenario("adoption", nice=10),
        scenario("single", nice=10),
        Part("linters", lambda lab: ["tests/lint"], tests=False),
        Part("syntax", lambda lab: syntax, tests=False),
        pytest_part("unit", *UNIT),
        pytest_part("databackup", *DATABACKUP),
        pytest_part("app", "-c", "app/pyproject.toml", "--rootdir", "app", "app/tests"),
    ]


def quick() -> list[Part]:
    """Return what needs no lab, and the effects on the hosts of the lab that is up."""
    # The application's tests wait most, so they begin.
    slow = {"unit": UNIT, "databackup": DATABACKUP}
    others = [part for part in parts() if not part.lab and part.name not in slow]
    found = [*reversed(others), *(pytest_part(name, *words, "-m", "not slow") for name, words in slow.items())]
    running = subprocess.run(
        [os.environ.get("LAB_ENGINE", "podman"), "ps", "--quiet", "--filter", "label=quantdesk.lab=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    if not running.stdout.strip():
        print("No lab is up (make up), so no host is asked.")
        return found
    effects = [f"molecule/standalone/tests/test_{name}.py" for name in ("redis", "users", "firewall", "app")]
    command = [*PYTEST, "--rootdir", "molecule", "-p", "no:cacheprovider", *effects, "--junitxml=output/lab.xml"]
    return [Part("lab", lambda lab: command), *found]


class Runner:
    """Runs parts: as many at once as there are labs, and one more that needs none; without labs two of these."""

    def __init__(self, waiting: list[Part], labs: int, recorder: Recorder, scratch: Path) -> None:
        self.waiting = waiting
        # Of each part, a folder for its tests' files: pytest would remove what other runs of this user left behind,
        # and fail where that is still in use.
        self.scratch = scratch
        # The lab of `make up` has no number, and is left alone.
        self.free = list(range(1, labs + 1))
        self.beside = 1 if any(part.lab for part in waiting) else 2
        self.running: list[Running] = []
        self.failed: list[str] = []
        self.recorder = recorder

    def run(self) -> None:
        """Run all of them."""
        news = time.monotonic() + NEWS
        while self.waiting or self.running:
            self._start()
            time.sleep(0.5)
            self._reap()
            if time.monotonic() >= news:
                news += NEWS
                for running in self.running:
                    say(f"{running.part.name}: {running.last_line()}")

    def stop(self) -> None:
        """End what runs, and remove its labs."""
        for running in self.running:
            os.killpg(running.process.pid, signal.SIGTERM)
        for running in self.running:
            try:
                running.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()
            if running.lab:
                remove(running.lab)
        self.running = []

    def _start(self) -> None:
        for part in list(self.waiting):
            beside = sum(not running.part.lab for running in self.running)
            if not self.free if part.lab else beside >= self.beside:
                continue
            self.waiting.remove(part)
            lab = self.free.pop(0) if part.lab else 0
            scratch = self.scratch / part.name
            scratch.mkdir()
            say(f"{part.name} begins" + (f" in lab {lab}" if lab else ""))
            with open(OUTPUT / f"{part.name}.log", "wb") as log:
                process = subprocess.Popen(
                    ["nice", "-n", str(part.nice), *part.command(lab)],
                    cwd=PROJECT,
                    env={
                        **os.environ,
                        **ANSIBLE,
                        **self.recorder.environment,
                        "PYTEST_DEBUG_TEMPROOT": str(scratch),
                        **part.environment(lab),
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            self.running.append(Running(part, lab, process))

    def _reap(self) -> None:
        for running in list(self.running):
            pid, status, usage = os.wait4(running.process.pid, os.WNOHANG)
            if not pid:
                continue
            running.process.returncode = os.waitstatus_to_exitcode(status)
            self.running.remove(running)
            name, code = running.part.name, running.process.returncode
            self.recorder.part(name, running.began - BEGAN, time.monotonic() - BEGAN, usage.ru_utime + usage.ru_stime)
            if code:
                self.failed.append(name)
            if running.lab:
                # molecule removes its hosts, but not when it is killed.
                if code:
                    remove(running.lab)
                self.free.append(running.lab)
            print(running.log.read_text(errors="replace"), flush=True)
            say(f"{name} {'FAILED' if code else 'passed'} after {time.monotonic() - running.began:.0f} s")


def remove(lab: int) -> None:
    """Remove a lab with all that it has."""
    command = ["ansible-playbook", "molecule/default/destroy.yml"]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, "LAB": str(lab)}, capture_output=True, check=False, timeout=120
    )
    if done.returncode:
        print(f"Lab {lab} was not removed: `make down` removes what is left of it.", file=sys.stderr)


def repeat_failures() -> None:
    """Print once more what went wrong: a log that is cut off in the middle has it at its end."""
    command = ["grep", "--no-filename", "-A", "12", "-E", "fatal: |^(FAILED|ERROR) |^E  "]
    logs = map(str, OUTPUT.glob("*.log"))
    found = subprocess.run([*command, *logs], capture_output=True, text=True, errors="replace", check=False)
    print("\n".join(found.stdout.splitlines()[-80:]))


def clean() -> None:
    """Forget the run before."""
    OUTPUT.mkdir(exist_ok=True)
    for path in [*OUTPUT.glob("*.xml"), *OUTPUT.glob("*.log")]:
        path.unlink()
    for name in ("molecule", "modules"):
        shutil.rmtree(OUTPUT / name, ignore_errors=True)
    Path(ANSIBLE["TEST_COMPILED"]).mkdir(parents=True)


def main(words: list[str]) -> int:
    """Run everything, or what the arguments say; return 0 if all of it passed."""

    def ended(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ended)
    known = {part.name: part for part in parts()}
    if unknown := set(words) - {*known, "--quick"}:
        print(f"{', '.join(sorted(unknown))}: found no such part; expected --quick or some of {', '.join(known)}")
        return 2
    clean()
    wanted = quick() if "--quick" in words else [known[word] for word in words or known]
    with (
        tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as scratch,
        Recorder(OUTPUT / "times") as recorder,
    ):
        # Tests play users with fewer rights, too.
        os.chmod(scratch, 0o755)
        runner = Runner(list(wanted), int(os.environ.get("LABS", "4")), recorder, Path(scratch))
        try:
            runner.run()
        except KeyboardInterrupt:
            say("Interrupted; removing what this run made")
            return 130
        finally:
            runner.stop()
    say("Result")
    tested = [part.name for part in wanted if part.tests]
    if tested and count.main(OUTPUT, tested):
        runner.failed.append("count")
    if runner.failed:
        repeat_failures()
        print("".join(f"FAILED: {name}\n" for name in runner.failed), end="")
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
