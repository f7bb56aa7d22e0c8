"""Tests the story of a run with votes: numbers, pictures, the report, the growing table."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fedpipe.commands.compare import report
from fedpipe.commands.plot import plot
from fedpipe.errors import InputError, NotFoundError
from fedpipe.reports.report import render
from fedpipe.reports.story import Story, global_metrics, read_story, shared_scores, summarise
from fedpipe.reports.vote_plots import metrics_of, vote_pictures
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.plan import Plan
from fedpipe.store import LocalStore, MemoryStore, Store
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_collective, play_vote
from tests.rounds.test_budget import learners as private_learners
from tests.rounds.test_budget import private_plan


def eventful() -> dict[str, PlusOneLearner]:
    """Returns learners such that round 1 of a is accepted, 2 of b is rejected, 3 of c has no proposal; d never votes."""
    made = {name: PlusOneLearner(number, wants=20.0) for name, number in (("a", 1.0), ("b", -1.0))}
    return {
        **made,
        "c": PlusOneLearner(1.0, fails="no power", wants=20.0),
        "d": PlusOneLearner(1.0, absent="<b>asleep</b>"),
    }


def plan_of(**more: Any) -> Plan:
    return make_plan(make_federation(tuple("abcd"), algorithm={"name": "collective"}, **more))


@pytest.fixture
def story(store: MemoryStore) -> Story:
    play_collective(store, plan_of(), eventful())
    return read_story(store, "r1")


class TestSummary:
    def test_each_round_has_its_decision(self, story: Story) -> None:
        start, first, second, third = summarise(story)["rounds"]
        assert [r["round"] for r in (start, first, second, third)] == [0, 1, 2, 3]
        assert start["vote"]["learners"]["a"] == {"ballot": "none", "vote_score": 10.0, "test_score": 10.0}
        assert first["vote"] == {
            "proposer": "a", "accepted": True, "approvals": 2, "voters": 3, "code": "", "epsilon": None,
            "learners": {
                "a": {"ballot": "void", "vote_score": 5.0, "test_score": 5.0},
                "b": {"ballot": "yes", "vote_score": 5.0, "test_score": 5.0},
                "c": {"ballot": "yes", "vote_score": 5.0, "test_score": 5.0},
                "d": {"ballot": "absent", "vote_score": None, "test_score": None, "why": "<b>asleep</b>"},
            },
        }  # fmt: skip
        assert (second["vote"]["accepted"], second["vote"]["learners"]["a"]["ballot"]) == (False, "no")
        assert second["vote"]["learners"]["a"]["vote_score"] == 10.0  # of the proposed model
        assert (third["vote"]["voters"], third["vote"]["learners"]["a"]["ballot"]) == (0, "none")
        assert third["dropped"] == [{"learner": "c", "why": "no power"}]

    def test_metrics_are_of_the_shared_model_after_the_vote(self, story: Story) -> None:
        assert [global_metrics(story, n)["loss"] for n in range(4)] == [10.0, 5.0, 5.0, 5.0]
        assert [sorted(held) for held in shared_scores(story)] == [["a", "b", "c"]] * 4

    def test_each_proposal_has_its_epsilon(self, store: MemoryStore) -> None:
        play_collective(store, private_plan(target_epsilon=0.9), private_learners())
        found = summarise(read_story(store, "r1"))
        mine = [r["vote"] for r in found["rounds"] if r["vote"]["proposer"] == "a"]
        assert mine[0]["epsilon"] < mine[1]["epsilon"] == mine[2]["epsilon"] <= 0.9
        assert [vote["code"] for vote in mine] == ["", "", "DP_BUDGET_EXCEEDED"]
        assert found["privacy"]["a"]["events"] == 2
        assert set(found["privacy"]) == {"a"}

    def test_a_run_without_votes(self, store: MemoryStore) -> None:
        play(store, make_plan())
        found = summarise(read_story(store, "r1"))
        assert [r["round"] for r in found["rounds"]] == [1, 2, 3]
        assert not any("vote" in r for r in found["rounds"])
        assert "privacy" not in found


class TestReport:
    def test_votes_and_ballots(self, story: Story) -> None:
        page = render(story)
        for part in ("Votes", "strictly lower", "accepted, 2 of 3", "rejected, 0 of 3", "no proposal", "1 of 3</b>"):
            assert part in page
        assert "<b>asleep</b>" not in page  # text of learners is escaped

    def test_both_epsilons_and_what_they_assume(self, store: MemoryStore) -> None:
        play_collective(store, private_plan(target_epsilon=0.9), private_learners())
        page = render(read_story(store, "r1"))
        for part in (
            "epsilon, Poisson sampling",
            "epsilon, no amplification",
            "DP_BUDGET_EXCEEDED",
            "not drawn by Poisson",
        ):
            assert part in page

    def test_a_comparison_of_runs(self, store: MemoryStore) -> None:
        play_collective(store, plan_of(), eventful())
        other = make_plan(
            make_federation(tuple("abcd"), training={"rounds": 2, "batch_size": 1, "start": "fresh"}), "r2"
        )
        play(store, other)
        page = render(read_story(store, "r1"), [read_story(store, "r2")])
        for part in ("Comparison with other runs", "r1, collective", "r2, averaging"):
            assert part in page
        assert "<tr><th>setting</th><th>r1</th><th>r2</th></tr>" in page
        assert "<td>algorithm.name</td><td>collective</td><td>averaging</td>" in page

    @pytest.mark.parametrize("start", ["fresh", "head"])
    def test_a_comparison_of_equal_runs(self, store: MemoryStore, start: str) -> None:
        """One that continues another run began with other weights, whatever its settings."""
        federation = make_federation(training={"rounds": 2, "batch_size": 1, "start": start})
        play(store, make_plan(federation, "r1"))
        begin(store, make_plan(federation, "r2"), fresh)
        page = render(read_story(store, "r1"), [read_story(store, "r2")])
        assert ("These runs have the same settings." in page) == (start == "fresh")


class TestPictures:
    def test_one_for_each_metric_with_every_kind_of_ballot(self, story: Story) -> None:
        assert metrics_of(story) == ["loss"]
        picture = ElementTree.fromstring(vote_pictures(story)[0].svg())
        texts = [element.text or "" for element in picture.iter()]
        assert any(text.startswith("loss of the shared model") for text in texts)
        assert {"yes", "no", "void, not counted", "absent", "mean, weighted by examples"} <= set(texts)
        for hint in ("b, round 1: yes, 5", "a, round 2: no, 5", "a, round 1: void, proposer", "d, round 1: absent"):
            assert hint in texts
        assert picture.get("aria-label", "").endswith("3 rounds of 4 learners, 2 rejected")

    def test_equal_runs_give_equal_pictures(self, story: Story) -> None:
        first, again = ([drawing.svg() for drawing in vote_pictures(story)] for _ in range(2))
        assert first == again


def write_file(folder: Path, store: str = "store") -> Path:
    path = folder / "federation.yaml"
    path.write_text(
        "name: tiny\nlearners: [{name: a}, {name: b}, {name: c}, {name: d}]\ndata: {uri: x.npz}\n"
        f"training: {{rounds: 3, batch_size: 1}}\nalgorithm: {{name: collective}}\nstore: {store}\n"
    )
    return path


class TestViews:
    @pytest.mark.parametrize("suffix", ["html", "svg", "png"])
    def test_a_finished_run_is_drawn_once(self, tmp_path: Path, suffix: str) -> None:
        file = write_file(tmp_path)
        store: Store = LocalStore(tmp_path / "store").below("tiny")
        play_collective(store, plan_of(), eventful())
        store.replace("runs/r1/summary.json", b"{}")
        states: list[str] = []
        plot(file, "r1", tmp_path / f"p.{suffix}", listener=states.append)
        assert states == ["round 3 of 3"]
        data = (tmp_path / f"p.{suffix}").read_bytes()
        assert {"html": b"<svg", "svg": b"<svg", "png": b"\x89PNG"}[suffix] in data
        assert b"refresh" not in data

    def test_it_is_drawn_again_while_the_run_continues(self, tmp_path: Path) -> None:
        file, out, states = write_file(tmp_path), tmp_path / "p.html", list[str]()
        store: Store = LocalStore(tmp_path / "store").below("tiny")
        thread = threading.Thread(target=lambda: plot(file, "r1", out, listener=states.append, again=0.01, wait=True))
        thread.start()

        def wait_for(state: str) -> None:
            end = time.monotonic() + 30
            while state not in states:
                assert time.monotonic() < end, states
                time.sleep(0.01)

        wait_for("waiting for run r1 to begin. No run has begun here.")
        plan, learners = plan_of(), eventful()
        record = begin(store, plan, fresh)
        for number in (1, 2):
            record = play_vote(store, plan, number, record.weights, learners)
            wait_for(f"round {number} of 3, in progress")
            assert "refresh" in out.read_text()
        store.replace("runs/r1/summary.json", b"{}")
        thread.join(30)
        assert states[-1] == "round 2 of 3"
        assert "refresh" not in out.read_text()

    def test_mistakes(self, tmp_path: Path) -> None:
        file = write_file(tmp_path)
        with pytest.raises(NotFoundError, match="there is no run 'r9'"):
            plot(file, "r9", tmp_path / "p.html", live=False)
        with pytest.raises(InputError, match="has an unsupported format"):
            plot(file, "r1", tmp_path / "p.gif")
        with pytest.raises(NotFoundError, match="there is no run 'r9'"):
            report(file, "r9", tmp_path / "r.html")
        play_collective(LocalStore(tmp_path / "store").below("tiny"), plan_of(), eventful())
        with pytest.raises(NotFoundError, match=r"there is no run 'r9'. Runs: r1\."):
            plot(file, "r9", tmp_path / "p.html", live=False)
        with pytest.raises(NotFoundError, match="there is no run 'other'"):
            report(file, "r1", tmp_path / "r.html", beside=["other"])
        with pytest.raises(InputError, match="cannot be written"):
            report(file, "r1", tmp_path / "no" / "r.html")
        report(file, "r1", tmp_path / "r.html")
        assert "Votes" in (tmp_path / "r.html").read_text()
