"""The training loop, its state and the update; it knows no model, data or objective."""
