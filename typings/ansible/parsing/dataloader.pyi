from typing import Any

class DataLoader:
    def load_from_file(self, file_name: str, *, trusted_as_template: bool = ...) -> Any: ...
