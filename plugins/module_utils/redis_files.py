"""Files that a module and a service both write, in a folder of the service: read, and replaced atomically.

Root trusts no name in such a folder. The folder is opened once and used by its descriptor, no link in it is followed,
and owner and mode are set on an open file, never by a path: what the service puts in a file's place meanwhile is not
reached.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

# `argument_spec` of a file's owner and mode.
OWNERSHIP: dict[str, Any] = {
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "mode": {"type": "raw"},
}


class NotPlain(OSError):
    """A name that holds something else than one plain file; its message names what was found and what was expected."""


def what_is(found: os.stat_result, name: str, folder: int) -> str:
    """Return what a name in a folder holds, in words; nothing where it is a plain file with this name only."""
    if stat.S_ISLNK(found.st_mode):
        return f"a link to {os.readlink(name, dir_fd=folder)!r}"
    if stat.S_ISREG(found.st_mode):
        return f"a file with {found.st_nlink} names" if found.st_nlink > 1 else ""
    return "a folder" if stat.S_ISDIR(found.st_mode) else "no file"


def open_folder(path: str) -> int:
    """Return a descriptor of the folder that a file is in; raises OSError."""
    return os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_plain(name: str, folder: int, path: str, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a plain file in an open folder; raises NotPlain for anything else, OSError likewise."""
    try:
        # A pipe would make this wait for its other end.
        handle = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ENOENT:
            try:
                problem = what_is(os.stat(name, dir_fd=folder, follow_symlinks=False), name, folder)
            except OSError:
                problem = ""
            if problem:
                raise NotPlain(error.errno, f"found {problem}; expected a plain file with one name", path) from error
        error.filename = path
        raise
    problem = what_is(os.fstat(handle), name, folder)
    if problem:
        os.close(handle)
        code = errno.EISDIR if problem == "a folder" else errno.EMLINK
        raise NotPlain(code, f"found {problem}; expected a plain file with one name", path)
    return handle


def opened(path: str) -> int | None:
    """Return a descriptor to read a plain file; None where there is none. Raises OSError."""
    try:
        folder = open_folder(path)
    except FileNotFoundError:
        return None
    try:
        return open_plain(os.path.basename(path), folder, path)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)


def text_file(handle: int, newline: str | None = None) -> TextIO:
    """Return an open file as text, with bytes that are no UTF-8 kept as they are."""
    return os.fdopen(handle, encoding="utf-8", errors="surrogateescape", newline=newline)


def read(path: str, newline: str | None = None) -> str | None:
    """Return a plain file's text, or None where there is none; raises OSError when it cannot be read.

    `newline` is the one of open(): an empty text leaves line ends as they are.
    """
    handle = opened(path)
    if handle is None:
        return None
    with text_file(handle, newline) as file:
        return file.read()


def text_of(path: str) -> str | None:
    """Return a plain file's text; None where there is none, or something else that is to be replaced and not read."""
    try:
        return read(path)
    except NotPlain:
        return None


def read_bytes(path: str, last: int = 0) -> bytes | None:
    """Return a plain file's bytes, the `last` ones if that is above 0; None where there is none. Raises OSError."""
    handle = opened(path)
    if handle is None:
        return None
    with os.fdopen(handle, "rb") as file:
        if last:
            file.seek(max(0, os.fstat(file.fileno()).st_size - last))
        return file.read()


