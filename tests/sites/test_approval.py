"""Approval: a site agrees to exactly one code, with exactly these settings, and nobody else can say so for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.errors import CorruptError, InputError
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.identity.statements import is_signed_by
from fedpipe.rounds.plan import Plan
from fedpipe.sites import description as module
from fedpipe.sites.approval import Approvals, Approving, Review, review_of
from fedpipe.sites.description import IMAGE, Offer, offer_of
from tests.sites.plans import CODE, federation, plan, training

KEY = make_key()
OTHER = b"def build():\n    return model(4)\n"
PLACE = "memory://hospitals/tiny"
REVIEWERS = [make_key() for _ in range(3)]


class Desk:
    """A site's approvals with a clock."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.now, self.folder = 1000.0, folder / "approvals"
        if "reviewers" in settings:
            settings["reviewers"] = tuple(map(public_key, settings["reviewers"]))
        self.approvals = Approvals(self.folder, Approving(**settings), signer_of(KEY), clock=lambda: self.now)

    def decide(self, given: Plan, code: bytes = CODE, **more: Any) -> Any:
        self.now += 1
        return self.approvals.decide(offer(given, code), **more)


def offer(given: Plan, code: bytes = CODE, learner: str = "b", place: str = PLACE) -> Offer:
    return offer_of(given, code, learner, place, {})


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def verdict(made: Any) -> tuple[str, str]:
    return made.verdict, made.why


def test_a_plan_waits_until_somebody_approves_it(desk: Desk) -> None:
    made = desk.decide(plan())
    assert verdict(made) == ("waits", "nobody at the site has decided")
    assert made.shown.startswith("waits for approval since ")
    first = made.since
    assert desk.decide(plan()).since == first
    assert [one.description.code for one in desk.approvals.pending()] == [plan().code]
    desk.approvals.answer("", "approved", "ticket 4711", "ann")
    made = desk.decide(plan())
    assert (made.verdict, made.why, made.who) == ("approved", "ticket 4711", "ann")
    assert is_signed_by(made, public_key(KEY))
    assert desk.approvals.pending() == []


def test_the_same_plan_in_another_run_is_approved(desk: Desk) -> None:
    desk.decide(plan())
    desk.approvals.answer("", "approved")
    moved = federation(store="s3://elsewhere/x", tracking={}, images={"registry": "other"})
    again = Plan(run="r2", federation=moved, code=plan().code, function="build", shards={})
    assert desk.decide(again).verdict == "approved"


@pytest.mark.parametrize(
    "changed",
    [
        plan(OTHER),
        plan(function="other"),
        plan(training=training(rounds=4, batch_size=1)),
        plan(training=training(batch_size=1, learning_rate=0.1)),
        plan(quorum={"deadline": 10.0}),
        plan(learners=[{"name": "b"}, {"name": "c"}]),
        plan(algorithm="collective"),
        plan(evaluation={"every_round": False}),
        plan(export={"opset": 16}),
        plan(learners=[{"name": "a"}, {"name": "b", "data": "/other.npz"}, {"name": "c"}]),
    ],
    ids=["code", "function", "rounds", "rate", "deadline", "members", "algorithm", "evaluation", "export", "data"],
)
def test_any_other_plan_asks_again(desk: Desk, changed: Plan) -> None:
    desk.decide(plan())
    desk.approvals.answer("", "approved")
    code = OTHER if changed.code != plan().code else CODE
    assert desk.decide(changed, code).verdict == "waits"


@pytest.mark.parametrize("more", [{"learner": "a"}, {"place": "memory://elsewhere/tiny"}])
def test_the_plan_of_another_learner_or_federation_asks_again(desk: Desk, more: dict[str, str]) -> None:
    desk.decide(plan())
    desk.approvals.answer("", "approved")
    assert desk.approvals.decide(offer(plan(), **more)).verdict == "waits"


def test_another_version_or_image_asks_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.decide(plan())
    desk.approvals.answer("", "approved")
    assert desk.approvals.decide(offer_of(plan(), CODE, "b", PLACE, {IMAGE: "sha256:1"})).verdict == "waits"
    monkeypatch.setattr(module, "__version__", "99.0")
    desk.decide(plan())
    waiting = [one.description for one in desk.approvals.pending() if not one.description.image]
    assert desk.approvals.difference(waiting[0])[1] == ["fedpipe: 0.1.0 -> 99.0"]


def test_code_must_have_the_digest_of_the_plan() -> None:
    with pytest.raises(CorruptError, match="the code is not the one that the plan names"):
        offer(plan(), OTHER)


def test_objections_come_before_approvals(desk: Desk) -> None:
    desk.decide(plan())
    desk.approvals.answer("", "approved")
    made = desk.decide(plan(), objections=("the plan trains 5 epochs a round; this site's policy allows 2",))
    assert verdict(made) == ("refused", "the plan trains 5 epochs a round; this site's policy allows 2")
    assert desk.decide(plan()).verdict == "approved", "the policy was changed back"


