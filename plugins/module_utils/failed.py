"""How the work of a module ends where it cannot be done."""

from __future__ import annotations

from typing import Any


class Failed(Exception):
    """A module's work failed; `unchanged` is whether that is all, and `result` is returned beside the message."""

    def __init__(self, problem: str, *, unchanged: bool = False, **result: Any) -> None:
        super().__init__(f"{problem.rstrip('.')}. Nothing was changed." if unchanged else problem)
        self.problem = problem
        self.unchanged = unchanged
        self.result = result
