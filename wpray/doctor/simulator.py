"""Checks that run the simulator: rendering, and whole trials."""

from __future__ import annotations

from wpray.benchmarks.factory import benchmark_name
from wpray.checks import CheckResult, run_probe
from wpray.config import Config
from wpray.doctor.policies import drawing_here
from wpray.system import gl
from wpray.system.gpus import num_gpus

_PROBES = "wpray.doctor.probe"


def check_rendering(config: Config) -> list[CheckResult]:
    """Render a frame and report the renderer, and where a run draws. The check of Ray does so for a cluster."""
    if not config.load_benchmark().uses_opengl or config.ray.address is not None:
        return []
    found = render_here(config)
    place = drawing_here(config, num_gpus())
    drawn = [CheckResult("rendering", "pass", f"pictures are drawn {place}")] if place.remote else []
    return [*found, *drawn]


def render_here(config: Config) -> list[CheckResult]:
    """Render a frame on this machine and report the renderer."""
    renderer = gl.resolve(config.env.renderer)
    found = run_probe(_PROBES, "render", renderer)
    if found.error:
        return [CheckResult("rendering", "fail", f"{renderer}: {found.error}", found.remedy)]
    values = found.values
    if values["red"] < values["blue"] + 5:
        return [
            CheckResult("rendering", "fail", f"{renderer}: the frame is not what was drawn", "env.renderer: osmesa")
        ]
    where = f"{renderer} on {values['renderer']}"
    text = f"{where}: a frame in {1000 * values['seconds']:.0f} ms"
    if renderer == "osmesa":
        return [CheckResult("rendering", "pass", text)]
    if "llvmpipe" in where or "softpipe" in where:
        remedy = "mount the GPU's driver files, or env.renderer: osmesa"
        return [CheckResult("rendering", "warn", f"{text}, which is no GPU", remedy)]
    return [CheckResult("rendering", "pass", f"{text}; EGL device {values['device'] or 'as it comes'}")]


def check_trials(config: Config) -> list[CheckResult]:
    """Run two trials that a policy is known to solve, on a suite of the configured benchmark."""
    solved_by = config.load_benchmark().solved_by
    if solved_by is None:
        return []
    suite, policy = solved_by
    found = run_probe(_PROBES, "trials", suite, benchmark_name(config.suites[0], config.benchmark), policy)
    if found.error:
        return [CheckResult("trials", "fail", found.error, found.remedy)]
    steps = found.values["steps"]
    if None in steps:
        text = f"policy {policy} solved {len(steps) - steps.count(None)} of 2 on {suite}"
        return [CheckResult("trials", "fail", text, "install the packages that the simulator is tested with")]
    return [
        CheckResult("trials", "pass", f"policy {policy} solved 2 of 2 on {suite} (in {steps[0]} and {steps[1]} steps)")
    ]
