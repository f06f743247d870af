"""A run's episodes in other tools' formats: `python -m wpray.export lerobot RUN_DIR OUT`."""
