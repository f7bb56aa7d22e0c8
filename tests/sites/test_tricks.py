"""Tricks of a hostile coordinator or store: each is refused before the data are opened, with its reason in the journal.

The site trusts its own disk, its key, and nothing that comes from the store.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from fedpipe.errors import FedpipeError
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.rounds.floors import Floors, LeastPrivacy
from fedpipe.rounds.plan import Plan
from fedpipe.sites.approval import MOST_WAITING, Approval, Approvals, Approving, review_of
from fedpipe.sites.audit import find_flaw
from fedpipe.sites.decisions import Decisions, approvals_of, journal_folder, journal_of, signer_in
from fedpipe.sites.description import IMAGE, offer_of
from fedpipe.sites.journal import entries_of
from fedpipe.sites.site import Site
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import canonical, digest_of, encode, put_bytes
from tests.sites.plans import CODE, PRIVACY, plan, site, training, with_training

OTHER = b"def build():\n    return model(4)\n"
TABLE = {"uri": "x.csv", "features": {"age": "number", "sex": "category"}, "labels": "outcome"}
REVIEWERS = [make_key() for _ in range(3)]
PUBLIC = [public_key(key) for key in REVIEWERS]


class Hospital:
    """A site with data, which looks at the store as its agent does, and opens its data only for an approved plan."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.store = folder, MemoryStore()
        self.site = self.configured(**settings)
        self.opened = 0

    def configured(self, **settings: Any) -> Site:
        policy = {"data": str(self.folder / "patients.npz"), **settings.pop("policy", {})}
        self.site = site(self.folder, policy=policy, **settings)
        self.decisions = Decisions(self.site, journal_of(self.site))
        return self.site

    def looks(self, given: Plan, code: bytes | None = CODE) -> str:
        """Let the coordinator put a plan and its code, and return what the site makes of it."""
        if code is not None:
            put_bytes(self.store, code)
        return self.reads(given.put(self.store))

    def reads(self, digest: str) -> str:
        try:
            made = self.decisions.decide(self.store, self.decisions.read(self.store, digest))
        except FedpipeError as error:
            return f"refused: {error.what}"
        if made.verdict == "approved":
            self.opened += 1
        return f"{made.verdict}: {made.why}"

    def approves(self, given: Plan, code: bytes = CODE) -> None:
        """Let a person at the site approve a plan; it runs once, and what follows is a trick."""
        assert self.looks(given, code).startswith("waits")
        digest = offer_of(given, code, "b", self.store.uri, {}).description.digest
        approvals_of(self.site).answer(digest, "approved")
        assert self.looks(given, code).startswith("approved")
        assert self.opened
        self.opened = 0

    @property
    def reasons(self) -> list[str]:
        return [
            entry.fields.get("why", "")
            for entry in entries_of(journal_folder(Path(self.site.state)))
            if entry.event in ("refused", "waits")
        ]


class Trick(NamedTuple):
    """A plan that asks for more than the policy, and how the site says so."""

    name: str
    policy: dict[str, Any]
    given: Callable[[], Plan]
    reason: str