def test_a_refusal_lasts_until_it_is_taken_back(desk: Desk) -> None:
    desk.decide(plan())
    desk.approvals.answer("", "refused", "too many metrics")
    assert verdict(desk.decide(plan())) == ("refused", "too many metrics")
    assert desk.decide(plan()).shown == "refused the plan: too many metrics"
    desk.approvals.answer(desk.decide(plan()).plan[7:20], "approved")
    assert desk.decide(plan()).verdict == "approved"


def test_the_difference_to_the_last_approval(desk: Desk) -> None:
    desk.decide(plan())
    whole, settings = desk.approvals.difference(desk.approvals.pending()[0].description)
    assert "+def build():" in whole.splitlines()
    assert "training.batch_size: absent -> 1" in settings
    desk.approvals.answer("", "approved")
    desk.decide(plan(OTHER, training=training(batch_size=1, local_epochs=2)), OTHER)
    diff, settings = desk.approvals.difference(desk.approvals.pending()[0].description)
    assert diff.splitlines()[0] == "--- approved/model.py"
    assert "-    return model(3)" in diff.splitlines()
    assert "+    return model(4)" in diff.splitlines()
    assert settings == ["training.local_epochs: 1 -> 2"]


class TestOlderCode:
    """Once other code was approved, a way back to older code needs another approval."""

    def test_by_a_person(self, desk: Desk) -> None:
        desk.decide(plan())
        desk.approvals.answer("", "approved")
        desk.decide(plan(OTHER), OTHER)
        desk.approvals.answer("", "approved")
        assert verdict(desk.decide(plan())) == ("waits", "its code is older than what was approved last")
        assert desk.decide(plan(OTHER), OTHER).verdict == "approved"
        desk.approvals.answer("", "approved")
        assert desk.decide(plan()).verdict == "approved"

    def test_by_reviewers(self, tmp_path: Path) -> None:
        desk = Desk(tmp_path, by="signed-by", reviewers=REVIEWERS[:1])
        for given, code in ((plan(), CODE), (plan(OTHER), OTHER)):
            digest = desk.decide(given, code).plan
            desk.approvals.add_review(review_of(digest, signer_of(REVIEWERS[0]), lambda: desk.now))
            assert desk.decide(given, code).verdict == "approved"
        assert verdict(desk.decide(plan())) == ("waits", "0 of 1 reviewers have signed it")
        desk.approvals.add_review(review_of(desk.decide(plan()).plan, signer_of(REVIEWERS[0]), lambda: desk.now))
        assert desk.decide(plan()).verdict == "approved"

    def test_settings_alone_do_not_make_it_older(self, desk: Desk) -> None:
        for given in (plan(), plan(training=training(batch_size=2))):
            desk.decide(given)
            desk.approvals.answer("", "approved")
        assert desk.decide(plan()).verdict == "approved"


class TestReviewers:
    """`signed-by`: N of M distinct keys, and a revoked one never counts."""

    @pytest.fixture
    def desk(self, tmp_path: Path) -> Desk:
        return Desk(tmp_path, by="signed-by", reviewers=REVIEWERS, needed=2)

    def sign(self, desk: Desk, key: str) -> None:
        desk.approvals.add_review(review_of(desk.decide(plan()).plan, signer_of(key), lambda: desk.now))

    def test_two_of_three(self, desk: Desk) -> None:
        assert verdict(desk.decide(plan())) == ("waits", "0 of 2 reviewers have signed it")
        self.sign(desk, REVIEWERS[0])
        self.sign(desk, REVIEWERS[0])
        assert verdict(desk.decide(plan())) == ("waits", "1 of 2 reviewers have signed it")
        self.sign(desk, REVIEWERS[2])
        assert desk.decide(plan()).verdict == "approved"

    def test_strangers_and_forgeries(self, desk: Desk) -> None:
        with pytest.raises(InputError, match="the review does not count: its signer is not a reviewer of this site"):
            self.sign(desk, make_key())
        digest = desk.decide(plan()).plan
        with pytest.raises(InputError, match="it is not signed"):
            desk.approvals.add_review(Review(plan=digest))
        real = review_of(desk.decide(plan(OTHER), OTHER).plan, signer_of(REVIEWERS[0]))
        with pytest.raises(InputError, match="its signature does not fit"):
            desk.approvals.add_review(replace(real, plan=digest))

    def test_a_review_of_another_plan_does_not_count_for_this_one(self, desk: Desk) -> None:
        digest = desk.decide(plan()).plan
        other = desk.decide(plan(OTHER), OTHER).plan
        for key in REVIEWERS[:2]:
            desk.approvals.add_review(review_of(other, signer_of(key)))
        for path in (desk.folder / "reviews").iterdir():
            path.with_name(path.name.replace(other[7:], digest[7:])).write_bytes(path.read_bytes())
        assert desk.decide(plan()).verdict == "waits"

    def test_a_reviewer_who_is_revoked_later(self, desk: Desk, tmp_path: Path) -> None:
        for key in REVIEWERS[:2]:
            self.sign(desk, key)
        assert desk.decide(plan()).verdict == "approved"
        later = Desk(tmp_path, by="signed-by", reviewers=REVIEWERS, needed=2, revoked=(public_key(REVIEWERS[0]),))
        assert verdict(later.decide(plan())) == ("waits", "1 of 2 reviewers have signed it")
        with pytest.raises(InputError, match=r"the key \w{16} is revoked"):
            self.sign(later, REVIEWERS[0])

    def test_nobody_approves_in_their_place(self, desk: Desk) -> None:
        desk.decide(plan())
        with pytest.raises(InputError, match=r"site\.yaml approves plans by 'signed-by', so this command cannot"):
            desk.approvals.answer("", "approved")
        desk.approvals.answer("", "refused", "no")
        for key in REVIEWERS:
            self.sign(desk, key)
        assert verdict(desk.decide(plan())) == ("refused", "no"), "a person at the site may always refuse"


