"""Files that an adoption puts in place: exchanged in one step, or copied whole, and whose they are."""

from __future__ import annotations

import ctypes
import os
import shutil
from contextlib import suppress
from pathlib import Path

from databackup.owner import Owner

# renameat2(2): both names are exchanged at once.
RENAME_EXCHANGE = 2
AT_FDCWD = -100


def owner_of(path: Path) -> Owner | None:
    """Return the owner of a folder; None where there is no folder, or no such user."""
    with suppress(OSError, KeyError):
        return Owner(path.owner())
    return None


def open_folder(path: Path) -> None:
    """Make a folder that all may read, whatever this program's umask says; leave one that is there as it is."""
    if not path.exists():
        path.mkdir()
        path.chmod(0o755)


def swap(one: Path, other: Path) -> None:
    """Exchange two names in one step; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


def copy(source: Path, target: Path, uid: int, gid: int, mode: int) -> None:
    """Put a copy in a file's place, complete and on the disk before it has its name."""
    partial = target.with_name(f".{target.name}.adoption")
    partial.unlink(missing_ok=True)
    with source.open("rb") as read, partial.open("xb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())
        # By the open file: its name may be another one's by now.
        os.fchown(written.fileno(), uid, gid)
        os.fchmod(written.fileno(), mode)
    partial.replace(target)
