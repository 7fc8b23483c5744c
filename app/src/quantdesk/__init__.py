"""QuantDesk: prices over HTTP, a database as the source of truth, Redis in front of it."""

from importlib.metadata import version

__version__ = version("quantdesk")
