"""`python -m wpray.launch`: evaluate a policy. It reads the configuration before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wpray.cli.command import run_command
from wpray.cli.configuration import read_config
from wpray.cluster import process_env
from wpray.errors import BadInputError


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0 if all episodes ran, 1 if some have no outcome. Raises BadInputError."""
    config = read_config(argv)
    process_env.prepare(joins_a_cluster=config.ray.address is not None or config.ray.submit is not None)
    if config.ray.submit is not None:
        if "--live" in argv:
            raise BadInputError("--live: shows runs of this machine; leave it out with ray.submit")
        from wpray.jobs.submit import submit

        return submit(config, plan="--plan" in argv)
    if "--plan" in argv:
        from wpray.run.plan import show_plan

        return show_plan(config)
    from wpray.run.evaluation import CallerParts, evaluate_with

    return evaluate_with(config, CallerParts(live="--live" in argv)).exit_code


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
