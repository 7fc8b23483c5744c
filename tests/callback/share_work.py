"""Do once what each of many runs would do again: pack modules, compile templates.

Left alone, every run packs each module with all that it imports, and each task compiles each template and expression
that it meets. What a host is sent is the same. What each task of one run would do again is load_once's concern, beside
the playbooks.
"""

from __future__ import annotations

import hashlib
import marshal
import os
from pathlib import Path
from types import CodeType
from typing import Any

from ansible import constants
from ansible._internal._templating._jinja_bits import _TemplateCompileContext
from ansible.plugins.callback import CallbackBase
from jinja2 import Environment
from jinja2.environment import TemplateExpression

# What an environment compiles differently for, as in jinja2.lexer.get_lexer.
OPTIONS = (
    *(f"{kind}_{end}_string" for kind in ("block", "variable", "comment") for end in ("start", "end")),
    *("line_statement_prefix", "line_comment_prefix", "trim_blocks", "lstrip_blocks", "newline_sequence"),
    *("keep_trailing_newline", "optimized", "autoescape", "code_generator_class"),
)
DOCUMENTATION = """
name: share_work
type: notification
short_description: let all runs of ansible-playbook share packed modules, in the folder TEST_MODULES
description:
  - Modules are found there by name, so a folder serves for as long as no module changes, such as for one `make test`.
  - Nothing is shared where the environment has no TEST_MODULES.
requirements: []
"""


class Templates:
    """Keeps Jinja's code by its source, in files that many processes read and write at once.

    A file is there whole or not at all.
    """

    compile = staticmethod(Environment.compile)
    compile_expression = staticmethod(Environment.compile_expression)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The file of the expression that is just compiled: Jinja hands on its tree, and not its text.
        self.file: Path | None = None

    def share(self) -> None:
        """Let all environments of this process and of those that it forks keep their code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        templates = self

        def compile_once(environment: Environment, source: Any, *rest: Any, **more: Any) -> Any:
            if isinstance(source, str) and not any(rest) and not any(more.values()):
                file = templates._file(environment, "template", source)
                return templates._read(file) or templates._keep(file, templates.compile(environment, source))
            code = templates.compile(environment, source, *rest, **more)
            expression, templates.file = templates.file, None
            return templates._keep(expression, code) if expression else code

        def compile_expression_once(environment: Environment, source: str, undefined_to_none: bool = True) -> Any:
            file = templates._file(environment, "expression", source)
            code = templates._read(file)
            if code is None:
                templates.file = file
                try:
                    return templates.compile_expression(environment, source, undefined_to_none)
                finally:
                    templates.file = None
            template = environment.template_class.from_code(environment, code, environment.make_globals(None))
            return TemplateExpression(template, undefined_to_none)

        for function in (compile_once, compile_expression_once):
            setattr(Environment, function.__name__.removesuffix("_once"), function)

    def _file(self, environment: Environment, kind: str, source: str) -> Path:
        """Return the file for a source and all that decides what becomes of it: of Jinja, and of Ansible."""
        context = _TemplateCompileContext.current(optional=True)
        options = [
            *(str(getattr(environment, name, None)) for name in OPTIONS),
            str(context and context.escape_backslashes),
        ]
        return self.folder / hashlib.sha256(repr([kind, str(source), options]).encode()).hexdigest()

    def _read(self, file: Path) -> CodeType | None:
        try:
            code: CodeType = marshal.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        return code

    def _keep(self, file: Path, code: CodeType) -> CodeType:
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_bytes(marshal.dumps(code))
        partial.replace(file)
        return code


class CallbackModule(CallbackBase):
    """Works before the first task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "share_work"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook: Any) -> None:
        folder = os.environ.get("TEST_MODULES")
        if folder is None:
            return
        Templates(Path(folder) / "templates").share()
        # A test that brings a module of its own must not meet the project's of that name, nor the other way round.
        folder = f"{folder}/{hashlib.sha256(str(constants.COLLECTIONS_PATHS).encode()).hexdigest()[:12]}"
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Ansible locks each module there, so runs wait for each other. At the end the link goes, not the folder.
        Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache").symlink_to(folder)
