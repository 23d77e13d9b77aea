"""Training: the state, the pure update, and the loop round them that alone has side effects."""
