from typing import Any

class _Config:
    def get_config_value(self, config: str) -> Any: ...

config: _Config

# Of a setting that no line here names, the type is not known.
def __getattr__(name: str) -> Any: ...
