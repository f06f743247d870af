"""`bench policy` measures each layout beside the pair of files, without a GPU at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wpray.bench import policy
from wpray.bench.policy import Measurement
from wpray.bench.policy_layouts import BenchSettings, MeasuredModels
from wpray.bench.policy_rates import DeviceRates
from wpray.cli.command import run_command
from wpray.models.config import CheckpointLayout

SETTINGS = BenchSettings("tiny", "float32", graphs=True, deterministic=True, batches=(2, 1), device=torch.device("cpu"))
RATES = DeviceRates(bytes_per_s=1e12, flops=1e15, number=2)


@pytest.mark.parametrize("layout", ["joint", "block"])
def test_a_layout_is_measured_beside_the_pair_in_one_run(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    argv = ["--variant", "tiny", "--layout", layout, "--batch", "1", "--calls", "1", "--json", str(out)]
    assert policy.main(argv) == 0
    found = json.loads(out.read_text())
    kinds = ["plan", "segment", "plan + segment"]
    assert [(row["layout"], row["kind"]) for row in found["rows"]] == [
        (own, k) for own in ("two", layout) for k in kinds
    ]
    for row, pair in zip(found["rows"][3:], found["rows"][:3], strict=True):
        assert row["pair_ms"] == pair["request_ms"] > 0
        assert row["target_ms"] is None  # targets are of full size
    assert layout in capsys.readouterr().out


@pytest.mark.parametrize(("layout", "looks"), [("two", 2), ("joint", 1), ("block", 1)])
def test_a_shared_backbone_sees_an_observation_once(layout: CheckpointLayout, looks: int) -> None:
    models = MeasuredModels(layout, SETTINGS)
    seen: list[int] = []
    for backbone in {id(own): own for own in (models.planner.backbone, models.expert.backbone)}.values():
        backbone._see = _counting(backbone._see, seen)
    models.call("plan + segment", 1)()
    assert seen == [1] * looks
    assert models.shares is (layout != "two")


def _counting(see: Callable[[torch.Tensor], torch.Tensor], seen: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    def counted(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return see(images)

    return counted


def test_floors_count_passes_and_what_is_shared() -> None:
    """At a rate that makes streaming the weights all that counts, a floor is a number of passes."""
    rates = DeviceRates(bytes_per_s=1.0, flops=float("inf"), number=1)
    layouts: tuple[CheckpointLayout, ...] = ("two", "joint", "block")
    models = {layout: MeasuredModels(layout, SETTINGS) for layout in layouts}
    config = models["two"]._config
    text, vision = rates.gemma_s(config.text, 1), rates.vision_s(config.vision, 1)
    for layout, passes in zip(layouts, (63, 56, 8), strict=True):
        plan = models[layout].floor_s("plan", 1, rates)
        assert plan == pytest.approx(vision + passes * text)
        both = models[layout].floor_s("plan + segment", 1, rates)
        shared = 0 if layout == "two" else vision
        assert both == pytest.approx(plan + models[layout].floor_s("segment", 1, rates) - shared)


def test_targets_are_those_of_full_size_in_bfloat16() -> None:
    full = BenchSettings("full", "bfloat16", True, True, (1, 8, 32), torch.device("cuda"))
    for batch in (1, 8, 32):
        assert policy._target("joint", "plan + segment", batch, full, 100.0) == pytest.approx(85)
    assert policy._target("joint", "plan + segment", 16, full, 100.0) is None
    assert [policy._target("block", "plan", batch, full, 100.0) for batch in (1, 8, 32)] == [25, None, 6]
    assert policy._target("two", "plan", 1, full, None) == 125
    assert policy._target("two", "plan", 1, SETTINGS, None) is None


def test_the_verdict_stands_beside_the_target() -> None:
    row = Measurement("joint", "plan + segment", 1, 80.0, 80.0, 60.0, 85.0, 100.0)
    assert policy._verdict(row) == "85 met"
    assert row.saved == pytest.approx(0.2)
    assert policy._verdict(Measurement("joint", "plan + segment", 1, 86.0, 86.0, 60.0, 85.0, 100.0)) == "85 MISSED"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be measured")
def test_full_size_without_a_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(policy.main, []) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_machine_with_torch_alone_can_run_it() -> None:
    code = (
        "import sys; import wpray.bench.__main__, wpray.bench.policy; "
        "found = {'ray', 'pydantic', 'mujoco', 'libero', 'sentencepiece', 'pyarrow'} & sys.modules.keys(); "
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
