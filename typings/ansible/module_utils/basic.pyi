from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

class AnsibleModule:
    params: dict[str, Any]
    check_mode: bool
    no_log_values: set[str]
    def __init__(
        self,
        argument_spec: Mapping[str, Mapping[str, Any]],
        *,
        add_file_common_args: bool = ...,
        mutually_exclusive: Sequence[Sequence[str]] = ...,
        required_by: Mapping[str, str | Sequence[str]] = ...,
        required_if: Sequence[Sequence[Any]] = ...,
        required_one_of: Sequence[Sequence[str]] = ...,
        required_together: Sequence[Sequence[str]] = ...,
        supports_check_mode: bool = ...,
    ) -> None: ...
    def exit_json(self, **result: Any) -> NoReturn: ...
    def fail_json(self, msg: str, **result: Any) -> NoReturn: ...
    def load_file_common_arguments(self, params: Mapping[str, Any], path: str | None = ...) -> dict[str, Any]: ...
    def run_command(
        self,
        args: str | Sequence[str],
        check_rc: bool = ...,
        *,
        cwd: str | None = ...,
        data: str | bytes | None = ...,
        environ_update: Mapping[str, str] | None = ...,
    ) -> tuple[int, str, str]: ...
    def set_fs_attributes_if_different(self, file_args: Mapping[str, Any], changed: bool) -> bool: ...
