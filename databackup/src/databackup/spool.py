"""Data on their way from a source to the repository, on this host's disk but under no name.

A source is read as fast as it gives, so that Redis' child lives for a moment and not for the length of an upload. The
file has no name: nobody opens it, and it is gone with the process, however that ends.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from databackup.errors import Failed
from databackup.restic import Writer
from databackup.settings import Source

CHUNK = 1 << 20


def folder(source: Source) -> Path:
    """Return where data of a source are kept on their way, and make it."""
    path = Path(source.state) / "spool"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


class Stopped(Exception):
    """The writer gave up; what was read so far is worth nothing."""


class Spool:
    """One writer, several readers, of this process or of children that were made before the first byte."""

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self.size = 0
        self._done = False
        self._stopped = False
        self._news = threading.Condition()

    def write(self, data: bytes) -> None:
        """Append data; raises OSError when the disk is full."""
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) :]
        with self._news:
            self.size += len(data)
            self._news.notify_all()

    def finish(self, *, stopped: bool = False) -> None:
        """Report that there is no more; or, with `stopped`, that it was all in vain."""
        with self._news:
            self._done, self._stopped = True, self._stopped or stopped
            self._news.notify_all()

    def chunks(self) -> Iterator[bytes]:
        """Yield the data from the beginning, as they come; raises Stopped when the writer gave up."""
        at = 0
        while True:
            with self._news:
                while at >= self.size and not self._done:
                    self._news.wait()
                if self._stopped:
                    raise Stopped
                if at >= self.size:
                    return
                end = self.size
            while at < end:
                data = os.pread(self.file.fileno(), min(CHUNK, end - at), at)
                at += len(data)
                yield data

    def close(self) -> None:
        """Let the file go."""
        self.finish(stopped=True)
        self.file.close()


class Upload:
    """Hands a spool to restic in a thread of its own."""

    def __init__(self, spool: Spool, writer: Writer) -> None:
        self.spool = spool
        self.writer = writer
        self.failure: Failed | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for data in self.spool.chunks():
                self.writer.write(data)
        except Failed as failure:
            self.failure = failure
        except Stopped:
            pass

    def commit(self) -> str:
        """Wait until all is handed over, and return the snapshot's id; raises Failed when restic has ended."""
        if not self.failure:
            self.thread.join()
        if self.failure:
            raise self.failure
        return self.writer.commit()

    def close(self) -> None:
        """End what still runs; without `commit` there is no snapshot."""
        self.spool.finish(stopped=True)
        self.writer.abort()
        self.thread.join()
