"""The command as a user types it: mistakes are one message, exit code 2, and nothing is changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedpipe.__main__ import main as command
from fedpipe.cli import main as cli
from fedpipe.rounds.beginning import begin
from fedpipe.store import open_store
from tests import servers
from tests.federations import PlusOneLearner, fresh, make_plan

pytestmark = pytest.mark.xdist_group("runs")


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, " ".join(err.split())


@pytest.fixture
def fedpipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Result]:
    """Runs the command in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(cli, "out", cli.Console(width=200))
    monkeypatch.setattr(cli, "err", cli.Console(stderr=True, width=200))

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["fedpipe", *map(str, arguments)])
        capsys.readouterr()
        code = command()
        found = capsys.readouterr()
        return Result(code, found.out, found.err)

    return run


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their bytes, folders with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


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
    assert "federation.yaml is already there" in again.err
    assert Path("demo/model.py").read_text() == "mine"
    assert fedpipe("init", "demo", "--force").code == 0


def test_check_says_what_is_good_and_changes_nothing(fedpipe: Callable[..., Result], digits: Path) -> None:
    before = files(digits)
    done = fedpipe("check", digits / "federation.yaml")
    assert "14,698 parameters" in done.out
    assert "hospital-e 378 train, 47 vote, 47 test" in done.out
    assert files(digits) == before


def test_compile(fedpipe: Callable[..., Result], digits: Path) -> None:
    done = fedpipe("compile", digits / "federation.yaml", "-o", "pipeline.yaml")
    assert done.code == 0
    assert "16, in 32 pods" in done.out
    assert "the store is a folder of this machine" in done.err
    assert Path("pipeline.yaml").exists()
    assert "is not a .yaml file" in fedpipe("compile", digits / "federation.yaml", "-o", "pipeline.json").err


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
    "same name twice": (lambda d: change(d, "federation.yaml", "hospital-b", "hospital-a"), "the learner 'hospital-a' is there twice"),
    "unsafe name": (lambda d: change(d, "federation.yaml", "hospital-b", "../b"), "learners[1].name: not a safe name"),
    "no build": (lambda d: change(d, "model.py", "def build", "def make"), "model.py: there is no function 'build'"),
    "not compiled": (lambda d: change(d, "model.py", "model.compile(", "dict("), "the model is not compiled"),
    "syntax": (lambda d: change(d, "model.py", "return model", "return model)"), "SyntaxError"),
    "no model.py": (lambda d: (d / "model.py").unlink(), "model.py: cannot be read"),
    "too few outputs": (lambda d: change(d, "model.py", "Dense(10", "Dense(9"), "the labels go from 0 to 9, the model has 9 outputs"),
    "wrong input": (lambda d: change(d, "model.py", "(8, 8, 1)", "(8, 8, 3)"), "the features have shape (8, 8, 1), the model takes (8, 8, 3)"),
    "negative labels": (lambda d: with_labels(d, lambda y: y - 1), "the labels go from -1 to 8"),
    "labels of another length": (lambda d: with_labels(d, lambda y: y[:-1]), "1797 features but 1796 labels"),
    "empty dataset": (lambda d: with_features(d, lambda x: x[:0]), "the dataset is empty"),
    "nan": (lambda d: with_features(d, lambda x: x * np.nan), "NaN or infinity"),
    "no dataset": (lambda d: (d / "digits.npz").unlink(), "there is no such dataset"),
    "shard below a batch": (lambda d: change(d, "federation.yaml", "batch_size: 16", "batch_size: 500"), "the train part of hospital-a has 198 examples, a batch has 500"),
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
    "empty vote part": (lambda d: change(d, "federation.yaml", "{train: 0.6, vote: 0.2, test: 0.2}", "{train: 0.8, vote: 0, test: 0.2}"), "data.parts.vote: is 0. Learners vote with this part"),
    "vote part below a batch": (lambda d: change(d, "federation.yaml", "{train: 0.6, vote: 0.2, test: 0.2}", "{train: 0.78, vote: 0.02, test: 0.2}"), "data.parts.vote: the vote part of hospital-a has 6 examples, a batch has 16. Raise it"),
    "proposer": (lambda d: change(d, "federation.yaml", "  name: collective", "  name: collective\n  proposers: [hospital-z]"), "algorithm.proposers[0]: there is no learner 'hospital-z'"),
    "no delta": (privacy("delta: 1.0e-4, ", ""), "learners[1].privacy: the key 'delta' is missing"),
    "negative noise": (privacy("noise_multiplier: 1.0", "noise_multiplier: -1.0"), "learners[1].privacy.noise_multiplier: Expected `float` > 0.0. Write a number > 0."),
    "microbatches": (privacy("microbatches: 16", "microbatches: 5"), "learners[1].privacy.microbatches: 5 does not divide training.batch_size, 16"),
    "epsilon of nothing": (privacy("target_epsilon: 8.0", "target_epsilon: 0"), "learners[1].privacy.target_epsilon: Expected `float` > 0.0"),
    "callbacks beside privacy": (lambda d: (privacy()(d), change(d, "federation.yaml", "  seed: 1", "  seed: 1\n  callbacks: {EarlyStopping: {monitor: loss}}"))[0], "training.callbacks: cannot be used beside learners[1].privacy"),
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


