from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fedpipe import weights
from fedpipe.errors import WeightsError

DTYPES = [
    np.float32,
    np.float64,
    np.float16,
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.uint8,
    np.uint32,
    np.uint64,
    np.bool_,
]
ARRAYS = st.dictionaries(
    st.text(
        st.characters(min_codepoint=33, max_codepoint=0x17F, exclude_categories=["C", "Z"]), min_size=1, max_size=12
    ).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=5,
)


class TestBytes:
    def test_golden(self) -> None:
        """The format, byte by byte: widest dtype first, then by name, header padded to 8 bytes."""
        data = weights.dumps({"b": np.float32([1.0]), "a": np.float32([2.0]), "n": np.int64(3)})
        header = (
            b'{"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},'
            b'"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}'
        )
        header += b" " * (-len(header) % 8)
        assert data == struct.pack("<Q", len(header)) + header + struct.pack("<qff", 3, 2.0, 1.0)

    @given(ARRAYS)
    def test_they_are_those_of_the_safetensors_library(self, arrays: dict[str, np.ndarray]) -> None:
        assert weights.dumps(arrays) == safetensors.numpy.save({k: np.array(v, order="C") for k, v in arrays.items()})

    @given(ARRAYS, st.randoms())
    def test_order_does_not_matter(self, arrays: dict[str, np.ndarray], random: Any) -> None:
        names = list(arrays)
        random.shuffle(names)
        shuffled = {name: arrays[name] for name in names}
        assert weights.digest_of(shuffled) == weights.digest_of(arrays)
        assert weights.dumps(shuffled) == weights.dumps(arrays)

    @given(ARRAYS)
    def test_what_goes_in_comes_out(self, arrays: dict[str, np.ndarray]) -> None:
        found = weights.loads(weights.dumps(arrays))
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            np.testing.assert_array_equal(found[name], array)

    @pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float16])
    def test_small_floats_are_kept(self, dtype: Any) -> None:
        array = np.array([1.5, -2.0, 0.0], dtype)
        assert weights.loads(weights.dumps({"w": array}))["w"].dtype == np.dtype(dtype)

    def test_layout_of_memory_does_not_matter(self) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        strided = np.empty((2, 6), np.float32)[:, ::2]
        strided[...] = array
        expected = weights.digest_of({"w": array})
        assert weights.digest_of({"w": np.asfortranarray(array)}) == expected
        assert weights.digest_of({"w": strided}) == expected
        assert weights.digest_of({"w": array.astype(">f4")}) == expected

    def test_files(self, tmp_path: Path) -> None:
        arrays = {"w": np.arange(10, dtype=np.float32), "n": np.int64(1)}
        assert weights.save(arrays, tmp_path / "w") == weights.digest_of(arrays)
        assert (tmp_path / "w").read_bytes() == weights.dumps(arrays)
        np.testing.assert_array_equal(weights.load(tmp_path / "w")["w"], arrays["w"])
        np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "w")["w"], arrays["w"])

    @pytest.mark.parametrize("array", [np.array(["text"]), np.array([object()]), np.zeros(2, complex)])
    def test_what_has_no_form_on_disk_is_refused(self, array: np.ndarray) -> None:
        with pytest.raises(WeightsError, match="cannot hold"):
            weights.dumps({"w": array})

    @pytest.mark.parametrize("name", ["", "a\nb", "\x00", "x" * 1025, "__metadata__"])
    def test_names_that_are_none(self, name: str) -> None:
        with pytest.raises(WeightsError, match="not a tensor name"):
            weights.dumps({name: np.zeros(1)})


def test_a_stream_holds_one_tensor_at_a_time() -> None:
    data = weights.dumps({f"w{k}": np.full(1000, k, np.float32) for k in range(5)})
    asked = []

    def fetch(start: int, length: int) -> bytes:
        asked.append(length)
        return data[start : start + length]

    assert [name for name, _ in weights.stream(fetch, len(data))] == [f"w{k}" for k in range(5)]
    assert max(asked) == 4000