@dataclass(frozen=True)
class Ownership:
    """Owner, group and mode that a file is to have; None leaves what it has."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], *, check_mode: bool = False) -> Ownership:
        """Return what a module's options `owner`, `group` and `mode` say; raises ValueError.

        In check mode, where a task before may only have said that it would make the user, nothing is known of that one.
        """
        owner, group, mode = options.get("owner"), options.get("group"), options.get("mode")
        try:
            uid = None if owner is None else int(owner) if str(owner).isdigit() else pwd.getpwnam(owner).pw_uid
            gid = None if group is None else int(group) if str(group).isdigit() else grp.getgrnam(group).gr_gid
        except KeyError as error:
            if not check_mode:
                raise ValueError(
                    f"owner and group: {error.args[0]}; expected a user and a group of this host"
                ) from None
            uid = gid = None
        try:
            bits = None if mode is None else mode if isinstance(mode, int) else int(str(mode), 8)
        except ValueError:
            raise ValueError(f"mode: found {mode!r}; expected octal digits, such as 0600") from None
        return cls(uid, gid, bits)

    def over(self, other: Ownership) -> Ownership:
        """Return this one, with what it leaves open as the other has it."""
        return Ownership(
            other.uid if self.uid is None else self.uid,
            other.gid if self.gid is None else self.gid,
            other.mode if self.mode is None else self.mode,
        )

    def apply(self, handle: int, *, pretend: bool = False) -> bool:
        """Give it to an open file; return whether that changes it. Raises OSError."""
        found = os.fstat(handle)
        uid = found.st_uid if self.uid is None else self.uid
        gid = found.st_gid if self.gid is None else self.gid
        mode = stat.S_IMODE(found.st_mode) if self.mode is None else self.mode
        if (uid, gid, mode) == (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)):
            return False
        if not pretend:
            os.fchown(handle, uid, gid)
            # After that, as a change of the owner may take bits away.
            os.fchmod(handle, mode)
        return True

    def declare(self, path: str, *, pretend: bool = False) -> bool:
        """Give it to a plain file; return whether that changes it. Raises OSError."""
        handle = opened(path)
        if handle is None:
            return False
        try:
            return self.apply(handle, pretend=pretend)
        finally:
            os.close(handle)


def ownership_of(path: str) -> Ownership:
    """Return what a plain file has; nothing where there is none. Raises OSError."""
    handle = opened(path)
    if handle is None:
        return Ownership()
    try:
        found = os.fstat(handle)
    finally:
        os.close(handle)
    return Ownership(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))


@contextmanager
def as_user(name: str | None) -> Iterator[None]:
    """Do what is in the block with a user's rights; with one's own where that is not root, or there is no such user."""
    user = None
    if name and os.geteuid() == 0:
        with suppress(KeyError):
            user = pwd.getpwnam(name)
    if user is None:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def closed(path: str) -> bool:
    """Return whether root alone can write a file, and change what its path means."""
    real = os.path.realpath(path)
    for place in (real, *(str(parent) for parent in Path(real).parents)):
        try:
            found = os.lstat(place)
        except OSError:
            return False
        shared = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_uid != 0 or (found.st_mode & 0o022 and not shared):
            return False
    return True


class Candidate:
    """A file's next text, on the disk beside it, complete and synced, but not in its place yet.

    Whatever can go wrong with the disk goes wrong in the constructor (OSError), before a server was told anything.
    """

    def __init__(self, path: str, text: str, declare: Callable[[int], object]) -> None:
        """Write the text; `declare` gives the new file, by its descriptor, its owner and mode."""
        self.path = path
        self.name = os.path.basename(path)
        self.folder = open_folder(path)
        self.temporary = ""
        try:
            self.temporary = self._write(self.name, text, declare)
        except BaseException:
            self.discard()
            raise

    def _write(self, name: str, text: str, declare: Callable[[int], object]) -> str:
        """Write a text under a name that nobody has guessed, and return that."""
        temporary = f".{name}.{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(temporary, flags, 0o600, dir_fd=self.folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(text)
                file.flush()
                declare(file.fileno())
                os.fsync(file.fileno())
        except BaseException as error:
            os.unlink(temporary, dir_fd=self.folder)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = self.path
            raise
        return temporary

    def discard(self) -> None:
        """Remove it; harmless when it is gone."""
        if self.folder < 0:
            return
        try:
            if self.temporary:
                os.unlink(self.temporary, dir_fd=self.folder)
        except FileNotFoundError:
            pass
        finally:
            os.close(self.folder)
            self.folder = -1

    def _keep(self) -> str | None:
        """Keep what is in its place now as `<path>.previous`, not readable by others; return that path."""
        try:
            handle = open_plain(self.name, self.folder, self.path)
        except FileNotFoundError:
            return None
        with text_file(handle, "") as file:
            found = os.fstat(handle)
            text = file.read()
        owner = Ownership(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode) & 0o640)
        previous = f"{self.name}.previous"
        temporary = self._write(previous, text, owner.apply)
        try:
            os.replace(temporary, previous, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        except OSError as error:
            os.unlink(temporary, dir_fd=self.folder)
            error.filename, error.filename2 = f"{self.path}.previous", None
            raise
        return f"{self.path}.previous"

    def replace(self, *, keep: bool = True) -> str | None:
        """Put it in place and return the path of the old file, kept as `<path>.previous`; None if there was none."""
        kept = self._keep() if keep else None
        try:
            # A link that is there by now is replaced, not followed.
            os.replace(self.temporary, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        except OSError as error:
            error.filename, error.filename2 = self.path, None
            raise
        self.temporary = ""
        os.fsync(self.folder)
        return kept
