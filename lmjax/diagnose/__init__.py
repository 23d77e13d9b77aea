"""Audit, replay and rehearsal of runs."""
