"""Where text and records come from."""
