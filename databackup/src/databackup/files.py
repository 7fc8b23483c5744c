"""Folders and files, as one tar: such as the wheels that the application is installed from.

The tar is the same as long as the files are: sorted, of root, with names from the last part of each path on. A restore
unpacks it beside what is there and exchanges the two; the old files stay as PATH.before-restore-…
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from pwd import getpwnam
from typing import IO, Any, cast

from databackup import catalog, journal, restore, spool
from databackup.errors import Failed
from databackup.journal import Say
from databackup.kind import Kind
from databackup.owner import remove
from databackup.restic import Restic, Writer
from databackup.restore import MARGIN
from databackup.settings import Source


class Content:
    """What is in files: their number, and a digest of names, sizes and contents. Folders, times and modes are not."""

    def __init__(self) -> None:
        self.items = 0
        self._lines: list[bytes] = []

    def file(self, name: str, size: int, digest: str) -> None:
        """Count a file."""
        self.items += 1
        self._lines.append(f"file {name!a} {size} {digest}\n".encode())

    def link(self, name: str, target: str) -> None:
        """Count a symbolic link."""
        self.items += 1
        self._lines.append(f"link {name!a} {target!a}\n".encode())

    @property
    def digest(self) -> str:
        """Return the digest, whatever the order was."""
        return hashlib.blake2b(b"".join(sorted(self._lines)), digest_size=16).hexdigest()


class _Sink:
    """Takes the tar on its way to restic."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.size = 0
        self.hashed = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.writer.write(data)
        self.hashed.update(data)
        self.size += len(data)
        return len(data)


class _Hashing:
    """Reads a file, and keeps a digest of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hashed = hashlib.blake2b(digest_size=16)

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.hashed.update(data)
        return data


def _below(path: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield a path and all below it, each with its name in the tar, in one order."""
    yield path, name
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for entry in sorted(os.listdir(path)):
            yield from _below(f"{path}/{entry}", f"{name}/{entry}")


def _leaves(name: str, target: str) -> bool:
    """Return whether a link points out of what is packed with it."""
    if target.startswith("/"):
        return True
    parts = posixpath.normpath(posixpath.join(posixpath.dirname(name), target)).split("/")
    return parts[0] != name.split("/")[0]


@dataclass(frozen=True)
class Place:
    """A path that a restore replaces, as the journal has it."""

    path: str
    new: str
    aside: str
    # Whether something was there.
    had: bool


