"""Jinja filters about the inventory's own files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Of the files in group_vars and host_vars, those that Ansible reads.
SUFFIXES = ("", ".yml", ".yaml", ".json")


def vault_files(sources: Iterable[str]) -> list[str]:
    """Return the files vault* of variables of an inventory's sources, at any depth; of a file, those beside it."""
    folders = {
        Path(source) if Path(source).is_dir() else Path(source).parent for source in sources if "," not in source
    }
    return sorted(
        str(path)
        for folder in folders
        for kind in ("group_vars", "host_vars")
        for path in (folder / kind).glob("**/vault*")
        if path.is_file() and path.suffix in SUFFIXES
    )


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"vault_files": vault_files}
