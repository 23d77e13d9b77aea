"""The machine, files, faults for tests, and settings that precede the start of JAX."""
