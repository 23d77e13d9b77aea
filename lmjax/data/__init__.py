"""From text to batches: sources, tokenizer, store, order, batches, prefetch."""