ASKING = [
    Trick("larger epochs", {"epochs": 2}, lambda: plan(training=training(local_epochs=50)),
          "trains 50 epochs a round; this site's policy allows 2"),
    Trick("epochs hidden in the preprocessing", {"epochs": 2},
          lambda: plan(training=training(preprocessing="repeat(1000).batch(8)")), "trains 1000 epochs a round"),
    Trick("epochs hidden in a personal model", {"epochs": 1},
          lambda: plan(training=training(method={"name": "ditto", "lambda": 0.1})), "trains 2 epochs a round"),
    Trick("more steps", {"steps": 100}, lambda: plan(training=training(local_epochs=0, local_steps=10**6)),
          "trains 1000000 steps a round; this site's policy allows 100"),
    Trick("a batch of all examples", {"batch_size": 64}, lambda: plan(training=training(batch_size=10**9)),
          "batches of 1000000000 examples; this site's policy allows 64"),
    Trick("batches that accumulate", {"batch_size": 64}, lambda: plan(training=training(accumulate=100)),
          "batches of 800 examples; this site's policy allows 64"),
    Trick("another algorithm", {"algorithms": ["averaging"]}, lambda: plan(algorithm="collective"),
          "uses the algorithm collective; this site's policy allows averaging"),
    Trick("no privacy", {"privacy": {"target_epsilon": 4}}, plan, "the plan has no privacy for it"),
    Trick("privacy for the others only", {"privacy": {"target_epsilon": 4}},
          lambda: plan(privacy=PRIVACY, learners=[{"name": "a"}, {"name": "b", "privacy": {**PRIVACY, "target_epsilon": 1e6}}]),
          "target_epsilon is 1e+06, the most is 4"),
    Trick("less noise", {"privacy": {"noise_multiplier": 2.0}}, lambda: plan(privacy=PRIVACY),
          "noise_multiplier is 1.5, the least is 2"),
    Trick("a huge clip", {"privacy": {"l2_norm_clip": 1.0}}, lambda: plan(privacy={**PRIVACY, "l2_norm_clip": 1e6}),
          "l2_norm_clip is 1e+06, the most is 1"),
    Trick("secure sums switched off", {"secure_sums": True}, plan, "shows single updates to its coordinator"),
    Trick("updates of any size in a sum", {"norm": 2.0}, lambda: plan(algorithm={"name": "averaging", "secure": {}}),
          "updates of any L2 norm; this site's policy allows 2"),
    Trick("a round of this site alone", {"learners": 2}, lambda: plan(quorum={"min_learners": 1}),
          "can consist of 1 learner; this site's policy needs 2"),
    Trick("accomplices instead of learners", {"learners": 3}, lambda: plan(learners=[{"name": "b"}, {"name": "x"}]),
          "can consist of 2 learners; this site's policy needs 3"),
    Trick("one more column", {"columns": {"age": "number", "outcome": "category"}}, lambda: plan(data=TABLE),
          "reads the column 'sex'; this site's policy allows age, outcome"),
    Trick("a column as text", {"columns": {"age": "number", "sex": "number", "outcome": "category"}},
          lambda: plan(data=TABLE), "reads the column 'sex' as category; this site's policy allows number"),
    Trick("statistics of one patient", {"leaves": {"examples": 20}},
          lambda: plan(data={**TABLE, "statistics": {"rare": 1}}), "statistics of 1 example (data.statistics.rare)"),
    Trick("all GPUs", {"gpus": 1},
          lambda: plan(learners=[{"name": "a"}, {"name": "b", "placement": {"accelerator": {"count": 8}}}]),
          "asks for 8 GPUs; this site's policy allows 1"),
    Trick("all memory", {"memory": "8Gi"}, lambda: plan(placement={"learn": {"memory": "900Gi"}}),
          "asks for 900Gi of memory; this site's policy allows 8Gi"),
    Trick("a vote by a metric that stays", {"leaves": {"metrics": []}}, lambda: plan(algorithm="collective"),
          "votes by 'loss'; this site's policy lets no metric leave"),
    Trick("a callback that writes a file", {},
          lambda: with_training(plan(), callbacks={"CSVLogger": {"filename": "/state/b.key"}}),
          "uses the callback 'CSVLogger'"),
    Trick("a callback that saves the model elsewhere", {},
          lambda: with_training(plan(), callbacks={"ModelCheckpoint": {"filepath": "x"}}),
          "uses the callback 'ModelCheckpoint'"),
    Trick("a callback that calls home", {},
          lambda: with_training(plan(), callbacks={"RemoteMonitor": {"root": "https://evil.example"}}),
          "uses the callback 'RemoteMonitor'"),
    Trick("an argument of fit that names a file", {},
          lambda: with_training(plan(), fit={"class_weight": {"0": "../state/b.key"}}), "may name a file"),
    Trick("other examples for fit", {}, lambda: with_training(plan(), fit={"x": [1]}),
          "gives `fit` the argument 'x'"),
    Trick("a monitor that names a file", {},
          lambda: with_training(plan(), callbacks={"EarlyStopping": {"monitor": "~/.ssh/id_ed25519"}}), "may name a file"),
    Trick("preprocessing that is a program", {},
          lambda: with_training(plan(), preprocessing="__import__('os').system('id')"), "the plan has a mistake"),
    Trick("a plan without this site", {}, lambda: plan(learners=[{"name": "a"}, {"name": "c"}]),
          "the plan has no learner 'b'"),
    Trick("a federation of another name", {}, lambda: plan(name="other"),
          "the plan is of the federation 'other'; this site's is 'tiny'"),
]  # fmt: skip


@pytest.mark.parametrize("trick", ASKING, ids=[trick.name for trick in ASKING])
@pytest.mark.parametrize("approve", ["any", "ask"])
def test_a_plan_that_asks_for_more(tmp_path: Path, trick: Trick, approve: str) -> None:
    hospital = Hospital(tmp_path, approve=approve, policy=trick.policy)
    said = hospital.looks(trick.given())
    assert said.startswith("refused: ")
    assert trick.reason in said
    assert hospital.opened == 0
    assert [trick.reason in reason for reason in hospital.reasons] == [True]
    assert approvals_of(hospital.site).pending() == [], "nobody is asked to approve it"


