"""From samples to arrays."""
