"""The policy of a run, once it is known to fit the run's benchmark."""

from __future__ import annotations

from wpray.config import Config
from wpray.policies.base import AnyPolicy, PolicySpec
from wpray.policies.factory import policy_spec, spec_of_object
from wpray.policies.fit import check_fits, check_options


def fitting_spec(config: Config, live: AnyPolicy | None = None) -> PolicySpec:
    """Return the specification of the configured policy, or of the `live` one.

    Raises BadInputError if it does not fit the benchmark or the settings.
    """
    spec = policy_spec(config) if live is None else spec_of_object(live)
    benchmark = config.load_benchmark()
    for suite in config.suites:
        check_fits(spec, suite, benchmark.observation_spec(suite), benchmark.action_spec(suite))
    check_options(spec, config)
    return spec
