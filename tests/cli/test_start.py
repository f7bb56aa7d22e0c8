"""init and check: mistakes are one message, exit code 2, and nothing is changed; `run` finds the same ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Result, files

pytestmark = pytest.mark.xdist_group("runs")


def test_init_writes_a_working_federation(fedpipe: Callable[..., Result]) -> None:
    done = fedpipe("init", "demo")
    assert done.code == 0
    assert set(files(Path("demo"))) == {"federation.yaml", "model.py", "DATA.md", "digits.npz"}
    assert fedpipe("check", "demo/federation.yaml").code == 0
    with np.load("demo/digits.npz") as data:
        assert data["x"].shape == (1797, 8, 8, 1)


def test_init_overwrites_nothing_unless_told(fedpipe: Callable[..., Result]) -> None:
    fedpipe("init", "demo")
    Path("demo/model.py").write_text("mine")
    again = fedpipe("init", "demo")
    assert again.code == 2
    assert "federation.yaml already exists" in again.err
    assert Path("demo/model.py").read_text() == "mine"
    assert fedpipe("init", "demo", "--force").code == 0


def test_check_says_what_is_good_and_changes_nothing(fedpipe: Callable[..., Result], digits: Path) -> None:
    before = files(digits)
    done = fedpipe("check", digits / "federation.yaml")
    assert "14,698 parameters" in done.out
    assert "hospital-e 378 train, 47 vote, 47 test" in done.out
    assert files(digits) == before


def change(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def with_labels(folder: Path, change_labels: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / "digits.npz") as data:
        x, y = data["x"], data["y"]
    np.savez(folder / "digits.npz", x=x, y=change_labels(y))


def with_features(folder: Path, change_features: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / "digits.npz") as data:
        x, y = data["x"], data["y"]
    changed = change_features(x)
    np.savez(folder / "digits.npz", x=changed, y=y[: len(changed)])


MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown key": (lambda d: change(d, "federation.yaml", "rounds:", "round:"), "training: unknown key 'round'. Did you mean 'rounds'?"),
    "wrong type": (lambda d: change(d, "federation.yaml", "rounds: 10", "rounds: ten"), "training.rounds: Expected `int`, got `str`"),
    "same name twice": (lambda d: change(d, "federation.yaml", "hospital-b", "hospital-a"), "the learner 'hospital-a' is listed twice"),
    "unsafe name": (lambda d: change(d, "federation.yaml", "hospital-b", "../b"), "learners[1].name: not a safe name"),
    "no build": (lambda d: change(d, "model.py", "def build", "def make"), "model.py: there is no function 'build'"),
    "not compiled": (lambda d: change(d, "model.py", "model.compile(", "dict("), "the model is not compiled"),
    "syntax": (lambda d: change(d, "model.py", "return model", "return model)"), "SyntaxError"),
    "no model.py": (lambda d: (d / "model.py").unlink(), "model.py: cannot be read"),
    "too few outputs": (lambda d: change(d, "model.py", "Dense(10", "Dense(9"), "the labels range from 0 to 9, but the model has 9 outputs"),
    "wrong input": (lambda d: change(d, "model.py", "(8, 8, 1)", "(8, 8, 3)"), "the features have shape (8, 8, 1), but the model takes (8, 8, 3)"),
    "negative labels": (lambda d: with_labels(d, lambda y: y - 1), "the labels range from -1 to 8"),
    "labels of another length": (lambda d: with_labels(d, lambda y: y[:-1]), "1797 features but 1796 labels"),
    "empty dataset": (lambda d: with_features(d, lambda x: x[:0]), "the dataset is empty"),
    "nan": (lambda d: with_features(d, lambda x: x * np.nan), "NaN or infinity"),
    "no dataset": (lambda d: (d / "digits.npz").unlink(), "there is no such dataset"),
    "shard below a batch": (lambda d: change(d, "federation.yaml", "batch_size: 16", "batch_size: 500"), "the train part of hospital-a has 198 examples, but a batch has 500"),
    "fit argument": (lambda d: change(d, "federation.yaml", "seed: 1", "fit: {shufle: true}"), "unknown argument 'shufle'. Did you mean 'shuffle'?"),
    "store": (lambda d: change(d, "federation.yaml", "store: store ", "store: s4://x "), "unknown store 's4://x'"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), MISTAKES.values(), ids=MISTAKES.keys())
@pytest.mark.parametrize("word", ["check", "run"])
def test_mistakes_in_files(
    fedpipe: Callable[..., Result], digits: Path, word: str, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(digits)
    before = files(digits)
    done = fedpipe(word, digits / "federation.yaml")
    assert done.code == 2
    assert files(Path()) == {}  # no folder for results either
    assert message in done.err
    assert done.err.count("fedpipe:") == 1
    assert "Traceback" not in done.err + done.out
    assert files(digits) == before


PRIVATE = "{noise_multiplier: 1.0, l2_norm_clip: 1.0, microbatches: 16, delta: 1.0e-4, target_epsilon: 8.0}"


def privacy(old: str = "", new: str = "") -> Callable[[Path], None]:
    """hospital-b trains privately, with one thing changed."""
    return lambda d: change(
        d,
        "federation.yaml",
        "  - name: hospital-b\n",
        f"  - name: hospital-b\n    privacy: {PRIVATE.replace(old, new)}\n",
    )


COLLECTIVE_MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "threshold above 1": (lambda d: change(d, "federation.yaml", "threshold: 0.5", "threshold: 1.5"), "algorithm.vote.threshold: Expected `float` <= 1.0. Write a number <= 1."),
    "threshold below 0": (lambda d: change(d, "federation.yaml", "threshold: 0.5", "threshold: -0.1"), "algorithm.vote.threshold: Expected `float` >= 0.0. Write a number >= 0."),
    "criterion that is not compiled": (lambda d: change(d, "federation.yaml", "criterion: loss ", "criterion: acuracy\n    minimise: false "), "algorithm.vote.criterion: 'acuracy' is neither the loss nor a compiled metric. Did you mean 'accuracy'?"),
    "criterion of unknown direction": (lambda d: change(d, "federation.yaml", "criterion: loss ", "criterion: accuracy "), "algorithm.vote.minimise: is missing"),
    "rule": (lambda d: change(d, "federation.yaml", "rule: others_vote", "rule: other_vote"), "algorithm.vote.rule: Invalid enum value 'other_vote'. Valid: all_vote, others_vote."),
    "empty vote part": (lambda d: change(d, "federation.yaml", "{train: 0.6, vote: 0.2, test: 0.2}", "{train: 0.8, vote: 0, test: 0.2}"), "data.parts.vote: is 0. Give learners examples to vote with"),
    "vote part below a batch": (lambda d: change(d, "federation.yaml", "{train: 0.6, vote: 0.2, test: 0.2}", "{train: 0.78, vote: 0.02, test: 0.2}"), "data.parts.vote: the vote part of hospital-a has 6 examples, but a batch has 16. Raise it"),
    "proposer": (lambda d: change(d, "federation.yaml", "  name: collective", "  name: collective\n  proposers: [hospital-z]"), "algorithm.proposers[0]: there is no learner 'hospital-z'"),
    "no delta": (privacy("delta: 1.0e-4, ", ""), "learners[1].privacy: the key 'delta' is missing"),
    "negative noise": (privacy("noise_multiplier: 1.0", "noise_multiplier: -1.0"), "learners[1].privacy.noise_multiplier: Expected `float` > 0.0. Write a number > 0."),
    "microbatches": (privacy("microbatches: 16", "microbatches: 5"), "learners[1].privacy.microbatches: 5 does not divide training.batch_size, 16"),
    "epsilon of nothing": (privacy("target_epsilon: 8.0", "target_epsilon: 0"), "learners[1].privacy.target_epsilon: Expected `float` > 0.0"),
    "callbacks with privacy": (lambda d: (privacy()(d), change(d, "federation.yaml", "  seed: 1", "  seed: 1\n  callbacks: {EarlyStopping: {monitor: loss}}"))[0], "training.callbacks: cannot be combined with learners[1].privacy"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), COLLECTIVE_MISTAKES.values(), ids=COLLECTIVE_MISTAKES.keys())
@pytest.mark.parametrize("word", ["check", "run"])
def test_mistakes_in_collective_federations(
    fedpipe: Callable[..., Result], tmp_path: Path, word: str, spoil: Callable[[Path], None], message: str
) -> None:
    fedpipe("init", tmp_path / "digits", "--algorithm", "collective")
    test_mistakes_in_files(fedpipe, tmp_path / "digits", word, spoil, message)


def test_a_batch_size_at_run_time_that_microbatches_do_not_divide(
    fedpipe: Callable[..., Result], tmp_path: Path
) -> None:
    fedpipe("init", tmp_path / "digits", "--algorithm", "collective")
    privacy()(tmp_path / "digits")
    done = fedpipe("run", tmp_path / "digits" / "federation.yaml", "-p", "batch_size=24")
    assert done.code == 2
    assert "learners[1].privacy.microbatches: 16 does not divide training.batch_size, 24" in done.err


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target_epsilon: 8.0", "target_epsilon: 0.5", "learners[1].privacy.target_epsilon: the next training of hospital-b would bring epsilon from 0 to"),
        ("delta: 1.0e-4", "delta: 0.01", "learners[1].privacy.delta: 0.01 is not below 1 / 194 train examples of hospital-b"),
        ("", "", "mixes the examples of a batch, so that no epsilon holds"),
    ],
    ids=["a target that one training exceeds", "a delta that protects nobody", "a model that cannot be private"],
)  # fmt: skip
def test_privacy_that_cannot_be_kept(
    fedpipe: Callable[..., Result], tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = tmp_path / "digits"
    fedpipe("init", folder, "--algorithm", "collective")
    privacy(old, new)(folder)
    if not old:
        change(
            folder, "model.py", "keras.layers.Flatten(),", "keras.layers.Flatten(), keras.layers.BatchNormalization(),"
        )
    before = files(folder)
    for word in ("check", "run"):
        done = fedpipe(word, folder / "federation.yaml")
        assert done.code == 2
        assert message in done.err
        assert "Traceback" not in done.err
        assert files(folder) == before