def hostile(table: Any, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    head = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


HOSTILE = {
    "empty": b"",
    "seven bytes": bytes(7),
    "header longer than the file": hostile({"w": entry()}, length=1000),
    "header of 2^63 bytes": hostile({}, length=2**63),
    "header above the limit": struct.pack("<Q", weights.MAX_HEADER + 1) + b" " * (weights.MAX_HEADER + 1),
    "not JSON": hostile(b"{nonsense"),
    "not UTF-8": hostile(b'{"\xff":1}'),
    "deeply nested": hostile(b"[" * 200_000),
    "a list": hostile([]),
    "a number": hostile(b"1"),
    "a tensor twice": hostile(
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    ),
    "a key twice": hostile(b'{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "unknown dtype": hostile({"w": entry("F33")}),
    "dtype that is a list": hostile({"w": entry(["F32"])}),
    "dtype lie": hostile({"w": entry("F64")}),
    "shape lie": hostile({"w": entry(shape=[3])}),
    "shape of 2^62": hostile({"w": entry(shape=[2**62, 2**62])}),
    "empty shape of 2^62": hostile({"w": entry(shape=[0, 2**62], offsets=[0, 0])}, b""),
    "empty shape of 2^62 twice": hostile({"w": entry(shape=[2**62, 0, 2**62], offsets=[0, 0])}, b""),
    "negative shape": hostile({"w": entry(shape=[-2])}),
    "shape of floats": hostile({"w": entry(shape=[2.0])}),
    "shape of booleans": hostile({"w": entry(shape=[True, 2])}),
    "rank 33": hostile({"w": entry(shape=[1] * 32 + [2])}),
    "offsets outside": hostile({"w": entry(shape=[4], offsets=[0, 16])}),
    "offsets reversed": hostile({"w": entry(offsets=[8, 0])}),
    "negative offsets": hostile({"w": entry(offsets=[-8, 0])}),
    "three offsets": hostile({"w": entry(offsets=[0, 4, 8])}),
    "overlap": hostile({"a": entry(), "b": entry()}),
    "gap": hostile({"w": entry(shape=[1], offsets=[4, 8])}),
    "data left over": hostile({"w": entry()}, bytes(9)),
    "data missing": hostile({"w": entry()}, bytes(7)),
    "another key": hostile({"w": entry(path="../../etc")}),
    "a key missing": hostile({"w": {"dtype": "F32", "shape": [2]}}),
    "entry is a list": hostile({"w": []}),
    "empty name": hostile({"": entry()}),
    "name with control characters": hostile({"a\u0000b": entry()}),
    "long name": hostile({"x" * 2000: entry()}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WeightsError):
        weights.loads(data)


def test_a_header_that_claims_much_allocates_nothing() -> None:
    """Only the prefix is fetched before the claim is compared with the size."""
    asked = []

    def fetch(start: int, length: int) -> bytes:
        asked.append((start, length))
        return struct.pack("<Q", 2**40)[start : start + length]

    with pytest.raises(WeightsError):
        weights.read_layout(fetch, 100)
    assert asked == [(0, 8)]


WIDE = {f"tensor-{k:06}": entry(shape=[0], offsets=[0, 0]) for k in range(200_000)}
LARGE_HEADERS = {
    "many tensors": json.dumps(WIDE).encode(),
    "many times one": b'{"w":' + b"[" * 100 + b"1" * 2**23 + b"}",
    "spaces": b"{}" + b" " * (weights.MAX_HEADER - 2),
    "a long name": b'{"' + b"x" * 2**23 + b'":1}',
    "metadata": json.dumps({"__metadata__": {str(k): "" for k in range(2**19)}}).encode(),
}


@pytest.mark.parametrize("head", LARGE_HEADERS.values(), ids=LARGE_HEADERS)
def test_a_header_is_bounded_by_that_of_the_model(head: bytes) -> None:
    """A learner's header of 16 MiB took 363 MiB before it was refused."""
    model = weights.layout_of({"w": np.zeros(2, np.float32)})
    data = memoryview(hostile(head))

    def fetch(start: int, length: int) -> bytes:
        return bytes(data[start : start + length])

    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="where that of the model has"):
            weights.read_layout(fetch, len(data), model)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


def test_a_mistake_in_a_small_header_is_still_named() -> None:
    model = weights.layout_of({"w": np.zeros(2, np.float32)})
    data = weights.dumps({"w": np.zeros(2, np.float32), "more": np.zeros((3, 4, 5))})
    found = weights.read_layout(lambda start, length: data[start : start + length], len(data), model)
    assert model.difference(found) == "tensor 'more' is not part of the model"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = weights.loads(data)
    except WeightsError:
        return
    assert isinstance(found, dict)


@given(st.data())
def test_any_flipped_bit_is_seen_or_harmless_to_the_reader(data: st.DataObject) -> None:
    good = bytearray(weights.dumps({"w": np.arange(4, dtype=np.float32), "n": np.int32(7)}))
    position = data.draw(st.integers(0, len(good) - 1))
    good[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        weights.loads(bytes(good))
    except WeightsError:
        return
    with pytest.raises(AssertionError):  # if it still reads, its digest differs
        assert weights.digest_of(weights.loads(bytes(good))) == weights.digest_of(
            {"w": np.arange(4, dtype=np.float32), "n": np.int32(7)}
        )


def test_the_header_of_the_model_is_not_parsed_again() -> None:
    """A model of many small tensors has a header that takes longer to parse than its data to add."""
    arrays = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 2), np.int64)}
    data, model = weights.dumps(arrays), weights.layout_of(arrays)

    def read(data: bytes, model: weights.Layout) -> weights.Layout:
        return weights.read_layout(lambda start, length: data[start : start + length], len(data), model)

    assert read(data, model) is model
    assert read(data, model._replace(tensors=model.tensors[::-1])) == model, "one that is not canonical has other spans"
    other = weights.dumps({"a": np.zeros(3, np.float32), "c": np.zeros((2, 2), np.int64)})
    assert len(other) == len(data)
    assert [tensor.name for tensor in read(other, model).tensors] == ["c", "a"]
    with pytest.raises(WeightsError, match="the tensors end at byte"):
        read(data + b"\0", model)


def test_differences_are_named() -> None:
    base = weights.layout_of({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)})
    assert base.difference(base) is None
    assert base.difference(weights.layout_of({"w": np.zeros((2, 3), np.float32)})) == "tensor 'b' is missing"
    extra = weights.layout_of({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32), "x": np.zeros(1)})
    assert base.difference(extra) == "tensor 'x' is not part of the model"
    other = weights.layout_of({"w": np.zeros((3, 2), np.float32), "b": np.zeros(3, np.float32)})
    assert "F32[3, 2] where the model has F32[2, 3]" in str(base.difference(other))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_named(value: float, dtype: Any) -> None:
    weights.check_finite({"w": np.array([1.0], dtype), "n": np.array([1])})
    with pytest.raises(WeightsError, match="'w' holds NaN or infinity"):
        weights.check_finite({"w": np.array([1.0, value], dtype)})


def test_a_large_model_is_not_held_twice(tmp_path: Path) -> None:
    """Saving 256 MiB of arrays takes no second copy of them."""
    import resource

    arrays = {f"w{k}": np.ones(2**24, np.float32) for k in range(4)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights.save(arrays, tmp_path / "w")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 64 * 2**20
