"""Checks of a learned policy's checkpoints, statistics and tokenizer, and of the GPU memory that they need."""

from __future__ import annotations

import subprocess
from pathlib import Path

from wpray.checks import Result
from wpray.config import Config
from wpray.policies.factory import policy_spec
from wpray.policies.waypoint_vla.statistics import read_for_suites

_GIB = 2**30
_CUDA = 2.1 * _GIB  # CUDA, captured graphs and the allocator's reserve: measured use less what is computed here
_REMEDY_MEMORY = "lower batching.max_batch_size, or set vlm_precision: bfloat16 and precision: bfloat16"


def check_models(config: Config) -> list[Result]:
    """Compare the checkpoints' headers with the sizes of the configuration."""
    if not _is_local(config):
        return []
    from wpray.doctor import weights

    models = weights.distinct(*weights.read(config))
    results = [Result(model.name, "pass", model.describe()) for model in models]
    if len(models) > 1 and len({model.file.path.resolve() for model in models}) == 1:
        text = (
            f"vlm_checkpoint and ae_checkpoint are the same file, {config.vlm_checkpoint}: both models are read from it"
        )
        results.append(Result("models", "warn", text))
    return [*results, *(Result("models", "warn", text) for text in weights.warnings(config))]


def check_gpu_memory(config: Config) -> list[Result]:
    """Compare free GPU memory with the need of both models and, as an estimate, of a full batch."""
    if not _is_local(config):
        return []
    from wpray.doctor import weights

    vlm, expert = weights.read(config)
    stored = sum(model.num_bytes for model in weights.distinct(vlm, expert))
    needed = stored + weights.working_memory(config, vlm, expert) + _CUDA
    what = f"about {needed / _GIB:.1f} GiB for weights and batches of {policy_spec(config).max_batch_size}"
    gpus = _free_gpu_memory()
    if not gpus:
        remedy = "ray.address: a cluster that has one"
        return [Result("GPU memory", "warn", f"no GPU here: the CPU computes, slowly; {what}", remedy)]
    name, free = max(gpus.items(), key=lambda item: item[1])
    text = f"{free / _GIB:.1f} GiB free on {name}, {what}"
    if free < needed:
        return [Result("GPU memory", "fail", text, _REMEDY_MEMORY)]
    return [Result("GPU memory", "pass", text)]


def check_statistics(config: Config) -> list[Result]:
    """Check the statistics file: layout, data set, 7 and 8 (or 6) dimensions, order of percentiles."""
    if not _is_local(config) or config.dataset_statistics_path is None:
        return []
    path, key = Path(config.dataset_statistics_path), config.dataset_statistics_key
    found = read_for_suites(path, config.suites, key, config.norm_type)
    width = found.scaling(config.norm_type).proprio_dim
    text = f"{found.describe(config.suites[0])}; action 7, proprio {width}, norm_type {config.norm_type}"
    return [Result("statistics", "pass" if found.fits else "warn", text)]


def check_tokenizer(config: Config) -> list[Result]:
    """Check that PaliGemma's tokenizer exists and has the checkpoint's vocabulary."""
    if not _is_local(config):
        return []
    from wpray.doctor import weights
    from wpray.policies.waypoint_vla.model_files import tokenizer_path
    from wpray.policies.waypoint_vla.prompt import load_tokenizer

    path = tokenizer_path(config)
    tokenizer = load_tokenizer(path, small=weights.is_synthetic(config))
    return [Result("tokenizer", "pass", f"{path}: {tokenizer.vocab_size()} pieces")]


def check_policy(config: Config) -> list[Result]:
    """Check that the policy exists and can act in the suite."""
    spec = policy_spec(config)
    sees = ", which sees the objects' positions" if spec.privileged else ""
    return [Result("policy", "pass", f"{config.policy}{sees}")]


def check_nodes_have_files(config: Config) -> list[Result]:
    """Warn that paths are those of a cluster's nodes, which this machine cannot check."""
    if config.policy != "waypoint_vla" or config.ray.address is None:
        return []
    return [Result("models", "warn", "not checked: the paths are those of the cluster's nodes", "run doctor on a node")]


def _is_local(config: Config) -> bool:
    return config.policy == "waypoint_vla" and config.ray.address is None


def _free_gpu_memory() -> dict[str, float]:
    """Return free bytes by GPU. The driver's tool reports them, because a CUDA context would itself take memory."""
    command = ["nvidia-smi", "--query-gpu=index,name,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.split(", ") for line in done.stdout.splitlines())
    return {f"GPU {row[0]} ({row[1]})": float(row[2]) * 2**20 for row in rows if len(row) == 3 and row[2].isdecimal()}
