"""`python -m wpray.testing golden CONFIG FILE.npz`: a checkpoint against recorded numbers, of any layout.

Feeds the recorded inputs to the models that CONFIG names and compares what they compute with what the file holds for
their precision: token ids, hidden states, image features, actions. The ids are recorded, so that no tokenizer is
needed. In float32 the tokens must be equal. In bfloat16 a near tie may turn either way and everything after it, so
tokens are chosen after the recorded ones, and some may differ. The tolerances of bfloat16 are wide, because rounding
moves a small random model far; a wrong one is farther still. What wpray itself recorded on the same GPU is met exactly.

`--record` writes such a file instead, from inputs of its own: an upgrade, another GPU or a converted checkpoint can
then be held against it. Exit code: 0 all arrays agree, 1 some do not, 2 bad input.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wpray import __version__
from wpray.cli.arguments import whole
from wpray.cli.command import run_command
from wpray.cli.configuration import read_config
from wpray.cli.parser import ArgumentParser
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.models.action_expert import ActionExpert
from wpray.models.config import Precision
from wpray.models.loading import Computing, load
from wpray.models.vlm import WaypointVLM
from wpray.policies.waypoint_vla.model_files import PolicyFiles, head_precision, open_files, planner_precision
from wpray.policies.waypoint_vla.spec import check_is_chosen
from wpray.testing.golden_file import Arrays, GoldenInputs, make_inputs, read_arrays, read_inputs, write_arrays

_TOLERANCES: dict[str, tuple[float, float]] = {  # largest difference in float32; relative error of a sample in bfloat16
    "vlm_last_hidden": (5e-4, 0.25),
    "image_features": (5e-4, 0.02),
    "vlm_image_features": (5e-4, 0.02),
    "ae_condition": (1e-4, 1e-4),
    "ae_suffix": (1e-4, 1e-4),
    "ae_velocity_first": (1e-4, 0.1),
    "ae_actions": (1e-4, 0.05),
}
_OTHER_SUMS = 4.0  # factor of float32's tolerances where sums over patches have another order than the reference's
_TOKENS, _TIMES = "vlm_tokens", "ae_times"
_DIFFERING_TOKENS = 0.25  # share, in bfloat16, where each is chosen after the recorded ones
_HEAD32 = "_head32"  # suffix of recorded bfloat16 tokens whose head computed in float32


@dataclass(frozen=True, slots=True)
class GoldenComparison:
    """Agreement of one array with the recorded one."""

    name: str
    difference: float
    tolerance: float
    unit: str = ""

    @property
    def agrees(self) -> bool:
        """True if the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def describe(self) -> str:
        """Return the array's line of the report."""
        found = "exact" if self.difference == 0 else f"{self.difference:.2g}{self.unit} (at most {self.tolerance:g})"
        return f"{'pass' if self.agrees else 'FAIL'}  {self.name:<28} {found}"


