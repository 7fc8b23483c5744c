"""restic as a child process: secrets in its environment, data by pipes, its failures in words.

restic 0.14 (Debian 12) and later. https://restic.readthedocs.io/
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from databackup.errors import Failed
from databackup.settings import Repository

Result = TypeVar("Result")
CHUNK = 1 << 20
# Seconds between two looks at a restic that is waited for.
LOOK = 0.5
# A restic that takes this share of a processor is at work, though no byte comes or goes.
AT_WORK = 0.03

# What restic's own messages mean for an operator, the first that fits.
REASONS = (
    (
        "wrong password",
        "the repository refuses the password; expected the one that it was made with (backup_master_password)",
    ),
    (
        "no key found",
        "the repository refuses the password; expected the one that it was made with (backup_master_password)",
    ),
    ("Is there a repository at the following location", "there is no repository; `databackup init` makes one"),
    ("unable to open config file", "there is no repository, or no way to it; `databackup init` makes one"),
    ("no space left", "the repository is full: make room on its host, or keep less (backup_retention)"),
    ("ENOSPC", "the repository is full: make room on its host, or keep less (backup_retention)"),
    ("SSH_FX_FAILURE", "the repository's host cannot write: most likely its disk is full; make room there"),
    (
        "403 Forbidden",
        "the repository's host permits this host to add and read, not to remove or overwrite; playbooks/backup_maintain.yml "
        "removes what is too old",
    ),
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
        "the repository's host does not answer; check that it is up and that its firewall permits this host",
    ),
    ("timed out", "the repository's host does not answer; check that it is up and that its firewall permits this host"),
    ("No route to host", "the repository's host cannot be reached from here"),
    # What ssh said of the cause is lost when restic ends before it has read it.
    (
        "unable to start the sftp session",
        "the repository's host does not answer over sftp, or refuses this host's key; playbooks/backup.yml sets both up",
    ),
    (
        "error talking HTTP to rclone",
        "the repository's host does not answer over ssh as the role backup_repository makes it, or refuses this "
        "host's key; playbooks/backup.yml sets both up",
    ),
    ("does not exist in the repository", "the repository lacks a part of it: it is damaged, see `databackup check`"),
    (
        "ciphertext verification failed",
        "the repository is damaged: its content is not the content written, see `databackup check`",
    ),
    (
        "invalid data returned",
        "the repository is damaged: its content is not the content written, see `databackup check`",
    ),
    ("unexpected EOF", "the repository is damaged: a part of it is truncated, see `databackup check`"),
    ("): EOF", "the repository is damaged: a part of it is truncated, see `databackup check`"),
    # What restic says before it gives up, after the time until its next try: "retrying after 1.3s: EOF".
    ("s: EOF", "the repository is damaged: a part of it is truncated, see `databackup check`"),
    ("no such file or directory", "the repository lacks a part of it: it is damaged, see `databackup check`"),
    ("> does not exist", "the repository lacks a part of it: it is damaged, see `databackup check`"),
    ("pack", "the repository is damaged: a pack does not match its name, see `databackup check`"),
)
LOCKED = "repository is already locked"
# What another run does at the same moment, and is over at the next look: a small file that it is just writing is half there
# (rclone before 1.63 gives it its name before it is whole, https://rclone.org/changelog/#v1-63-0-2023-06-30); a lock that it
# removes is gone between restic's list of them and its look into each.
PASSING = re.compile(
    r"load\W*<(?:(?:index|lock|snapshot)/(\w+)>\W+.*invalid data returned"
    r"|lock/(\w+)>\W+.*(?:no such file or directory|does not exist))",
    re.IGNORECASE,
)
# Messages of ssh about the account on the repository's host, which has no home on purpose, and about itself.
NOISE = re.compile(r"subprocess ssh: Warning.*|(?:rclone: |subprocess ssh: )?Could not chdir to home directory .*")
# How long it is waited until another look, in seconds; what is still so then is damaged.
SETTLING = (0.5, 1, 2, 4)
# What restic tries for a minute as if it might pass, though data that are truncated or lost stay so: after so many times it ends.
LASTING = re.compile(
    r"^(Load\(.*\)) returned error, retrying after .*: .*(EOF|no such file or directory|does not exist)$", re.M
)
TRIES = 3


def explain(text: str) -> str:
    """Return what restic's last words mean; those words where nothing is known of them."""
    lines = _lines(text)
    heard = "\n".join(lines).lower()
    for words, meaning in REASONS:
        if words.lower() in heard:
            fitting = next((line for line in lines if words.lower() in line.lower()), lines[-1] if lines else "")
            return f"{meaning}. restic reports: {fitting[:300]}"
    return last_words(text)


