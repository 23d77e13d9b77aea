"""The journal of a run, and the history derived from it."""
