"""What every kind of source can do, and how each is restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from databackup.journal import Journal, Say
from databackup.restic import Restic
from databackup.restore import Replacement, fits
from databackup.settings import Source


class Kind(ABC):
    """One source. All methods raise Failed with a message for an operator."""

    # What its data are called in the repository.
    suffix: ClassVar[str]

    def __init__(self, source: Source, say: Say) -> None:
        self.source = source
        self.say = say
        self.options = source.options
        self.journal = Journal.of(source)

    @abstractmethod
    def backup(self, restic: Restic) -> dict[str, Any]:
        """Write a backup and return its manifest, with `id`; raises Failed, and then there is no new one."""

    def check(self, manifest: dict[str, Any], environment: str) -> None:
        """Raise Failed if a backup does not fit this source and this host; changes nothing."""
        fits(self.source, manifest, environment)
        self.accept(manifest)

    @abstractmethod
    def accept(self, manifest: dict[str, Any]) -> None:
        """Raise Failed if a backup of this kind and environment does not fit this host."""

    @abstractmethod
    def would(self, manifest: dict[str, Any]) -> list[str]:
        """Report what a restore would do."""

    @abstractmethod
    def replacement(self, restic: Restic, backup: str, manifest: dict[str, Any], *, full: bool) -> Replacement:
        """Return what brings a backup into the place of the data; without `full` items may be counted only."""

    def restore(
        self, restic: Restic, backup: str, manifest: dict[str, Any], environment: str, full: bool
    ) -> dict[str, Any]:
        """Restore a backup and return what was done; raises Failed after the old data are back in place."""
        if undone := self.recover():
            self.say(undone)
        self.check(manifest, environment)
        return self.replacement(restic, backup, manifest, full=full).run()

    @abstractmethod
    def recover(self) -> str:
        """Undo a restore that was interrupted; return what was done, or nothing."""

    def inspect(self) -> dict[str, list[str]]:
        """Return what could mislead this program: planted journals, names that are paths, ports that another process has."""
        return {}
