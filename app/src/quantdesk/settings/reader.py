"""Reading values from the environment, and collecting what is wrong with them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from quantdesk.settings.secret import Secret

_Choice = TypeVar("_Choice", bound=str)

_BOOLEANS: Final = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


class SettingsError(Exception):
    """The environment does not make valid settings; its text lists every problem, no secret."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
        super().__init__(
            "\n".join([f"quantdesk cannot start, {count} wrong:", *(f"  {p}" for p in problems)])
        )


class Reader:
    """Takes values from the environment and collects what is wrong with them.

    After a problem a stand-in is returned, so that the remaining values are still checked.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def problem(self, name: str, found: str, expected: str) -> None:
        self.problems.append(f"{name}: found {found}, expected {expected}")

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def choice(self, name: str, default: _Choice, choices: tuple[_Choice, ...]) -> _Choice:
        value = self.text(name)
        if value is None:
            return default
        for choice in choices:
            if value == choice:
                return choice
        self.problem(name, shown(value), f"one of {', '.join(choices)}")
        return default

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        if value.isascii() and value.isdigit() and len(value) < 12 and low <= int(value) <= high:
            return int(value)
        self.problem(name, shown(value), f"a whole number from {low} to {high}")
        return default

    def matching(self, name: str, default: str, pattern: re.Pattern[str], expected: str) -> str:
        value = self.text(name)
        if value is None:
            return default
        if pattern.fullmatch(value):
            return value
        self.problem(name, shown(value), expected)
        return default

    def boolean(self, name: str, default: bool) -> bool:
        value = self.text(name)
        if value is None:
            return default
        if value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        self.problem(name, shown(value), "true or false")
        return default

    def secret(self, name: str) -> Secret | None:
        """Read a secret from `name`, or from the file that `name`_FILE names."""
        value = self._environ.get(name) or None
        file_name = f"{name}_FILE"
        path = self.text(file_name)
        if path is None:
            return None if value is None else Secret(value)
        if value is not None:
            self.problem(file_name, shown(path), f"only one of {name} and {file_name}")
            return Secret(value)
        try:
            content = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            self.problem(file_name, f"{shown(path)} ({why(error)})", "a readable UTF-8 file")
            return None
        if not content:
            self.problem(file_name, f"{shown(path)} (empty)", "a file that holds the secret")
            return None
        return Secret(content)

    def file(self, name: str) -> Path | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            with Path(value).open("rb"):
                return Path(value)
        except (OSError, ValueError) as error:
            self.problem(name, f"{shown(value)} ({why(error)})", "a readable file")
            return None


def shown(value: str) -> str:
    return repr(value if len(value) <= 80 else f"{value[:77]}...")


def why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
