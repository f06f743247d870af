"""`python -m wpray.benchmarks.libero.warm_up`: compile the controller now, so that no first episode waits for it.

Compiled code is cached beside this package, or in NUMBA_CACHE_DIR, for this processor.
"""

from __future__ import annotations

import sys

import numpy as np

from wpray.benchmarks.libero.environment import LiberoEnvironment
from wpray.benchmarks.libero.tasks import list_tasks
from wpray.types import Trial


def main() -> int:
    """Execute one control step of one task, without rendering."""
    environment = LiberoEnvironment()
    task = list_tasks("libero_object")[0]
    environment.load(task)
    environment.reset(Trial(task, 0, seed=0))
    environment.step(np.zeros(7))
    environment.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