@pytest.mark.usefixtures("s3_keys")
class TestStores:
    def go(self, fedpipe: Callable[..., Result], digits: Path, uri: str, message: str) -> None:
        done = fedpipe("run", digits / "federation.yaml", "--store", uri)
        assert done.code == 2
        assert message in done.err

    def test_unreachable(self, fedpipe: Callable[..., Result], digits: Path) -> None:
        uri = f"s3://tests/x?endpoint=http://127.0.0.1:{servers.free_port()}"
        self.go(fedpipe, digits, uri, "the store cannot be reached")

    def test_no_bucket(self, fedpipe: Callable[..., Result], digits: Path, minio_server: servers.Server) -> None:
        uri = f"s3://absent/x?endpoint={minio_server.endpoint}"
        self.go(fedpipe, digits, uri, "the bucket 'absent' does not exist")

    def test_refused(
        self,
        fedpipe: Callable[..., Result],
        digits: Path,
        minio_server: servers.Server,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        uri = f"s3://tests/x?endpoint={minio_server.endpoint}"
        self.go(fedpipe, digits, uri, "refuses the credentials")

    def test_an_endpoint_given_by_the_federation_serves_another_prefix(
        self, fedpipe: Callable[..., Result], digits: Path, minio_server: servers.Server
    ) -> None:
        place = f"store: {{uri: s3://tests/one, endpoint: {minio_server.endpoint}}} "
        change(digits, "federation.yaml", "store: store ", place)
        self.go(fedpipe, digits, "s3://absent/two", "the bucket 'absent' does not exist")
        assert "honours conditional writes" in fedpipe("check", digits / "federation.yaml").out


TYPOS = {
    "command": (["rnu", "x"], "No such command 'rnu'. Did you mean 'run'"),
    "option": (["run", "--outt", "x", "f"], "--out"),
    "no file": (["run"], "Missing argument"),
    "absent file": (["run", "absent.yaml"], "absent.yaml: cannot be read"),
    "folder": (["run", "."], "cannot be read"),
    "parameter": (["run", "f.yaml", "-p", "rate"], "'rate' is not NAME=VALUE"),
    "run name": (["run", "f.yaml", "--run", "A B"], "'A B' is not a safe name"),
    "export": (["export", "absent.yaml"], "absent.yaml: cannot be read"),
    "predict": (["predict", "absent.onnx", "absent.npz"], "absent.onnx: there is no such file"),
    "predict at a server": (["predict", "http://127.0.0.1:9", "a.npz"], "nothing answers: "),
    "serve": (["serve"], "models come from one place"),
    "promote": (["promote", "m", "1"], "models come from one place"),
    "promote what": (["promote", "m", "--models", "."], "there is no model 'm'"),
    "step": (["step", "nothing", "{}"], "unknown step 'nothing'"),
    "plot": (["plot", "run-1"], "federation.yaml: cannot be read"),
    "report": (["report", "run-1", "-f", "absent.yaml"], "absent.yaml: cannot be read"),
    "algorithm": (["init", "x", "--algorithm", "voting"], "'voting' is not one of 'averaging', 'collective'"),
}


@pytest.mark.parametrize(("arguments", "message"), TYPOS.values(), ids=TYPOS.keys())
def test_typing_mistakes(fedpipe: Callable[..., Result], arguments: list[str], message: str) -> None:
    done = fedpipe(*arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_export_before_anything_was_trained(fedpipe: Callable[..., Result], digits: Path) -> None:
    done = fedpipe("export", digits / "federation.yaml")
    assert done.code == 2
    assert "there is no trained model" in done.err
    assert not Path("model.onnx").exists()


def test_an_unknown_parameter(fedpipe: Callable[..., Result], digits: Path) -> None:
    done = fedpipe("run", digits / "federation.yaml", "-p", "learning=1")
    assert "unknown parameter 'learning'. Known: batch_size, data" in done.err


@pytest.mark.parametrize("word", ["init", "check", "compile", "run", "plot", "report", "export", "predict", "step"])
def test_every_command_has_help_with_an_example(fedpipe: Callable[..., Result], word: str) -> None:
    done = fedpipe(word, "--help")
    assert done.code == 0
    assert f"fedpipe {word}" in done.out.split("Example", 1)[1]


def test_version_and_completion(fedpipe: Callable[..., Result]) -> None:
    import fedpipe as package

    assert package.__version__ in fedpipe("--version").out
    path = Path(sys.executable).parent / "fedpipe"
    environment = {**os.environ, "_FEDPIPE_COMPLETE": "source_bash"}  # what a shell's start-up file does
    done = subprocess.run([path], env=environment, capture_output=True, text=True, check=False)
    assert "_fedpipe_completion" in done.stdout


def test_the_installed_command() -> None:
    path = Path(sys.executable).parent / "fedpipe"
    done = subprocess.run([path, "rnu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean" in done.stderr


class TestSessions:
    """`watch` and `stop` from the store alone, over a session that was played without a framework."""

    @pytest.fixture
    def played(self, digits: Path) -> Path:
        from fedpipe.federation.file import read_federation
        from tests.simulation import World, attendance, coordinator

        federation = read_federation(digits / "federation.yaml")
        world, plan = World(), make_plan(federation, "run-1")
        world.store = store = open_store(str(digits / "store")).below("digits")  # type: ignore[assignment]
        begin(store, plan, fresh)
        world.spawn("coordinator", coordinator(world, plan))
        for learner in federation.learners:
            world.spawn(learner.name, attendance(world, plan, learner.name, PlusOneLearner(1.0)))
        world.run()
        return digits / "federation.yaml"

    def test_watch_tells_the_rounds_and_the_end(self, fedpipe: Callable[..., Result], played: Path) -> None:
        done = fedpipe("watch", "run-1", "-f", played)
        assert done.code == 0
        assert "round 10  loss 1.0000  5 learners  train " in done.out
        assert done.out.strip().endswith("the session ended: all rounds are done")

    def test_stop_after_the_end_changes_nothing(self, fedpipe: Callable[..., Result], played: Path) -> None:
        before = files(played.parent)
        done = fedpipe("stop", "run-1", "-f", played)
        assert done.code == 2
        assert "run 'run-1' has ended already" in done.err
        assert files(played.parent) == before

    def test_stop_of_a_run_that_is_not_there(self, fedpipe: Callable[..., Result], played: Path) -> None:
        done = fedpipe("stop", "run-2", "-f", played)
        assert done.code == 2
        assert "there is no run 'run-2'. Runs: run-1." in done.err

    @pytest.mark.parametrize("word", ["watch", "stop"])
    def test_without_a_federation_file(self, fedpipe: Callable[..., Result], word: str) -> None:
        done = fedpipe(word, "run-1")
        assert done.code == 2
        assert "federation.yaml: cannot be read" in done.err

    @pytest.mark.parametrize("word", ["watch", "stop"])
    def test_help_has_an_example(self, fedpipe: Callable[..., Result], word: str) -> None:
        assert f"fedpipe {word} run-1" in fedpipe(word, "--help").out
