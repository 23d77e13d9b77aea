"""Models as Flax Linen modules: pure functions over plain parameter trees, one file a family."""
