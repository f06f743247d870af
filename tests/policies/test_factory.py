"""Which module a policy's name means."""

from __future__ import annotations

import subprocess
import sys


def test_an_env_actor_learns_what_the_learned_policy_needs_without_torch() -> None:
    """It has a process of its own, and torch takes seconds and hundreds of megabytes of each."""
    code = (
        "import sys; from wpray.config import Config; from wpray.policies.factory import policy_spec; "
        "config = Config(vlm_checkpoint='a', ae_checkpoint='b', dataset_statistics_path='c', num_parallel=3); "
        "print(policy_spec(config).max_batch_size, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 False\n"
