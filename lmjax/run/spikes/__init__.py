"""Reports of loss spikes."""