class Files(Kind):
    """Folders and files of this host."""

    suffix = "tar"

    def __init__(self, source: Source, say: Say) -> None:
        super().__init__(source, say)
        self.paths = [str(path).rstrip("/") for path in source.options["paths"]]
        self.owner = str(source.options.get("owner", "root"))

    def _roots(self) -> dict[str, str]:
        """Return the path of each first part of a name in the tar."""
        roots: dict[str, str] = {}
        for path in self.paths:
            resolved = os.path.realpath(path)
            name = os.path.basename(resolved)
            if not path.startswith("/") or not name or name in roots:
                raise Failed(
                    f"source {self.source.name}: found paths {', '.join(self.paths)}; expected absolute ones whose last "
                    "parts differ"
                )
            roots[name] = resolved
        return roots

    # --- Backup ---

    def backup(self, restic: Restic) -> dict[str, Any]:
        """Write a backup and return its manifest, with `id`; raises Failed, and then there is no new one."""
        self.journal.refuse()
        when = datetime.now(UTC).replace(microsecond=0)
        roots = self._roots()
        for path in roots.values():
            if not os.path.exists(path):
                raise Failed(f"{path}: there is no such file or folder; expected one to back up")
        content = Content()
        writer = catalog.open_data(restic, self.source, self.suffix, when)
        try:
            sink = _Sink(writer)
            try:
                # "w|" neither seeks nor looks back.
                with tarfile.open(fileobj=cast(IO[bytes], sink), mode="w|", format=tarfile.PAX_FORMAT) as tar:
                    for root, path in sorted(roots.items()):
                        for item, name in _below(path, root):
                            _pack(tar, item, name, content)
            except OSError as error:
                raise Failed(
                    f"{error.filename or 'a file'}: it cannot be read whole: {error.strerror or error}"
                ) from None
            written = writer.commit()
        finally:
            writer.abort()
        facts = {
            "items": content.items,
            "digest": content.digest,
            "bytes": sink.size,
            "sha256": sink.hashed.hexdigest(),
            # `names` are those of the paths as they were asked for, which may be links.
            "about": {
                "paths": list(roots.values()),
                "names": {path: os.path.basename(os.path.realpath(path)) for path in self.paths},
            },
            "data": written,
        }
        return catalog.complete(restic, self.source, facts, when)

    # --- Restore ---

    def destinations(self, manifest: dict[str, Any]) -> dict[str, str]:
        """Return where each root of the tar goes."""
        names: dict[str, str] = manifest["about"]["names"]
        if set(names) != set(self.paths):
            raise Failed(
                f"the backup is of {', '.join(sorted(names))}, and {self.source.name} is {', '.join(sorted(self.paths))}; "
                "expected the same paths. `databackup fetch` writes the backup into a file of its own"
            )
        self._roots()
        return {name: os.path.realpath(path) for path, name in names.items()}

    def accept(self, manifest: dict[str, Any]) -> None:
        """Raise Failed for a backup of other paths, or one for which there is no room."""
        size = int(manifest["bytes"])
        folders = {os.path.dirname(path) for path in self.destinations(manifest).values()}
        for folder in folders:
            if not os.path.isdir(folder):
                raise Failed(f"{folder}: there is no such folder; expected one to restore into, make it first")
        place = spool.folder(self.source)
        shared = any(os.stat(folder).st_dev == place.stat().st_dev for folder in folders)
        for written in (str(place), *folders):
            restore.room(written, size * (2 if shared else 1) + MARGIN, "the backup beside the present data")

    def would(self, manifest: dict[str, Any]) -> list[str]:
        """Report what a restore would do."""
        return [
            f"fetch {manifest['bytes']} bytes and compare their SHA-256",
            *(f"unpack them into {path}.restore-new" for path in self.destinations(manifest).values()),
            f"compare {manifest['items']} files and their digest",
            "move the present data to ….before-restore-… and the backup in its place",
            "if anything is wrong, put the present data back",
        ]

    def replacement(self, restic: Restic, backup: str, manifest: dict[str, Any], *, full: bool) -> restore.Replacement:
        """Return what puts a backup into the place of the files."""
        return Replacement(self, restic, backup, manifest)

    def recover(self) -> str:
        """Put the old files back if a restore was interrupted; return what was done, or nothing."""
        with journal.in_words():
            return self._put_back(self.journal.read())

    def _put_back(self, noted: dict[str, Any] | None) -> str:
        if noted is None:
            return ""
        for place in noted["places"]:
            path, new, aside = place["path"], place["new"], place["aside"]
            moved = os.path.lexists(aside)
            # What is in place is the backup if the old has gone, or if there was none and the new has left its name.
            if (moved or not place["had"]) and os.path.lexists(path) and not os.path.lexists(new):
                remove(Path(path))
            if moved:
                os.rename(aside, path)
            remove(Path(new))
            journal.keep_names(Path(path).parent)
        self.journal.forget()
        return f"The files from before are back, as of the restore of {noted['backup'][:8]} that did not end."


class Replacement(restore.Replacement):
    """A backup on its way into the place of files."""

    expected = (tarfile.TarError,)

    def __init__(self, of: Files, restic: Restic, backup: str, manifest: dict[str, Any]) -> None:
        super().__init__(of.say)
        self.of = of
        self.restic = restic
        self.backup = backup
        self.manifest = manifest
        # The path of each root of the tar.
        self.destinations = of.destinations(manifest)
        mark = journal.stamp()
        self.places = [
            Place(path, f"{path}.restore-new", f"{path}.before-restore-{mark}", os.path.lexists(path))
            for path in self.destinations.values()
        ]

    def phases(self) -> Iterable[restore.Phase]:
        """Return what is done."""
        return [("fetch", self.fetch), ("load", self.load), ("compare", self.compare), ("exchange", self.exchange)]

    def fetch(self) -> None:
        """Bring the tar here, under no name."""
        self.say(f"Fetching {int(self.manifest['bytes']) >> 20} MiB")
        self.file = self.held.enter_context(tempfile.TemporaryFile(dir=spool.folder(self.of.source)))
        restore.receive(self.restic, self.manifest, self.of.suffix, self.file, self.say)
        self.file.seek(0)

    def load(self) -> None:
        """Unpack it beside what is there."""
        for path in (path for place in self.places for path in (place.new, place.aside)):
            if os.path.lexists(path):
                raise Failed(f"{path}: it is there already, and no restore left it; move it away first")
        self.of.journal.note({"backup": self.backup, "places": [asdict(place) for place in self.places]})
        self.say("Unpacking beside the present data")
        self.content = unpack(self.file, {name: f"{path}.restore-new" for name, path in self.destinations.items()})

    def compare(self) -> None:
        """Compare what was unpacked with the manifest."""
        self.report = restore.same(self.manifest, self.content.items, self.content.digest, "files")

    def exchange(self) -> None:
        """Give the new files their owner and their names; the old ones keep another."""
        for place in self.places:
            for item, _ in _below(place.new, ""):
                _chown(Path(item), self.of.owner)
        self.say("Putting the backup in place")
        for place in self.places:
            if place.had:
                os.rename(place.path, place.aside)
            os.rename(place.new, place.path)
            journal.keep_names(Path(place.path).parent)
        self.of.journal.forget()

    def undo(self) -> str:
        """Put the old files back."""
        return self.of.recover()

    def end(self) -> str:
        """Return where the old files are."""
        return ", ".join(place.aside for place in self.places if place.had)


