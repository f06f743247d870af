"""Statistics files as people have them: each is read as what it says, or refused in a line that says what to do."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.waypoint_vla.normalize import Masked, NormType, Quantiles, ZScore
from wpray.policies.waypoint_vla.statistics import load_scaling, read_statistics
from wpray.policies.waypoint_vla.units import waypoint_units
from wpray.provenance.settings import fingerprint

FILES = Path(__file__).parent.parent / "data" / "statistics"
ACTION = {
    "mean": [0.075, 0.025, 0.015, 0.025, -0.015, 0.015, 0.0],
    "std": [0.4125, 0.4125, 0.4575, 0.0725, 0.0825, 0.1575, 0.5],
    "q01": [-0.75, -0.8, -0.9, -0.12, -0.18, -0.3, -1.0],
    "q99": [0.9, 0.85, 0.93, 0.17, 0.15, 0.33, 1.0],
}
PROPRIO = {
    "mean": [-0.125, -0.01, 0.265, 3.05, 0.05, 0.0, 0.02, -0.02],
    "std": [0.1375, 0.145, 0.1175, 0.175, 0.325, 0.25, 0.01, 0.01],
    "q01": [-0.4, -0.3, 0.03, 2.7, -0.6, -0.5, 0.0, -0.04],
    "q99": [0.15, 0.28, 0.5, 3.4, 0.7, 0.5, 0.04, 0.0],
}
READ = {  # file -> (data set, whether it fits libero_object, norm_types that it serves)
    "bom": (None, True, ("q99", "normal")),
    "bridge_only": ("bridge_orig", False, ("q99", "normal")),
    "lerobot_stats": (None, True, ("q99", "normal")),
    "mask_dims_3_5": ("libero_object_no_noops", True, ("q99", "normal")),
    "minmax_only": (None, True, ("normal",)),
    "oft_four_suites": ("libero_object_no_noops", True, ("q99", "normal")),
    "oft_wrong_suite_only": ("libero_spatial_no_noops", False, ("q99", "normal")),
    "openpi_norm_stats": (None, True, ("q99", "normal")),
    "openpi_norm_stats_padded32": (None, True, ("q99", "normal")),
    "starvla": ("franka", False, ("q99", "normal")),
}
NORM_TYPES: tuple[NormType, ...] = ("q99", "normal")


def _file(folder: Path, data: Any, raw: bytes | None = None) -> Path:
    path = folder / "statistics.json"
    path.write_bytes(json.dumps(data).encode() if raw is None else raw)
    return path


def _flat() -> dict[str, Any]:
    return copy.deepcopy({"action": ACTION, "proprio": PROPRIO})


def _expected(field: dict[str, list[float]], norm_type: NormType) -> Quantiles | ZScore:
    first, second = {"q99": ("q01", "q99"), "normal": ("mean", "std")}[norm_type]
    kind: type[Quantiles] | type[ZScore] = {"q99": Quantiles, "normal": ZScore}[norm_type]
    return kind(np.array(field[first], np.float32), np.array(field[second], np.float32))


@pytest.mark.parametrize(
    ("name", "norm_type"), [(name, norm) for name, (_, _, norms) in READ.items() for norm in norms]
)
def test_a_file_is_read_whatever_its_layout(name: str, norm_type: NormType) -> None:
    found = read_statistics(FILES / f"{name}.json", "libero_object")
    assert (found.name, found.fits) == READ[name][:2]
    scaling = found.scaling(norm_type)
    values = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    proprio, action = _expected(PROPRIO, norm_type), _expected(ACTION, norm_type)
    np.testing.assert_allclose(scaling.proprio.normalize(values), proprio.normalize(values), rtol=1e-6, atol=1e-7)
    ours = scaling.action.denormalize(values[:, :7])
    wanted = action.denormalize(values[:, :7])
    if name == "mask_dims_3_5":
        wanted[:, 3:6] = values[:, 3:6]
    np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-7)


def test_every_file_is_decided() -> None:
    assert {path.stem for path in FILES.glob("*.json")} == READ.keys() | {"nan"}


def test_a_file_without_percentiles_says_what_it_holds_and_a_file_with_nan_where() -> None:
    with pytest.raises(BadInputError) as without:
        load_scaling(FILES / "minmax_only.json", "q99", "libero_object")
    assert str(without.value).startswith(
        f"dataset_statistics_path: {FILES}/minmax_only.json: action has no q01, which norm_type q99 needs "
        "(found: min, max, mean, std); write it anew"
    )
    with pytest.raises(BadInputError, match=r"nan\.json: action\.q99 holds NaN, which is not a number"):
        load_scaling(FILES / "nan.json", "q99", "libero_object")


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_a_mask_leaves_dimensions_as_they_are_in_both_directions(tmp_path: Path, norm_type: NormType) -> None:
    data = _flat()
    data["action"]["mask"] = [True, False, True, True, True, True, False]
    data["proprio"]["mask"] = [True] * 6 + [False] * 2
    scaling = load_scaling(_file(tmp_path, data), norm_type, "libero_object")
    plain = load_scaling(_file(tmp_path, _flat()), norm_type, "libero_object")
    assert isinstance(scaling.action, Masked) and isinstance(scaling.proprio, Masked)
    raw = np.array([[0.1, 5, 0.2, 0.1, 0.1, 0.1, 0.03, 7]], np.float32)
    for ours, theirs, kept in ((scaling.action, plain.action, [1]), (scaling.proprio, plain.proprio, [6, 7])):
        value = raw[:, :7] if kept == [1] else raw
        rest = [index for index in range(value.shape[1]) if index not in kept]
        for way in ("normalize", "denormalize"):
            found, unmasked = getattr(ours, way)(value), getattr(theirs, way)(value)
            assert found.dtype == np.float32
            assert np.array_equal(found[:, kept], value[:, kept])
            assert np.array_equal(found[:, rest], unmasked[:, rest])
    assert scaling.digest != plain.digest


@pytest.mark.parametrize("gripper", [True, False])
def test_a_mask_that_changes_nothing_costs_nothing(tmp_path: Path, gripper: bool) -> None:
    data = _flat()
    data["proprio"]["mask"] = [True] * 8
    data["action"]["mask"] = [True] * 6 + [gripper]
    path = _file(tmp_path, data)
    if gripper:
        with pytest.raises(BadInputError, match=r"action\.mask says that the gripper \(dimension 6\) is normalized"):
            load_scaling(path, "q99", "libero_object")
    else:
        assert isinstance(load_scaling(path, "q99", "libero_object").action, Quantiles)


def test_waypoints_of_a_masked_dimension_are_in_its_own_unit(tmp_path: Path) -> None:
    data = {"libero_object_no_noops": _flat()}
    data["libero_object_no_noops"]["proprio"]["mask"] = [True] * 7 + [False]
    units = waypoint_units(Config(policy="a.module", dataset_statistics_path=str(_file(tmp_path, data))))
    assert units is not None
    assert (units.scale[7], units.offset[7]) == (1, 0)
    assert units.scale[0] != 1


@pytest.mark.parametrize(
    ("name", "suite", "fits"),
    [
        ("libero_object_no_noops", "libero_object", True),
        ("libero_object_no_noops", "libero_object_swap", True),
        ("Modified/libero_object-v2", "libero_object_task", True),
        ("libero_long", "libero_10", True),
        ("physical-intelligence/libero", "libero_goal", True),
        ("libero_4_task_suites_no_noops", "libero_goal", True),
        ("libero_spatial_no_noops", "libero_object", False),
        ("libero_10_no_noops", "libero_100", False),
        ("bridge_orig", "libero_object", False),
        ("franka", "libero_10", False),
        ("bridge_orig", "fake", True),
    ],
)
def test_a_lone_data_set_is_taken_and_said_not_to_fit_if_its_name_does_not(
    tmp_path: Path, name: str, suite: str, fits: bool
) -> None:
    found = read_statistics(_file(tmp_path, {name: _flat()}), suite)
    assert (found.name, found.fits) == (name, fits)
    said = f"which is not named after {suite}: dataset_statistics_key confirms it" in found.describe(suite)
    assert said is not fits
    assert read_statistics(_file(tmp_path, {name: _flat()}), suite, key=name).fits, "chosen by hand"


def test_a_setting_chooses_a_data_set_and_suggests_the_nearest_name() -> None:
    path = FILES / "oft_four_suites.json"
    found = read_statistics(path, "libero_object", "libero_goal_no_noops")
    assert (found.name, found.fits) == ("libero_goal_no_noops", True)
    for key, hint in (
        ("libero_gaol_no_noops", "has no data set 'libero_gaol_no_noops': did you mean libero_goal_no_noops?"),
        ("zzz", "has no data set 'zzz': it holds libero_10_no_noops, libero_goal_no_noops, libero_object_no_noops"),
    ):
        with pytest.raises(BadInputError) as raised:
            read_statistics(path, "libero_object", key)
        assert str(raised.value).startswith(f"dataset_statistics_key: {path} {hint}")
    with pytest.raises(BadInputError, match="holds one data set without a name, not 'libero'; leave it out"):
        read_statistics(FILES / "openpi_norm_stats.json", "libero_object", "libero")


def test_an_unclear_choice_names_the_setting_and_a_sum_is_no_data_set(tmp_path: Path) -> None:
    path = _file(tmp_path, {"a": _flat(), "b": _flat(), "__total__": _flat()})
    with pytest.raises(BadInputError, match=r"data sets a, b belongs to libero_goal is not clear; set dataset_statist"):
        read_statistics(path, "libero_goal")
    assert read_statistics(path, "libero_goal", "b").name == "b"
    assert read_statistics(_file(tmp_path, {"a": _flat(), "__total__": _flat()}), "libero_goal").name == "a"


def test_the_same_numbers_have_the_same_digest_in_every_layout_and_others_another() -> None:
    names = ("bom", "lerobot_stats", "openpi_norm_stats", "openpi_norm_stats_padded32", "starvla", "bridge_only")
    found = {load_scaling(FILES / f"{name}.json", "q99", "libero_object").digest for name in names}
    assert len(found) == 1
    assert load_scaling(FILES / "bom.json", "normal", "libero_object").digest not in found
    assert load_scaling(FILES / "mask_dims_3_5.json", "q99", "libero_object").digest not in found


def test_a_width_is_known_before_the_numbers_are_used() -> None:
    for name in ("bom", "openpi_norm_stats", "openpi_norm_stats_padded32"):
        found = read_statistics(FILES / f"{name}.json", "libero_object")
        assert (found.width("action"), found.width("proprio")) == (7, 8)
    newer = read_statistics(FILES.parent / "golden_joint" / "dataset_statistics.json", "libero_object")
    assert (newer.width("action"), newer.width("proprio"), newer.scaling("q99").proprio_dim) == (7, 6, 6)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_padding_is_told_from_numbers(tmp_path: Path, fill: float) -> None:
    """openpi pads the spread with 0 or 1, and everything else with 0."""
    padded: dict[str, Any] = {"norm_stats": {"actions": {}, "state": {}}}
    for own, field in (("actions", ACTION), ("state", PROPRIO)):
        for name, values in field.items():
            value = fill if name in ("std", "q99") else 0.0
            padded["norm_stats"][own][name] = values + [value] * (32 - len(values))
    plain = load_scaling(_file(tmp_path, _flat()), "q99", "libero_object")
    assert load_scaling(_file(tmp_path, padded), "q99", "libero_object").digest == plain.digest
    padded["norm_stats"]["state"]["q01"][20] = -0.5
    with pytest.raises(BadInputError, match=r"norm_stats\.state is padded to 32 from 21 numbers, not from 8"):
        load_scaling(_file(tmp_path, padded), "q99", "libero_object")


def test_a_new_setting_leaves_the_fingerprints_of_older_runs_as_they_were() -> None:
    assert fingerprint(Config()) == FINGERPRINT
    assert fingerprint(Config(dataset_statistics_key="libero_goal_no_noops")) != FINGERPRINT


FINGERPRINT = "556d2d30bf808a2f"

# What a field's list may hold instead of its numbers, and what is said of it.
WRONG: dict[str, tuple[Callable[[list[float]], Any], str]] = {
    "absent": (lambda values: None, "must hold|has no"),
    "text": (lambda values: "0.1", "must hold"),
    "number": (lambda values: 0.1, "must hold"),
    "object": (lambda values: {"0": 0.1}, "must hold"),
    "empty": (lambda values: [], "must hold"),
    "short": (lambda values: values[:-1], "must hold"),
    "long": (lambda values: [*values, 0.0], "must hold"),
    "31 padded": (lambda values: values + [0.0] * (31 - len(values)), "must hold"),
    "one padded": (lambda values: values + [0.0] * (32 - len(values)), "different lengths"),
    "nested": (lambda values: [values], "must hold"),
    "column": (lambda values: [[value] for value in values], "not a number"),
    "text inside": (lambda values: ["0.1", *values[1:]], "not a number"),
    "null inside": (lambda values: [None, *values[1:]], "not a number"),
    "true inside": (lambda values: [True, *values[1:]], "not a number"),
    "NaN": (lambda values: [float("nan"), *values[1:]], "holds NaN"),
    "infinity": (lambda values: [float("inf"), *values[1:]], "float32 cannot work with"),
    "minus infinity": (lambda values: [*values[:-1], float("-inf")], "float32 cannot work with"),
    "large": (lambda values: [1e39, *values[1:]], "float32 cannot work with"),
    "huge": (lambda values: [10**400, *values[1:]], "float32 cannot work with"),
}


@pytest.mark.parametrize("defect", WRONG)
@pytest.mark.parametrize("name", ["mean", "std", "q01", "q99"])
@pytest.mark.parametrize("field", ["action", "proprio"])
def test_a_malformed_list_is_named(tmp_path: Path, field: str, name: str, defect: str) -> None:
    change, said = WRONG[defect]
    data = {"libero_object_no_noops": _flat()}
    statistics = data["libero_object_no_noops"][field]
    statistics[name] = change(statistics[name])
    path = _file(tmp_path, data)
    with pytest.raises(BadInputError, match=said) as raised:
        load_scaling(path, "q99", "libero_object")
    text = str(raised.value)
    assert text.startswith(f"dataset_statistics_path: {path}: libero_object_no_noops.{field}") and "\n" not in text
    assert text.endswith("write it anew with: python -m wpray.dataset_stats RLDS_DIR -o FILE")


@pytest.mark.parametrize("field", ["action", "proprio"])
@pytest.mark.parametrize(
    "mask",
    [
        [],
        [True] * 6,
        [True] * 9,
        [1] * 7 + [0],
        ["true"] * 8,
        "true",
        {},
        True,
        3,
        [True] * 32,
        [None] * 8,
        [[True] * 8],
    ],
    ids=str,
)
def test_a_malformed_mask_is_named(tmp_path: Path, field: str, mask: Any) -> None:
    data = _flat()
    data[field]["mask"] = mask
    with pytest.raises(BadInputError, match=rf"{field}\.mask must hold [78] times true or false"):
        load_scaling(_file(tmp_path, data), "q99", "libero_object")


@pytest.mark.parametrize("low", ["q01", "min"])
@pytest.mark.parametrize("field", ["action", "proprio"])
@pytest.mark.parametrize("index", [0, 3, 6])
def test_a_range_upside_down_is_named(tmp_path: Path, field: str, index: int, low: str) -> None:
    data = _flat()
    for part in data.values():
        part["min"], part["max"] = list(part["q01"]), list(part["q99"])
    high = {"q01": "q99", "min": "max"}[low]
    data[field][low][index] = data[field][high][index] + 0.1
    with pytest.raises(BadInputError, match=rf"{field}\.{low} is above {field}\.{high}"):
        load_scaling(_file(tmp_path, data), "normal", "libero_object")


TEXT = json.dumps({"action": ACTION, "proprio": PROPRIO})


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not readable as JSON"),
        (b"\xef\xbb\xbf", "not readable as JSON"),
        (b"\xff\xfe\xfd", "UTF-16"),
        (TEXT.encode("utf-16"), "is text in UTF-16, not in UTF-8; save it as UTF-8"),
        (TEXT.encode("utf-32-be"), "not readable as JSON"),
        (TEXT.encode()[:200], "not readable as JSON"),
        (TEXT.encode() + b"}", "not readable as JSON"),
        (b"\x80\x04\x95", "not readable as JSON"),
        (b"null", "must hold an object with action and proprio, not null"),
        (b"[]", "not a list"),
        (b"3", "not a number"),
        (b'"x"', "not text"),
        (b"true", "not true or false"),
        (b"{}", "found: nothing"),
        (b'{"action": {}, "action": {}}', "given twice"),
        (b'{"action": {}}', r"found: action\)"),
        (b'{"action": [], "proprio": []}', "no data set with both"),
        (b'{"norm_stats": {}}', "found: nothing"),
        (b'{"norm_stats": {"actions": {"mean": []}}}', r"found: norm_stats\.actions \(mean\)"),
        (b'{"norm_stats": []}', "found: norm_stats"),
        (b'{"observation.state": {"mean": []}, "timestamp": {}}', r"found: observation\.state \(mean\); timestamp"),
        (b'{"\\u001b[2J\\n": {"a": 1}}', "no data set with both"),
        (b'{"\\ud800": {"action": {}}}', "no data set with both"),
        (b'{"a": {"action": {}, "gripper": {}}}', r"found: a \(action, gripper\)"),
        (b'{"action": {}, "proprio": {}}', r"action has no q01, which norm_type q99 needs \(found: nothing\)"),
        (b"[" * 100_000, "not readable as JSON"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path: Path, raw: bytes, said: str) -> None:
    path = _file(tmp_path, None, raw)
    with pytest.raises(BadInputError, match=said) as raised:
        load_scaling(path, "q99", "libero_object")
    assert str(raised.value).startswith(f"dataset_statistics_path: {path}: ")
    assert str(raised.value).isprintable()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError, match="pipe: is not a regular file; name a file"):
        load_scaling(tmp_path / "pipe", "q99", "libero_object")
    (tmp_path / "meta").mkdir()
    with pytest.raises(BadInputError, match=r"is a folder; name a file, such as .*/dataset_statistics\.json"):
        load_scaling(tmp_path, "q99", "libero_object")
    (tmp_path / "meta" / "stats.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"is a folder; name a file, such as .*/meta/stats\.json"):
        load_scaling(tmp_path, "q99", "libero_object")
