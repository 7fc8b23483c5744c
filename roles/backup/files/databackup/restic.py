"""restic as a child process: secrets in its environment, data by pipes, its failures in words.

restic 0.14 (Debian 12) and later. https://restic.readthedocs.io/
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from databackup.errors import Failed
from databackup.settings import Repository

CHUNK = 1 << 20

# What restic's own messages mean for an operator, the first that fits.
REASONS = (
    ("wrong password", "the repository refuses the password; expected the one that it was made with (backup_password)"),
    ("no key found", "the repository refuses the password; expected the one that it was made with (backup_password)"),
    ("Is there a repository at the following location", "there is no repository; `databackup init` makes one"),
    ("unable to open config file", "there is no repository, or no way to it; `databackup init` makes one"),
    ("no space left", "the repository is full: make room on its host, or keep less (backup_retention)"),
    ("ENOSPC", "the repository is full: make room on its host, or keep less (backup_retention)"),
    ("SSH_FX_FAILURE", "the repository's host cannot write: most likely its disk is full; make room there"),
    (
        "Permission denied",
        "the repository's host refuses this host's key or a write; playbooks/backup.yml sets both up",
    ),
    (
        "Host key verification failed",
        "the repository's host is not the one that is known; if it was rebuilt, run playbooks/backup.yml",
    ),
    (
        "Connection refused",
        "the repository's host does not answer; see that it is up and that its firewall lets this host in",
    ),
    ("timed out", "the repository's host does not answer; see that it is up and that its firewall lets this host in"),
    ("No route to host", "the repository's host cannot be reached from here"),
    ("unable to start the sftp session", "the repository's host does not answer over sftp"),
    ("does not exist in the repository", "the repository lacks a part of it: it is damaged, see `databackup check`"),
    (
        "ciphertext verification failed",
        "the repository is damaged: what it holds is not what was written, see `databackup check`",
    ),
    ("pack", "the repository is damaged: a pack is not what its name says, see `databackup check`"),
)
LOCKED = "repository is already locked"


def explain(text: str) -> str:
    """Return what restic's last words mean; those words where nothing is known of them."""
    lines = [line for line in text.strip().splitlines() if line and not line.startswith("subprocess ssh: Warning")]
    for words, meaning in REASONS:
        if words.lower() in text.lower():
            fitting = next((line for line in lines if words.lower() in line.lower()), lines[-1] if lines else "")
            return f"{meaning}. restic says: {fitting[:300]}"
    return f"restic says: {' / '.join(lines[-3:])[:500] or 'nothing'}"


def _die_with_parent() -> None:
    # A killed backup must not end as a whole one: restic would take the end of its input for the end of the data.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # Ctrl-C and a cut ssh connection are for the parent to handle.
    os.setpgid(0, 0)


