from typing import Any, ClassVar

from ansible.utils.display import Display

class CallbackBase:
    CALLBACK_VERSION: ClassVar[float]
    CALLBACK_TYPE: ClassVar[str]
    CALLBACK_NAME: ClassVar[str]
    CALLBACK_NEEDS_ENABLED: ClassVar[bool]
    _display: Display
    def __init__(self) -> None: ...
    def v2_playbook_on_start(self, playbook: Any) -> None: ...
