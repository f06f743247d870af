"""The block planner against a plain implementation: the whole sequence anew for every block, no cache, no kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny_weights import block_size, write_joint
from wpray.models.action_expert import ActionExpert
from wpray.models.batch_parts import BatchShape
from wpray.models.block_planner import BlockPlanner
from wpray.models.checkpoint import open_joint
from wpray.models.config import Precision
from wpray.models.gemma import aligned
from wpray.models.loading import Computing, joint_models
from wpray.models.token_layout import BINS300

DATA = Path(__file__).parents[1] / "data" / "golden_joint"
CPU = torch.device("cpu")
STEM = "paligemma_with_expert.paligemma."
TABLE = STEM + "lm_head.weight"
WIDTH, HEADS, DIM, DEPTH = 64, 4, 16, 2
WP, DUR = 256689, 256688
BINS = [257023 - value for value in range(300)]
GRIPPERS = [256687, 256686]
DURATIONS = [256723 - value for value in range(34)]
FAMILIES = {slot: BINS for slot in range(1, 7)} | {7: GRIPPERS, 9: DURATIONS}  # of a block's slots; 0 and 8 are forced
SAMPLED = [1, 2, 3, 4, 5, 6, 7, 9]

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "golden_b.npz") as data:
        return dict(data)


@pytest.fixture(scope="module", params=[7, None], ids=["with block_embed", "without"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("block")
    write_joint(folder, block_size(request.param), seed=3)
    return folder


def _load(
    path: Path, golden: dict[str, np.ndarray], precision: Precision
) -> tuple[BlockPlanner, ActionExpert, Weights]:
    """The models, and all their weights in the precision's dtypes."""
    checkpoint, config = open_joint(path)
    table = checkpoint.table(precision)
    plain = {**dict(checkpoint.tensors(CPU, precision)), TABLE: table.take(range(len(table)))}
    how = Computing(precision, precision, "bfloat16", graphs=False, device=CPU)
    weights = dict(checkpoint.tensors(CPU, precision))
    planner, expert = joint_models(weights, table, config, BINS300, golden["vlm_header"].tolist(), how)
    assert isinstance(planner, BlockPlanner)
    return planner, expert, plain


def _images(golden: dict[str, np.ndarray], rows: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.stack([golden["images_base"], golden["images_wrist"]], axis=1)[list(rows)])


def _prompts(golden: dict[str, np.ndarray], rows: Sequence[int]) -> list[list[int]]:
    return [golden[f"vlm_prompt_{row}"].tolist() for row in rows]


class _Plain:
    """One plan, written from the specification."""

    def __init__(self, weights: Weights, features: Tensor, prompt: list[int], header: list[int]) -> None:
        """`features` (512, width) of the images."""
        self.weights, self.kind = weights, weights[TABLE].dtype
        self.rows = torch.cat([features, self.embed(prompt), self.embed(header)])
        # What a row belongs to: images and prompt 0, each header id one more, then each block.
        self.groups = [0] * (len(features) + len(prompt)) + list(range(1, len(header) + 1))

    def embed(self, ids: list[int]) -> Tensor:
        return self.weights[TABLE][ids] * torch.tensor(math.sqrt(WIDTH), dtype=self.kind)

    def block(self, tokens: Tensor, index: int) -> Tensor:
        """Hidden states (10, width) of a block that is fed `tokens` (10, width)."""
        block_embed = self.weights.get("block_planner.block_embed.weight")
        x = tokens + self.weights["block_planner.slot_embed.weight"].to(self.kind)
        if block_embed is not None:
            x = x + block_embed[min(index, len(block_embed) - 1)].to(self.kind)
        self.rows = torch.cat([self.rows, x])
        self.groups += [max(self.groups) + 1] * 10
        return self.forward()[-10:]

    def forward(self) -> Tensor:
        """Hidden states of all rows: each sees its own group and those before."""
        group = torch.tensor(self.groups)
        mask = torch.where(group[None, :] <= group[:, None], 0.0, float("-inf"))
        x = self.rows
        for layer in range(DEPTH):
            name = f"{STEM}model.language_model.layers.{layer}."
            x = x + self.attention(self.norm(x, name + "input_layernorm.weight"), name + "self_attn.", mask)
            h = self.norm(x, name + "post_attention_layernorm.weight")
            gate = torch.nn.functional.gelu(h @ self.weights[name + "mlp.gate_proj.weight"].T, approximate="tanh")
            up = h @ self.weights[name + "mlp.up_proj.weight"].T
            x = x + (gate * up) @ self.weights[name + "mlp.down_proj.weight"].T
        return self.norm(x, f"{STEM}model.language_model.norm.weight")

    def attention(self, x: Tensor, name: str, mask: Tensor) -> Tensor:
        q, k, v = (x @ self.weights[f"{name}{part}_proj.weight"].T for part in "qkv")
        q = self.turn(q.view(len(x), HEADS, DIM))
        k = self.turn(k.view(len(x), 1, DIM))[:, 0]
        out = []
        for head in range(HEADS):
            scores = (q[:, head] @ k.T).float() / math.sqrt(DIM) + mask
            out.append(torch.softmax(scores, dim=-1).to(self.kind) @ v)
        return torch.cat(out, dim=-1) @ self.weights[name + "o_proj.weight"].T

    def turn(self, x: Tensor) -> Tensor:
        """Rotary embedding of (N, heads, DIM) at positions 0, 1, ..."""
        frequencies = 10000.0 ** (-torch.arange(0, DIM, 2) / DIM)
        angles = torch.arange(len(x))[:, None, None] * frequencies
        a, b = x.float().split(DIM // 2, dim=-1)
        turned = [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()]
        return torch.cat(turned, dim=-1).to(self.kind)

    def norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.float()
        scaled = wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + 1e-6)
        return (scaled * (1 + self.weights[name].float())).to(self.kind)

    def choose(self, hidden: Tensor) -> list[int]:
        """Ten ids from ten hidden states: of equal scores the lowest id's."""
        ids = [WP] * 8 + [DUR, DUR]
        for slot, family in FAMILIES.items():
            scores = (self.weights[TABLE][family] @ hidden[slot]).float()
            ids[slot] = min(own for own, score in zip(family, scores.tolist(), strict=True) if score == scores.max())
        return ids

    def plan(self, feed: list[list[int]] | None = None) -> tuple[list[list[int]], Tensor]:
        """Seven blocks of ids, and their hidden states (70, width); `feed`: ids to go on with instead of the chosen."""
        first = self.embed([WP] * 10) + self.weights["block_planner.query_resid"].to(self.kind)
        plan, states, tokens = [], [], first
        for index in range(7):
            states.append(self.block(tokens, index))
            plan.append(self.choose(states[-1]))
            tokens = self.embed(plan[-1] if feed is None else feed[index])
        return plan, torch.cat(states)


