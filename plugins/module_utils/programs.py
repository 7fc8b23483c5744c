"""Programs whose output is read: in English, whatever language the host speaks, and whatever bytes they print."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Any

# Of gettext, LANGUAGE would come before it.
ENGLISH = {"LC_ALL": "C", "LANGUAGE": "C"}


def run(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with the options of subprocess.run, and return what came of it and what it printed.

    What is no UTF-8, as a service may write into its journal, is replaced.
    """
    return subprocess.run(
        words,
        **options,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={**os.environ, **ENGLISH},
    )
