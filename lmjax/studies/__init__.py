"""Experiments that compare several runs."""
