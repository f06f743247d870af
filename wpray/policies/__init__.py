"""Policies: what answers plan and segment requests."""
