from typing import Any

class Task:
    args: dict[str, Any]
    check_mode: bool
