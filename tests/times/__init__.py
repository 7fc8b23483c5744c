"""Where the time of the tests goes: what `make test` records, and what `make test-times` makes of it."""
