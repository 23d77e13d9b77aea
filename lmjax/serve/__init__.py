"""Use of a trained model by other programs."""
