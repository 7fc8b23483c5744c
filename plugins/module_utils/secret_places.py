"""Where a secret must not be: the command lines of processes, the journal of this boot, and files that are named."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import NotPlain, read_bytes

# What a place is called, and what it holds.
Place = tuple[str, bytes]


def command_lines() -> Iterator[Place]:
    """Yield `command line of PID (name)` and the command line, for every process that lives long enough."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            program = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
            yield f"the command line of {folder.name} ({program})", (folder / "cmdline").read_bytes()
        except OSError:
            continue


def journal() -> bytes:
    """Return this boot's journal; raises OSError when there is no journalctl."""
    command = ["journalctl", "--boot", "--no-pager", "--quiet", "--output", "cat"]
    return subprocess.run(command, check=False, capture_output=True, env={**os.environ, "LC_ALL": "C"}).stdout


class Places:
    """Command lines and the journal, read once for all who search them; raises OSError without journalctl."""

    def __init__(self) -> None:
        self.shared: list[Place] = list(command_lines())
        self.processes = len(self.shared)
        self.shared.append(("the journal", journal()))

    @staticmethod
    def files(paths: Iterable[str]) -> list[Place]:
        """Return the files that are there; raises OSError for one that cannot be read."""
        found: list[Place] = []
        for path in paths:
            # A service may write some of them: a link in the place of one is not followed, and control 58 names it.
            with suppress(NotPlain):
                text = read_bytes(path)
                found += [] if text is None else [(path, text)]
        return found

    def search(self, secrets: Mapping[str, str], files: Iterable[Place] = ()) -> list[str]:
        """Return `name in place` for each secret that is somewhere; empty ones are left out."""
        wanted = {name: value.encode() for name, value in secrets.items() if value}
        places = [*self.shared, *files]
        return [f"{name} in {place}" for place, text in places for name, secret in wanted.items() if secret in text]
