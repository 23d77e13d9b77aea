"""Optimizers, learning-rate schedules and batch-size plans."""
