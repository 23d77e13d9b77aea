"""Tasks as data: what a prompt is made of, zero-, one- and few-shot."""