class Restic:
    """One repository."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": "/root",
            # Times of snapshots are read and written as such.
            "TZ": "UTC",
            "RESTIC_REPOSITORY": repository.location,
            "RESTIC_PASSWORD_FILE": repository.password_file,
            "RESTIC_CACHE_DIR": repository.cache,
            "RESTIC_PROGRESS_FPS": "0.2",
        }
        if repository.environment_file:
            for line in Path(repository.environment_file).read_text().splitlines():
                if "=" in line and not line.startswith("#"):
                    name, value = line.split("=", 1)
                    environment[name] = value
        self.environment = environment

    def command(self, *words: str) -> list[str]:
        """Return the whole command line, which holds no secret."""
        options = [part for option in self.repository.options for part in ("-o", option)]
        limits = []
        if self.repository.limit_upload:
            limits += ["--limit-upload", str(self.repository.limit_upload)]
        if self.repository.limit_download:
            limits += ["--limit-download", str(self.repository.limit_download)]
        return ["restic", *options, *limits, *words]

    def start(
        self, *words: str, stdin: int = subprocess.DEVNULL, stdout: int | IO[bytes], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start restic; it ends with this process, even if that is killed.

        What it says goes to files, as a pipe that nobody reads would stop it when it is full.
        """
        try:
            return subprocess.Popen(
                self.command(*words),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=self.environment,
                preexec_fn=_die_with_parent,
            )
        except FileNotFoundError:
            raise Failed("restic is not installed; the role backup installs it (playbooks/backup.yml)") from None

    def attempts(self, attempt: Callable[[], tuple[int, str]], what: str) -> None:
        """Call `attempt`, which returns restic's exit code and error text, again while somebody has a lock."""
        deadline = time.monotonic() + self.repository.lock_timeout
        while True:
            code, text = attempt()
            if code == 0:
                return
            if LOCKED not in text or time.monotonic() > deadline:
                if LOCKED in text:
                    holder = next((line for line in text.splitlines() if "locked" in line), "")
                    raise Failed(
                        f"{what}: the repository is locked by another run ({holder.strip()}). If no such run lives any "
                        "more, `databackup unlock` removes its lock"
                    )
                raise Failed(f"{what}: {explain(text)}")
            # A lock of a process that is gone is told from one that lives by restic itself.
            subprocess.run(self.command("unlock", "--quiet"), env=self.environment, capture_output=True, check=False)
            time.sleep(1)

    def run(self, *words: str, what: str) -> str:
        """Run restic to its end and return what it printed; raises Failed, which begins with `what`."""
        output = ""

        def attempt() -> tuple[int, str]:
            nonlocal output
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                code = self.start(*words, stdout=out, stderr=err).wait()
                output = said(out)
                # restic check tells what is wrong on its standard output.
                return code, said(err) + (output if code else "")

        self.attempts(attempt, what)
        return output

    def exists(self) -> bool:
        """Tell whether there is a repository; raises Failed when it cannot be told."""
        try:
            self.run("cat", "config", "--quiet", what="the repository cannot be opened")
        except Failed as error:
            text = str(error)
            if "there is no repository" in text and "does not answer" not in text:
                return False
            raise
        return True

    def snapshots(self, *tags: str) -> list[dict[str, Any]]:
        """Return the snapshots that have all tags, the oldest first, as restic describes them."""
        text = self.run("snapshots", "--json", "--quiet", "--tag", ",".join(tags), what="the backups cannot be listed")
        listed: list[dict[str, Any]] = sorted(json.loads(text) or [], key=lambda item: str(item["time"]))
        return listed

    def writer(self, path: str, host: str, tags: list[str], when: str) -> Writer:
        """Return what takes the data of a new snapshot that holds one file, `path`."""
        return Writer(self, path, host, tags, when)

    def read(self, snapshot: str, path: str) -> Iterator[bytes]:
        """Yield a file of a snapshot; raises Failed at the end when it could not be read whole."""
        with tempfile.TemporaryFile() as err:
            process = self.start("dump", snapshot, path, stdout=subprocess.PIPE, stderr=err)
            assert process.stdout is not None
            try:
                while chunk := process.stdout.read(CHUNK):
                    yield chunk
                if process.wait() != 0:
                    raise Failed(f"{path} of snapshot {snapshot[:8]} cannot be read: {explain(said(err))}")
            finally:
                end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that still runs, and close its pipes."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def said(file: IO[bytes]) -> str:
    """Return what a child has written into a file."""
    file.seek(0)
    return file.read().decode(errors="replace")


class Writer:
    """A snapshot that is being written. Unless `commit` is reached, it never comes to be."""

    def __init__(self, restic: Restic, path: str, host: str, tags: list[str], when: str) -> None:
        self.words = ["backup", "--json", "--stdin", "--stdin-filename", path, "--host", host, "--time", when]
        for tag in tags:
            self.words += ["--tag", tag]
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = restic.start(*self.words, stdin=subprocess.PIPE, stdout=self.out, stderr=self.err)

    def write(self, data: bytes | memoryview) -> None:
        """Hand data over; raises Failed in restic's words when it has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
        except BrokenPipeError:
            raise self._failure() from None

    def commit(self) -> str:
        """End the data and return the id of the snapshot."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            raise self._failure() from None
        if self.process.wait() != 0:
            raise self._failure()
        for line in said(self.out).splitlines():
            with suppress(ValueError):
                message = json.loads(line)
                if message.get("message_type") == "summary":
                    return str(message["snapshot_id"])
        raise Failed("restic ended well but named no snapshot")

    def abort(self) -> None:
        """End restic before it has seen the end of the data: no snapshot is made. Harmless after `commit`."""
        end(self.process)
        self.out.close()
        self.err.close()

    def _failure(self) -> Failed:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        end(self.process)
        text = said(self.err)
        return (Locked if LOCKED in text else Failed)(f"the backup cannot be written: {explain(text)}")


class Locked(Failed):
    """Another run has an exclusive lock; worth another try."""
