"""Lookup: the program databackup as one file, built from its sources. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
name: databackup_program
short_description: Build the program databackup as one file
description:
  - Builds a zipapp of C(databackup/src) on the controller, and returns where it is. The same sources make the same
    bytes, on any machine and with any Python.
  - It is in a folder that Ansible removes at the end of the run, so each run builds it again, which takes some
    milliseconds. It is built in check mode, too; nothing on a host is looked at or changed.
"""

EXAMPLES = r"""
- name: Install databackup
  ansible.builtin.copy:
    src: "{{ lookup('quantdesk.redis.databackup_program').path }}"
    dest: /usr/local/sbin/databackup
    mode: "0755"
"""

RETURN = r"""
_raw:
  description: One mapping.
  type: list
  elements: dict
  contains:
    path: {description: The file on the controller., type: str}
    sha256: {description: Its digest., type: str}
    version: {description: What C(databackup --version) prints., type: str}
"""

import hashlib  # noqa: E402 - Ansible wants the documentation first
import io  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import zipfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible import constants  # noqa: E402
from ansible.plugins.lookup import LookupBase  # noqa: E402

SOURCES = Path(__file__).resolve().parents[2] / "databackup/src"
# Whatever language the host speaks, texts are UTF-8.
HEAD = b"#!/usr/bin/python3 -Xutf8\n"
MAIN = '"""The command databackup."""\n\nimport sys\n\nfrom databackup.cli import main\n\nsys.exit(main())\n'
# The first moment that a zip can name.
TIME = (1980, 1, 1, 0, 0, 0)


def modules(sources: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each file of the program, in a fixed order; a link is the file that it leads to."""
    yield "__main__.py", MAIN.encode()
    for path in sorted(sources.glob("databackup/**/*.py")):
        yield path.relative_to(sources).as_posix(), path.read_bytes()


def build(sources: Path = SOURCES) -> bytes:
    """Return the program as one file that Python runs: https://docs.python.org/3/library/zipapp.html."""
    file = io.BytesIO(HEAD)
    file.seek(0, os.SEEK_END)
    # Stored as they are: a compressed text is another one with each version of zlib.
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, text in modules(sources):
            entry = zipfile.ZipInfo(name, TIME)
            # As Unix has it, on any controller: a file that all may read.
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, text)
    return file.getvalue()


def version(program: bytes, sources: Path = SOURCES) -> str:
    """Return the version that a program prints."""
    text = (sources / "databackup/__init__.py").read_text(encoding="utf-8")
    declared = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert declared is not None
    return f"databackup {declared[1]}+{hashlib.sha256(program).hexdigest()[:12]}"


class LookupModule(LookupBase):
    """What Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, str]]:
        """Return where the program is, and what it is."""
        program = build()
        sha256 = hashlib.sha256(program).hexdigest()
        path = Path(constants.DEFAULT_LOCAL_TMP) / f"databackup-{sha256}"
        if not path.exists():
            # Several hosts' tasks may do so at once.
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_bytes(program)
            partial.replace(path)
        return [{"path": str(path), "sha256": sha256, "version": version(program)}]
