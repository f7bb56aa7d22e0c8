from __future__ import annotations

import contextlib
import copy
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import FederationError, InputError
from fedpipe.federation.data import Dirichlet
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import parse_federation, read_federation
from fedpipe.federation.optimizers import Sgd
from fedpipe.rounds.plan import Settings
from fedpipe.store import endpoint_of, path_of
from fedpipe.store.objects import encode

GOOD: dict[str, Any] = {
    "name": "digits",
    "learners": [{"name": "a"}, {"name": "b"}],
    "training": {"rounds": 2, "batch_size": 8},
    "data": {"uri": "d.npz"},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one key set, or removed when the value is None."""
    content = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place: Any = content
    for part in parents:
        place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


def collective(vote: dict[str, Any]) -> dict[str, Any]:
    return {"name": "collective", "vote": vote}


PRIVACY = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 8, "delta": 1e-5, "target_epsilon": 1.0}


def test_defaults() -> None:
    federation = parse_federation(GOOD)
    assert federation.min_learners == 2
    assert federation.model_name == "digits"
    assert federation.sharded == ("a", "b")
    assert federation.secret == "mlpipeline-minio-artifact"


MISTAKES = {
    "unknown framework": (
        "framework",
        "numppy",
        "framework: Invalid enum value 'numppy'. Valid: custom, keras, numpy.",
    ),
    "unknown key": ("rounds", 3, "unknown key 'rounds'"),
    "misspelled key": ("training.bach_size", 3, "training: unknown key 'bach_size'. Did you mean 'batch_size'?"),
    "misspelled in a list": (
        "learners.0.placment",
        {},
        "learners[0]: unknown key 'placment'. Did you mean 'placement'?",
    ),
    "missing key": ("training.rounds", None, "training: the key 'rounds' is missing"),
    "missing section": ("training", None, "the key 'training' is missing"),
    "text for a number": (
        "training.rounds",
        "three",
        "training.rounds: Expected `int`, got `str`. Write a whole number",
    ),
    "fraction for a number": ("training.rounds", 1.5, "training.rounds: Expected `int`, got `float`"),
    "truth for a number": ("training.rounds", True, "training.rounds: Expected `int`, got `bool`"),
    "zero rounds": ("training.rounds", 0, "training.rounds: Expected `int` >= 1"),
    "negative rate": ("training.learning_rate", -1.0, "training.learning_rate: Expected `float` >= 0.0"),
    "list for a table": ("training", [1], "training: Expected `object`, got `array`"),
    "no learners": ("learners", [], "learners: Expected `array` of length >= 1"),
    "twice the same": ("learners.1.name", "a", "learners[1].name: the learner 'a' is listed twice"),
    "a class twice": (
        "export",
        {"classes": ["a", "b", "a"]},
        "export.classes: 'a' is listed twice. Name each class once.",
    ),
    "a decimal comma": (
        "training",
        {"rounds": 1, "batch_size": 1, "learning_rate": 0, 1: None},
        "Write decimals with a point",
    ),
    "a column with a long name": (
        "data.features",
        {"n" * 201: "number"},
        "a key has more than 200 characters. Shorten it.",
    ),
    "slash in a name": ("learners.0.name", "a/b", "learners[0].name: not a safe name"),
    "dots in a name": ("learners.0.name", "..", "learners[0].name: not a safe name"),
    "capitals in a name": ("name", "Digits", "name: not a safe name"),
    "newline in a name": ("name", "digits\n", "name: not a safe name"),
    "a long name": ("name", "d" * 41, "name: not a safe name"),
    "unknown rule": (
        "algorithm",
        {"name": "averaging", "rule": "meen"},
        "algorithm.rule.name: Invalid value 'meen'. Valid: bulyan, centered_clip, compression, dp_adaptive, dp_fixed, "
        "dp_tree, geometric_median, krum, mean, median, multi_krum, robust, secure, secure_dp, trimmed_mean.",
    ),
    "a rule of another engine": (
        "algorithm",
        {"name": "averaging", "rule": "robust"},
        "algorithm.rule: 'robust' needs TensorFlow Federated. Add `engine: tff` to the algorithm.",
    ),
    "formulas of another engine": (
        "algorithm",
        {
            "name": "averaging",
            "engine": "tff",
            "server_optimizer": {"name": "adam", "learning_rate": 0.1, "formulas": "paper"},
        },
        "algorithm.server_optimizer.formulas: are always TFF's in TensorFlow Federated. Remove it, or write tff.",
    ),
    "Nesterov in another engine": (
        "algorithm",
        {"name": "averaging", "engine": "tff", "server_optimizer": {"momentum": 0.9, "nesterov": True}},
        "algorithm.server_optimizer.nesterov: is not supported by TensorFlow Federated. Remove it.",
    ),
    "Nesterov in a simulation": (
        "simulation",
        {"client_optimizer": {"name": "sgd", "learning_rate": 1, "momentum": 0.9, "nesterov": True}},
        "simulation.client_optimizer.nesterov: is not supported by TensorFlow Federated",
    ),
    "Nesterov without momentum": (
        "algorithm",
        {"name": "averaging", "server_optimizer": {"nesterov": True}},
        "algorithm.server_optimizer.nesterov: has no effect without momentum. Set momentum too.",
    ),
    "a schedule in another engine": (
        "algorithm",
        {"name": "averaging", "engine": "tff", "schedule": {"name": "cosine"}},
        "algorithm.schedule: is not supported by TensorFlow Federated",
    ),
    "a schedule of no rate": (
        "training.schedule",
        {"name": "cosine"},
        "training.schedule: needs training.learning_rate, which it changes. Set that too.",
    ),
    "an unknown schedule": (
        "training.schedule",
        {"name": "linear"},
        "training.schedule.name: Invalid value 'linear'. Valid: constant, cosine, step.",
    ),
    "unknown optimizer": (
        "algorithm",
        {"name": "averaging", "server_optimizer": "adamw"},
        "algorithm.server_optimizer.name: Invalid value 'adamw'. Valid: adagrad, adam, sgd, yogi.",
    ),
    "an optimizer without its rate": (
        "algorithm",
        {"name": "averaging", "engine": "tff", "server_optimizer": "yogi"},
        "algorithm.server_optimizer: the key 'learning_rate' is missing",
    ),
    "noise among unequal learners": (
        "algorithm",
        {"name": "averaging", "engine": "tff", "rule": {"name": "dp_fixed", "noise_multiplier": 1, "clip": 1}},
        "algorithm.weighting: must be uniform for the rule 'dp_fixed'",
    ),
    "a rule without its settings": (
        "algorithm",
        {"name": "averaging", "engine": "tff", "rule": "dp_tree"},
        "algorithm.rule: the key 'noise_multiplier' is missing",
    ),
    "unknown engine": (
        "algorithm",
        {"name": "averaging", "engine": "tfff"},
        "algorithm.engine: Invalid enum value 'tfff'. Valid: fedpipe, tff.",
    ),
    "unknown name alone": (
        "algorithm",
        "avg",
        "algorithm.name: Invalid value 'avg'. Valid: averaging, collective, split.",
    ),
    "unknown algorithm": ("algorithm", {"name": "avg"}, "algorithm.name: Invalid value 'avg'"),
    "unknown scheme": (
        "data.shards",
        {"by": "dirichle"},
        "data.shards.by: Invalid value 'dirichle'. Valid: dirichlet, ",
    ),
    "scheme without alpha": ("data.shards", {"by": "dirichlet"}, "data.shards: the key 'alpha' is missing"),
    "alpha zero": ("data.shards", {"by": "dirichlet", "alpha": 0}, "data.shards.alpha: Expected `float` > 0.0"),
    "sizes for others": (
        "data.shards",
        {"by": "size", "sizes": [1]},
        "data.shards.sizes: has 1 entries for 2 learners",
    ),
    "fractions above 1": (
        "data.shards",
        {"by": "fractions", "fractions": [0.6, 0.6]},
        "data.shards.fractions: add up to 1.2",
    ),
    "parts above 1": ("data.parts", {"train": 0.9, "vote": 0.1, "test": 0.1}, "data.parts: add up to 1.1"),
    "no train part": ("data.parts", {"train": 0.0, "vote": 0.5, "test": 0.5}, "data.parts.train: is 0"),
    "no data": ("data.uri", "", "data.uri: is missing"),
    "no epochs and no steps": ("training.local_epochs", 0, "training.local_epochs: is 0, and so is local_steps"),
    "a quorum of too many": ("quorum", {"min_learners": 3}, "quorum.min_learners: is 3, but there are 2 learners"),
    "no deadline": ("quorum", {"deadline": 0}, "quorum.deadline: Expected `float` > 0.0"),
    "unknown store": ("store", "ftp://x", "store: the store 'ftp://x' has an unknown scheme"),
    "no bucket": ("store", "s3://", "store: the store 's3://' names no bucket"),
    "model without a file": ("model", "build", "model: "),
    "an opset that is none": ("export", {"opset": 99}, "export.opset: Expected `int` <= 18"),
    "memory": ("learners.0.placement", {"memory": "8 gigs"}, "learners[0].placement.memory: "),
    "an unknown call": (
        "training.preprocessing",
        "windowed(3)",
        "training.preprocessing: there is no 'windowed'. Chain calls of map, take, ",
    ),
    "epochs and a repeat": (
        "training",
        {"rounds": 1, "batch_size": 1, "local_epochs": 2, "preprocessing": "repeat(2)"},
        "training.local_epochs: has no effect with training.preprocessing. Write `repeat` there instead.",
    ),
    "held out, who?": (
        "simulation.held_out",
        ["c"],
        "simulation.held_out[0]: there is no learner 'c'. Choose from a, b.",
    ),
    "held out twice": ("simulation.held_out", ["a", "a"], "simulation.held_out[1]: 'a' is listed twice"),
    "all held out": ("simulation.held_out", ["a", "b"], "simulation.held_out: leaves 0 learners to train"),
    "an unknown optimizer": (
        "simulation.client_optimizer",
        {"name": "rmsprop", "learning_rate": 1},
        "simulation.client_optimizer.name: Invalid value 'rmsprop'. Valid: adagrad, adam, sgd, yogi.",
    ),
    "a model and a process": (
        "simulation",
        {"process": "p.py", "model": "m.py"},
        "simulation.model: has no effect with a process of your own",
    ),
    "a request above the limit": (
        "learners.0.placement",
        {"cpu": "500m", "cpu_request": "1"},
        "learners[0].placement.cpu_request: 1 is more than the limit, 500m. Lower it.",
    ),
    "a kind of step": (
        "placement",
        {"trian": {"cpu": "1"}},
        "placement: Invalid enum value 'trian'",
    ),
    "a kind of step in the form": (
        "placement",
        {"train": {"in_form": True}},
        "placement.train.in_form: cannot be set for a kind of step. Set it in the learners' placements.",
    ),
    "affinity without values": (
        "placement",
        {"train": {"affinity": [{"expressions": [{"key": "zone"}]}]}},
        "placement.train.affinity[0].expressions[0].values: is empty, but In needs a value",
    ),
    "affinity with values": (
        "placement",
        {"train": {"affinity": [{"expressions": [{"key": "zone", "operator": "Exists", "values": ["x"]}]}]}},
        "placement.train.affinity[0].expressions[0].values: must be empty for Exists",
    ),
    "GPU count": ("learners.0.placement", {"accelerator": {"count": 0}}, "learners[0].placement.accelerator.count: "),
    "threshold above 1": (
        "algorithm",
        collective({"threshold": 1.5}),
        "algorithm.vote.threshold: Expected `float` <= 1.0. Write a number <= 1.",
    ),
    "threshold below 0": (
        "algorithm",
        collective({"threshold": -0.1}),
        "algorithm.vote.threshold: Expected `float` >= 0.0. Write a number >= 0.",
    ),
    "criterion of unknown direction": (
        "algorithm",
        collective({"criterion": "accuracy"}),
        "algorithm.vote.minimise: is missing, and it is unclear whether a lower accuracy is better",
    ),
    "rule of a vote": (
        "algorithm",
        collective({"rule": "other_vote"}),
        "algorithm.vote.rule: Invalid enum value 'other_vote'. Valid: all_vote, others_vote.",
    ),
    "proposer": (
        "algorithm",
        {"name": "collective", "proposers": ["z"]},
        "algorithm.proposers[0]: there is no learner 'z'",
    ),
    "no delta": (
        "learners.1.privacy",
        {key: value for key, value in PRIVACY.items() if key != "delta"},
        "learners[1].privacy: the key 'delta' is missing",
    ),
    "negative noise": (
        "learners.1.privacy",
        {**PRIVACY, "noise_multiplier": -1.0},
        "learners[1].privacy.noise_multiplier: Expected `float` > 0.0. Write a number > 0.",
    ),
    "microbatches": (
        "learners.1.privacy",
        {**PRIVACY, "microbatches": 5},
        "learners[1].privacy.microbatches: 5 does not divide training.batch_size, 8",
    ),
    "an epsilon of zero": (
        "learners.1.privacy",
        {**PRIVACY, "target_epsilon": 0},
        "learners[1].privacy.target_epsilon: Expected `float` > 0.0",
    ),
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.preprocessing", "batch(8)"),
        ("training.precision", "mixed_float16"),
        ("training.fit", {"shuffle": False}),
        ("training.evaluate", {"steps": 1}),
        ("training.callbacks", {"EarlyStopping": {}}),
        ("privacy", PRIVACY),
        ("learners.1.privacy", PRIVACY),
    ],
)
def test_what_numpy_cannot_do(path: str, value: Any) -> None:
    parse_federation(changed(path, value))
    where = re.escape(re.sub(r"\.(\d+)", r"[\1]", path))
    message = f"{where}: needs Keras, but the framework is numpy. Remove it, or set framework to keras."
    with pytest.raises(FederationError, match=message):
        parse_federation({**changed(path, value), "framework": "numpy"})


def test_nobody_votes_without_a_part_for_it() -> None:
    content = changed("data.parts", {"train": 0.8, "vote": 0.0, "test": 0.2})
    parse_federation(content)
    with pytest.raises(FederationError, match=r"data\.parts\.vote: is 0\. Give learners examples to vote with\."):
        parse_federation({**content, "algorithm": "collective"})


def test_callbacks_see_what_privacy_hides() -> None:
    content = changed("training.callbacks", {"EarlyStopping": {"monitor": "loss"}})
    parse_federation(content)
    with pytest.raises(FederationError, match=r"training\.callbacks: cannot be combined with privacy\."):
        parse_federation({**content, "privacy": PRIVACY})


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_show_their_path(path: str, value: Any, message: str) -> None:
    with pytest.raises(FederationError) as caught:
        parse_federation(changed(path, value), where="f.yaml")
    assert str(caught.value).startswith("f.yaml: ")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


FILES = {
    "absent": (None, "cannot be read"),
    "empty": ("", "is not a table"),
    "a list": ("- a", "is not a table"),
    "not YAML": ("a: [", "is not YAML"),
    "a tab": ("a:\n\t- b", "is not YAML"),
    "a tag": ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    "twice the same key": ("name: a\nname: b", "line 2: the key 'name' is written twice"),
    "a key that is a list": ("[a]: b", "is not YAML"),
    "binary": (b"\xff\xfe\x00", "is not"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES.keys())
def test_files_that_are_none(tmp_path: Path, text: Any, message: str) -> None:
    path = tmp_path / "federation.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FederationError, match=message):
        read_federation(path)


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    content = {**GOOD, "learners": [{"name": "a", "data": "own.npz"}, {"name": "b"}], "store": "store"}
    (tmp_path / "f" / "federation.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    federation = read_federation(Path("f/federation.yaml"))
    assert federation.store == f"file://{tmp_path}/f/store"
    assert federation.model == f"{tmp_path}/f/model.py:build"
    assert federation.data.uri == f"{tmp_path}/f/d.npz"
    assert federation.learners[0].data == f"{tmp_path}/f/own.npz"


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = yaml.safe_dump(GOOD) + "export: {tolerance: 1e-5}\n"
    (tmp_path / "f.yaml").write_text(text)
    assert read_federation(tmp_path / "f.yaml").export.tolerance == 1e-5


def test_a_store_with_an_endpoint() -> None:
    place = {"uri": "s3://b/p", "endpoint": "http://h:9000", "region": "eu"}
    assert parse_federation({**GOOD, "store": place}).store_uri == "s3://b/p?endpoint=http://h:9000&region=eu"


def test_schemes_are_typed() -> None:
    scheme = parse_federation(changed("data.shards", {"by": "dirichlet", "alpha": 2})).data.shards
    assert scheme == Dirichlet(alpha=2.0)


def test_json_and_back() -> None:
    federation = parse_federation(changed("learners.0.placement", {"accelerator": {"count": 2}, "memory": "8Gi"}))
    assert parse_federation(json.loads(encode(federation))) == federation
    assert msgspec.json.decode(encode(federation), type=Federation) == federation


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from([*GOOD, "x"]), x),
    )
)
def test_any_content_is_read_or_refused(content: Any) -> None:
    with contextlib.suppress(FederationError):
        assert parse_federation(content).name


class TestSettings:
    def test_zero_leaves_the_federation(self) -> None:
        federation = parse_federation(GOOD)
        assert Settings().applied(federation) == federation

    def test_values_replace(self) -> None:
        settings = Settings(learning_rate=0.5, local_epochs=3, batch_size=2, min_learners=1, deadline=9.0)
        federation = settings.applied(parse_federation(changed("training.local_steps", 7)))
        assert federation.training.learning_rate == 0.5
        assert (federation.training.local_epochs, federation.training.local_steps) == (3, 0)
        assert federation.training.batch_size == 2
        assert (federation.min_learners, federation.quorum.deadline) == (1, 9.0)

    @pytest.mark.parametrize(
        ("setting", "what"), [({"batch_size": -1}, "negative"), ({"min_learners": 3}, "2 learners")]
    )
    def test_mistakes(self, setting: Any, what: str) -> None:
        with pytest.raises(InputError, match=what):
            Settings(**setting).applied(parse_federation(GOOD))

    def test_a_batch_size_that_microbatches_do_not_divide(self) -> None:
        federation = parse_federation(changed("learners.1.privacy", PRIVACY))
        with pytest.raises(
            FederationError,
            match=r"with these parameters: learners\[1\]\.privacy\.microbatches: 8 does not divide .*, 12",
        ):
            Settings(batch_size=12).applied(federation)


class TestAlgorithms:
    CONTENT = """
name: tiny
learners: [{name: a}, {name: b}, {name: c}]
data: {uri: x.npz}
training: {rounds: 1, batch_size: 8}
"""

    def read(self, folder: Path, more: str) -> Federation:
        (folder / "f.yaml").write_text(self.CONTENT + more)
        return read_federation(folder / "f.yaml")

    def test_a_name_alone_stands_for_all_defaults(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, "algorithm: collective") == self.read(tmp_path, "algorithm: {name: collective}")
        assert self.read(tmp_path, "algorithm: averaging") == self.read(tmp_path, "")
        robust = self.read(tmp_path, "algorithm: {name: averaging, engine: tff, rule: robust, server_optimizer: sgd}")
        assert robust == self.read(
            tmp_path,
            "algorithm: {name: averaging, engine: tff, rule: {name: robust, zeroing: true, clipping: true},"
            " server_optimizer: {name: sgd, learning_rate: 1.0, momentum: 0.0}}",
        )
        short = self.read(tmp_path, "algorithm: {name: averaging, schedule: constant}")
        assert short == self.read(tmp_path, "algorithm: {name: averaging, schedule: {name: constant}}")
        momentum = self.read(tmp_path, "algorithm: {name: averaging, server_optimizer: {momentum: 0.9}}").algorithm
        assert momentum.server_optimizer == Sgd(learning_rate=1.0, momentum=0.9)

    def test_all_propose_by_default(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, "algorithm: collective").proposers == ("a", "b", "c")
        chosen = self.read(tmp_path, "algorithm: {name: collective, proposers: [c, a]}")
        assert chosen.proposers == ("c", "a")
        assert self.read(tmp_path, "").proposers == ()

    def test_privacy_of_a_learner_goes_before_that_of_all(self, tmp_path: Path) -> None:
        settings = "noise_multiplier: 1.0, l2_norm_clip: 1.0, microbatches: 8, delta: 1.0e-5"
        text = f"privacy: {{{settings}, target_epsilon: 3}}"
        found = self.read(tmp_path, text)
        assert [found.privacy_of(k).target_epsilon for k in "abc"] == [3, 3, 3]  # type: ignore[union-attr]
        (tmp_path / "f.yaml").write_text(
            self.CONTENT.replace("{name: b}", f"{{name: b, privacy: {{{settings}, target_epsilon: 5}}}}") + text
        )
        found = read_federation(tmp_path / "f.yaml")
        assert [found.privacy_of(k).target_epsilon for k in "abc"] == [3, 5, 3]  # type: ignore[union-attr]


class TestPlaces:
    """Of files, and of stores: a path means its characters, a URI is decoded."""

    @pytest.mark.parametrize("name", ["proj#1", "a?b", "50% off", "x%20y", "é [x];&", "a:b", "a\x1b[31mb", "a\nb"])
    def test_a_folder_with_such_a_name(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        content = {
            **GOOD,
            "learners": [{"name": "a", "data": "own#1.npz"}, {"name": "b", "data": "file://own%231.npz"}],
            "data": {"uri": "d%20.npz"},
            "store": "store#1",
            "simulation": {"process": "p#.py:make"},
        }
        (folder / "federation.yaml").write_text(yaml.safe_dump(content))
        federation = read_federation(folder / "federation.yaml")
        assert path_of(federation.learners[0].data) == folder / "own#1.npz"
        assert federation.learners[0].data.isprintable()
        assert path_of(federation.learners[1].data) == folder / "own#1.npz"
        assert path_of(federation.data.uri) == folder / "d%20.npz"
        assert path_of(federation.store_uri) == folder / "store#1"
        assert federation.model == f"{folder}/model.py:build"
        assert federation.simulation.process == f"{folder}/p#.py:make"

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("data.uri", "file:///a#b.npz", "data.uri: the URI 'file:///a#b.npz' has a part after '#'"),
            ("learners.1.data", "file:///50%.npz", "learners[1].data: the URI 'file:///50%.npz' has a lone %"),
            ("data.uri", "https://h/d.npz", "data.uri: the store 'https://h/d.npz' has an unknown scheme"),
            ("learners.1.data", "gs://b/d.npz", "learners[1].data: the store 'gs://b/d.npz' has an unknown scheme"),
            ("store", "", "store: the store has no name"),
            ("store", {"uri": "file:///a#b"}, "store: the URI 'file:///a#b' has a part after '#'"),
        ],
    )
    def test_ambiguous_places(self, path: str, value: Any, message: str) -> None:
        with pytest.raises(FederationError) as caught:
            parse_federation(changed(path, value))
        assert message in str(caught.value)

    def test_an_endpoint_is_quoted(self) -> None:
        place = {"uri": "s3://b/p", "endpoint": "http://h:9000/a&b", "region": "x"}
        uri = parse_federation({**GOOD, "store": place}).store_uri
        assert uri == "s3://b/p?endpoint=http://h:9000/a%26b&region=x"
        assert endpoint_of(uri) == "http://h:9000/a&b"
