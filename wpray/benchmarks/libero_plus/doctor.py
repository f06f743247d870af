"""Checks of LIBERO-plus: LIBERO's, and the package with the files of its variants."""

from __future__ import annotations

from wpray.benchmarks.base import BenchmarkCheck, RunRequest
from wpray.benchmarks.libero import doctor as libero
from wpray.benchmarks.libero_plus import package, tasks
from wpray.benchmarks.libero_plus.own_scenes import SETTING, assets_root
from wpray.benchmarks.libero_plus.suites import OF_BASE_ASSETS, split
from wpray.benchmarks.libero_plus.variants import Variant
from wpray.checks import CheckResult
from wpray.trials import select_tasks

_NAME = "LIBERO-plus"
_ASSETS = "LIBERO-plus assets"


def check_package(request: RunRequest) -> list[CheckResult]:
    """Find the package."""
    return [CheckResult(_NAME, "pass", str(package.package_root()))]


def check_own_assets(request: RunRequest) -> list[CheckResult]:
    """Say whether the assets of light, background and layout are there; suites that need them are listed only then."""
    root = assets_root()
    if root is None:
        without = f"{SETTING} is not set: {', '.join(OF_BASE_ASSETS)} run, other categories do not"
        return [CheckResult(_ASSETS, "pass", without)]
    lacking = [name for name in ("scenes", "textures", "new_objects") if not (root / name).is_dir()]
    if lacking:
        remedy = f"set {SETTING} to the folder that holds them"
        return [CheckResult(_ASSETS, "fail", f"{root} has no {', '.join(lacking)}", remedy)]
    return [CheckResult(_ASSETS, "pass", f"of all categories, in {root}")]


def check_suites(request: RunRequest) -> list[CheckResult]:
    """Read the problem files and the initial states of the suites' variants."""
    return [_check_suite(request, suite) for suite in request.suites]


def _check_suite(request: RunRequest, suite: str) -> CheckResult:
    listed = tasks.list_tasks(suite, request.max_steps_of(suite), request.instruction_of(suite))
    chosen = select_tasks(listed, request.task_ids(suite, (task.task_id for task in listed)))
    base = str(split(suite)[0])
    for task in chosen:
        package.bddl_file(base, Variant.of(task.name).compiled)
    scenes, fewest = len({task.scene for task in chosen}), min(task.num_trials for task in chosen)
    text = f"{suite}: {len(chosen)} variants in {scenes} scenes, at least {fewest} initial states each"
    if request.num_trials > fewest:
        return CheckResult("suite", "fail", text, f"num_trials_per_task: use at most {fewest}")
    return CheckResult("suite", "pass", f"{text}, all readable")


_RUNS = frozenset({"LIBERO", "OpenGL", "rendering", _NAME})
CHECKS = (
    *(check for check in libero.CHECKS if check.name != "suite"),
    BenchmarkCheck(_NAME, check_package, quick=True),
    BenchmarkCheck(_ASSETS, check_own_assets),
    BenchmarkCheck("suite", check_suites, _RUNS),
)
