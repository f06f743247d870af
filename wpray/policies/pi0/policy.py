"""pi0 of Transformers on LIBERO: one chunk of actions for each observation.

Other requests of a batch affect an answer only by the rounding of sums, whose order follows the batch's shape. With
`batching.deterministic`, a GPU computes every batch in shapes that give the same bits, and a CPU answers one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.models.batch_parts import BatchShape
from wpray.models.memory import gpu_memory
from wpray.models.staging import Staging, fetch
from wpray.policies.base import Sources
from wpray.policies.batch_shapes import BatchShapes, RequestKind, fixed_shapes
from wpray.policies.pi0.checkpoint import Pi0Files, open_files, with_own_settings
from wpray.policies.pi0.model import FlowModel, ModelInputs, expected_shapes, load_model, read_config
from wpray.policies.pi0.preparation import Preparation, PromptEncoder, ReadyChunk
from wpray.policies.pi0.spec import CHECKPOINT, Settings, settings_of, spec_of
from wpray.policies.pi0.tensor_names import check_tensors
from wpray.tracking import POSE_DIM
from wpray.types import ACTION_DIM, ChunkReply, ChunkRequest, Float32Array

__all__ = ["Pi0Policy", "Settings", "build", "spec_of"]

# Arithmetic limits the prompts of a batch, so padded rows cost time: sizes are close to each other.
_CHUNK = RequestKind(
    (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192),
    {"bfloat16": BatchShape((4,), 4), "float32": BatchShape((4,), 4)},
    reads=(),
)


def build(config: Config) -> Pi0Policy:
    """Load the checkpoint that `config` names and capture its graphs. Raise BadInputError if a file is wrong."""
    settings, opened = settings_of(config), open_checkpoint(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(opened.files.folder, opened.sizes, settings.precision, device)
    graphs = config.torch_compile and device.type == "cuda"
    cameras, longest = len(settings.cameras), settings.max_prompt_tokens
    flow = FlowModel(model, opened.files.pixels, cameras, longest, settings.num_inference_steps, graphs)
    policy = Pi0Policy(config, opened, flow)
    if graphs:
        policy.capture()
    return policy


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """Checkpoint whose files are checked against each other; its weights are not read yet."""

    files: Pi0Files
    sizes: Any  # Transformers' PI0Config
    encoder: PromptEncoder


def open_checkpoint(config: Config) -> OpenedCheckpoint:
    """Return the checkpoint that `config` names. Raise BadInputError if its files or the settings do not fit."""
    settings = settings_of(config)
    if config.noise == "reference":
        raise BadInputError("noise: reference draws Waypoint VLA's noise, which pi0 does not have; leave it out")
    files = open_files(config)
    sizes = read_config(files.config, files.folder)
    check_tensors(files.header, expected_shapes(sizes), CHECKPOINT)
    if settings.execute_steps > sizes.chunk_size:
        raise BadInputError(
            f"policy_args.execute_steps: {settings.execute_steps} is more than the {sizes.chunk_size} actions of a "
            "chunk of this checkpoint; give less"
        )
    vocabulary = sizes.vlm_config.text_config.vocab_size
    return OpenedCheckpoint(files, sizes, PromptEncoder(files.tokenizer, vocabulary, settings.max_prompt_tokens))


class Pi0Policy:
    """Policy of one model, for one batch at a time."""

    def __init__(self, config: Config, opened: OpenedCheckpoint, flow: FlowModel) -> None:
        """Build the policy of a loaded model."""
        self.spec, settings, files = spec_of(config), settings_of(config), opened.files
        self.files = files.all
        self.sources = _sources(config, files, flow)
        self._flow, self._scaling, self._settings = flow, files.scaling, settings
        largest, on_gpu = self.spec.max_batch_size, flow.device.type == "cuda"
        self._shapes = (
            fixed_shapes(_CHUNK, flow.trace, settings.precision, largest, gpu=on_gpu)
            if config.batching.deterministic
            else BatchShapes(_CHUNK.up_to(largest))
        )
        # Two batches: one that computes, and one that gathers meanwhile.
        self._staging = Staging(2 * largest, flow.device)
        self._preparation = Preparation(
            opened.encoder,
            files.scaling,
            self._staging,
            settings.cameras,
            flow.config.max_state_dim,
            flow.noise_shape,
            config.eval_seed,
        )

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the bytes that it takes of its GPU, and the free ones; None on a CPU."""
        return gpu_memory(self._flow.device)

    def prepare(self, request: ChunkRequest) -> ReadyChunk:
        """Prepare tokens, noise and images of a request, in any thread, while a batch computes.

        Raise InvalidRequestError if its proprio is not finite, its instruction too long or an image missing.
        """
        return self._preparation.chunk(request)

    def predict(self, requests: Sequence[ChunkRequest]) -> list[ChunkReply]:
        """Return a chunk of actions for each request. Raise what `prepare` raises, for requests not prepared."""
        ready = [self._preparation.chunk(request) for request in requests]
        images = self._staging.gather([request.images for request in ready])[:, : len(self._settings.cameras)]
        chunks = np.empty((len(ready), *self._flow.noise_shape), np.float32)
        for rows, shape in self._shapes.cut([self._settings.max_prompt_tokens] * len(ready)):
            inputs = ModelInputs(
                images[rows],
                [ready[row].prompt for row in rows],
                torch.from_numpy(np.stack([ready[row].state for row in rows])),
                torch.from_numpy(np.stack([ready[row].noise for row in rows])),
            )
            chunks[rows] = fetch(self._flow.sample(inputs, shape))
        return [self._reply(request, chunk) for request, chunk in zip(ready, chunks, strict=True)]

    def capture(self) -> None:
        """Compute the largest batch once, and what answers must agree with if they must not depend on their batch.

        Graphs of other shapes are captured when a batch first needs them, each in a second or two.
        """
        torch.cuda.empty_cache()  # release the memory that loading took
        most, size = self.spec.max_batch_size, self._settings.max_prompt_tokens
        shape = self._shapes.of(size).of(most)
        self._flow.trace(0, min(most, shape.rows), shape, size)
        torch.cuda.empty_cache()  # release the memory that the eager runs took

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """Batch sizes that are worth filling."""
        return self._shapes.sizes(self._settings.max_prompt_tokens, self.spec.max_batch_size)

    def rows_of(self, count: int) -> int:
        """Return the rows of the shape that `count` requests are computed in, or the first of them."""
        return self._shapes.of(self._settings.max_prompt_tokens).of(count).rows

    def _reply(self, request: ReadyChunk, chunk: Float32Array) -> ChunkReply:
        actions = self._scaling.action.denormalize(chunk[:, :ACTION_DIM]).astype(np.float64)
        if self._settings.extra_delta_transform:
            actions[:, :POSE_DIM] += request.observation.proprio[:POSE_DIM]
        return ChunkReply(actions)


def _sources(config: Config, files: Pi0Files, flow: FlowModel) -> Sources:
    settings = settings_of(config)
    facts = {
        "checkpoint": str(files.folder),
        "transformers": version("transformers"),
        "statistics": {"path": str(files.statistics.path), "sha256": files.scaling.digest},
        "precision": settings.precision,
        "chunk_size": flow.config.chunk_size,
        "num_inference_steps": flow.steps,
    }
    digest = files.scaling.digest[:16]
    line = f"pi0: {files.folder}: chunks of {flow.config.chunk_size} in {flow.steps} steps, statistics {digest}"
    if settings.statistics is None:
        return Sources({"pi0": facts}, (line,))
    return Sources({"pi0": facts}, (line, with_own_settings(files.statistics.describe(config.data_suites[0]))))
