"""The journal of a run and the history that it tells."""
