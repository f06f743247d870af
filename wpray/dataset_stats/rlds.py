"""Reader of actions and proprio in RLDS data sets as TFDS writes them; images stay undecoded bytes.

Examples are parsed for these features only. TFDS's own partial decoding is not available for the steps of an episode,
and its option to skip the decoding of images still costs time at each step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wpray.errors import BadInputError
from wpray.system.lfs import refuse_pointer
from wpray.types import ACTION_DIM, PROPRIO_DIM, Float32Array

_FILES = ("dataset_info.json", "features.json")
_MAX_DEPTH = 3  # folders from a named folder down to the builder's own
_BUFFER = 8 * 2**20  # bytes read from a file at once
_FILES_AT_ONCE = 8
_FIELDS = {"action": (("action",), ACTION_DIM), "proprio": (("observation", "state"), PROPRIO_DIM)}


@dataclass(frozen=True, slots=True)
class RldsEpisode:
    """One episode of a data set."""

    action: Float32Array  # (T, 7)
    proprio: Float32Array  # (T, 8)


@dataclass(frozen=True, slots=True)
class DataSet:
    """An RLDS data set that has the wanted features."""

    name: str
    folder: Path
    num_episodes: int  # as stated in its description
    split: Any
    parser: Any
    adapter: Any

    def episodes(self) -> Iterator[RldsEpisode]:
        """Yield every episode; files are read in parallel. Raise BadInputError if one is missing or damaged."""
        tf = _tensorflow()
        paths = [os.fspath(path) for path in self.split.filepaths]
        records = tf.data.Dataset.from_tensor_slices(paths).interleave(
            lambda path: self.adapter.make_tf_data(path, _BUFFER),
            cycle_length=_FILES_AT_ONCE,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        parsed = records.map(self.parser.parse_example, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        try:
            for example in parsed.as_numpy_iterator():
                steps = example["steps"]
                yield RldsEpisode(*(_field(steps, path) for path, _ in _FIELDS.values()))
        except (tf.errors.OpError, ValueError) as error:
            raise BadInputError(f"{self.folder}: cannot be read to its end ({_first_line(error)})") from error


def hide_gpus(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keep TensorFlow off the GPUs and quiet. Call this before TensorFlow is imported."""
    environ["CUDA_VISIBLE_DEVICES"] = "-1"
    environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not needed without arithmetic, and it would log its use


def find_data_sets(folder: Path) -> list[Path]:
    """Return the builder folders at or below `folder`: `NAME/1.0.0`, `NAME/NAME/1.0.0`, or several data sets.

    Raise BadInputError if there is none, or if a data set has several versions.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder; name an RLDS data set such as .../libero_object_no_noops/1.0.0")
    patterns = ["/".join("*" * depth) for depth in range(1, _MAX_DEPTH + 1)]
    places = [folder, *(place for pattern in patterns for place in sorted(folder.glob(pattern)))]
    found = [place for place in places if all((place / name).is_file() for name in _FILES)]
    if not found:
        raise BadInputError(
            f"{folder}: no RLDS data set here ({' and '.join(_FILES)} not found); name its folder NAME/1.0.0"
        )
    for parent in {place.parent for place in found}:
        versions = [place.name for place in found if place.parent == parent]
        if len(versions) > 1 and all(name[:1].isdecimal() for name in versions):
            raise BadInputError(f"{parent}: holds versions {', '.join(versions)}; name one, such as {found[-1]}")
    return found


def open_data_set(folder: Path, split: str = "all") -> DataSet:
    """Open the data set in a builder folder. Raise BadInputError if it is unreadable or lacks action or proprio."""
    for name in _FILES:
        refuse_pointer(folder / name)
    tfds = _tensorflow_datasets()
    from google.protobuf.json_format import ParseError
    from tensorflow_datasets.core import example_parser, file_adapters

    try:
        builder = tfds.builder_from_directory(folder)
        found = builder.info.splits[split]
        steps = builder.info.features["steps"].feature
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ParseError) as error:
        raise BadInputError(f"{folder}: not a readable RLDS data set ({_first_line(error)})") from error
    for path in found.filepaths:
        refuse_pointer(Path(path))
    if found.num_examples == 0:
        raise BadInputError(f"{folder}: split {split} holds no episodes; write the data set again")
    wanted = _wanted_features(tfds, folder, steps)
    return DataSet(
        name=builder.name,
        folder=folder,
        num_episodes=found.num_examples,
        split=found,
        parser=example_parser.ExampleParser(wanted.get_serialized_info()),
        adapter=file_adapters.ADAPTER_FOR_FORMAT[builder.info.file_format],
    )


def _wanted_features(tfds: Any, folder: Path, steps: Any) -> Any:
    """Return the features of the data set that an RldsEpisode needs. Raise BadInputError if one is missing."""
    features = tfds.features
    for path, dim in _FIELDS.values():
        name, feature = "steps/" + "/".join(path), steps
        for part in path:
            known = feature.keys() if isinstance(feature, features.FeaturesDict) else ()
            if part not in known:
                raise BadInputError(f"{folder}: has no {name}; wpray reads data sets with LIBERO's features")
            feature = feature[part]
        if feature.shape != (dim,) or not np.issubdtype(feature.np_dtype, np.floating):
            raise BadInputError(f"{folder}: {name} is {np.dtype(feature.np_dtype)} {feature.shape}, not float ({dim},)")
    state = features.FeaturesDict({"state": steps["observation"]["state"]})
    return features.FeaturesDict({"steps": features.Dataset({"action": steps["action"], "observation": state})})


def _field(steps: Any, path: tuple[str, ...]) -> Float32Array:
    for part in path:
        steps = steps[part]
    return np.asarray(steps, dtype=np.float32)


def _tensorflow() -> Any:
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # the caller uses devices already
        tf.config.set_visible_devices([], "GPU")
    return tf


def _tensorflow_datasets() -> Any:
    try:
        import tensorflow_datasets as tfds

        _tensorflow()
    except ImportError as error:
        remedy = "run: bash cluster/bootstrap.sh setup rlds (or pip install 'wpray[rlds]')"
        raise BadInputError(f"tensorflow-datasets is not installed ({error}); {remedy}") from error
    return tfds


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
