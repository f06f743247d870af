"""Policies that another process answers for: clients of the servers that people already run. Nothing is unpickled."""
