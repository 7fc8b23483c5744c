"""Backups of a host's data into a restic repository, and the way back. See `__main__.py` for the command."""
