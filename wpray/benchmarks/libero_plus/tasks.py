"""LIBERO-plus's variants as tasks."""

from __future__ import annotations

from wpray.benchmarks.base import InstructionSource
from wpray.benchmarks.libero.suites import BASE_STEPS
from wpray.benchmarks.libero.tasks import language_of, words_of
from wpray.benchmarks.libero_plus import package
from wpray.benchmarks.libero_plus.own_scenes import check_assets
from wpray.benchmarks.libero_plus.suites import split
from wpray.benchmarks.libero_plus.variants import Variant
from wpray.types import Task


def list_tasks(suite: str, max_steps: int | None, instruction: InstructionSource) -> tuple[Task, ...]:
    """Return the variants of a suite, whose scenes' names say which share one.

    Raises BadInputError for a suite that the package does not have or has no files of, and for a category that needs
    other assets than LIBERO's.
    """
    variants, (base, category) = package.variants(suite), split(suite)
    check_assets(suite, str(category))
    return tuple(
        Task(
            suite,
            index,
            variant.name,
            _instruction(str(base), variant, instruction),
            len(package.initial_states(str(base), variant)),
            max_steps or BASE_STEPS[str(base)],
            scene=f"{base}/{variant.compiled}",
        )
        for index, variant in enumerate(variants)
    )


def _instruction(base_suite: str, variant: Variant, source: InstructionSource) -> str:
    """Return the instruction.

    `file_name` are the words of the whole name, which the package gives: 'put the bowl on the plate view 0 0 100 2 4
    initstate 0'. It takes rewritten instructions from the BDDL.
    """
    if source == "bddl" or (source == "file_name" and variant.words):
        return language_of(package.bddl_file(base_suite, variant.problem))
    return words_of(variant.name if source == "file_name" else variant.base)
