"""Model families as Flax Linen modules, one file each."""
