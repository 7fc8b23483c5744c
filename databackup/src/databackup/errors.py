"""What ends a run, with a message for an operator."""

from __future__ import annotations


class Failed(Exception):
    """A run cannot continue. The message names what was found, what was expected, and what to do."""


class Busy(Failed):
    """Another run has the source; this one did nothing."""