def failure(what: str, text: str) -> Failed:
    """Return what ends a run after such an error text: Locked or Unsettled, if that may pass."""
    if passing := PASSING.search(text):
        return Unsettled(f"{what}: {explain(text)}", passing[1] or passing[2])
    if LOCKED not in text:
        return Failed(f"{what}: {explain(text)}")
    holder = next(line for line in text.splitlines() if LOCKED in line)
    return Locked(
        f"{what}: the repository is locked by another run ({holder.strip()}). The lock of an interrupted run is removed "
        "on the repository's host, half an hour later"
    )


def last_words(text: str) -> str:
    """Return the end of what restic said."""
    return f"restic reports: {' / '.join(_lines(text)[-3:])[:500] or 'nothing'}"


def _lines(text: str) -> list[str]:
    return [line for line in text.strip().splitlines() if line and not NOISE.fullmatch(line)]


def die_with_parent() -> None:
    """Have this process killed as soon as the one that started it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _prepare() -> None:
    # A killed backup must not end as a whole one: restic would take the end of its input for the end of the data.
    die_with_parent()
    # Ctrl-C and a cut ssh connection are for the parent to handle.
    os.setpgid(0, 0)


class Patience:
    """Ends a restic that does nothing for too long: for a host that has fallen silent it would wait for ever.

    Only while somebody waits for restic may that be asked, and not while restic waits for its data or its reader.
    """

    def __init__(self, process: subprocess.Popen[bytes], seconds: float, err: IO[bytes]) -> None:
        """Its messages go to `err`."""
        self.process = process
        self.seconds = seconds
        self.err = err
        self.moved, self.spent = self._seen()
        self.looked = self.since = time.monotonic()

    def _seen(self) -> tuple[str, float]:
        # Bytes that it has read and written, whatever from and to; and the processor's seconds.
        folder = Path(f"/proc/{self.process.pid}")
        try:
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
            return (folder / "io").read_text(encoding="utf-8", errors="replace"), (
                int(fields[11]) + int(fields[12])
            ) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError):
            return "", 0.0

    def begin(self) -> None:
        """Begin to wait."""
        self.since = time.monotonic()

    def look(self) -> None:
        """Kill restic and raise Failed if it has done nothing since the last looks, for the seconds that it has."""
        now = time.monotonic()
        moved, spent = self._seen()
        if moved != self.moved or spent - self.spent > AT_WORK * (now - self.looked):
            self.since = now
        self.moved, self.spent, self.looked = moved, spent, now
        # At a place, as restic writes at the file's own.
        text = os.pread(self.err.fileno(), CHUNK, 0).decode(errors="replace")
        if max(Counter(found[0] for found in LASTING.findall(text)).values(), default=0) >= TRIES:
            _kill(self.process)
        if now - self.since > self.seconds:
            _kill(self.process)
            raise Silent(
                f"the repository's host has not answered for {self.seconds:g} s; see that it is up and reached from here, "
                "and that its disk is not stuck"
            )

    def wait(self) -> int:
        """Return restic's exit code once it has ended."""
        self.begin()
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(LOOK)
            self.look()


class Silent(Failed):
    """Nothing comes from the repository any more."""


