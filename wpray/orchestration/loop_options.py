"""The variants of an episode's loop that a configuration asks for."""

from __future__ import annotations

from wpray.config import Config
from wpray.rollout import LoopOptions
from wpray.tracking import DeviationRule


def loop_options(config: Config) -> LoopOptions:
    """Return how the loop of `config` differs from the usual one."""
    deviation = DeviationRule(config.deviation_threshold, config.deviation_metric)
    return LoopOptions(
        starts_from_actual=config.starts_from_actual,
        max_segments_per_replan=config.max_segments_per_replan,
        strict_step_budget=config.strict_step_budget,
        stop_on_d0=config.stop_on_d0,
        crop_scale=config.center_crop_scale if config.center_crop else None,
        replan_on=deviation if config.replan_on_deviation else None,
        latency_steps=config.latency_steps,
        uses_chunks_rest=config.latency.mode == "hold",
    )
