"""`python -m wpray.launch`: evaluates a policy. Reads the configuration before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wpray import quiet_ray
from wpray.command import run_command
from wpray.config_cli import read_config
from wpray.errors import BadInputError


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 all episodes ran, 1 some have no outcome, 2 bad input."""
    config = read_config(argv)
    if config.ray.submit is not None:
        raise BadInputError(
            "ray.submit: submitting the driver as a Ray job is not there yet; run this on a node of the cluster "
            "with --ray.address auto"
        )
    quiet_ray.prepare(joins_a_cluster=config.ray.address is not None)
    if "--plan" in argv:
        from wpray.plan_run import show_plan

        return show_plan(config)
    from wpray.evaluation import evaluate

    return evaluate(config)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
