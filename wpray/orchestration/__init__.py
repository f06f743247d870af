"""Driver, scheduler, actors, their pools, events and stop rules: the only place that manages actors' lives."""
