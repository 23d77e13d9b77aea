"""Evaluation tasks as data: prompts with zero, one or a few examples."""
