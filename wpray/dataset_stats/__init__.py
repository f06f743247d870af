"""`python -m wpray.dataset_stats RLDS_DIR -o dataset_statistics.json`: normalization statistics of a data set."""
