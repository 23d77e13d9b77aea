"""The guard: detects loss spikes and decides on rollbacks."""
