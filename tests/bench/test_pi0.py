"""`bench pi0` measures the policy and the library on the same requests, without a GPU at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
from wpray.bench import pi0
from wpray.cli.command import run_command
from wpray.config import Config
from wpray.policies.factory import build_policy
from wpray.policies.pi0 import synthetic
from wpray.policies.pi0.policy import Pi0Policy
from wpray.testing.policy_requests import first_requests
from wpray.types import ChunkRequest


def test_both_figures_and_their_ratio_come_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    argv = ["--variant", "tiny", "--precision", "float32", "--batch", "1", "3", "--calls", "1", "--json", str(out)]
    assert pi0.main(argv) == 0
    found = json.loads(out.read_text())
    assert [(row["batch"], row["rows"]) for row in found["rows"]] == [(3, 1), (1, 1)]  # one by one on a CPU
    for row in found["rows"]:
        assert row["direct_per_s"] == pytest.approx(1e3 * row["batch"] / row["direct_ms"])
        assert row["ratio"] == pytest.approx(row["policy_per_s"] / row["direct_per_s"])
    assert "ratio" in capsys.readouterr().out


def test_the_library_is_asked_what_the_policy_is_asked(tmp_path: Path) -> None:
    synthetic.write(tmp_path, "tiny", "float32")
    args = {"checkpoint": str(tmp_path), "precision": "float32"}
    config = Config(policy="pi0", task_suite="fake", policy_args=args)
    policy = build_policy(config)
    assert isinstance(policy, Pi0Policy)
    requests = [
        own for own in first_requests(policy.spec, ("fake", "auto"), 3, seed=0) if isinstance(own, ChunkRequest)
    ]
    chunks = pi0.DirectCaller(config)([policy.prepare(request) for request in requests])
    for chunk, reply in zip(chunks, policy.predict(requests), strict=True):
        actions = policy._scaling.action.denormalize(chunk[:, :7])
        np.testing.assert_allclose(actions, reply.actions, rtol=0, atol=1e-4)


def test_full_size_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run_command(pi0.main, []) == 2
    assert "bench pi0 measures a GPU and finds none" in capsys.readouterr().err
