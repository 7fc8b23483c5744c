from typing import Any

class PluginLoader:
    def get(self, name: str, *, class_only: bool = ...) -> Any: ...

action_loader: PluginLoader
become_loader: PluginLoader
connection_loader: PluginLoader
filter_loader: PluginLoader
lookup_loader: PluginLoader
shell_loader: PluginLoader
test_loader: PluginLoader
