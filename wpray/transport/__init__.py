"""Requests from env actors to policy actors, and the choice of a replica."""
