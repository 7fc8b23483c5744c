"""What the framework passes to a route by the parameter's name."""

from typing import TypeAlias

from litestar.di import NamedDependency

from quantdesk.services import Services

# The annotation of a route's parameter `services`.
InjectedServices: TypeAlias = NamedDependency[Services]
