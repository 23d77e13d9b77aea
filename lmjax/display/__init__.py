"""Console output and figures; this package knows nothing about language models."""
