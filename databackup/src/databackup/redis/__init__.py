"""A Redis server: its backup, its restore, damage in its files, and the takeover of another one."""
