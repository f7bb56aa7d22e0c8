"""Fixed-point numbers: exact sums, no overflow, unbiased rounding, packing of any width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import WeightsError
from fedpipe.federation.algorithms import MOST_SUMMED as MOST
from fedpipe.secure.numbers import EDGES, GROUP, Grid, pack, packed_size, padded, quantile_of, unpack

BITS, PARTIES = st.integers(8, 32), st.integers(3, MOST)


@given(BITS, PARTIES, st.floats(1e-6, 1e6), st.integers(0, 2**32))
def test_no_sum_overflows_at_the_bound(bits: int, parties: int, bound: float, seed: int) -> None:
    grid, random = Grid(bits, bound, parties), np.random.default_rng(seed)
    words, clipped = grid.encode(np.array([bound, bound * 10, -bound, -bound * 10]), random)
    assert words[:2].tolist() == [2**bits - 1] * 2
    assert max(words[2:].tolist()) <= 1, "the lowest point, or the next one by rounding"
    assert clipped == 2
    assert parties * (2**bits - 1) < 2**grid.width
    assert grid.width <= 64
    assert grid.dtype.itemsize * 8 >= grid.width


@pytest.mark.parametrize(
    ("bits", "parties", "width"), [(16, 10, 20), (16, 3, 20), (16, 64, 24), (8, 10, 12), (32, 10, 40), (28, 16, 32)]
)
def test_width(bits: int, parties: int, width: int) -> None:
    assert Grid(bits, 1.0, parties).width == width


def test_ten_learners_upload_less_than_two_thirds_of_float32() -> None:
    assert packed_size(8_000, Grid(16, 1.0, 10).width) == 20_000 <= 0.66 * 32_000


@given(BITS, st.floats(1e-3, 1e3), st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(0, 2**32))
def test_a_value_moves_by_less_than_a_step(bits: int, bound: float, shares: list[float], seed: int) -> None:
    grid, values = Grid(bits, bound, 5), np.array(shares) * bound
    words, clipped = grid.encode(values.copy(), np.random.default_rng(seed))
    assert not clipped
    assert np.abs(grid.decode(words, 1) - values).max() <= grid.step * (1 + 1e-6)


def test_rounding_is_unbiased() -> None:
    grid = Grid(8, 1.0, 3)
    words, _ = grid.encode(np.full(200_000, 0.3), np.random.default_rng(1))
    assert abs(grid.decode(words, 1).mean() - 0.3) < 5 * grid.step / np.sqrt(200_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused(value: float) -> None:
    with pytest.raises(WeightsError, match="NaN or infinite"):
        Grid(16, 1.0, 3).encode(np.array([0.0, value]), np.random.default_rng(0))


@given(BITS, PARTIES, st.lists(st.integers(0, 2**53 - 1), min_size=3, max_size=MOST))
def test_whole_numbers_add_up_in_pieces(bits: int, parties: int, numbers: list[int]) -> None:
    grid = Grid(bits, 1.0, max(parties, len(numbers)))
    total = np.sum([np.array(grid.limbs_of(number, 53), grid.dtype) for number in numbers], axis=0)
    assert total.max() < 2**grid.width
    assert grid.joined(total) == sum(numbers)


@pytest.mark.parametrize("number", [-1, 2**53])
def test_numbers_out_of_range_are_refused(number: int) -> None:
    with pytest.raises(WeightsError, match="out of range"):
        Grid(16, 1.0, 3).limbs_of(number, 53)


def test_magnitudes_are_counted_by_quarters_of_octaves() -> None:
    grid = Grid(16, 4.0, 3)
    values = np.array([0.0, -0.0, 1e-9, 4.0, -4.0, 3.9, 5.0, -6.1, 4.0 * 2**8, 1e308])
    counts = grid.magnitudes(values)
    assert len(counts) == len(EDGES) + 1
    assert counts.sum() == 8, "zeros are not counted"
    assert counts[0] == 1
    assert counts[EDGES.index(1.0)] == 1, "3.9, below the bound"
    assert counts[EDGES.index(1.25)] == 2, "the bound itself, with either sign"
    assert counts[EDGES.index(1.5)] == 1
    assert counts[EDGES.index(1.75)] == 1
    assert counts[-1] == 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(1e-3, 1e3))
def test_magnitudes_are_those_of_a_search(values: list[float], bound: float) -> None:
    array = np.array(values)
    relative = np.abs(array[array != 0]) / bound
    expected = np.bincount(np.searchsorted(np.array(EDGES), relative, side="right"), minlength=len(EDGES) + 1)
    assert (Grid(16, bound, 3).magnitudes(array) == expected).all()


@given(st.lists(st.floats(2**-8, 2**7), min_size=1, max_size=60), st.integers(0, 59))
def test_the_quantile_is_at_most_a_quarter_too_large(values: list[float], place: int) -> None:
    place %= len(values)
    found = quantile_of(Grid(16, 1.0, 3).magnitudes(np.array(values)).tolist(), (place + 0.5) / len(values))
    exact = sorted(values)[place]
    assert exact <= found <= 1.25 * exact


def test_the_quantile_beyond_the_classes() -> None:
    assert quantile_of([0] * len(EDGES) + [1], 0.5) == 2.0**10
    assert quantile_of([1] + [0] * len(EDGES), 0.5) == 2.0**-8


@given(st.sampled_from([*range(12, 33, 4), 40, 48, 56, 64]), st.integers(0, 9), st.integers(0, 2**32))
def test_packing(width: int, groups: int, seed: int) -> None:
    dtype = np.dtype("<u4" if width <= 32 else "<u8")
    words = np.random.default_rng(seed).integers(0, 2**width, groups * GROUP, "<u8", endpoint=False).astype(dtype)
    data = pack(words, width)
    assert len(data) == packed_size(words.size, width)
    assert int.from_bytes(data, "little") == sum(int(word) << width * place for place, word in enumerate(words))
    assert pack(words | dtype.type(1 << width if width < 8 * dtype.itemsize else 0), width) == data, "modulo 2^width"
    assert (unpack(data, width, dtype) == words).all()


def test_long_vectors_are_packed_as_short_ones() -> None:
    """Beyond the numbers that are packed at a time; each number is written over the end of the one before."""
    words = np.random.default_rng(0).integers(0, 2**32, 100_000, "<u4")
    parts = [pack(words[start : start + GROUP], 20) for start in range(0, words.size, GROUP)]
    assert pack(words, 20) == b"".join(parts)
    assert (unpack(pack(words, 20), 20, words.dtype) == words & 0xFFFFF).all()


def test_packed_bytes_are_little_endian() -> None:
    assert pack(np.array([1, 0, 0, 0, 0, 0, 0, 0xABCDE], np.uint32), 20).hex() == "0100000000" + "00" * 12 + "e0cdab"


def test_padding() -> None:
    assert [padded(count) for count in (0, 1, 8, 9)] == [0, 8, 8, 16]
