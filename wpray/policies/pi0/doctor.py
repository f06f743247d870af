"""The doctor's checks of a checkpoint's folder."""

from __future__ import annotations

from functools import partial

from wpray.checks import CheckResult
from wpray.config import Config
from wpray.policies.base import PolicyCheck


def checks(config: Config) -> tuple[PolicyCheck, ...]:
    """Return the checks of `config` in order."""
    return (
        PolicyCheck("checkpoint", partial(check_files, config), quick=True),
        PolicyCheck("tensors", partial(check_model, config), frozenset({"checkpoint"})),
    )


def check_files(config: Config) -> list[CheckResult]:
    """Check that every file is there and readable, and holds the statistics of state and actions."""
    from wpray.policies.pi0.checkpoint import open_files

    files = open_files(config)
    text = f"{files.folder}: {len(files.header.shapes)} tensors; statistics of {files.statistics.path.name}"
    return [CheckResult("checkpoint", "pass", text)]


def check_model(config: Config) -> list[CheckResult]:
    """Check that the tensors are those of the model, and that the tokenizer is its own."""
    from wpray.policies.pi0.policy import open_checkpoint

    sizes = open_checkpoint(config).sizes
    text = (
        f"those of its config.json; chunks of {sizes.chunk_size} actions, {sizes.num_inference_steps} steps of the flow"
    )
    return [CheckResult("tensors", "pass", text)]
