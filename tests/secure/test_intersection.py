"""Private set intersection: what Python's sets say, and nothing about ids that are not common to all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe.errors import DroppedError
from fedpipe.secure.intersection import Follower, Leader, Randomness
from fedpipe.secure.retrieval import Words

IDS = st.lists(
    st.integers(0, 25).map(lambda number: f"patient {number}".encode()), min_size=1, max_size=18, unique=True
)


def seeds_of(names: Sequence[str]) -> dict[str, dict[str, bytes]]:
    seeds: dict[str, dict[str, bytes]] = {name: {} for name in names}
    for one, other in itertools.combinations(names, 2):
        seeds[one][other] = seeds[other][one] = f"{one} and {other}".encode()
    return seeds


def played(sets: Mapping[str, list[bytes]]) -> tuple[dict[str, set[bytes]], Leader]:
    """Returns the ids that each party finds; the first one leads."""
    (name, ids), *others = sets.items()
    seeds = seeds_of(list(sets))
    leader = Leader(ids, seeds[name], Randomness(name.encode()), "run")
    blinded = np.concatenate([leader.blinded(0, 3), leader.blinded(3, len(ids))])
    followers = {
        other: Follower(its, seeds[other], Randomness(other.encode()), "run") for other, its in others
    }  # fmt: skip
    for other, follower in followers.items():
        leader.look_up(other, leader.unblinded(follower.evaluate(blinded)), follower.table())
    found = {name: {ids[place] for place in leader.common()}}
    for other, its in others:
        found[other] = {its[place] for place in followers[other].common(leader.marks(other))}
    return found, leader


@settings(max_examples=25, deadline=None)
@given(st.lists(IDS, min_size=2, max_size=4))
def test_all_parties_find_what_is_common_to_all(sets: list[list[bytes]]) -> None:
    expected = set.intersection(*map(set, sets))
    found, _ = played({f"party-{position}": ids for position, ids in enumerate(sets)})
    assert list(found.values()) == [expected] * len(sets)


def left_over(sets: Mapping[str, list[bytes]]) -> dict[bytes, bytes]:
    """The sum that the leader gets for each of its ids: zero, if it is common to all."""
    _, leader = played(sets)
    ids = next(iter(sets.values()))
    sums: Words = leader._left
    return {one: total.tobytes() for one, total in zip(ids, sums, strict=True)}


def test_the_leader_does_not_see_which_party_lacks_an_id() -> None:
    """The sums of an id that one, the other or both lack are 128 random bits each."""
    mine = [f"{number}".encode() for number in range(40)]
    sums = left_over({"labels": mine, "alice": mine[:20], "carol": mine[10:30]})
    assert [one for one, total in sums.items() if not any(total)] == mine[10:20]
    noise = [total for total in sums.values() if any(total)]
    assert len(set(noise)) == 30
    for group in (noise[:10], noise[10:20], noise[20:]):
        bits = np.unpackbits(np.frombuffer(b"".join(group), np.uint8))
        assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(bits))


def test_blinded_ids_of_two_occasions_have_nothing_in_common() -> None:
    first, again, other = (
        Leader([b"p1", b"p2"], {"a": b"seed"}, Randomness(secret), about).blinded(0, 2)
        for secret, about in ((b"1", "run"), (b"1", "run"), (b"1", "another run"))
    )
    assert np.array_equal(first, again), "a party that was killed sends the same bytes again"
    assert not np.intersect1d(first.view("V32"), other.view("V32")).size


def test_a_follower_refuses_marks_of_ids_that_it_lacks() -> None:
    follower = Follower([b"p1", b"p2"], {"leader": b"seed"}, Randomness(b"1"), "run")
    mark = follower._marks[:1]
    assert follower.common(mark).tolist() == [0]
    for marks in (np.concatenate([mark, mark]), np.ones((1, 2), np.uint64)):
        with pytest.raises(DroppedError, match="names common ids that are not among"):
            follower.common(marks)
