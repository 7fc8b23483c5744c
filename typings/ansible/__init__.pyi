"""What this project uses of ansible-core, which ships no types. An import that is not here is an Any, in tests only."""
