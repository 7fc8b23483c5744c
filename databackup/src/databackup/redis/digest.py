"""The digest of an RDB in a process of its own, beside the reader or writer of the data: it takes a whole core."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from databackup.errors import Failed
from databackup.owner import Owner
from databackup.redis import rdb
from databackup.restic import die_with_parent

CHUNK = 1 << 20
# Sent for the end of the data.
END = -1

CONTEXT = multiprocessing.get_context("fork")
Answer = rdb.Summary | str


def _chunks(file: int, news: Connection) -> Iterator[bytes]:
    at = size = 0
    done = False
    while True:
        while at < size:
            data = os.pread(file, min(CHUNK, size - at), at)
            if not data:
                raise rdb.Damaged("the file ends before its end")
            at += len(data)
            yield data
        if done:
            return
        message = news.recv()
        while True:
            if message == END:
                done = True
            else:
                size = message
            if done or not news.poll():
                break
            message = news.recv()


def _work(file: int, news: Connection) -> None:
    # It has a copy of all that its parent had open, the source's lock among it, and must not outlive it.
    die_with_parent()
    # Whoever ends the whole group has its parent end it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        answer: Answer = rdb.summarize(_chunks(file, news))
    except rdb.Newer as error:
        answer = str(error)
    except (rdb.Damaged, OSError) as error:
        answer = f"the snapshot is damaged: {error}"
    except EOFError:
        return
    with suppress(BrokenPipeError):
        news.send(answer)


class Digester:
    """Reads a file that may still grow; `advance` tells it how far."""

    def __init__(self, file: int) -> None:
        """Begin with an open file's data, from its first byte."""
        self.news, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_work, args=(file, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def advance(self, size: int) -> None:
        """Report that so many bytes are there."""
        with suppress(BrokenPipeError):
            self.news.send(size)

    def result(self) -> rdb.Summary:
        """Report that there is no more, and return what is in the file; raises Failed for what is no whole snapshot."""
        with suppress(BrokenPipeError):
            self.news.send(END)
        try:
            answer: Answer = self.news.recv()
        except EOFError:
            raise Failed("the process that takes the digest was killed; is this host short of memory?") from None
        self.process.join()
        if isinstance(answer, str):
            raise Failed(answer)
        return answer

    def close(self) -> None:
        """End it, whatever it does."""
        self.news.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def of_file(path: Path, owner: Owner) -> Digester:
    """Return a digester of a whole file, which is opened with its owner's rights."""
    with owner.open(path) as file:
        digester = Digester(file.fileno())
        digester.advance(os.fstat(file.fileno()).st_size)
        return digester
