"""Policies that other processes compute: clients of the servers that people already run. Nothing is unpickled."""