@pytest.mark.parametrize("trick", ASKING, ids=[trick.name for trick in ASKING])
def test_the_policy_stands_above_an_approval(tmp_path: Path, trick: Trick) -> None:
    hospital = Hospital(tmp_path)
    if not trick.policy:
        return
    hospital.approves(trick.given())
    hospital.configured(policy=trick.policy)
    assert hospital.looks(trick.given()).startswith("refused: ")
    assert hospital.opened == 0


CHANGES: dict[str, Callable[[], tuple[Plan, bytes]]] = {
    "code swapped after the approval": lambda: (plan(OTHER), OTHER),
    "another function of the same file": lambda: (plan(function="evil"), CODE),
    "a larger learning rate": lambda: (plan(training=training(batch_size=1, learning_rate=10.0)), CODE),
    "more rounds": lambda: (plan(training=training(batch_size=1, rounds=1000)), CODE),
    "fewer learners": lambda: (plan(learners=[{"name": "b"}, {"name": "c"}]), CODE),
    "a longer deadline": lambda: (plan(quorum={"deadline": 10**6}), CODE),
    "another rule": lambda: (plan(algorithm={"name": "averaging", "rule": "median"}), CODE),
    "other inputs of the model": lambda: (replace(plan(), inputs=(("x", "float32", (None, 9)),)), CODE),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_another_plan_than_the_approved_one(tmp_path: Path, change: Callable[[], tuple[Plan, bytes]]) -> None:
    hospital = Hospital(tmp_path)
    hospital.approves(plan())
    assert hospital.looks(*change()) == "waits: nobody at the site has decided"
    assert hospital.opened == 0
    assert hospital.reasons[-1] == "nobody at the site has decided"
    assert hospital.looks(plan()).startswith("approved")


def test_a_way_back_to_older_code(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.approves(plan())
    hospital.approves(plan(OTHER), OTHER)
    assert hospital.looks(plan()) == "waits: its code is older than what was approved last"
    assert hospital.opened == 0
    assert hospital.reasons[-1] == "its code is older than what was approved last"


class TestObjects:
    """Objects of the store that are not what their names say."""

    def test_other_bytes_below_the_digest_of_approved_code(self, tmp_path: Path) -> None:
        hospital = Hospital(tmp_path)
        hospital.approves(plan())
        hospital.store.replace(keys.content(plan().code), OTHER)
        hospital.configured()
        assert hospital.looks(plan(), None).startswith("refused: ")
        assert hospital.opened == 0
        assert "digest" in hospital.reasons[-1] or "bytes" in hospital.reasons[-1]

    def test_other_bytes_below_the_digest_of_an_approved_plan(self, tmp_path: Path) -> None:
        hospital = Hospital(tmp_path)
        hospital.approves(plan())
        evil = plan(training=training(batch_size=1, local_epochs=99))
        hospital.store.replace(keys.content(plan().digest), canonical(evil))
        assert hospital.reads(plan().digest).startswith("refused: ")
        assert hospital.opened == 0
        assert hospital.reasons[-1]

    @pytest.mark.parametrize(
        "data",
        [
            b"", b"{", b"[" * 100_000, b"null", b"\xff\xfe", b"<html>502</html>",
            canonical(plan()).replace(b'"run"', b'"ran"'), canonical(plan())[:-1] + b',"extra":1}',
            canonical(plan()).replace(b'"format":1', b'"format":99'),
            canonical(plan()).replace(b'"rounds":3', b'"rounds":-3'),
            canonical(plan()).replace(b'"name":"b"', b'"name":"../b"'),
        ],
        ids=["empty", "cut", "nested", "null", "no text", "a web page", "a missing key", "an unknown key",
             "another format", "a negative number", "a name with a path"],
    )  # fmt: skip
    @pytest.mark.parametrize("approve", ["any", "ask"])
    def test_a_plan_that_is_none(self, tmp_path: Path, data: bytes, approve: str) -> None:
        hospital = Hospital(tmp_path, approve=approve)
        put_bytes(hospital.store, CODE)
        assert hospital.reads(put_bytes(hospital.store, data)).startswith("refused: ")
        assert hospital.opened == 0
        assert len(hospital.reasons) == 1
        hospital.reads(digest_of(data))
        assert len(hospital.reasons) == 1, "a refusal is written down once, however often it is offered"

    def test_a_plan_without_an_end(self, tmp_path: Path) -> None:
        hospital = Hospital(tmp_path, approve="any")
        huge = canonical(plan())[:-1] + b" " * 2**27 + b"}"
        assert hospital.reads(put_bytes(hospital.store, huge)).startswith("refused: ")
        assert hospital.opened == 0
        assert hospital.reasons

    def test_code_without_an_end(self, tmp_path: Path) -> None:
        hospital = Hospital(tmp_path, approve="any")
        code = b"#" * 2**27
        assert hospital.looks(plan(code), code).startswith("refused: ")
        assert hospital.opened == 0
        assert hospital.reasons

    def test_a_flood_of_plans(self, tmp_path: Path) -> None:
        """It does not fill the disk of the site."""
        hospital = Hospital(tmp_path)
        for number in range(MOST_WAITING + 3):
            said = hospital.looks(plan(training=training(rounds=number + 1)))
            expected = (
                "nobody at the site has decided" if number < MOST_WAITING else "64 other plans wait for a decision"
            )
            assert said == f"waits: {expected}"
        approvals = approvals_of(hospital.site)
        assert len(approvals.pending()) == MOST_WAITING
        approvals.answer(approvals.pending()[0].digest, "refused")
        assert hospital.looks(plan(training=training(rounds=999))) == "waits: nobody at the site has decided"
        assert hospital.opened == 0

    def test_an_approval_that_the_coordinator_writes(self, tmp_path: Path) -> None:
        hospital = Hospital(tmp_path)
        given = plan()
        digest = offer_of(given, CODE, "b", hospital.store.uri, {}).description.digest
        forged = Approval(learner="b", plan=digest, code=given.code, verdict="approved", since=1.0)
        hospital.store.replace(keys.approval("b"), encode(forged))
        assert hospital.looks(given).startswith("waits")
        assert hospital.opened == 0

    def test_a_policy_in_the_store(self, tmp_path: Path) -> None:
        hospital = Hospital(tmp_path, approve="any", policy={"epochs": 1})
        for key in ("site.yaml", "learners/b/site.yaml", "learners/b/policy", "learners/b/floors"):
            hospital.store.replace(key, b"policy: {epochs: 99}")
        assert hospital.looks(plan(training=training(local_epochs=2))).startswith("refused: ")
        assert hospital.opened == 0


class TestReplays:
    """Approvals and reviews that were made for something else."""

    @pytest.fixture
    def hospital(self, tmp_path: Path) -> Hospital:
        return Hospital(tmp_path)

    def target(self, hospital: Hospital, given: Plan | None = None, **more: str) -> str:
        place = {"place": hospital.store.uri, "learner": "b", **more}
        return offer_of(given or plan(), CODE, **place, environ={}).description.digest  # type: ignore[arg-type]

    def test_the_approval_of_another_site(self, hospital: Hospital, tmp_path: Path) -> None:
        approvals = Approvals(tmp_path / "other", Approving(), signer_of(make_key()))
        approvals.decide(offer_of(plan(), CODE, "b", hospital.store.uri, {}))
        made = approvals.answer("", "approved")
        approvals_of(hospital.site)
        self.copied(hospital, tmp_path / "other" / made.plan[7:], made.plan)
        assert hospital.looks(plan()) == "refused: the decision is not signed by this site"
        assert hospital.opened == 0

    def copied(self, hospital: Hospital, source: Path, digest: str) -> None:
        (hospital.folder / "state" / "approvals" / digest[7:]).write_bytes(source.read_bytes())

    def test_its_own_approval_of_another_plan(self, hospital: Hospital) -> None:
        hospital.approves(plan())
        evil = plan(training=training(batch_size=1, learning_rate=9.0))
        source = hospital.folder / "state" / "approvals" / self.target(hospital)[7:]
        self.copied(hospital, source, self.target(hospital, evil))
        assert hospital.looks(evil) == "refused: the decision is not signed by this site"
        assert hospital.opened == 0
        assert hospital.reasons[-1] == "the decision is not signed by this site"

    def test_a_refusal_of_which_a_byte_was_changed(self, hospital: Hospital) -> None:
        hospital.looks(plan())
        approvals_of(hospital.site).answer("", "refused")
        path = hospital.folder / "state" / "approvals" / self.target(hospital)[7:]
        path.write_bytes(path.read_bytes().replace(b"refused", b"approved"))
        assert hospital.looks(plan()) == "refused: the decision is not signed by this site"
        assert hospital.opened == 0

    def test_a_link_in_the_place_of_an_approval(self, hospital: Hospital) -> None:
        hospital.looks(plan())
        path = hospital.folder / "state" / "approvals" / self.target(hospital)[7:]
        path.symlink_to(hospital.folder / "state" / "b.key")
        assert hospital.looks(plan()).startswith("refused: cannot be read: Too many levels of symbolic links")
        assert hospital.opened == 0

    def test_two_federations_of_one_name(self, hospital: Hospital) -> None:
        hospital.approves(plan())
        hospital.store = MemoryStore("memory://elsewhere")
        assert hospital.looks(plan()) == "waits: nobody at the site has decided"
        assert hospital.opened == 0

    def test_the_plan_of_another_learner(self, hospital: Hospital) -> None:
        hospital.approves(plan())
        assert self.target(hospital, learner="a") != self.target(hospital)
        hospital.configured(name="a", key="state/b.key")
        assert hospital.looks(plan()) == "waits: nobody at the site has decided"
        assert hospital.opened == 0

    def test_another_image(self, hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
        hospital.approves(plan())
        monkeypatch.setenv(IMAGE, "sha256:evil")
        hospital.configured()
        assert hospital.looks(plan()) == "waits: nobody at the site has decided"
        assert hospital.opened == 0


class TestReviews:
    """Signatures that do not count for `signed-by`."""

    @pytest.fixture
    def hospital(self, tmp_path: Path) -> Hospital:
        return Hospital(tmp_path, approve={"by": "signed-by", "reviewers": PUBLIC, "needed": 2})

    def signed(self, hospital: Hospital, given: Plan, *signers: str) -> None:
        digest = offer_of(given, CODE, "b", hospital.store.uri, {}).description.digest
        for key in signers:
            approvals_of(hospital.site).add_review(review_of(digest, signer_of(key)))

    def test_one_reviewer_who_signs_twice(self, hospital: Hospital) -> None:
        hospital.looks(plan())
        self.signed(hospital, plan(), REVIEWERS[0], REVIEWERS[0])
        assert hospital.looks(plan()) == "waits: 1 of 2 reviewers have signed it"
        assert hospital.opened == 0

    def test_a_reviewer_who_was_revoked(self, hospital: Hospital) -> None:
        hospital.looks(plan())
        self.signed(hospital, plan(), *REVIEWERS[:2])
        assert hospital.looks(plan()).startswith("approved")
        hospital.opened = 0
        approve = {"by": "signed-by", "reviewers": PUBLIC, "needed": 2, "revoked": PUBLIC[:1]}
        hospital.configured(approve=approve)
        assert hospital.looks(plan()) == "waits: 1 of 2 reviewers have signed it"
        assert hospital.opened == 0
        assert hospital.reasons[-1] == "1 of 2 reviewers have signed it"

    def test_reviews_of_another_plan(self, hospital: Hospital) -> None:
        evil = plan(training=training(batch_size=1, learning_rate=9.0))
        hospital.looks(plan())
        self.signed(hospital, plan(), *REVIEWERS[:2])
        ours, theirs = (offer_of(p, CODE, "b", hospital.store.uri, {}).description.digest[7:] for p in (plan(), evil))
        for path in (hospital.folder / "state" / "approvals" / "reviews").glob(f"{ours}-*"):
            path.with_name(path.name.replace(ours, theirs)).write_bytes(path.read_bytes())
        assert hospital.looks(evil) == "waits: 0 of 2 reviewers have signed it"
        assert hospital.opened == 0

    def test_a_key_of_the_coordinator(self, hospital: Hospital) -> None:
        hospital.looks(plan())
        digest = offer_of(plan(), CODE, "b", hospital.store.uri, {}).description.digest
        forged = review_of(digest, signer_of(make_key()))
        name = f"{digest[7:]}-{'0' * 16}"
        (hospital.folder / "state" / "approvals" / "reviews" / name).write_bytes(canonical(forged))
        assert hospital.looks(plan()) == "waits: 0 of 2 reviewers have signed it"
        assert hospital.opened == 0


def test_an_honest_plan_runs(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, policy={"epochs": 1, "learners": 2, "batch_size": 8})
    hospital.approves(plan(training=training()))
    assert hospital.looks(plan(training=training(), run="r2")).startswith("approved")
    assert hospital.opened == 1


def test_the_journal_of_all_this_is_whole(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, policy={"epochs": 1})
    for epochs in range(1, 30):
        hospital.looks(plan(training=training(local_epochs=epochs)))
    assert len(hospital.reasons) == 29
    assert find_flaw(journal_folder(Path(hospital.site.state)), signer_in(tmp_path / "state").public) is None


def test_the_process_that_trains_checks_again(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, policy={"privacy": {"target_epsilon": 4}, "leaves": {"metrics": ["loss"]}})
    made = hospital.site.policy.floors((plan().code,))
    assert made == Floors(
        privacy=LeastPrivacy(target_epsilon=4), code=(plan().code,), leaves=hospital.site.policy.leaves
    )
