"""A run as one self-contained HTML page: `python -m wpray.report RUN_DIR`."""
