from typing import Self

class _TemplateCompileContext:
    escape_backslashes: bool
    @classmethod
    def current(cls, optional: bool = ...) -> Self | None: ...
