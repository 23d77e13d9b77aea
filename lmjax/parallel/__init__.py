"""Meshes, shardings, processes and pmap."""
