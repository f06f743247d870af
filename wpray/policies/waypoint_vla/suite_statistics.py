"""Statistics of a run's suites: one policy normalizes each suite by its own data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wpray.config import Config
from wpray.policies.waypoint_vla.normalize import NormType
from wpray.policies.waypoint_vla.statistics import DataSetStatistics, PolicyScaling, read_statistics
from wpray.policies.waypoint_vla.statistics_file import KEY_SETTING, bad_statistics


@dataclass(frozen=True, slots=True)
class SuiteScalings:
    """Scalings of a policy by suite, all of the same width."""

    default: PolicyScaling  # of the first suite, and of any that the run does not have
    by_suite: Mapping[str, PolicyScaling] = field(default_factory=dict)

    def of(self, suite: str) -> PolicyScaling:
        """Return the scaling of a suite's requests."""
        return self.by_suite.get(suite, self.default)

    @property
    def agree(self) -> bool:
        """True if all suites have the same numbers."""
        return {scaling.digest for scaling in self.by_suite.values()} <= {self.default.digest}


def scalings_of(found: Mapping[str, DataSetStatistics], norm_type: NormType) -> SuiteScalings:
    """Return the scalings in the statistics of a run's suites.

    Raise BadInputError as `scaling` does, or if the suites' states have different widths, which one model cannot take.
    """
    scalings = {suite: statistics.scaling(norm_type) for suite, statistics in found.items()}
    first, default = next(iter(scalings.items()))
    for suite, scaling in scalings.items():
        if scaling.proprio_dim != default.proprio_dim:
            widths = f"{default.proprio_dim} numbers of proprio for {first}, {scaling.proprio_dim} for {suite}"
            raise bad_statistics(found[suite].path, widths, f"choose one data set with {KEY_SETTING}")
    return SuiteScalings(default, scalings)


def suite_statistics(config: Config) -> dict[str, DataSetStatistics]:
    """Return the statistics of each suite of a run. Raise BadInputError as `read_statistics` does."""
    assert config.dataset_statistics_path  # guaranteed by the config
    path, key = Path(config.dataset_statistics_path), config.dataset_statistics_key
    return {
        suite: read_statistics(path, named, key, config.benchmark)
        for suite, named in zip(config.suites, config.data_suites, strict=True)
    }


def statistics_lines(
    config: Config, statistics: Mapping[str, DataSetStatistics], scalings: SuiteScalings
) -> tuple[str, ...]:
    """Return what normalizes, a line for all suites if they have the same numbers, else one for each."""
    lines = {
        suite: f"{found.describe(named)}, numbers {scalings.of(suite).digest[:16]}"
        for (suite, found), named in zip(statistics.items(), config.data_suites, strict=True)
    }
    if scalings.agree:
        return (next(iter(lines.values())),)
    return tuple(f"{suite}: {line}" for suite, line in lines.items())