class GoldenModels:
    """The models of a configuration, computing eagerly, one sample's plan at a time."""

    def __init__(self, config: Config, files: PolicyFiles, header: Sequence[int]) -> None:
        """Load the checkpoints; `header` holds the ids of "Action: "."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.head = head_precision(config, files.models)
        how = Computing(config.precision, planner_precision(config), self.head, graphs=False, device=device)
        self.planner: WaypointVLM
        self.expert: ActionExpert
        self.planner, self.expert = load(files.models, header, how)
        self.precision: dict[str, Precision] = {"vlm": how.vlm_precision, "ae": how.precision}
        self.joint, self.num_waypoints = files.models.joint, config.num_waypoints
        self._blocks = files.models.expert_config.planner is not None

    @property
    def sums_alike(self) -> bool:
        """Patches are embedded by the reference's own convolution: in a joint model, on a processor."""
        return self.joint and self.planner.device.type == "cpu"

    def features(self, inputs: GoldenInputs) -> NDArray[Any]:
        """Return the planner's features (1, 256, width) of the first sample's base image."""
        output = self._plan(inputs, 0)
        return _numpy(output.features[:, : output.features.shape[1] // 2])

    def tokens(self, inputs: GoldenInputs) -> NDArray[np.int64]:
        """Return the plans (B, T) as token ids."""
        plans = [self._plan(inputs, row).values for row in range(len(inputs.prompts))]
        return self.planner.layout.encode(_numpy(torch.cat(plans)))

    def hidden(self, inputs: GoldenInputs, tokens: NDArray[Any]) -> NDArray[Any]:
        """Return the states (B, rows, width) that tokens are chosen from while these (B, T) are fed.

        Rows of a token planner are numbered as recorded: the prompt's last, then one for each token that is fed, the
        header's first. The first and the last are not computed, and not numbers. A block planner's have one a token.
        """
        values = torch.from_numpy(self.planner.layout.decode(tokens))
        return np.concatenate([self._states(inputs, row, values[row : row + 1]) for row in range(len(values))])

    def chosen(self, hidden: NDArray[Any], header: int, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """Return the ids (B, T) chosen from such states; what is forced is as in `tokens`."""
        layout, found = self.planner.layout, np.array(tokens, dtype=np.int64)
        kind = getattr(torch, self.precision["vlm"])
        states = torch.from_numpy(np.nan_to_num(hidden)).to(self.planner.device, kind)
        width, last = layout.tokens_per_waypoint, len(layout.families) - 1
        for waypoint in range(self.num_waypoints):
            for index, family in enumerate(layout.families):
                place = width * waypoint + (width - 1 if index == last else 1 + index)
                values = self.planner.best(states[:, place + (0 if self._blocks else header)], index)
                found[:, place] = family.ids_of(_numpy(values))
        return found

    def actions(self, inputs: GoldenInputs) -> dict[str, NDArray[Any]]:
        """Return what the action expert computes of all samples together, by its name in a file."""
        seen, start, end, duration, noise = (
            torch.from_numpy(own) for own in (inputs.images, inputs.start, inputs.end, inputs.duration, inputs.noise)
        )
        self.expert.passed = {}
        actions = self.expert.act(seen, inputs.action_prompts, start, end, duration, noise)
        passed, self.expert.passed = self.expert.passed, None
        names = {"condition": "ae_condition", "suffix": "ae_suffix", "velocity": "ae_velocity_first"}
        return {**{name: _numpy(passed[own]) for own, name in names.items()}, "ae_actions": _numpy(actions)}

    def _plan(self, inputs: GoldenInputs, row: int, forced: torch.Tensor | None = None) -> Any:
        images = torch.from_numpy(inputs.images[row : row + 1])
        return self.planner.plan(images, inputs.prompts[row : row + 1], self.num_waypoints, forced)

    def _states(self, inputs: GoldenInputs, row: int, values: torch.Tensor) -> NDArray[Any]:
        self.planner.hidden = []
        self._plan(inputs, row, values)
        states, self.planner.hidden = _numpy(torch.cat(self.planner.hidden, dim=1)), None
        unread = np.full((1, 1, states.shape[2]), np.nan, np.float32)
        return states if self._blocks else np.concatenate([unread, states, unread], axis=1)


def main(argv: Sequence[str]) -> int:
    """Compare or record. Raise BadInputError if the configuration, its files or FILE cannot be used."""
    args, settings = _parser().parse_known_args(list(argv))
    config = read_config(["--config", args.config, *settings])
    check_is_chosen(config, args.config, "golden")
    path = Path(args.file)
    if args.record:
        return _record(config, path, args.seed)
    files, arrays = open_files(config), read_arrays(path)
    inputs = read_inputs(arrays, path, files.models.expert_config)
    models = GoldenModels(config, files, inputs.header)
    found = compare(models, inputs, arrays, path)
    print("\n".join(comparison.describe() for comparison in found))
    for name in sorted(_outputs(arrays) - {comparison.name for comparison in found}):
        print(f"skip  {name:<28} of another precision, or not computed")
    failed = sum(not comparison.agrees for comparison in found)
    print(f"{len(found) - failed} arrays agree, {failed} differ by more than their tolerance")
    return int(failed > 0)


def compare(models: GoldenModels, inputs: GoldenInputs, arrays: Arrays, path: Path) -> list[GoldenComparison]:
    """Return the agreement of each recorded array that these models compute.

    Raise BadInputError if there is none, or one is of another model's shape.
    """
    planner, expert = models.precision["vlm"], models.precision["ae"]
    found = [_exact(_TIMES, np.array(models.expert.times()), arrays, path)] if _TIMES in arrays else []
    found += _compare_plans(models, inputs, arrays, path)
    for name in ("image_features", "vlm_image_features"):
        if f"{name}_{planner}" in arrays:
            found.append(_close(models, name, models.features(inputs), arrays, path))
    ours = models.actions(inputs)
    found += [_close(models, name, own, arrays, path) for name, own in ours.items() if f"{name}_{expert}" in arrays]
    if not found:
        raise BadInputError(f"{path}: holds nothing that was computed in {planner} and {expert}; set the precision")
    return found


def _compare_plans(models: GoldenModels, inputs: GoldenInputs, arrays: Arrays, path: Path) -> list[GoldenComparison]:
    precision = models.precision["vlm"]
    name, found = f"{_TOKENS}_{precision}", []
    if name not in arrays:
        return []
    recorded, expected = arrays[name], arrays[_tokens_name(models, arrays)]
    ours = models.tokens(inputs)
    _same_shape(_tokens_name(models, arrays), ours, expected, path)
    _check_plans(models, recorded, name, path)
    hidden = models.hidden(inputs, recorded)
    if f"vlm_last_hidden_{precision}" in arrays:
        found.append(_close(models, "vlm_last_hidden", hidden, arrays, path))
    if precision == "float32" or np.array_equal(ours, expected):
        return [GoldenComparison(name, float((ours != expected).sum()), 0, " tokens"), *found]
    _check_plans(models, expected, _tokens_name(models, arrays), path)
    fed = hidden if expected is recorded else models.hidden(inputs, expected)
    share = float((models.chosen(fed, len(inputs.header), expected) != expected).mean())
    return [GoldenComparison(_tokens_name(models, arrays), share, _DIFFERING_TOKENS, " of the tokens"), *found]


def _tokens_name(models: GoldenModels, arrays: Arrays) -> str:
    """Return the name of the recorded tokens whose head computed as these models' does."""
    name = f"{_TOKENS}_{models.precision['vlm']}"
    return name + _HEAD32 if models.head == "float32" and name + _HEAD32 in arrays else name


def _check_plans(models: GoldenModels, tokens: NDArray[Any], name: str, path: Path) -> None:
    try:
        models.planner.layout.decode(tokens)
    except ValueError as error:
        layout = models.planner.layout.name
        raise BadInputError(f"{path}: {name}: {error} of {layout}; it is of another token layout") from error


def _exact(name: str, ours: NDArray[Any], arrays: Arrays, path: Path) -> GoldenComparison:
    _same_shape(name, ours, arrays[name], path)
    return GoldenComparison(name, float(np.abs(ours - arrays[name]).max()), 0)


def _close(models: GoldenModels, name: str, ours: NDArray[Any], arrays: Arrays, path: Path) -> GoldenComparison:
    """Return the largest difference; in bfloat16 the largest relative error of a sample."""
    precision = models.precision["ae" if name.startswith("ae_") else "vlm"]
    key, (absolute, relative) = f"{name}_{precision}", _TOLERANCES[name]
    absolute *= 1 if models.sums_alike else _OTHER_SUMS
    theirs = arrays[key]
    _same_shape(key, ours, theirs, path)
    computed = ~np.isnan(ours) if name == "vlm_last_hidden" else np.ones(ours.shape, bool)
    if name == "vlm_last_hidden":  # the states that are not read
        ours, theirs = np.where(computed, ours, 0), np.where(computed, theirs, 0)
    if np.array_equal(ours, theirs):
        return GoldenComparison(key, 0, absolute)
    if precision == "float32":
        return GoldenComparison(key, float(np.abs(ours - theirs).max()), absolute)
    errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, theirs, strict=True)]
    return GoldenComparison(key, float(np.max(errors)), relative, " relative")


def _same_shape(name: str, ours: NDArray[Any], theirs: NDArray[Any], path: Path) -> None:
    if ours.shape != theirs.shape:
        raise BadInputError(f"{path}: {name} has shape {theirs.shape}, these models give {ours.shape}: another model's")


def _record(config: Config, path: Path, seed: int) -> int:
    if path.exists():
        raise BadInputError(f"{path}: is there already; name a new file")
    files = open_files(config)
    inputs = make_inputs(files.models.expert_config, files.models.tokens.state_dim, seed)
    models = GoldenModels(config, files, inputs.header)
    write_arrays(path, {**inputs.arrays(), **_recorded(models, inputs), "recorded": np.array(_origin(models, files))})
    print(f"written: {path}")
    return 0


def _recorded(models: GoldenModels, inputs: GoldenInputs) -> dict[str, NDArray[Any]]:
    planner, expert = models.precision["vlm"], models.precision["ae"]
    tokens = models.tokens(inputs)
    seen = "image_features" if models.joint else "vlm_image_features"
    return {
        f"{_TOKENS}_{planner}": tokens,
        f"vlm_last_hidden_{planner}": models.hidden(inputs, tokens),
        f"{seen}_{planner}": models.features(inputs),
        _TIMES: np.array(models.expert.times()),
        **{f"{name}_{expert}": own for name, own in models.actions(inputs).items()},
    }


def _origin(models: GoldenModels, files: PolicyFiles) -> str:
    """Return what a file was recorded with, as JSON."""
    gpu = torch.cuda.get_device_name() if models.planner.device.type == "cuda" else None
    facts = {**files.models.facts, "lm_head_precision": models.head, "wpray": __version__, "torch": torch.__version__}
    return json.dumps({**facts, "gpu": gpu, "machine": platform.machine()})


def _outputs(arrays: Arrays) -> set[str]:
    known = (*_TOLERANCES, _TOKENS)
    return {name for name in arrays if name.startswith(tuple(f"{own}_" for own in known)) or name == _TIMES}


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m wpray.testing golden",
        usage="%(prog)s CONFIG FILE.npz [--record] [--any.config.field VALUE ...]",
        description=__doc__,
    )
    parser.add_argument("config", metavar="CONFIG", help="the YAML file of a run")
    parser.add_argument("file", metavar="FILE.npz", help="recorded numbers")
    parser.add_argument("--record", action="store_true", help="write FILE.npz from what is computed here")
    parser.add_argument("--input-seed", dest="seed", type=whole(0, 2**32 - 1), default=0, help="of recorded inputs")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
