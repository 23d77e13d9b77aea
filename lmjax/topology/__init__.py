"""Compilation and cost estimates for devices that are not present."""
