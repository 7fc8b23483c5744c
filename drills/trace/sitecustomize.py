"""Have SQLite itself report each statement that a Python process runs, to the file that DRILL_TRACE names.

Python imports this by itself where its folder is on PYTHONPATH, so the program that is watched need not take part.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Any

_connect = sqlite3.connect
_file = os.open(os.environ["DRILL_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _report(statement: str) -> None:
    os.write(_file, (" ".join(statement.split()) + "\n").encode())


def _traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = _connect(*arguments, **options)
    connection.set_trace_callback(_report)
    return connection


sqlite3.connect = _traced  # type: ignore[assignment]  # the same, less exactly typed
