"""The doctor's checks of checkpoints, statistics and tokenizer, and of the GPU memory that they need."""

from __future__ import annotations

from functools import partial

from wpray.checks import CheckResult
from wpray.config import Config
from wpray.policies.base import PolicyCheck
from wpray.policies.waypoint_vla.spec import spec_of
from wpray.policies.waypoint_vla.suite_statistics import scalings_of, statistics_lines, suite_statistics
from wpray.system.gpus import free_gpu_memory

_GIB = 2**30
_CUDA = 2.1 * _GIB  # CUDA, captured graphs and the allocator's reserve: measured use less what is computed here
_REMEDY_MEMORY = "lower batching.max_batch_size, or set vlm_precision: bfloat16 and precision: bfloat16"


def checks(config: Config) -> tuple[PolicyCheck, ...]:
    """Return the checks of `config` in order."""
    return (
        PolicyCheck("statistics", partial(check_statistics, config), quick=True),
        # The layout depends on the width of the statistics.
        PolicyCheck("models", partial(check_models, config), frozenset({"statistics"}), quick=True),
        PolicyCheck("tokenizer", partial(check_tokenizer, config), frozenset({"statistics", "models"}), quick=True),
        PolicyCheck("GPU memory", partial(check_gpu_memory, config), frozenset({"statistics", "models"})),
    )


def check_models(config: Config) -> list[CheckResult]:
    """Compare the checkpoints' headers with the sizes of the configuration."""
    from wpray.policies.waypoint_vla import weights

    models = weights.distinct(*weights.read(config))
    results = [CheckResult(model.name, "pass", model.describe()) for model in models]
    if len(models) > 1 and len({model.file.path.resolve() for model in models}) == 1:
        text = (
            f"vlm_checkpoint and ae_checkpoint are the same file, {config.vlm_checkpoint}: both models are read from it"
        )
        results.append(CheckResult("models", "warn", text))
    return [*results, *(CheckResult("models", "warn", text) for text in weights.warnings(config))]


def check_gpu_memory(config: Config) -> list[CheckResult]:
    """Compare free GPU memory with the need of both models and, as an estimate, of a full batch."""
    from wpray.policies.waypoint_vla import weights

    vlm, expert = weights.read(config)
    stored = sum(model.num_bytes for model in weights.distinct(vlm, expert))
    needed = stored + weights.working_memory(config, vlm, expert) + _CUDA
    what = f"about {needed / _GIB:.1f} GiB for weights and batches of {spec_of(config).max_batch_size}"
    gpus = free_gpu_memory()
    if not gpus:
        remedy = "ray.address: a cluster that has one"
        return [CheckResult("GPU memory", "warn", f"no GPU here: the CPU computes, slowly; {what}", remedy)]
    name, free = max(gpus.items(), key=lambda item: item[1])
    text = f"{free / _GIB:.1f} GiB free on {name}, {what}"
    if free < needed:
        return [CheckResult("GPU memory", "fail", text, _REMEDY_MEMORY)]
    return [CheckResult("GPU memory", "pass", text)]


def check_statistics(config: Config) -> list[CheckResult]:
    """Check the statistics file: layout, data set, 7 and 8 (or 6) dimensions, order of percentiles."""
    if config.dataset_statistics_path is None:
        return []
    found = suite_statistics(config)
    scalings = scalings_of(found, config.norm_type)
    width = scalings.default.proprio_dim
    lines = "; ".join(statistics_lines(config, found, scalings))
    text = f"{lines}; action 7, proprio {width}, norm_type {config.norm_type}"
    fits = all(statistics.fits for statistics in found.values())
    return [CheckResult("statistics", "pass" if fits else "warn", text)]


def check_tokenizer(config: Config) -> list[CheckResult]:
    """Check that PaliGemma's tokenizer exists and has the checkpoint's vocabulary."""
    from wpray.policies.waypoint_vla import weights
    from wpray.policies.waypoint_vla.model_files import tokenizer_path
    from wpray.policies.waypoint_vla.prompt import load_tokenizer

    path = tokenizer_path(config)
    tokenizer = load_tokenizer(path, small=weights.is_synthetic(config))
    return [CheckResult("tokenizer", "pass", f"{path}: {tokenizer.vocab_size()} pieces")]
