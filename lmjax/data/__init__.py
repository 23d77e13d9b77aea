"""From text to batches: sources -> tokenizer -> store -> order -> examples -> feed."""
