"""Env actors learn what the policy needs from the run's context: none of the policy's own imports is theirs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.policies.factory import policy_spec, with_policy_args
from wpray.policies.noop import NoopPolicy

pytestmark = pytest.mark.ray


class Size(Enum):
    SMALL = "small"


class HeavyPolicy(NoopPolicy):
    """Stands for a policy whose module must not reach env actors; one setting has a type of its own."""

    class Settings(BaseModel):
        size: Size | None = None

    @classmethod
    def spec_of(cls, settings: Settings) -> PolicySpec:
        return PolicySpec("heavy", images=True, privileged=False, num_gpus=0, max_batch_size=1)


LEARNED = {"vlm_checkpoint": "a", "ae_checkpoint": "b", "dataset_statistics_path": "c"}
OWN = {"policy": f"{__name__}:HeavyPolicy", "policy_args": {"size": "small"}}


def test_an_env_actor_imports_neither_torch_nor_the_policy(tmp_path: Path) -> None:
    import ray

    from wpray.cluster.setup import running_ray
    from wpray.orchestration.actors import EnvActor, RunContext

    configs = [with_policy_args(Config.model_validate({"task_suite": "fake", **own})) for own in (LEARNED, OWN)]
    assert configs[1].policy_args == {"size": Size.SMALL}
    with running_ray(configs[0]):
        for config in configs:
            context = RunContext("run", config, b"", spec=policy_spec(config))
            actor: Any = EnvActor.options(num_cpus=0).remote("env-0", context.for_environments(), [])
            ray.get(actor.start.remote(), timeout=60)
            names = ray.get(actor.__ray_call__.remote(lambda _: set(__import__("sys").modules)), timeout=60)
            assert "wpray.orchestration.actors" in names
            assert not {"torch", "tokenizers", __name__} & names
            ray.kill(actor)
