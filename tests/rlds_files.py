"""Writes small RLDS data sets with TFDS itself: LIBERO's features, real images of 256 x 256 from two cameras."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def write_rlds(
    folder: Path, name: str, lengths: list[int], *, encoding: str = "jpeg", state_dim: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """folder/NAME/1.0.0 with one episode of each length; returns all actions and states, in order."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(seed)
    actions = rng.standard_normal((sum(lengths), 7)).astype(np.float32)
    states = (rng.standard_normal((sum(lengths), state_dim)) * [3.0] * state_dim).astype(np.float32)
    actions[:, 6] = np.sign(actions[:, 6])  # a gripper has two values
    tfds.disable_progress_bar()
    builder = tfds.dataset_builders.AdhocBuilder(
        name=name,
        version="1.0.0",
        features=_features(tfds.features, encoding, state_dim),
        split_datasets={"train": _episodes(lengths, actions, states, rng)},
        data_dir=folder,
    )
    builder.download_and_prepare()
    return actions, states


def decode_everything(folder: Path, num_episodes: int) -> int:
    """The plain way: iterates over whole steps, images decoded. Returns the number of steps."""
    import tensorflow_datasets as tfds

    count = 0
    for episode in tfds.builder_from_directory(folder).as_dataset(split="all").take(num_episodes):
        for step in episode["steps"]:
            step["action"].numpy(), step["observation"]["state"].numpy()
            count += 1
    return count


def _features(features: Any, encoding: str, state_dim: int) -> Any:
    camera = features.Image(shape=(256, 256, 3), encoding_format=encoding)
    observation = {
        "image": camera,
        "wrist_image": features.Image(shape=(256, 256, 3), encoding_format=encoding),
        "state": features.Tensor(shape=(state_dim,), dtype=np.float32),
    }
    step = {
        "action": features.Tensor(shape=(7,), dtype=np.float32),
        "is_last": features.Scalar(np.bool_),
        "language_instruction": features.Text(),
        "observation": features.FeaturesDict(observation),
    }
    metadata = features.FeaturesDict({"file_path": features.Text()})
    return features.FeaturesDict({"steps": features.Dataset(step), "episode_metadata": metadata})


def _episodes(
    lengths: list[int], actions: np.ndarray, states: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Any]]]:
    pool = [_image(rng) for _ in range(8)]
    start = 0
    for number, length in enumerate(lengths):
        rows = range(start, start + length)
        steps = [
            {
                "action": actions[row],
                "is_last": row == rows[-1],
                "language_instruction": "pick up the soup",
                "observation": {"image": pool[row % 8], "wrist_image": pool[row % 7], "state": states[row]},
            }
            for row in rows
        ]
        yield f"{number:04d}", {"steps": steps, "episode_metadata": {"file_path": f"demo_{number}"}}
        start += length


def _image(rng: np.random.Generator) -> np.ndarray:
    """A smooth picture with some grain, about as large as a simulator's camera image when compressed."""
    y, x = np.mgrid[0:256, 0:256] / 256
    waves = [np.sin(6 * x + a) + np.cos(5 * y + b) + np.sin(20 * x * y + c) for a, b, c in 6 * rng.random((3, 3))]
    picture = 128 + 35 * np.stack(waves, -1) + rng.normal(0, 3, (256, 256, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)
