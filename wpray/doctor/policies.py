"""The doctor's checks of the configured policy: that it fits the benchmark, and those that the policy brings."""

from __future__ import annotations

from wpray.checks import CheckResult
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import PolicyCheck
from wpray.policies.factory import policy_checks
from wpray.policies.fit import fitting_spec
from wpray.registry import POLICIES


def own_checks(config: Config) -> tuple[PolicyCheck, ...]:
    """Return the checks that the policy brings; none if it cannot be loaded, which `check_policy` reports."""
    try:
        return policy_checks(config)
    except BadInputError:
        return ()


def run_check(config: Config, own: PolicyCheck) -> list[CheckResult]:
    """Return the results of one of the policy's checks. Raise BadInputError for a package that is not installed."""
    try:
        return list(own.check())
    except ModuleNotFoundError as error:
        raise POLICIES.lacking(config.policy, error) from error


def check_policy(config: Config) -> list[CheckResult]:
    """Check that the policy exists, and that its observations and actions are those of the suites."""
    spec = fitting_spec(config)
    policy_checks(config)
    sees = ", which sees the objects' positions" if spec.privileged else ""
    return [CheckResult("policy", "pass", f"{config.policy}{sees}")]


def check_nodes_have_files(config: Config) -> list[CheckResult]:
    """Warn of checks that only a node of the cluster could make."""
    names = [own.name for own in own_checks(config) if own.local]
    if config.ray.address is None or not names:
        return []
    text = f"{', '.join(names)} not checked: the files and devices are those of the cluster's nodes"
    return [CheckResult("policy", "warn", text, "run doctor on a node")]
