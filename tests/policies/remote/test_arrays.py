"""Arrays in msgpack: the bytes are those that the servers' own packages wrote, and nothing odd gets in."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpray.policies.remote import arrays
from wpray.policies.remote.arrays import MalformedError

IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
TURNED = IMAGE[::-1, ::-1]
STATE = np.linspace(-1, 1, 8)
STATE_HEX = "000000000000f0bfb76ddbb66ddbe6bfdcb66ddbb66ddbbf942449922449c2bf902449922449c23fd8b66ddbb66ddb3fb66ddbb66ddbe63f000000000000f03f"  # noqa: E501

# Written by openpi-client 0.1.2 with numpy 1.26.4 and msgpack 1.2.4.
OPENPI_REQUEST = {
    "observation/image": IMAGE,
    "observation/wrist_image": TURNED,
    "observation/state": STATE,
    "prompt": "pick up the bowl",
}
OPENPI_REQUEST_HEX = (
    "84b16f62736572766174696f6e2f696d61676584c40b5f5f6e6461727261795f5fc3c40464617461c412"
    "000102030405060708090a0b0c0d0e0f1011c4056474797065a37c7531c405736861706593020303"
    "b76f62736572766174696f6e2f77726973745f696d61676584c40b5f5f6e6461727261795f5fc3c40464617461c412"
    "0f10110c0d0e090a0b060708030405000102c4056474797065a37c7531c405736861706593020303"
    "b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c440"
    f"{STATE_HEX}c4056474797065a33c6638c40573686170659108"
    "a670726f6d7074b07069636b2075702074686520626f776c"
)
OPENPI_REPLY = {
    "actions": np.arange(14, dtype=np.float32).reshape(2, 7),
    "policy_timing": {"infer_ms": 12.5},
    "n": np.int64(3),
    "f": np.float64(0.5),
    "g": np.float32(0.25),
    "server_timing": {"infer_ms": 13.0},
}
OPENPI_REPLY_HEX = (
    "86a7616374696f6e7384c40b5f5f6e6461727261795f5fc3c40464617461c438000000000000803f0000004000004040000080400000a040"
    "0000c0400000e040000000410000104100002041000030410000404100005041c4056474797065a33c6634c4057368617065920207"
    "ad706f6c6963795f74696d696e6781a8696e6665725f6d73cb4029000000000000"
    "a16e83c40d5f5f6e7067656e657269635f5fc3c4046461746103c4056474797065a33c6938a166cb3fe0000000000000"
    "a16783c40d5f5f6e7067656e657269635f5fc3c40464617461cb3fd0000000000000c4056474797065a33c6634"
    "ad7365727665725f74696d696e6781a8696e6665725f6d73cb402a000000000000"
)
# Written by vla-eval 0.8.0 with the image format raw.
VLA_EVAL_MESSAGE = {
    "type": "observation",
    "payload": {
        "images": {"agentview": IMAGE, "wrist": TURNED},
        "task_description": "pick up the bowl",
        "states": STATE,
    },
    "seq": 3,
    "timestamp": 1.5,
}
VLA_EVAL_HEX = (
    "84a474797065ab6f62736572766174696f6ea77061796c6f616483a6696d6167657382a96167656e747669657784"
    "ab5f5f6e6461727261795f5fc3a464617461c412000102030405060708090a0b0c0d0e0f1011a56474797065a37c7531a5736861706593020303"
    "a57772697374"
    "84ab5f5f6e6461727261795f5fc3a464617461c4120f10110c0d0e090a0b060708030405000102a56474797065a37c7531a5736861706593020303"
    "b07461736b5f6465736372697074696f6eb07069636b2075702074686520626f776ca673746174657384ab5f5f6e6461727261795f5fc3"
    f"a464617461c440{STATE_HEX}a56474797065a33c6638a573686170659108a373657103a974696d657374616d70cb3ff8000000000000"
)

FAMILIES = [
    (arrays.pack, arrays.unpack),
    (arrays.pack_str_keys, arrays.unpack_str_keys),
    (arrays.pack_npy, arrays.unpack_npy),
    (arrays.pack_json, arrays.unpack_json),
]
FAMILY_NAMES = ["openpi", "vla_eval", "gr00t", "json_numpy"]
# Written by json_numpy 2.1.1.
OFT_REQUEST = {"full_image": IMAGE, "wrist_image": TURNED, "state": STATE, "instruction": "pick up the bowl"}
OFT_JSON = (
    '{"full_image": {"__numpy__": "AAECAwQFBgcICQoLDA0ODxAR", "dtype": "|u1", "shape": [2, 3, 3]}, '
    '"wrist_image": {"__numpy__": "DxARDA0OCQoLBgcIAwQFAAEC", "dtype": "|u1", "shape": [2, 3, 3]}, '
    '"state": {"__numpy__": '
    '"AAAAAAAA8L+3bdu2bdvmv9y2bdu2bdu/lCRJkiRJwr+QJEmSJEnCP9i2bdu2bds/tm3btm3b5j8AAAAAAADwPw==", '
    '"dtype": "<f8", "shape": [8]}, "instruction": "pick up the bowl"}'
)

# Written by openpi-client 0.1.2's msgpack_numpy, as StarVLA's client uses it.
STARVLA_REQUEST = {
    "examples": [{"image": [IMAGE, TURNED], "lang": "pick up the bowl", "state": STATE.astype(np.float32)[np.newaxis]}],
    "unnorm_key": "franka",
    "do_sample": False,
    "use_ddim": True,
    "num_ddim_steps": 10,
}
STARVLA_HEX = (
    "85a86578616d706c65739183a5696d61676592"
    "84c40b5f5f6e6461727261795f5fc3c40464617461c412000102030405060708090a0b0c0d0e0f1011"
    "c4056474797065a37c7531c405736861706593020303"
    "84c40b5f5f6e6461727261795f5fc3c40464617461c4120f10110c0d0e090a0b060708030405000102"
    "c4056474797065a37c7531c405736861706593020303"
    "a46c616e67b07069636b2075702074686520626f776ca5737461746584c40b5f5f6e6461727261795f5fc3c40464617461c420"
    "000080bf6edb36bfb76ddbbe254912be2549123eb76ddb3e6edb363f0000803fc4056474797065a33c6634c4057368617065920108"
    "aa756e6e6f726d5f6b6579a66672616e6b61a9646f5f73616d706c65c2a87573655f6464696dc3ae6e756d5f6464696d5f73746570730a"
)
# Written by msgpack 1.2.4 and numpy.save, as GR00T's own serializer calls them.
GR00T_REQUEST = {
    "endpoint": "get_action",
    "data": {
        "observation": {
            "video.image": IMAGE[np.newaxis, np.newaxis],
            "state.x": np.array([[[0.5]]], np.float32),
            "annotation.human.action.task_description": ["pick up the bowl"],
        },
        "options": None,
    },
}
_SPACES = "20"
GR00T_HEX = (
    "82a8656e64706f696e74aa6765745f616374696f6ea46461746182ab6f62736572766174696f6e83ab766964656f2e696d616765"
    "82b15f5f6e6461727261795f636c6173735f5fc3a661735f6e7079c492934e554d5059010076007b276465736372273a20277c7531272c20"
    "27666f727472616e5f6f72646572273a2046616c73652c20277368617065273a2028312c20312c20322c20332c2033292c207d20"
    f"{_SPACES * 48}0a000102030405060708090a0b0c0d0e0f1011a773746174652e78"
    "82b15f5f6e6461727261795f636c6173735f5fc3a661735f6e7079c484934e554d5059010076007b276465736372273a20273c6634272c20"
    "27666f727472616e5f6f72646572273a2046616c73652c20277368617065273a2028312c20312c2031292c207d20"
    f"{_SPACES * 54}0a0000003f"
    "d928616e6e6f746174696f6e2e68756d616e2e616374696f6e2e7461736b5f6465736372697074696f6e"
    "91b07069636b2075702074686520626f776ca76f7074696f6e73c0"
)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


@pytest.mark.parametrize(
    ("pack", "value", "recorded"),
    [
        (arrays.pack, OPENPI_REQUEST, OPENPI_REQUEST_HEX),
        (arrays.pack, OPENPI_REPLY, OPENPI_REPLY_HEX),
        (arrays.pack_str_keys, VLA_EVAL_MESSAGE, VLA_EVAL_HEX),
        (arrays.pack_json, OFT_REQUEST, OFT_JSON.encode().hex()),
        (arrays.pack, STARVLA_REQUEST, STARVLA_HEX),
        (arrays.pack_npy, GR00T_REQUEST, GR00T_HEX),
    ],
    ids=["openpi request", "openpi reply", "vla-eval observation", "OpenVLA-OFT request", "StarVLA", "GR00T"],
)
def test_the_bytes_are_those_of_the_servers_own_package(
    pack: Callable[[Any], bytes], value: Any, recorded: str
) -> None:
    assert pack(value).hex() == recorded


@pytest.mark.parametrize(
    ("unpack", "recorded", "value"),
    [
        (arrays.unpack, OPENPI_REPLY_HEX, OPENPI_REPLY),
        (arrays.unpack, OPENPI_REQUEST_HEX, OPENPI_REQUEST),
        (arrays.unpack_str_keys, VLA_EVAL_HEX, VLA_EVAL_MESSAGE),
        (arrays.unpack_json, OFT_JSON.encode().hex(), OFT_REQUEST),
        (arrays.unpack_npy, GR00T_HEX, GR00T_REQUEST),
    ],
)
def test_recorded_bytes_read_as_what_was_written(unpack: Callable[[bytes], Any], recorded: str, value: Any) -> None:
    found = unpack(bytes.fromhex(recorded))
    assert _same(found, value)


@pytest.mark.parametrize(("pack", "unpack"), FAMILIES, ids=FAMILY_NAMES)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    dtype=st.sampled_from(["u1", "<i4", ">f4", "f8", "?"]),
    column_major=st.booleans(),
)
def test_any_array_comes_back(
    pack: Callable[[Any], bytes],
    unpack: Callable[[bytes], Any],
    shape: tuple[int, ...],
    dtype: str,
    column_major: bool,
) -> None:
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype, order="F" if column_major else "C")
    found = unpack(pack({"x": [array]}))["x"][0]
    assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)
    if found.size:
        found[...] = 1  # of its own memory


@pytest.mark.parametrize(("pack", "unpack"), FAMILIES, ids=FAMILY_NAMES)
@given(data=st.binary(max_size=60))
def test_noise_is_refused_in_one_way(pack: Callable[[Any], bytes], unpack: Callable[[bytes], Any], data: bytes) -> None:
    try:
        unpack(data)
    except MalformedError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("pack", "unpack"), FAMILIES, ids=FAMILY_NAMES)
@given(cut=st.integers(1, 60), byte=st.integers(0, 255))
def test_a_damaged_message_is_refused_or_read_but_never_raises_else(
    pack: Callable[[Any], bytes], unpack: Callable[[bytes], Any], cut: int, byte: int
) -> None:
    whole = pack({"actions": np.zeros((1, 7), np.float32)})
    damaged = whole[: -cut - 1] + bytes([byte]) + whole[-cut:]
    for data in (whole[:-cut], damaged):
        try:
            unpack(data)
        except MalformedError:
            continue


@pytest.mark.parametrize(("pack", "unpack"), FAMILIES, ids=FAMILY_NAMES)
def test_objects_do_not_travel(pack: Callable[[Any], bytes], unpack: Callable[[bytes], Any]) -> None:
    with pytest.raises(MalformedError, match="do not travel"):
        pack({"x": np.array([object()])})


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


def test_a_pickle_in_an_array_is_never_opened() -> None:
    data, file = pickle.dumps(_Trap()), io.BytesIO()
    np.save(file, np.array([_Trap()], object), allow_pickle=True)
    for unpack, form in [
        (arrays.unpack, {b"__ndarray__": True, b"data": data, b"dtype": "|O", b"shape": [1]}),
        (arrays.unpack, {b"__npgeneric__": True, b"data": data, b"dtype": "|O"}),
        (arrays.unpack_str_keys, {"__ndarray__": True, "data": data, "dtype": "|O", "shape": [1]}),
        (arrays.unpack_npy, {"__ndarray_class__": True, "as_npy": file.getvalue()}),
        (arrays.unpack_npy, {"__ndarray_class__": True, "as_npy": data}),
    ]:
        with pytest.raises(MalformedError):
            unpack(msgpack.packb({"actions": form}))


@pytest.mark.parametrize(
    "form",
    [
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [2]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [-1]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [1.0]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [True]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": 1},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": 5, b"shape": [1]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "f4,f4", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "nonsense", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [0] * 9},
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": [1]},
        {b"__npgeneric__": True, b"data": [1, 2], b"dtype": "<f4"},
    ],
)
def test_an_array_whose_parts_do_not_fit_is_refused(form: dict[bytes, Any]) -> None:
    with pytest.raises(MalformedError):
        arrays.unpack(msgpack.packb({"actions": form}))


def test_a_small_message_takes_no_big_memory() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(1))
    huge = file.getvalue().replace(b"(1,), }          ", b"(99999999999,), }")
    assert huge != file.getvalue()
    tracemalloc.start()
    with pytest.raises(MalformedError):
        arrays.unpack_npy(msgpack.packb({"__ndarray_class__": True, "as_npy": huge}))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
