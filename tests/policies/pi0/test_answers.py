"""pi0's answers are those of Transformers' own model, for the trial's key alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PI0ForConditionalGeneration

from wpray.config import Config
from wpray.errors import InvalidRequestError
from wpray.models.batch_parts import BatchShape
from wpray.policies.factory import build_policy
from wpray.policies.pi0 import synthetic
from wpray.policies.pi0.checkpoint import PixelScale, open_files
from wpray.policies.pi0.model import FlowModel, ModelInputs
from wpray.policies.pi0.policy import Pi0Policy
from wpray.policies.pi0.preparation import PromptEncoder
from wpray.testing.policies import check_policy
from wpray.testing.policy_requests import first_requests
from wpray.trials import trial_generator
from wpray.types import ChunkRequest

PROCESSOR = Path(__file__).parents[2] / "data" / "pi0_processor.json"  # recorded from PI0Processor, see below


def configured(folder: Path, **args: Any) -> Config:
    args = {"checkpoint": str(folder), "precision": "float32", **args}
    return Config(policy="pi0", task_suite="fake", policy_args=args)


def built(config: Config) -> Pi0Policy:
    policy = build_policy(config)
    assert isinstance(policy, Pi0Policy)
    return policy


@pytest.fixture(scope="module")
def policy(pi0_folder: Path) -> Pi0Policy:
    return built(configured(pi0_folder))


@pytest.fixture(scope="module")
def requests(policy: Pi0Policy) -> Sequence[ChunkRequest]:
    found = first_requests(policy.spec, ("fake", "auto"), 5, seed=0)
    return [request for request in found if isinstance(request, ChunkRequest)]


def test_it_conforms(pi0_folder: Path) -> None:
    passed = check_policy("pi0", config=configured(pi0_folder), count=4)
    assert {"predict: batches", "predict: order", "predict: errors", "predict: preparation"} <= set(passed)


def test_it_conforms_in_bfloat16(pi0_folder: Path) -> None:
    assert check_policy("pi0", config=configured(pi0_folder, precision="bfloat16"), count=2)


def test_a_reply_is_what_the_library_computes(
    pi0_folder: Path, policy: Pi0Policy, requests: Sequence[ChunkRequest]
) -> None:
    model = PI0ForConditionalGeneration.from_pretrained(pi0_folder, dtype=torch.float32).eval()
    for tensor in model.parameters():
        tensor.data = tensor.data.clone()  # aligned, as the policy's: the bits of a CPU's products depend on that
    processor = json.loads((pi0_folder / "processor_config.json").read_text())
    mean, std = (np.array(processor[f"actions_{name}"], np.float32) for name in ("mean", "std"))
    for request in requests:
        chunk = _library_chunk(model, processor, pi0_folder, request, padded_to=48)
        expected = (chunk[:, :7] * (std + np.float32(1e-8)) + mean).astype(np.float64)
        (reply,) = policy.predict([request])
        assert np.array_equal(reply.actions, expected)
        unpadded = _library_chunk(model, processor, pi0_folder, request, padded_to=0)
        np.testing.assert_allclose(chunk, unpadded, rtol=0, atol=1e-4)  # padding changes rounding only


def _library_chunk(model: Any, processor: dict[str, Any], folder: Path, request: ChunkRequest, padded_to: int) -> Any:
    seen = request.observation
    images = np.stack([seen.images["base"], seen.images["wrist"]])
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    mean, std = (np.array(processor[f"state_{name}"], np.float32) for name in ("mean", "std"))
    state = np.zeros(32, np.float32)
    state[:8] = (seen.proprio.astype(np.float32) - mean) / (std + np.float32(1e-8))
    prompt = PromptEncoder(folder / "tokenizer.json", 1024, 48).encode(request.trial.task.instruction).tolist()
    tokens = [1024] * 32 + prompt + [0] * max(0, padded_to - len(prompt))
    mask = [int(place < 32 + len(prompt)) for place in range(len(tokens))]
    noise = trial_generator(request.trial, "pi0 flow noise", request.chunk_index).standard_normal((8, 32))
    return model.sample_actions(
        state=torch.from_numpy(state)[None],
        input_ids=torch.tensor([tokens]),
        pixel_values=pixels.contiguous()[None],
        noise=torch.from_numpy(noise.astype(np.float32))[None],
        attention_mask=torch.tensor([mask]),
        pixel_attention_mask=torch.ones(1, 2, dtype=torch.bool),
    )[0].numpy()


def test_preprocessing_is_that_of_transformers_processor(pi0_folder: Path) -> None:
    """Recorded from PI0Processor with this folder's files, because it needs torchvision."""
    recorded = json.loads(PROCESSOR.read_text())
    files = open_files(configured(pi0_folder))
    assert (
        PromptEncoder(files.tokenizer, 1024, 48).encode(recorded["instruction"]).tolist()
        == (recorded["tokens_after_images"])
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    scale = files.pixels
    pixels = (images.transpose(0, 3, 1, 2).astype(np.float32) - scale.shift[:, None, None]) / scale.scale[:, None, None]
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    assert digest == recorded["pixel_values_sha256"]
    state = rng.normal(size=8).astype(np.float32)
    assert np.array_equal(files.scaling.state(state), np.array(recorded["state"], np.float32))


def test_noise_follows_the_key_and_the_eval_seed(pi0_folder: Path, requests: Sequence[ChunkRequest]) -> None:
    first = requests[0]
    plain, seeded = (built(configured(pi0_folder).model_copy(update={"eval_seed": seed})) for seed in (None, 5))
    others = {
        "chunk": replace(first, chunk_index=first.chunk_index + 1),
        "trial": replace(first, trial=replace(first.trial, init_state=first.trial.init_state + 1)),
        "seed": replace(first, trial=replace(first.trial, seed=5)),
    }
    noise = plain.prepare(first).noise
    for other in others.values():
        assert not np.array_equal(plain.prepare(other).noise, noise)
    assert np.array_equal(seeded.prepare(first).noise, plain.prepare(others["seed"]).noise)
    assert np.array_equal(plain.prepare(first).noise, noise)


def test_settings_reach_the_model(pi0_folder: Path, policy: Pi0Policy, requests: Sequence[ChunkRequest]) -> None:
    first = requests[0]
    plain = policy.predict([first])[0].actions
    shifted = built(configured(pi0_folder, extra_delta_transform=True)).predict([first])[0].actions
    assert np.array_equal(shifted[:, :6], plain[:, :6] + first.observation.proprio[:6])
    assert np.array_equal(shifted[:, 6], plain[:, 6])
    swapped = built(configured(pi0_folder, cameras=["wrist", "base"]))
    images = first.observation.images
    turned = replace(first.observation, images={"base": images["wrist"], "wrist": images["base"]})
    assert np.array_equal(swapped.predict([replace(first, observation=turned)])[0].actions, plain)
    one = built(configured(pi0_folder, cameras=["base"], num_inference_steps=1))
    assert list(one.spec.cameras) == ["base"] and not np.array_equal(one.predict([first])[0].actions, plain)
    assert (one.spec.execute_steps, one.spec.cameras["base"].resize) == (5, "pad")


def test_padded_batches_agree_with_single_requests_up_to_rounding(
    pi0_folder: Path, policy: Pi0Policy, requests: Sequence[ChunkRequest]
) -> None:
    config = configured(pi0_folder)
    shapeless = built(
        config.model_copy(update={"batching": config.batching.model_copy(update={"deterministic": False})})
    )
    together = shapeless.predict(requests)  # five rows, padded to six
    assert len(together) == len(requests) == 5
    for reply, request in zip(together, requests, strict=True):
        np.testing.assert_allclose(reply.actions, policy.predict([request])[0].actions, rtol=0, atol=1e-4)


def test_fingerprints_are_of_each_request_alone(policy: Pi0Policy) -> None:
    shape = BatchShape((4,), 4)
    whole = policy._flow.trace(0, 3, shape, 48)
    assert whole.shape == (3, 1) and len(set(whole[:, 0].tolist())) == 3
    assert torch.equal(policy._flow.trace(1, 3, shape, 48), whole[1:])  # in other rows of the same shape


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": {}}, "no image of the camera base"),
        ({"proprio": np.full(8, np.nan)}, "8 finite numbers"),
    ],
)
def test_what_cannot_be_answered_is_an_invalid_request(
    policy: Pi0Policy, requests: Sequence[ChunkRequest], change: dict[str, Any], said: str
) -> None:
    bad = replace(requests[0], observation=replace(requests[0].observation, **change))
    with pytest.raises(InvalidRequestError, match=said):
        policy.prepare(bad)


