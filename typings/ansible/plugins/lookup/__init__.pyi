from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

class LookupBase:
    _loader: DataLoader
    _templar: Templar
    def get_option(self, option: str) -> Any: ...
    def run(self, terms: list[str], variables: dict[str, Any] | None = ..., **kwargs: Any) -> list[Any]: ...
    def set_options(self, *, direct: dict[str, Any]) -> None: ...
