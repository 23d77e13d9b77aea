"""Attention: the module, and its implementations."""