def test_listed_plans(tmp_path: Path) -> None:
    listed = offer(plan()).description.digest
    desk = Desk(tmp_path, by="listed", plans=(listed,))
    assert desk.decide(plan()).verdict == "approved"
    assert verdict(desk.decide(plan(OTHER), OTHER)) == ("waits", "it is not among the listed plans")
    assert Desk(tmp_path, by="listed").decide(plan()).verdict == "waits", "it was taken off the list"


def test_any_plan(tmp_path: Path) -> None:
    assert Desk(tmp_path, by="any").decide(plan()).verdict == "approved"
    assert Desk(tmp_path).decide(plan()).verdict == "waits", "nobody looked at it, and the site asks now"


class TestChangedFiles:
    """A decision is a file that only the site's key can make."""

    def file_of(self, desk: Desk) -> Path:
        desk.decide(plan())
        made = desk.approvals.answer("", "refused")
        return desk.folder / made.plan[7:]

    def test_every_changed_byte_is_refused(self, desk: Desk) -> None:
        path = self.file_of(desk)
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            changed = bytearray(whole)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(CorruptError):
                desk.decide(plan())
        path.write_bytes(whole)
        assert desk.decide(plan()).verdict == "refused"

    def test_a_refusal_cannot_be_made_an_approval(self, desk: Desk) -> None:
        path = self.file_of(desk)
        path.write_bytes(path.read_bytes().replace(b'"refused"', b'"approved"'))
        with pytest.raises(CorruptError, match="the decision is not signed by this site"):
            desk.decide(plan())

    def test_the_approval_of_another_plan(self, desk: Desk) -> None:
        desk.decide(plan(OTHER), OTHER)
        made = desk.approvals.answer("", "approved")
        target = offer(plan()).description.digest
        (desk.folder / target[7:]).write_bytes((desk.folder / made.plan[7:]).read_bytes())
        with pytest.raises(CorruptError, match="not signed by this site"):
            desk.decide(plan())

    def test_the_approval_of_another_site(self, desk: Desk, tmp_path: Path) -> None:
        other = Approvals(tmp_path / "other", Approving(), signer_of(make_key()))
        other.decide(offer(plan()))
        made = other.answer("", "approved")
        (desk.folder / made.plan[7:]).write_bytes((tmp_path / "other" / made.plan[7:]).read_bytes())
        with pytest.raises(CorruptError, match="not signed by this site"):
            desk.decide(plan())

    def test_a_link(self, desk: Desk, tmp_path: Path) -> None:
        path = self.file_of(desk)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="Too many levels of symbolic links"):
            desk.decide(plan())

    def test_kept_code(self, desk: Desk) -> None:
        desk.decide(plan())
        description = desk.approvals.pending()[0].description
        (desk.folder / "objects" / description.code[7:]).write_bytes(b"other")
        with pytest.raises(CorruptError, match="its bytes do not fit its digest"):
            desk.approvals.difference(description)


def test_digests_that_fit_none_or_several(desk: Desk) -> None:
    with pytest.raises(InputError, match=r"no plan waits\. See `fedpipe site pending`"):
        desk.approvals.answer("", "approved")
    desk.decide(plan())
    desk.decide(plan(OTHER), OTHER)
    with pytest.raises(InputError, match="2 plans fit"):
        desk.approvals.answer("", "approved")
    with pytest.raises(InputError, match="no plan has the digest 'zzz'"):
        desk.approvals.answer("zzz", "approved")
    assert desk.approvals.answer(desk.approvals.pending()[1].digest, "approved").code == plan(OTHER).code


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "approvals").write_text("")
    with pytest.raises(InputError, match=r"cannot be made: Not a directory\. Give the user of the agent the right"):
        Desk(tmp_path)
