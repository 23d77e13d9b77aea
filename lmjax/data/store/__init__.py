"""The memory-mapped store of token ids and how it is prepared."""
