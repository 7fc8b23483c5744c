"""A database of PostgreSQL: its backup, and its restore beside the old one."""
