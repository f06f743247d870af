"""Which module a policy's name means."""

from __future__ import annotations

import subprocess
import sys

from wpray.config import Config
from wpray.policies.factory import policy_spec


def test_an_env_actor_learns_what_the_learned_policy_needs_without_torch() -> None:
    """It has a process of its own, and torch takes seconds and hundreds of megabytes of each."""
    code = (
        "import sys; from wpray.config import Config; from wpray.policies.factory import policy_spec; "
        "config = Config(vlm_checkpoint='a', ae_checkpoint='b', dataset_statistics_path='c', num_parallel=3); "
        "print(policy_spec(config).max_batch_size, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 False\n"


def test_a_spec_names_the_checkpoints_and_rows_name_the_first() -> None:
    joint = Config(joint_checkpoint="j", dataset_statistics_path="s")
    pair = Config(vlm_checkpoint="v", ae_checkpoint="a", dataset_statistics_path="s")
    assert policy_spec(joint).checkpoints == {"joint": "j"} and policy_spec(joint).checkpoint == "j"
    assert policy_spec(pair).checkpoints == {"VLM": "v", "action expert": "a"} and policy_spec(pair).checkpoint == "v"
    own = Config(policy="noop", vlm_checkpoint="v")  # a module may read the flat settings
    assert policy_spec(own).checkpoints == {"VLM": "v"} and policy_spec(Config(policy="noop")).checkpoint is None
