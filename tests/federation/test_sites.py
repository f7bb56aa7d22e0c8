"""Learners at sites: they have no step, no shard and no data in the file, whatever else the federation does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedpipe
from fedpipe.commands.explore import explore
from fedpipe.compiled.compiler import compile_graph
from fedpipe.errors import DataError, FederationError, InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import parse_federation
from fedpipe.learners.reading import SITE_DATA, own_place
from fedpipe.sessions.presence import awaited
from tests.federation.test_file import GOOD, PRIVACY
from tests.federations import change

SITE = {"name": "s", "at": "site"}


def parsed(*learners: dict[str, Any], **more: Any) -> Federation:
    return parse_federation({**GOOD, "learners": [*learners], **more})


@pytest.mark.parametrize(
    ("learner", "more", "message"),
    [
        ({"data": "x.npz"}, {}, r"learners\[1\]\.data: is the site's own business\. .*policy\.data"),
        ({"secret": "own"}, {}, r"learners\[1\]\.secret: has no effect at a site\. Remove it\."),
        ({"placement": {"cpu": "2"}}, {}, r"learners\[1\]\.placement: has no effect at a site"),
        ({"at": "home"}, {}, r"learners\[1\]\.at: Invalid enum value 'home'\. Valid: pod, site\."),
        (
            {},
            {"training": {"rounds": 3, "batch_size": 8, "rounds_per_step": 1}},
            r"training\.rounds_per_step: is 1, but a site attends",
        ),
    ],
)
def test_mistakes(learner: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError, match=message):
        parsed({"name": "a"}, {**SITE, **learner}, **more)


def test_split_learning_takes_sites() -> None:
    """Their data is the site's own business, and all parties test the last model in the session."""
    cut = {"data": {}, "algorithm": {"name": "split", "label_party": "a"}}
    federation = parsed({"name": "a", "data": "a.npz"}, SITE, **cut)
    assert all(federation.scores_in_session(name) for name in ("a", "s"))
    pods = parsed({"name": "a", "data": "a.npz"}, {"name": "s", "data": "s.npz"}, **cut)
    assert not any(pods.scores_in_session(name) for name in ("a", "s")), "pods test it one after the other"
    with pytest.raises(FederationError, match=r"learners\[1\]\.data: is the site's own business"):
        parsed({"name": "a", "data": "a.npz"}, {**SITE, "data": "s.npz"}, **cut)
    with pytest.raises(FederationError, match=r"learners\[0\]\.data: is missing"):
        parsed({"name": "a"}, SITE, **cut)


def test_a_table_needs_a_session_in_which_it_is_described() -> None:
    tables = {"data": {"uri": "x.csv", "features": "auto"}}
    assert parsed({"name": "a"}, SITE, **tables).described_in_session
    with pytest.raises(FederationError, match=r"algorithm\.engine: is tff, so a site cannot describe its table"):
        parsed({"name": "a"}, SITE, algorithm={"name": "averaging", "engine": "tff"}, **tables)


def test_only_learners_in_pods_get_shards() -> None:
    federation = parsed(
        {"name": "a"}, SITE, {"name": "b"}, data={"uri": "x.npz", "shards": {"by": "size", "sizes": [1, 2]}}
    )
    assert (federation.sharded, federation.sites) == (("a", "b"), ("s",))
    assert [learner.name for learner in federation.pods] == ["a", "b"]
    with pytest.raises(FederationError, match=r"data\.shards\.sizes: has 2 entries for 1 learners"):
        parsed({"name": "a"}, SITE, data={"uri": "x.npz", "shards": {"by": "size", "sizes": [1, 2]}})


def test_all_learners_may_be_sites() -> None:
    federation = parsed(SITE, {"name": "t", "at": "site"}, data={})
    assert (federation.sharded, federation.pods) == ((), ())


def test_a_private_site_scores_in_its_session() -> None:
    """A pod with differential privacy does so in a step of its own, in the environment of the others."""
    federation = parsed({"name": "a"}, SITE, privacy=PRIVACY)
    assert not federation.scores_in_session("a")
    assert federation.scores_in_session("s")


def test_its_data_are_named_at_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = parsed({"name": "a", "data": "a.npz"}, SITE)
    monkeypatch.delenv(SITE_DATA, raising=False)
    with pytest.raises(DataError, match=r"s has no data of its own\. Set policy\.data in site\.yaml\."):
        own_place(federation, "s")
    monkeypatch.setenv(SITE_DATA, "/srv/rows.npz")
    assert own_place(federation, "s") == "/srv/rows.npz"
    assert own_place(federation, "a") == "a.npz"


class TestCommands:
    """The commands of the operator name the sites."""

    @pytest.fixture
    def file(self, numpy_digits: Path) -> Path:
        return change(numpy_digits, **{"- name: hospital-e\n": "- {name: hospital-e, at: site}\n"})

    def test_no_step_in_the_pipeline(self, file: Path) -> None:
        graph = compile_graph(fedpipe.read_federation(file))
        names = [task.name for task in graph.tasks]
        assert "learn hospital-d" in names
        assert not [name for name in names if "hospital-e" in name]
        assert "hospital-e" in (file.parent / "federation.yaml").read_text()

    def test_check_names_them(self, file: Path) -> None:
        found = dict(fedpipe.check(file))
        assert found["hospital-e"] == "at its site, with its own data; its agent: fedpipe site run"

    def test_a_simulation_refuses_them(self, file: Path) -> None:
        with pytest.raises(InputError, match=r"learners: cannot be simulated\. The data of a site stay there"):
            fedpipe.simulate(file)

    def test_explore_leaves_them_out(self, file: Path) -> None:
        assert explore(file).left_out["hospital-e"] == "its data stay at its site"

    def test_awaited(self, file: Path) -> None:
        text = "waiting for the site hospital-e; start each agent at its site: fedpipe site run -c site.yaml"
        assert awaited(fedpipe.read_federation(file)) == text
        assert awaited(parsed({"name": "a"})) == ""

    def test_a_run_continues_without_a_site_that_is_not_there(self, file: Path, tmp_path: Path) -> None:
        stages: list[str] = []
        changes = {"training": {"rounds": 1, "batch_size": 16}, "quorum": {"min_learners": 3, "deadline": 2}}
        result = fedpipe.run(file, out=tmp_path / "out", stages=stages.append, export="none", **changes)
        assert any("waiting for the site hospital-e" in stage for stage in stages)
        only = result.summary["rounds"][0]
        assert [one["learner"] for one in only["dropped"]] == ["hospital-e"]
        assert only["dropped"][0]["why"].startswith("late: no update within 2 s")
        assert only["metrics"]["test_accuracy"] > 0.1
