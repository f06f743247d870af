"""Checks of everything that a run needs. Each check is a small function: configuration in, results out."""
