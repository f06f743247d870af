"""Results: schema, writing, merging, statistics."""
