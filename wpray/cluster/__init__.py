"""Ray: set-up, placement, environment of its processes, and the versions of a run's nodes."""