def _chown(path: Path, user: str) -> None:
    """Give a file or link to a user and the user's group; raises Failed for an unknown one."""
    try:
        entry = getpwnam(user)
    except KeyError:
        raise Failed(f"found no user {user!r} on this host; the role of the application makes it") from None
    os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def _pack(tar: tarfile.TarFile, path: str, name: str, content: Content) -> None:
    """Add a file, folder or link to the tar; raises Failed for what could not be brought back."""
    before = os.lstat(path)
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(before.st_mode) & 0o777
    info.mtime = int(before.st_mtime)
    if stat.S_ISDIR(before.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif stat.S_ISLNK(before.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        if _leaves(name, info.linkname):
            raise Failed(
                f"{path}: found a link to {info.linkname}, which is not in the backup; expected links within it only"
            )
        content.link(name, info.linkname)
        tar.addfile(info)
    elif stat.S_ISREG(before.st_mode):
        info.size = before.st_size
        with open(path, "rb") as file:
            reader = _Hashing(file)
            tar.addfile(info, cast(IO[bytes], reader))
            after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
            raise Failed(f"{path}: it was written to while it was read; the next run tries again")
        content.file(name, info.size, reader.hashed.hexdigest())
    else:
        raise Failed(f"{path}: found a socket, pipe or device; expected files, folders and links only")


def unpack(file: IO[bytes], places: dict[str, str]) -> Content:
    """Write a tar's files below the places of their roots, and nowhere else; return what they hold.

    Raises Failed for a tar that this program did not make.
    """
    content = Content()
    folders: list[tuple[str, tarfile.TarInfo]] = []
    made: set[str] = set()
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for info in tar:
            root, _, rest = info.name.partition("/")
            parts = info.name.split("/")
            # A folder comes before what is in it, and a link is no folder: nothing is written through one.
            fits = (
                root in places and not {"", ".", ".."} & set(parts) and (not rest or os.path.dirname(info.name) in made)
            )
            if not fits or not (
                info.isreg() or info.isdir() or (info.issym() and not _leaves(info.name, info.linkname))
            ):
                raise Failed(f"the backup holds {info.name!r}, which does not belong into it; choose another one")
            path = f"{places[root]}/{rest}" if rest else places[root]
            if info.isdir():
                os.mkdir(path, 0o700)
                made.add(info.name)
                folders.append((path, info))
            elif info.issym():
                os.symlink(info.linkname, path)
                content.link(info.name, info.linkname)
            else:
                source = tar.extractfile(info)
                assert source is not None
                reader = _Hashing(source)
                with open(path, "xb") as target:
                    shutil.copyfileobj(reader, target, 1 << 20)
                    target.flush()
                    os.fsync(target.fileno())
                _stamp(path, info)
                content.file(info.name, info.size, reader.hashed.hexdigest())
    # Last, as what is written into a folder changes its time.
    for path, info in reversed(folders):
        _stamp(path, info)
    return content


def _stamp(path: str, info: tarfile.TarInfo) -> None:
    os.chmod(path, info.mode & 0o777)
    os.utime(path, (info.mtime, info.mtime))
