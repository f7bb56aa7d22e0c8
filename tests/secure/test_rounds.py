"""Whole secure rounds: the sum is the plain one, bit for bit, with any dropouts in any phase."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe.errors import DroppedError
from fedpipe.federation.algorithms import MOST_SUMMED, least_threshold
from fedpipe.secure.masks import Masks, Term
from fedpipe.secure.messages import Members, Reveal
from fedpipe.secure.numbers import Grid, unpack
from fedpipe.secure.unmasking import form_of
from tests.secure.table import Table, occasion, written


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(len(names) + 1))


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_every_pattern_of_dropouts(count: int) -> None:
    """Every set that offers keys, every part of it that sends vectors, and every part of those that signs or reveals.

    Below the threshold, no later phase begins.
    """
    least, sums = least_threshold(count), 0
    for offering in _subsets(Table(count).names):
        table = Table(count)
        bundle, form = table.bundle(offering), form_of(table.bundle(offering))
        if len(offering) < least:
            for name in offering:
                with pytest.raises(DroppedError, match="keys, the threshold is"):
                    table.seats[name].mask(bundle)
            continue
        for name in offering:
            table.seats[name].mask(bundle)
        for sending in _subsets(list(offering)):
            members = table.members(bundle, sending)
            parties = {name: copy.copy(table.seats[name].party) for name in sending}
            if len(sending) < least:
                for party in parties.values():
                    with pytest.raises(DroppedError, match="members, the threshold is"):
                        party.agree(members)
                continue
            signed = {name: party.agree(members) for name, party in parties.items()}
            for signing in _subsets(list(sending)):
                agreements = table.agreements([signed[name] for name in signing])
                reveals: dict[str, Reveal] = {}
                for name in sending:
                    party = copy.copy(parties[name])
                    if len(signing) < least:
                        with pytest.raises(DroppedError, match="members signed this list, the threshold is"):
                            party.reveal(agreements, table.parcels(form, members, name))
                    else:
                        reveals[name] = party.reveal(agreements, table.parcels(form, members, name))
                for revealing in _subsets(list(reveals)):
                    chosen = [reveals[name] for name in revealing]
                    if len(revealing) < least:
                        with pytest.raises(DroppedError, match="learners opened the box of"):
                            table.opened(bundle, members, chosen)
                        continue
                    assert (table.opened(bundle, members, chosen) == table.plain(sending)).all()
                    sums += 1
    assert sums == (1 if count == 3 else (count + 1) ** 2 + 2 * count), "one may be missing from 4, 5 or 6"


@settings(max_examples=12)
@given(st.data())
def test_any_pattern_of_dropouts_of_more_learners(data: st.DataObject) -> None:
    """More than sixteen are in tests/faults."""
    count = data.draw(st.integers(7, 16))
    table = Table(count, seed=count, grid=Grid(data.draw(st.integers(8, 32)), 1.0, count), length=8)
    left, stages = table.names, []
    for _ in range(4):
        left = sorted(data.draw(st.sets(st.sampled_from(left), min_size=least_threshold(count))))
        stages.append(left)
    assert (table.play(*stages) == table.plain(stages[1])).all()


@pytest.mark.heavy
def test_as_many_dropouts_of_sixty_four_as_there_may_be() -> None:
    table = Table(MOST_SUMMED, length=8)
    names = table.names
    stages = names[3:], names[8:], names[10:], names[21:]
    assert (table.play(*stages) == table.plain(stages[1])).all()


@pytest.mark.parametrize("bits", [8, 12, 16, 24, 28, 32])
def test_every_modulus(bits: int) -> None:
    table = Table(5, grid=Grid(bits, 1.0, 5))
    assert (table.play(sending=table.names[1:]) == table.plain(table.names[1:])).all()


def test_a_round_never_opens_another() -> None:
    """The coordinator has all that it saw in two rounds, and the vectors of those who sent too late.

    It tries all sums of all masks that it can make, with either sign. A single vector never comes out.
    """
    grid, seen, terms, vectors = Grid(32, 1.0, 4), list[Reveal](), list[bytes](), list[tuple[np.uint64, np.uint64]]()
    for number, late in ((1, "a"), (2, "c")):
        table = Table(4, occasion=occasion(round=number), grid=grid, length=8, seed=number)
        bundle = table.bundle()
        form = form_of(bundle)
        for seat in table.seats.values():
            seat.mask(bundle)
            masked = unpack(seat.data[form.size :], grid.width, grid.dtype)
            vectors.append((masked[0], seat.words[0]))
        members: Members = table.members(bundle, [name for name in table.names if name != late])
        agreements = table.agreements([table.seats[name].party.agree(members) for name in members.vectors])
        reveals = [
            table.seats[n].party.reveal(agreements, table.parcels(form, members, n)) for n in sorted(members.vectors)
        ]
        assert (table.opened(bundle, members, reveals) == table.plain(members.vectors)).all()
        seen += reveals
        terms += [bytes.fromhex(seed) for reveal in reveals for seed in reveal.seeds.values()]
        terms += [table.seats[name].party._self for name in members.vectors]  # the shares give these away
        assert late not in {name for reveal in reveals for name in reveal.shares}
    assert len(set(terms)) == 12
    mask, sums = np.uint64(2**grid.width - 1), np.zeros(1, np.uint64)
    for seed in terms:
        word = unpack(written(Masks([Term(seed)], grid.width, grid.dtype), [np.zeros(8, np.uint64)]),
                      grid.width, grid.dtype)[0]  # fmt: skip
        sums = np.concatenate([sums, sums + word, sums - word])
    assert sums.size == 3**12
    for sent, plain in vectors:
        assert not ((sent - sums) & mask == plain).any()


def test_equal_vectors_have_other_masks_in_each_round() -> None:
    one, other = Table(3), Table(3, occasion=occasion(round=2))
    one.play()
    other.play()
    assert all((one.seats[n].words == other.seats[n].words).all() for n in one.names)
    assert all(one.seats[n].data != other.seats[n].data for n in one.names)
