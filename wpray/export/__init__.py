"""Export of episodes to other tools' formats: `python -m wpray.export lerobot RUN_DIR OUT`."""