class Restic:
    """One repository."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        # What the last run said besides its output.
        self.warnings = ""
        # Snapshots that the last list lacks, as they cannot be read: restic leaves them out and is content.
        self.unreadable: list[str] = []
        # What is read ahead, by snapshot and path.
        self.begun: dict[tuple[str, str], Reading] = {}
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LC_ALL": "C",
            "HOME": "/root",
            # Times of snapshots are read and written as such.
            "TZ": "UTC",
            "RESTIC_REPOSITORY": repository.location,
            "RESTIC_PASSWORD_FILE": repository.password_file,
            "RESTIC_CACHE_DIR": repository.cache,
        }
        if repository.environment_file:
            for line in Path(repository.environment_file).read_text(encoding="utf-8").splitlines():
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

        What it says goes to files, as a pipe that no process reads would stop it when it is full.
        """
        try:
            process = subprocess.Popen(
                self.command(*words),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=self.environment,
                preexec_fn=_prepare,
                bufsize=0,
            )
        except FileNotFoundError:
            raise Failed("restic is not installed; the role backup installs it (playbooks/backup.yml)") from None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                # Larger than a pipe is by itself: both sides wait for each other less often. A limit of the host's
                # may forbid that.
                with suppress(OSError):
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)
                os.set_blocking(pipe.fileno(), False)
        return process

    def wait(self, process: subprocess.Popen[bytes], err: IO[bytes]) -> int:
        """Return the exit code of a restic once it has ended; raises Silent if it does not come to an end."""
        try:
            return Patience(process, self.repository.timeout, err).wait()
        finally:
            end(process)

    def patiently(self, act: Callable[[], Result]) -> Result:
        """Return what `act` returns; call it again for some time while it raises Locked or Unsettled."""
        deadline = time.monotonic() + self.repository.lock_timeout
        pauses = list(SETTLING)
        while True:
            try:
                return act()
            except Unsettled as half:
                if not pauses:
                    raise
                time.sleep(pauses.pop(0))
                # restic keeps what it has read, half as it was.
                for path in Path(self.repository.cache).glob(f"*/*/*/{half.name}*"):
                    path.unlink(missing_ok=True)
            except Locked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def run(self, *words: str, what: str) -> str:
        """Run restic to its end and return what it printed; raises Failed, which begins with `what`."""

        def attempt() -> str:
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                try:
                    code = self.wait(self.start(*words, stdout=out, stderr=err), err)
                except Silent as silent:
                    raise Failed(f"{what}: {silent}. {last_words(said(err))}") from None
                output, self.warnings = said(out), said(err)
                if code != 0:
                    # restic check tells what is wrong on its standard output.
                    raise failure(what, self.warnings + output)
                return output

        return self.patiently(attempt)

    def exists(self) -> bool:
        """Return whether there is a repository; raises Failed when it cannot be told."""
        try:
            self.run("cat", "config", "--quiet", "--no-lock", what="the repository cannot be opened")
        except Failed as error:
            text = str(error)
            if "there is no repository" in text and "does not answer" not in text:
                return False
            raise
        return True

    def snapshots(self, *tags: str) -> list[dict[str, Any]]:
        """Return the snapshots that have all tags, the oldest first, as restic describes them."""
        # No lock is needed to look, and to get one takes a while: also where somebody has left one.
        words = ["snapshots", "--no-lock", "--json", "--quiet", "--tag", ",".join(tags)]
        for _ in range(2):
            text = self.run(*words, what="the backups cannot be listed")
            self.unreadable = re.findall(r"could not load snapshot ([0-9a-f]+)", self.warnings)
            # Unless one was removed at this very moment, a second look finds the same.
            if not self.unreadable:
                break
        listed: list[dict[str, Any]] = sorted(json.loads(text) or [], key=lambda item: str(item["time"]))
        return listed

    def writer(self, path: str, host: str, tags: list[str], when: str) -> Writer:
        """Return what takes the data of a new snapshot that holds one file, `path`."""
        return Writer(self, path, host, tags, when)

    def read(self, snapshot: str, path: str) -> Iterator[bytes]:
        """Yield a file of a snapshot; raises Failed at the end when it could not be read whole."""
        reading = self.begun.pop((snapshot, path), None)

        def first() -> tuple[bytes, Iterator[bytes]]:
            nonlocal reading
            reading = reading or Reading(self, snapshot, path)
            chunks = reading.chunks()
            try:
                return next(chunks, b""), chunks
            except Unsettled:
                reading.close()
                reading = None
                raise

        try:
            # What has begun to come does not begin again.
            chunk, rest = self.patiently(first)
            yield chunk
            yield from rest
        finally:
            if reading:
                reading.close()

    @contextmanager
    def ahead(self, snapshot: str, path: str) -> Iterator[None]:
        """Begin to read a file now that is asked for within the block: restic's beginning alone takes half a second."""
        reading = self.begun[snapshot, path] = Reading(self, snapshot, path)
        try:
            yield
        finally:
            self.begun.pop((snapshot, path), None)
            reading.close()


