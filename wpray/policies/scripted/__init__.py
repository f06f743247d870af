"""Scripted pick-and-place policy that reads the simulator's state."""