def _plain(
    weights: Weights,
    planner: BlockPlanner,
    golden: dict[str, np.ndarray],
    row: int,
    feed: list[list[int]] | None = None,
) -> tuple[np.ndarray, Tensor]:
    """Values (7, 8) and hidden states (70, width)."""
    features = planner.backbone.features(_images(golden, [row]), BatchShape.whole(1))[0]
    ids, states = _Plain(weights, features, *_prompts(golden, [row]), golden["vlm_header"].tolist()).plan(feed)
    return BINS300.decode(np.array(ids).reshape(-1)), states


def test_float32_plans_are_the_plain_ones_alone_in_a_batch_and_in_parts(
    golden: dict[str, np.ndarray], stored: Path
) -> None:
    planner, _, weights = _load(stored, golden, "float32")
    expected = [_plain(weights, planner, golden, row) for row in range(3)]
    planner._caches.take(8, aligned(2 * 256 + 64 + 80)).fill_(float("nan"))  # as a broken request would leave it
    for rows, shape in (
        ([0], None),
        ([1], None),
        ([2], None),
        ([2, 0, 1, 1, 0], None),
        ([2, 0, 1, 1, 0], BatchShape((1, 2), 8)),
        ([1], BatchShape((4,), 4)),
    ):
        planner.hidden = []
        output = planner.plan(_images(golden, rows), _prompts(golden, rows), shape=shape)
        states = torch.cat(planner.hidden[-7:], dim=1)
        for index, row in enumerate(rows):
            assert np.array_equal(output.values[index], expected[row][0])
            assert (states[index] - expected[row][1]).abs().max() < 1e-4


def test_bfloat16_states_agree_better_than_rounding_allows(golden: dict[str, np.ndarray], stored: Path) -> None:
    """While both are fed the same plan."""
    planner, _, weights = _load(stored, golden, "bfloat16")
    exact, _, wide = _load(stored, golden, "float32")
    forced = torch.stack([torch.from_numpy(_plain(weights, planner, golden, row)[0]) for row in range(3)])
    planner.hidden = []
    assert torch.equal(
        planner.plan(_images(golden, range(3)), _prompts(golden, range(3)), forced=forced).values, forced
    )
    ours = torch.cat(planner.hidden[-7:], dim=1).float()
    for row in range(3):
        feed = BINS300.encode(forced[row].numpy()).reshape(7, 10).tolist()
        theirs = _plain(weights, planner, golden, row, feed)[1].float()
        rounding = _plain(wide, exact, golden, row, feed)[1] - theirs
        assert (ours[row] - theirs).norm() < 0.5 * rounding.norm()


def test_every_shift_counts(golden: dict[str, np.ndarray], stored: Path) -> None:
    """The plain implementation would not notice weights that change nothing."""
    planner, _, _ = _load(stored, golden, "float32")
    planner.hidden = []
    planner.plan(_images(golden, [0]), _prompts(golden, [0]))
    before = torch.cat(planner.hidden[-7:], dim=1)
    for shift in (planner._query, planner._slots, planner._blocks):
        if shift is None:
            continue
        kept = shift.clone()
        shift[-1] += 1
        planner.hidden = []
        planner.plan(_images(golden, [0]), _prompts(golden, [0]))
        assert not torch.equal(torch.cat(planner.hidden[-7:], dim=1), before)
        shift.copy_(kept)


def test_the_action_expert_beside_it_is_that_of_any_joint_model(golden: dict[str, np.ndarray], stored: Path) -> None:
    planner, expert, _ = _load(stored, golden, "float32")
    assert planner.backbone is expert.backbone
    assert expert.config.duration_embed
