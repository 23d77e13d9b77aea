"""Text generation from trained models: cached decoding, sampling and beam search."""
