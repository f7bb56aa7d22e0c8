"""Lies of the coordinator, the store and other learners: refused before a secret is revealed, or named."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.errors import DroppedError
from fedpipe.identity.statements import signed
from fedpipe.secure.messages import Agreements, Bundle, Members, Occasion, Reveal
from fedpipe.secure.party import Form, Group, Party
from fedpipe.secure.unmasking import flaw_of_reveal, form_of, terms_of
from fedpipe.store.objects import decode, encode
from tests.secure.table import OCCASION, Table, occasion, private_of, roster_of, secrets_of, signing

LATER = occasion(round=2)
OTHER = "sha256:" + "e" * 64


def resigned(statement: Any, name: str) -> Any:
    return signed(replace(statement, signature=None), private_of(name), lambda: 0.0)


class TestKeys:
    def refused(self, table: Table, bundle: Bundle, match: str) -> None:
        with pytest.raises(DroppedError, match=match):
            table.seats["a"].party.join(bundle)

    def altered(self, table: Table, name: str, other: Any) -> Bundle:
        bundle = table.bundle()
        return replace(bundle, offers=tuple(other if o.learner == name else o for o in bundle.offers))

    def test_of_another_signer(self) -> None:
        table = Table(4)
        forged = resigned(table.seats["b"].party.offer(), "c")
        self.refused(table, self.altered(table, "b", forged), "another key than the enrolled one")

    def test_unsigned(self) -> None:
        table = Table(4)
        bare = replace(table.seats["b"].party.offer(), signature=None)
        self.refused(table, self.altered(table, "b", bare), "is not signed")

    def test_exchanged_after_signing(self) -> None:
        table = Table(4)
        other = replace(table.seats["b"].party.offer(), key=table.seats["c"].party.offer().key)
        self.refused(table, self.altered(table, "b", other), "the signature does not fit")

    def test_of_a_stranger(self) -> None:
        table = Table(4)
        stranger = Table(5).seats["e"].party.offer()
        bundle = table.bundle()
        self.refused(table, replace(bundle, offers=(*bundle.offers, stranger)), "e is not in the roster")

    def test_missing_own(self) -> None:
        table = Table(4)
        self.refused(table, table.bundle("bcd"), "does not have this learner's own key")

    def test_own_of_an_earlier_process(self) -> None:
        table, before = Table(4), Table(4)
        self.refused(table, self.altered(table, "a", before.seats["a"].party.offer()), "it may have restarted")

    def test_doubled_learner(self) -> None:
        table = Table(4)
        bundle = table.bundle()
        self.refused(table, replace(bundle, offers=(*bundle.offers, bundle.offers[-1])), "names a learner twice")

    @pytest.mark.parametrize("owner", ["a", "c"])
    def test_one_key_of_two_learners(self, owner: str) -> None:
        table = Table(4)
        taken = resigned(replace(table.seats["b"].party.offer(), key=table.seats[owner].party.offer().key), "b")
        self.refused(table, self.altered(table, "b", taken), "two learners offer one key")

    def test_small_order(self) -> None:
        table = Table(4)
        weak = resigned(replace(table.seats["b"].party.offer(), key="00" * 32), "b")
        self.refused(table, self.altered(table, "b", weak), "a public key")

    @pytest.mark.parametrize("other", [LATER, occasion(session="t"), occasion(run="r2"), occasion(federation="other")])
    def test_replayed(self, other: Occasion) -> None:
        table, replayed = Table(4), Table(4, occasion=other)
        self.refused(table, replayed.bundle(), "another round or session")
        self.refused(table, self.altered(table, "b", replayed.seats["b"].party.offer()), "the offer's")

    def test_a_list_for_other_weights(self) -> None:
        table = Table(4)
        self.refused(table, replace(table.bundle(), base=OTHER), "another round or session")

    def test_a_key_that_was_offered_before_the_weights_were_known(self) -> None:
        """A party that begins from other weights has no seed in common with the rest, and takes no second base."""
        table, late = Table(4), {"a": OCCASION.base, "b": OCCASION.base, "c": OCCASION.base, "d": OTHER}
        for name, seat in table.seats.items():
            seat.party = Party(OCCASION.expected, table.group, name, signing(name))
        bundle = table.bundle()
        self.refused(table, bundle, "no weights yet")
        for name, base in late.items():
            table.seats[name].party.begin(base)
            table.seats[name].party.join(replace(bundle, base=base))
        seeds = {name: secrets_of(seat) for name, seat in table.seats.items()}
        assert seeds["a"]["b"] == seeds["b"]["a"]
        assert all(seeds[name]["d"] != seeds["d"][name] for name in "abc")
        with pytest.raises(DroppedError, match="other weights to begin"):
            table.seats["a"].party.begin(OTHER)

    def test_another_list_for_one_learner(self) -> None:
        """Lists that differ in the bound alone give no seed in common: a huge one would make all others give nothing."""
        table = Table(4)
        bundle = table.bundle()
        for name, seat in table.seats.items():
            seat.party.join(bundle if name == "a" else replace(bundle, bound=1e6))
        seeds = {name: secrets_of(seat) for name, seat in table.seats.items()}
        assert all(seeds["a"][name] != seeds[name]["a"] for name in "bcd")
        assert seeds["b"]["c"] == seeds["c"]["b"]

    def test_too_few(self) -> None:
        table = Table(4)
        self.refused(table, table.bundle("ab"), "the list has 2 keys, the threshold is 3")

    def test_second_list(self) -> None:
        table = Table(4)
        table.seats["a"].party.join(table.bundle())
        self.refused(table, table.bundle("abc"), "a second list of keys")


class TestVectors:
    def test_no_second_one_under_a_mask(self) -> None:
        table = Table(4)
        sent = table.seats["a"].mask(table.bundle())
        party = table.seats["a"].party
        assert party.masked(sent.vector, sent.size) == sent
        with pytest.raises(DroppedError, match="a second vector"):
            party.masked("sha256:" + "0" * 64, sent.size)

    def test_a_metric_that_one_owner_withholds_is_in_none(self) -> None:
        """Names could carry data, so those of the vector are checked where the keys are."""
        table = Table(4)
        for name, leaving in (("b", ("auc", "loss")), ("c", ("accuracy", "loss"))):
            table.seats[name].party = Party(OCCASION, table.group, name, signing(name), leaving)
        bundle = table.bundle()
        assert {seat.party.join(bundle).metrics for seat in table.seats.values()} == {("loss",)}
        party = table.seats["a"].party
        for names in (("accuracy", "loss"), ("loss", "test_accuracy"), ("loss_is_3",)):
            with pytest.raises(DroppedError, match="may not leave"):
                party.masked(OTHER, 1, names)
        assert party.masked(OTHER, 1, ("loss", "test_loss")).metrics == ("loss", "test_loss")

    def test_all_metrics_leave_by_default(self) -> None:
        table = Table(4)
        assert table.seats["a"].party.join(table.bundle()).metrics is None
        assert table.seats["a"].party.masked(OTHER, 1, ("anything",)).metrics == ("anything",)

    def test_none_before_the_keys(self) -> None:
        with pytest.raises(DroppedError, match="no keys yet"):
            Table(4).seats["a"].party.masked("sha256:" + "0" * 64, 1)


class Begun:
    """A round in which all have masked."""

    def __init__(self, count: int = 4, occasion: Occasion = OCCASION) -> None:
        self.table = Table(count, occasion=occasion)
        self.bundle = self.table.bundle()
        self.form: Form = form_of(self.bundle)
        for seat in self.table.seats.values():
            seat.mask(self.bundle)

    def party(self, name: str = "a") -> Party:
        return self.table.seats[name].party

    def members(self, names: str = "abcd") -> Members:
        return self.table.members(self.bundle, names)

    def agreements(self, members: Members, names: str = "") -> Agreements:
        return self.table.agreements([self.party(n).agree(members) for n in names or members.vectors])

    def reveal(self, name: str, members: Members, agreements: Agreements, **parcels: bytes) -> Reveal:
        given = self.table.parcels(self.form, members, name) | parcels
        return self.party(name).reveal(agreements, given)

    def flaw(self, reveal: Reveal, members: Members) -> str:
        return flaw_of_reveal(reveal, self.form, members, self.table.preambles(self.form, members))


class TestMembers:
    def refused(self, begun: Begun, members: Members, match: str) -> None:
        with pytest.raises(DroppedError, match=match):
            begun.party().agree(members)

    def test_without_me(self) -> None:
        begun = Begun()
        self.refused(begun, begun.members("bcd"), "does not have this learner's vector")

    def test_with_another_vector_of_mine(self) -> None:
        begun = Begun()
        listed = begun.members()
        other = replace(listed, vectors=listed.vectors | {"a": listed.vectors["b"]})
        self.refused(begun, other, "does not have this learner's vector")

    def test_unknown_peer(self) -> None:
        begun = Begun()
        listed = begun.members()
        other = replace(listed, vectors=listed.vectors | {"z": listed.vectors["b"]})
        self.refused(begun, other, "z is a member, but offered no key")

    def test_one_that_is_there_and_gone(self) -> None:
        begun = Begun()
        other = replace(begun.members(), missing={"b": "no masked vector"})
        self.refused(begun, other, "b is a member, and missing too")

    def test_one_that_is_named_twice(self) -> None:
        begun = Begun()
        listed = encode(begun.members("ab"))
        (name,) = re.findall(rb'"b":"sha256:[0-9a-f]{64}"', listed.split(b'"vectors"')[1].split(b"}")[0])
        twice = listed.replace(b'"vectors":{', b'"vectors":{' + name + b",")
        assert twice.count(name) == 2
        self.refused(begun, decode(twice, Members, where=""), "the list has 2 members, the threshold is 3")

    def test_too_few(self) -> None:
        begun = Begun()
        self.refused(begun, begun.members("ab"), "the list has 2 members, the threshold is 3")

    def test_of_other_keys(self) -> None:
        begun = Begun()
        self.refused(begun, replace(begun.members(), bundle="sha256:" + "1" * 64), "not masked by the keys")

    def test_of_another_round(self) -> None:
        begun = Begun()
        self.refused(begun, replace(begun.members(), round=2), "another round or session")

    def test_second_list(self) -> None:
        begun = Begun()
        begun.party().agree(begun.members())
        self.refused(begun, begun.members("abc"), "a second list of members")
        assert begun.party().agree(begun.members()) == begun.party().agree(begun.members())

    def test_before_a_vector(self) -> None:
        table = Table(4)
        table.seats["a"].party.join(table.bundle())
        with pytest.raises(DroppedError, match="not masked by the keys"):
            table.seats["a"].party.agree(Begun().members())


class TestReveals:
    def test_two_lists_for_two_halves(self) -> None:
        """Ten learners: two lists of eight, each signed by five of them and by no other."""
        begun = Begun(10)
        one, two = begun.members("abcdefgh"), begun.members("cdefghij")
        first = [begun.party(n).agree(one) for n in "abcde"]
        second = [begun.party(n).agree(two) for n in "fghij"]
        for members, name in ((one, "a"), (two, "f")):
            for shown in (first, second, [*first, *second]):
                with pytest.raises(DroppedError, match="members signed this list, the threshold is 7"):
                    begun.reveal(name, members, begun.table.agreements(shown))

    def test_before_an_agreement(self) -> None:
        begun = Begun()
        members = begun.members()
        with pytest.raises(DroppedError, match="no list of members was signed"):
            begun.reveal("a", members, begun.agreements(members, "bcd"))

    def test_one_signer_counts_once(self) -> None:
        begun = Begun()
        members = begun.members()
        one = begun.party().agree(members)
        with pytest.raises(DroppedError, match="1 members signed this list"):
            begun.reveal("a", members, begun.table.agreements([one, one, one, one]))

    def test_a_forged_agreement(self) -> None:
        begun = Begun()
        members = begun.members()
        begun.party("a").agree(members)
        forged = resigned(begun.party("b").agree(members), "c")
        with pytest.raises(DroppedError, match="another key than the enrolled one"):
            begun.reveal("a", members, begun.table.agreements([forged]))

    def test_agreements_of_another_round(self) -> None:
        begun = Begun()
        members = begun.members()
        shown = begun.agreements(members)
        with pytest.raises(DroppedError, match="another round or session"):
            begun.reveal("a", members, replace(shown, round=2))
        old = replace(shown.signed[1], round=2)
        with pytest.raises(DroppedError, match="the agreement's round"):
            begun.reveal("a", members, replace(shown, signed=(shown.signed[0], resigned(old, "b"))))

    def test_signatures_of_those_who_are_not_members(self) -> None:
        begun = Begun()
        members = begun.members("abc")
        signed_by_d = resigned(replace(begun.party("b").agree(members), learner="d"), "d")
        shown = [begun.party("a").agree(members), begun.party("b").agree(members), signed_by_d]
        with pytest.raises(DroppedError, match="2 members signed this list"):
            begun.reveal("a", members, begun.table.agreements(shown))

    def test_of_each_peer_one_secret_only(self) -> None:
        begun = Begun(10)
        members = begun.members("abcdefgh")
        reveal = begun.reveal("a", members, begun.agreements(members))
        assert reveal.shares.keys() == set("abcdefgh")
        assert reveal.seeds.keys() == set("ij")
        assert all(shares.keys() == set("ij") for shares in reveal.pairs.values())
        assert begun.reveal("a", members, begun.agreements(members)) is reveal, "it is made once"

    def test_a_changed_box_names_its_sender(self) -> None:
        begun = Begun(10)
        members = begun.members("abcdefghij")
        agreements = begun.agreements(members)
        parcel = bytearray(begun.table.parcels(begun.form, members, "a")["b"])
        parcel[3] ^= 1
        reveal = begun.reveal("a", members, agreements, b=bytes(parcel))
        assert reveal.spoilt.keys() == {"b"}
        assert reveal.shares.keys() == set("acdefghij")
        others = [begun.reveal(name, members, agreements) for name in "bcdefgh"]
        assert (begun.table.opened(begun.bundle, members, [reveal, *others]) == begun.table.plain("abcdefghij")).all()

    def test_a_box_of_another_round_learner_or_session_does_not_open(self) -> None:
        begun, other = Begun(10), Begun(10)
        members = begun.members("abcdefghij")
        agreements = begun.agreements(members)
        mine, theirs = (begun.table.parcels(begun.form, members, name) for name in "ab")
        foreign = other.table.parcels(other.form, other.members("abcdefghij"), "a")["b"]
        given = {"b": foreign, "c": mine["d"], "d": b"", "e": theirs["e"], "f": theirs["a"]}
        reveal = begun.reveal("a", members, agreements, **given)
        assert reveal.spoilt.keys() == set("bcdef")

    def test_a_box_of_another_round_does_not_open_with_the_same_key(self) -> None:
        one, two = Begun(), Begun(occasion=LATER)
        for name in "ab":
            two.party(name)._keys = one.party(name)._keys
            two.party(name)._pairs = one.party(name)._pairs
        parcel = one.table.parcels(one.form, one.members(), "a")["b"]
        assert one.party()._unboxed("b", parcel)
        assert two.party()._unboxed("b", parcel) is None

    @pytest.mark.parametrize("kind", ["share", "seed", "pair"])
    def test_a_tampered_secret_names_who_reveals_it(self, kind: str) -> None:
        begun = Begun(10)
        members = begun.members("abcdefgh")
        agreements = begun.agreements(members)
        reveals = {name: begun.reveal(name, members, agreements) for name in members.vectors}
        good = reveals["a"]
        assert not begun.flaw(good, members)
        wrong = {
            "share": replace(good, shares=good.shares | {"b": "11" * 32}),
            "seed": replace(good, seeds=good.seeds | {"i": "11" * 31}),
            "pair": replace(good, pairs=good.pairs | {"b": good.pairs["b"] | {"i": "11" * 32}}),
        }[kind]
        assert "than it" in begun.flaw(wrong, members)
        left = [reveal for name, reveal in reveals.items() if name != "a"]
        assert (begun.table.opened(begun.bundle, members, [wrong, *left]) == begun.table.plain(members.vectors)).all()

    def test_a_reveal_about_the_wrong_learners(self) -> None:
        begun = Begun(10)
        members = begun.members("abcdefgh")
        reveal = begun.reveal("a", members, begun.agreements(members))
        for wrong, match in (
            (replace(reveal, seeds={}), "exactly those that are missing"),
            (replace(reveal, seeds=reveal.seeds | {"b": "11" * 31}), "exactly those that are missing"),
            (replace(reveal, shares=reveal.shares | {"i": "11" * 32}), "that are not members"),
            (replace(reveal, pairs=reveal.pairs | {"b": {"c": "11" * 32}}), "another share of b"),
            (replace(reveal, learner="i"), "a sum that it is not in"),
        ):
            assert match in begun.flaw(wrong, members)

    def test_shares_of_no_secret_name_their_maker(self) -> None:
        """A learner whose shares fit their marks, but are of different secrets, can only stop the round."""
        begun = Begun()
        members = begun.members()
        agreements = begun.agreements(members)
        reveals = [begun.reveal(name, members, agreements) for name in members.vectors]
        preambles = begun.table.preambles(begun.form, members)
        bad = bytearray(preambles["b"])
        bad[-4 * 16 + 16 : -4 * 16 + 32] = bytes(16)  # the mark of b's own self-mask
        with pytest.raises(DroppedError, match="the shares that b gave belong to no secret"):
            terms_of(reveals, begun.form, members, preambles | {"b": bytes(bad)}, 3)


@pytest.mark.parametrize(
    ("count", "threshold", "match"),
    [
        (2, 0, "needs 3 to 64 learners, the roster has 2"),
        (65, 0, "needs 3 to 64 learners, the roster has 65"),
        (10, 6, "10 learners need 7 to 10"),
        (10, 11, "10 learners need 7 to 10"),
    ],
)
def test_groups_that_protect_nobody(count: int, threshold: int, match: str) -> None:
    with pytest.raises(DroppedError, match=match):
        Group.of(dict.fromkeys((f"n{k}" for k in range(count)), "0" * 64), threshold)


def test_a_party_outside_the_roster() -> None:
    with pytest.raises(DroppedError, match="z is not in the roster"):
        Party(OCCASION, Group.of(roster_of("abc")), "z", signing("z"))


def test_a_party_without_a_key_to_sign_with() -> None:
    with pytest.raises(DroppedError, match="a has no private key"):
        Party(OCCASION, Group.of(roster_of("abc")), "a", lambda statement: statement).offer()