class Reading:
    """A file of a snapshot that is being read. Until somebody takes it, restic waits."""

    def __init__(self, restic: Restic, snapshot: str, path: str) -> None:
        self.what = f"{path} of snapshot {snapshot[:8]} cannot be read"
        self.err = tempfile.TemporaryFile()
        # Without a lock, so that it works on a repository that is full, or that may only be read from. Should maintenance
        # remove just this snapshot meanwhile, the reading fails and nothing else does.
        self.process = restic.start("dump", "--no-lock", snapshot, path, stdout=subprocess.PIPE, stderr=self.err)
        self.patience = Patience(self.process, restic.repository.timeout, self.err)

    def chunks(self) -> Iterator[bytes]:
        """Yield the data; raises Failed at the end when they were not all."""
        assert self.process.stdout is not None
        file = self.process.stdout.fileno()
        try:
            while True:
                self.patience.begin()
                while not select.select([file], [], [], LOOK)[0]:
                    self.patience.look()
                if not (chunk := os.read(file, CHUNK)):
                    break
                yield chunk
            if self.patience.wait() != 0:
                raise failure(self.what, said(self.err))
        except Silent as silent:
            raise Failed(f"{self.what}: {silent}. {last_words(said(self.err))}") from None

    def close(self) -> None:
        """End restic, if it still runs; harmless a second time."""
        end(self.process)
        self.err.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that still runs, with what it has started, and close its pipes."""
    _kill(process)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # Of its ssh, in a group of its own, nobody else would take care while that waits for a host.
        started = _children(process.pid)
        process.kill()
        for child in started:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.wait()


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text(encoding="utf-8").split())
    return found


def said(file: IO[bytes]) -> str:
    """Return what a child has written into a file."""
    file.seek(0)
    return file.read().decode(errors="replace")


class Writer:
    """A snapshot that is being written. Unless `commit` is reached, it never comes to be."""

    def __init__(self, restic: Restic, path: str, host: str, tags: list[str], when: str) -> None:
        # Quiet: what it says of its progress would look like work to the one who waits for it.
        self.words = [
            "backup",
            "--json",
            "--quiet",
            "--stdin",
            "--stdin-filename",
            path,
            "--host",
            host,
            "--time",
            when,
        ]
        for tag in tags:
            self.words += ["--tag", tag]
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = restic.start(*self.words, stdin=subprocess.PIPE, stdout=self.out, stderr=self.err)
        self.patience = Patience(self.process, restic.repository.timeout, self.err)
        self.failed: Failed | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Hand data over; raises Failed in restic's words when it has ended, or takes nothing any more."""
        if self.failed is not None:
            # tarfile writes once more when it is closed; another error than this one would hide the cause.
            raise self.failed
        assert self.process.stdin is not None
        file = self.process.stdin.fileno()
        rest = memoryview(data)
        self.patience.begin()
        try:
            while rest:
                while not select.select([], [file], [], LOOK)[1]:
                    self.patience.look()
                # Asked for no more than a pipe has room for, it takes a part.
                with suppress(BlockingIOError):
                    rest = rest[os.write(file, rest) :]
                    self.patience.begin()
        except BrokenPipeError:
            raise self._failure() from None
        except Silent as silent:
            raise self._silence(silent) from None

    def commit(self) -> str:
        """End the data and return the id of the snapshot."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = self.patience.wait()
        except Silent as silent:
            raise self._silence(silent) from None
        if code != 0:
            raise self._failure()
        for line in said(self.out).splitlines():
            with suppress(ValueError):
                message = json.loads(line)
                if message.get("message_type") == "summary":
                    return str(message["snapshot_id"])
        raise Failed("restic succeeded but named no snapshot")

    def abort(self) -> None:
        """End restic before it has seen the end of the data: no snapshot is made. Harmless after `commit`."""
        end(self.process)
        self.out.close()
        self.err.close()

    def _silence(self, silent: Silent) -> Failed:
        self.failed = Failed(f"the backup cannot be written: {silent}. {last_words(said(self.err))}")
        return self.failed

    def _failure(self) -> Failed:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        end(self.process)
        self.failed = failure("the backup cannot be written", said(self.err))
        return self.failed


class Locked(Failed):
    """Another run has an exclusive lock; worth another try."""


class Unsettled(Failed):
    """A small file of the repository is not whole: another run writes it at this moment, or it is damaged.

    `name` is the beginning of the file's.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name
