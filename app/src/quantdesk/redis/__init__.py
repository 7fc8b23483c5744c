"""Redis: its connections, the cache, limits and messages that are kept in it."""
