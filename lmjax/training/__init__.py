"""The training loop, its state and everything around an update; it knows no model, data or objective."""
