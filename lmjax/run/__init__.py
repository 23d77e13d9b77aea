"""Puts the parts of a run together: the only package that knows all of them."""