def test_a_long_instruction_names_the_setting(policy: Pi0Policy, requests: Sequence[ChunkRequest]) -> None:
    trial = requests[0].trial
    long = replace(requests[0], trial=replace(trial, task=replace(trial.task, instruction="turn on the stove " * 30)))
    with pytest.raises(InvalidRequestError, match=r"tokens; policy_args\.max_prompt_tokens allows 48"):
        policy.prepare(long)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_graphs_compute_what_the_library_does_and_no_batch_changes_bits(
    pi0_folder: Path, precision: str
) -> None:
    config = configured(pi0_folder, precision=precision)
    captured = built(config)
    found = [own for own in first_requests(captured.spec, ("fake", "auto"), 7, seed=0) if isinstance(own, ChunkRequest)]
    alone = [captured.predict([request])[0].actions for request in found]
    for together in (captured.predict(found), captured.predict(found[:3]) + captured.predict(found[3:])):
        assert all(np.array_equal(reply.actions, own) for reply, own in zip(together, alone, strict=True))
    eager = built(config.model_copy(update={"torch_compile": False}))
    tolerance = 1e-4 if precision == "float32" else 0.1
    np.testing.assert_allclose(eager.predict(found[:1])[0].actions, alone[0], rtol=0, atol=tolerance)


def test_what_a_graph_captures_needs_nothing_of_the_host() -> None:
    """A graph holds no copy from the host and no value that is read back; the tensors here have none."""
    model = PI0ForConditionalGeneration(synthetic.tiny_config()).to(torch.bfloat16).eval().to("meta")
    pixels = PixelScale(*(np.full(3, 127.5, np.float32) for _ in range(2)))
    flow = FlowModel(model, pixels, cameras=2, prompt_size=48, steps=None, graphs=False)
    inputs = ModelInputs(
        torch.empty((2, 2, 224, 224, 3), dtype=torch.uint8, device="meta"),
        [np.arange(5), np.arange(9)],
        torch.empty(2, 32),
        torch.empty(2, *flow.noise_shape),
    )
    batch = flow.batch(inputs, BatchShape((), 3))
    with HostTensors() as found:
        chunks = flow._sampled(*batch)
    assert (chunks.shape, chunks.device.type, found.places) == ((3, 8, 32), "meta", set())


class HostTensors(TorchDispatchMode):
    """Operations that touch a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(
            isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves((args, kwargs, result))
        ):
            self.places.add(str(func))
        return result
