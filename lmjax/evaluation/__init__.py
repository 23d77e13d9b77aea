"""Zero-, one- and few-shot evaluation; this package knows nothing about training."""
