"""Policies, which answer requests for plans, segments and chunks."""
