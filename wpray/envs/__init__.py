"""Environments: the protocol, real LIBERO and a fast fake."""
