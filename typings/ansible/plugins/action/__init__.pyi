from collections.abc import Mapping
from typing import Any, ClassVar

from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible.utils.display import Display

class ActionBase:
    TRANSFERS_FILES: ClassVar[bool]
    _VALID_ARGS: ClassVar[frozenset[str]]
    _supports_async: bool
    _supports_check_mode: bool
    _display: Display
    _loader: DataLoader
    _task: Task
    _templar: Templar
    def run(self, tmp: str | None = ..., task_vars: dict[str, Any] | None = ...) -> dict[str, Any]: ...
    def _compute_environment_string(self) -> str: ...
    def _execute_module(
        self, module_name: str, module_args: Mapping[str, Any], *, task_vars: dict[str, Any] | None
    ) -> dict[str, Any]: ...
    def _is_pipelining_enabled(self, module_style: str, wrap_async: bool = ...) -> bool: ...
    def _low_level_execute_command(
        self, cmd: str, sudoable: bool = ..., in_data: bytes | None = ..., executable: str | None = ...
    ) -> dict[str, Any]: ...
