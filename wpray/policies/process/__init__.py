"""A policy in a Python of its own: another version of numpy or torch, or another Python."""
