"""A run whose driver is a Ray job: submitted, followed and fetched through the dashboard's port alone."""
