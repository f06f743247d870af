"""One run: evaluation, result folder, run.json and forecast."""
