"""Seeds that depend on a trial's key alone."""

from __future__ import annotations

import hashlib

from wpray.types import Trial


def reset_seed(trial: Trial) -> int:
    """Return the 32-bit seed of `trial`'s reset: SHA-256 of its key, the same on every machine and Python."""
    key = f"{trial.seed}/{trial.task.suite}/{trial.task.task_id}/{trial.init_state}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
