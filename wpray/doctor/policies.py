"""The doctor's checks of the configured policy: that it fits the benchmark, and those that the policy brings."""

from __future__ import annotations

from wpray.checks import CheckResult
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.base import PolicyCheck
from wpray.policies.drawing import DrawingPlace, drawing_place
from wpray.policies.environments import Host, Suited, suited
from wpray.policies.factory import policy_checks, policy_spec
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


def environments_here(config: Config) -> Suited | None:
    """Return the number of environments that suits the policy on this machine.

    None if the run joins a cluster, or if the policy cannot be loaded, which `check_policy` reports.
    """
    if config.ray.address is not None:
        return None
    try:
        spec = policy_spec(config)
    except BadInputError:
        return None
    return suited(config, spec, Host.here(config, spec))


def drawing_here(config: Config, gpus: int) -> DrawingPlace:
    """Return where a run draws: nowhere else if the policy cannot be loaded, which `check_policy` reports."""
    try:
        return drawing_place(config, policy_spec(config), gpus)
    except BadInputError:
        return DrawingPlace(False, "the policy cannot be loaded")


def check_environments(config: Config) -> list[CheckResult]:
    """Compare the configured number of environments with the one that suits the policy on this machine."""
    found, given = environments_here(config), config.num_env_actors
    if found is None or config.load_benchmark().stand_in:
        return []
    if given == "auto":
        return [CheckResult("environments", "pass", str(found))]
    if given <= found.number:
        return [CheckResult("environments", "pass", f"{given} are asked for, on {found.cores} cores")]
    text = f"{given} are asked for; auto would be {found}"
    return [CheckResult("environments", "warn", text, "leave ray.num_env_actors (num_parallel) out")]


def check_nodes_have_files(config: Config) -> list[CheckResult]:
    """Warn of checks that only a node of the cluster could make."""
    names = [own.name for own in own_checks(config) if own.local]
    if config.ray.address is None or not names:
        return []
    text = f"{', '.join(names)} not checked: the files and devices are those of the cluster's nodes"
    return [CheckResult("policy", "warn", text, "run doctor on a node")]
