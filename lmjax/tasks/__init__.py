"""What a run learns: its samples, its loss, how it is measured and shown."""
