"""The demands of a learner, and the agreement of a step's plan with the run: no coordinator's plan loosens them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from fedpipe.commands.identities import enroll, rotate
from fedpipe.errors import DroppedError, InputError, RoundError
from fedpipe.identity.signing import COORDINATOR
from fedpipe.learners.assembly import make_learner
from fedpipe.learners.contribute import contribute
from fedpipe.learners.user_code import load_code
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.floors import Floors, LeastPrivacy, check_floors, read_floors
from fedpipe.rounds.manifests import Dropped
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.steps import learn, score, train, vote
from fedpipe.store import LocalStore, MemoryStore
from fedpipe.store.base import Credentials
from fedpipe.store.objects import digest_of
from tests.federations import fresh, make_federation, make_plan
from tests.models import LINEAR

BASE = digest_of(b"w")
PRIVACY = {"noise_multiplier": 1.5, "l2_norm_clip": 1.0, "microbatches": 1, "delta": 1e-5, "target_epsilon": 4.0}


def plan_of(**privacy: Any) -> Plan:
    learners = [{"name": "a", "privacy": {**PRIVACY, **privacy}}, {"name": "b"}]
    return make_plan(make_federation(learners=learners))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(text: str) -> None:
        (tmp_path / "floors.yaml").write_text(text)
        monkeypatch.setenv("FEDPIPE_FLOORS", str(tmp_path / "floors.yaml"))

    return write


@pytest.mark.parametrize(
    ("floor", "privacy", "why"),
    [
        ("noise_multiplier: 1.6", {}, "noise_multiplier is 1.5, the least is 1.6"),
        ("target_epsilon: 3.9", {}, "target_epsilon is 4, the most is 3.9"),
        ("delta: 1.0e-6", {}, "delta is 1e-05, the most is 1e-06"),
        ("sampling: none", {}, "sampling is poisson, but must be none"),
        ("sampling: none", {"sampling": "none"}, ""),
        ("noise_multiplier: 1.5, target_epsilon: 4.0, delta: 1.0e-5", {}, ""),
    ],
)
def test_less_privacy_is_refused(write: Any, floor: str, privacy: dict[str, Any], why: str) -> None:
    write(f"privacy: {{{floor}}}")
    if not why:
        check_floors(plan_of(**privacy), "a")
        return
    with pytest.raises(DroppedError, match=f"demand more privacy: {why}"):
        check_floors(plan_of(**privacy), "a")


def test_a_plan_without_privacy_is_refused(write: Any) -> None:
    write("privacy: {noise_multiplier: 1.0}")
    with pytest.raises(DroppedError, match="the plan has no privacy for it"):
        check_floors(plan_of(), "b")


def test_only_allowed_plans_and_code(write: Any) -> None:
    plan = plan_of()
    write(f"plans: ['{plan.definition.digest}']\ncode: ['{plan.code}']")
    check_floors(plan, "a")
    check_floors(replace(plan, federation=replace(plan.federation, secret="x")), "a")  # the same definition
    other = replace(plan, federation=replace(plan.federation, training=replace(plan.federation.training, rounds=9)))
    with pytest.raises(DroppedError, match="do not allow the plan"):
        check_floors(other, "a")
    write(f"code: ['{digest_of(b'other')}']")
    with pytest.raises(DroppedError, match="do not allow the code"):
        check_floors(plan, "a")
    write("code: []")
    with pytest.raises(DroppedError, match="do not allow the code"):
        check_floors(plan, "a")


def test_code_that_is_not_allowed_is_never_run(write: Any, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    write(f"code: ['{digest_of(LINEAR.encode())}']")
    with pytest.raises(DroppedError, match="do not allow the code"):
        load_code(code, digest_of(code))
    assert not (tmp_path / "ran").exists()
    load_code(LINEAR.encode(), digest_of(LINEAR.encode()))


def test_a_learner_below_its_floors_is_dropped_with_the_reason(store: MemoryStore, write: Any) -> None:
    plan = plan_of()
    base = begin(store, plan, fresh).weights
    write("privacy: {target_epsilon: 1.0}")
    found = contribute(store, plan, "a", 1, base, lambda: make_learner(store, plan, "a", 1))  # type: ignore[arg-type]
    assert isinstance(found, Dropped)
    assert found.lasting
    assert "target_epsilon is 4, the most is 1" in found.why


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("privacy: {noise: 1}", "the floors are malformed"),
        ("privacy: [", "the floors are not YAML"),
        ("code: [abc]", "the floors are malformed"),
        ("- 1", "the floors are malformed"),
        ("privacy: {delta: .nan}", "the floors are malformed"),
    ],
)
def test_malformed_floors_stop_everything(write: Any, text: str, message: str) -> None:
    write(text)
    with pytest.raises(InputError, match=message):
        check_floors(plan_of(), "a")


def test_floors_that_are_missing_stop_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDPIPE_FLOORS", str(tmp_path / "none"))
    with pytest.raises(InputError, match="the floors cannot be read"):
        read_floors()


def test_where_floors_are(tmp_path: Path) -> None:
    assert read_floors({}) == Floors()
    assert read_floors({"FEDPIPE_SECRET_DIR": str(tmp_path)}) == Floors()
    (tmp_path / "floors").write_text("plans: []")
    assert read_floors({"FEDPIPE_SECRET_DIR": str(tmp_path)}).plans == ()
    (tmp_path / "empty").write_text("")
    assert read_floors({"FEDPIPE_SECRET_DIR": str(tmp_path), "FEDPIPE_FLOORS": str(tmp_path / "empty")}) == Floors()


class TestAgreement:
    @pytest.fixture
    def place(self, tmp_path: Path) -> RunPlace:
        store = LocalStore(tmp_path / "s")
        plan = make_plan()
        begin(store.below("tiny"), plan, fresh)
        return RunPlace(store=str(tmp_path / "s"), federation="tiny", run="r1", plan=plan.put(store.below("tiny")))

    def test_takes_the_plan_of_the_record(self, place: RunPlace) -> None:
        assert agreed_plan(place.open(), place) == make_plan()

    def test_takes_other_settings_of_the_same_definition(self, place: RunPlace) -> None:
        plan = make_plan()
        other = replace(plan, federation=replace(plan.federation, secret="x")).put(place.open())
        assert agreed_plan(place.open(), replace(place, plan=other)).federation.secret == "x"

    @pytest.mark.parametrize(
        "begun",
        [
            lambda place: train.run(train.Inputs(place=place, learner="a", round=1, base=BASE)),
            lambda place: vote.run(vote.Inputs(place=place, learner="a", round=1, base=BASE, candidate=BASE)),
            lambda place: score.run(score.Inputs(place=place, learner="a", weights=BASE)),
            learn.agreed,
        ],
        ids=["train", "vote", "score", "learn"],
    )
    def test_no_step_takes_another_one(self, place: RunPlace, begun: Any) -> None:
        plan = make_plan()
        training = replace(plan.federation.training, rounds=99)
        other = replace(
            place, plan=replace(plan, federation=replace(plan.federation, training=training)).put(place.open())
        )
        with pytest.raises(RoundError, match="the step's plan defines another training"):
            begun(other)

    def test_no_step_takes_that_of_another_run(self, place: RunPlace) -> None:
        other = replace(make_plan(), run="r2").put(place.open())
        with pytest.raises(RoundError, match="is of run 'r2'"):
            agreed_plan(place.open(), replace(place, plan=other))

    def test_no_step_begins_a_run(self, place: RunPlace) -> None:
        plan = make_plan(run="r2").put(place.open())
        with pytest.raises(RoundError, match="round 0 is not committed"):
            agreed_plan(place.open(), replace(place, run="r2", plan=plan))


class TestTheSecretOfALearner:
    """Floors next to the learner's keys are in the Secret of `enroll`, and stay there after `rotate`."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        (tmp_path / "keys").mkdir()
        file = tmp_path / "federation.yaml"
        file.write_text("name: tiny\nstore: store\nlearners: [{name: a}, {name: b}]\ndata: {uri: x.npz}\n"
                        "training: {rounds: 1, batch_size: 1}\n")  # fmt: skip
        return file

    def test_has_them(self, file: Path, tmp_path: Path) -> None:
        demands = "privacy: {noise_multiplier: 1.0, target_epsilon: 4.0}\n"
        (file.parent / "keys" / "a.floors.yaml").write_text(demands)
        (file.parent / "keys" / "_coordinator.floors.yaml").write_text("nobody: reads")
        user, mounted = Credentials("user", "secret"), tmp_path / "mounted"
        mounted.mkdir()
        for made in (enroll(file, "a", given=user), rotate(file, "a", given=user)):
            data = yaml.safe_load(made.files[-1].read_text())["data"]
            for name, value in data.items():
                (mounted / name).write_bytes(base64.b64decode(value))
            assert (mounted / "floors").read_text() == demands
            assert read_floors({"FEDPIPE_SECRET_DIR": str(mounted)}).privacy == LeastPrivacy(
                noise_multiplier=1.0, target_epsilon=4.0
            )
        for name in ("b", COORDINATOR):
            made = enroll(file, name, given=user)
            assert "floors" not in yaml.safe_load(made.files[-1].read_text())["data"]

    @pytest.mark.parametrize("text", ["privacy: {noise: 1}", "[", "plans: [x]", "\x00"])
    def test_does_not_take_malformed_ones(self, file: Path, text: str) -> None:
        (file.parent / "keys" / "a.floors.yaml").write_text(text)
        with pytest.raises(InputError, match="floors"):
            enroll(file, "a", given=Credentials("user", "secret"))
        assert [path.name for path in (file.parent / "keys").iterdir()] == ["a.floors.yaml"]
        assert not LocalStore(file.parent / "store").below("tiny").size("enrolled")
