"""Another user's rights, for work among files that this user can rename, replace and link.

Whatever such a file is by the time that it is opened, it leads nowhere where its user could not go alone: the kernel
checks each access as that user's. What is made belongs to the user from its first moment on, so nothing is given away
afterwards, when its name may be a link to something else.
"""

from __future__ import annotations

import ctypes
import errno
import json
import multiprocessing
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from pwd import getpwnam, struct_passwd
from typing import IO, Any

from databackup.errors import Failed
from databackup.restic import die_with_parent

CONTEXT = multiprocessing.get_context("fork")
# No more is read of a file that is read whole, such as a configuration: bytes.
WHOLE = 16 << 20
ROOT = 0


class Owner:
    """A user of this host. Where this program is not root, all is done with its own rights."""

    _inside = threading.local()

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def entry(self) -> struct_passwd:
        """The user; raises Failed for an unknown one."""
        try:
            return getpwnam(self.name)
        except KeyError:
            raise Failed(f"found no user {self.name!r} on this host; the role of the service makes it") from None

    @property
    def identity(self) -> dict[str, Any]:
        """What makes subprocess start a program as this user."""
        if os.geteuid() != ROOT:
            return {}
        return {"user": self.entry.pw_uid, "group": self.entry.pw_gid, "extra_groups": []}

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Have the kernel check all access to files as this user's within the block: of this thread, and of those it begins.

        The process stays root: it is not another one's to stop or to trace, and it starts programs as before.
        """
        if os.geteuid() != ROOT or self.entry.pw_uid == ROOT or getattr(self._inside, "user", None) == self.name:
            yield
            return
        if os.getgroups():
            # Those of root's shell would still count.
            os.setgroups([])
        if getattr(self._inside, "user", None) is not None:
            raise RuntimeError(f"files of {self.name} within those of {self._inside.user}")
        try:
            _files_as(self.entry.pw_uid, self.entry.pw_gid)
            self._inside.user = self.name
            yield
        finally:
            _files_as(ROOT, os.getegid())
            self._inside.user = None

    def open(self, path: Path | str) -> IO[bytes]:
        """Open a file for reading; raises OSError for what is none, such as a pipe that no process writes."""
        with self.acting():
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "found no regular file", str(path))
        return os.fdopen(descriptor, "rb")

    def read(self, path: Path | str) -> bytes:
        """Return what is in a file; raises OSError, also for one that is too large to be read whole."""
        with self.open(path) as file:
            data = file.read(WHOLE + 1)
        if len(data) > WHOLE:
            raise OSError(errno.EFBIG, f"found more than {WHOLE >> 20} MiB", str(path))
        return data

    def new_file(self, path: Path) -> IO[bytes]:
        """Make a file that was not there, for the user alone."""
        with self.acting():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.fdopen(os.open(path, flags, 0o600), "wb")

    def remove(self, path: Path) -> None:
        """Remove a file, link or folder with what is in it; harmless where there is none."""
        with self.acting():
            try:
                remove(path)
            except PermissionError:
                left = True
            else:
                left = False
        if left:
            # What an earlier version has left there belongs to root. No link on the way is followed.
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                shutil.rmtree(path.name, dir_fd=folder)
            finally:
                os.close(folder)

    @contextmanager
    def child(self, work: Callable[[Teller], None]) -> Iterator[Child]:
        """Do something in a process of its own that has this user's rights and no others, and is ended with the block.

        For what parses a file of the user's with a library that may have faults.
        """
        child = Child(self, work)
        try:
            yield child
        finally:
            child.close()


class Teller:
    """How a child tells what it found. Only texts and bytes are sent: nothing of it is run where it arrives."""

    def __init__(self, news: Connection) -> None:
        self.news = news

    def tell(self, value: Any) -> None:
        """Tell a value that JSON has."""
        self.news.send_bytes(b"=" + json.dumps(value).encode())

    def fail(self, text: str) -> None:
        """Report why it failed."""
        self.news.send_bytes(b"!" + text.encode(errors="backslashreplace"))

    def send(self, data: bytes | memoryview) -> None:
        """Send a part of the data."""
        self.news.send_bytes(data)

    def end(self) -> None:
        """Report that the data are whole."""
        self.news.send_bytes(b"")


class Child:
    """A process with a user's rights; see Owner.child."""

    def __init__(self, owner: Owner, work: Callable[[Teller], None]) -> None:
        self.news, theirs = CONTEXT.Pipe(duplex=False)
        identity = owner.identity
        self.process = CONTEXT.Process(target=_work, args=(identity, work, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def _next(self) -> bytes:
        try:
            return self.news.recv_bytes()
        except EOFError:
            raise Failed("the process that reads the data was killed; is this host short of memory?") from None

    def told(self) -> Any:
        """Return what it tells; raises Failed in its words."""
        message = self._next()
        if message[:1] == b"=":
            return json.loads(message[1:])
        raise Failed(message[1:].decode(errors="replace"))

    def data(self) -> Iterator[bytes]:
        """Yield the data that it sends; raises Failed when they end early."""
        while data := self._next():
            yield data

    def close(self) -> None:
        """End it, whatever it does."""
        self.news.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _work(identity: dict[str, Any], work: Callable[[Teller], None], news: Connection) -> None:
    # Whoever ends the whole group has its parent end it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for name in os.listdir("/proc/self/fd"):
        # The lock of its parent, and what else is open there, is none of its business.
        if int(name) not in (0, 1, 2, news.fileno()):
            with suppress(OSError):
                os.close(int(name))
    if identity:
        os.setgroups([])
        os.setresgid(identity["group"], identity["group"], identity["group"])
        os.setresuid(identity["user"], identity["user"], identity["user"])
    # After the change of the user, which forgets it.
    die_with_parent()
    teller = Teller(news)
    try:
        work(teller)
    except Failed as failure:
        with suppress(OSError):
            teller.fail(str(failure))
    except MemoryError:
        teller.fail("there is not memory enough for a copy of the data")


_LIBRARY = ctypes.CDLL(None, use_errno=True)
NOBODY_NEW = -1


def _files_as(user: int, group: int) -> None:
    """Have this thread reach files as a user and group alone; raises Failed where that is not permitted."""
    # As long as files are reached as root, the group may change. setfsuid(2) tells no failure: it is asked again.
    for change, wanted in ((_LIBRARY.setfsgid, group), (_LIBRARY.setfsuid, user)):
        change(wanted)
        if change(NOBODY_NEW) != wanted:
            raise Failed(
                f"found no right to reach files as user {user}; expected to be root with the capabilities SETUID and SETGID"
            )


def remove(path: Path) -> None:
    """Remove a file, link or folder with what is in it, as whoever one acts as; harmless where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def plain(name: str) -> bool:
    """Return whether a text is the name of a file in a folder, and no way out of it."""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\\"'")
