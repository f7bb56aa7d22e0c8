"""Mistakes of users, each made for real in a folder, with the command that finds it.

`docs/messages.md` shows the messages; `python docs/messages.py` regenerates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

import fedpipe
from fedpipe.sites.invitation import make_invitation, write_invitation
from tests.served import patients, softmax

FEDERATION = """name: clinic
store: store
model: model.py:build
framework: numpy
data:
  uri: data.npz
learners:
  - name: north
  - name: south
training:
  rounds: 1
  batch_size: 8
"""
MODEL = """from fedpipe.learners.numpy import Linear


def build():
    return Linear(features=3, outputs=3)
"""
TABLE = "age,smoker,sex,seen\n49,yes,m,1970-01-01\n53,no,f,\n"


SPLIT = """name: clinic
store: store
model: model.py
learners:
  - {name: north, data: north.npz}
  - {name: south, data: south.npz}
algorithm: {name: split, label_party: south, ids: patient, batch_size: 8}
training: {rounds: 1}
"""
PARTS = """import keras


def bottom(party):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.compile(optimizer="sgd")
    return model


def top():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    return model
"""


class Mistake(NamedTuple):
    """Describes a mistake.

    Args:
        group: part of the page.
        cause: what the user did.
        make: makes the mistake in a folder that has a federation, a model.py, data and two models.
        command: the arguments of `fedpipe`.
        says: a text of the message that names the cause.
        place: a text of the message that names the place.
    """

    group: str
    cause: str
    make: Callable[[Path], Any]
    command: str
    says: str
    place: str


def prepare(folder: Path) -> None:
    """Writes a federation without mistakes, and models to predict with."""
    (folder / "federation.yaml").write_text(FEDERATION)
    (folder / "model.py").write_text(MODEL)
    data(folder)
    (folder / "patients.onnx").write_bytes(patients())
    (folder / "colours.onnx").write_bytes(softmax())
    (folder / "table.csv").write_text(TABLE)


def data(folder: Path, **changes: Any) -> None:
    """Writes a dataset of 60 examples, three features and three classes, with other arrays where they are given."""
    random = np.random.default_rng(0)
    arrays = {"x": random.normal(size=(60, 3)).astype(np.float32), "y": np.arange(60) % 3, **changes}
    np.savez(folder / "data.npz", **{name: array for name, array in arrays.items() if array is not None})


def broken(value: Any, at: int = 7) -> Any:
    """Returns features with one other value."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[at, 1] = value
    return x


def text(old: str, new: str, file: str = "federation.yaml") -> Callable[[Path], Any]:
    """Returns a mistake that replaces text of a file."""

    def make(folder: Path) -> None:
        content = (folder / file).read_text()
        assert old in content
        (folder / file).write_text(content.replace(old, new, 1))

    return make


def written(file: str, content: str | bytes) -> Callable[[Path], Any]:
    """Returns a mistake that writes a file."""
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def both(*makers: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Returns a mistake of several steps."""
    return lambda folder: [make(folder) for make in makers]


def frame(key: str = "", **columns: Any) -> Callable[[Path], Any]:
    """Returns a mistake in a Parquet file, of which the federation takes all columns."""
    shards = f"\n  features: ''\n  shards: {{by: key, column: {key}}}" if key else "\n  features: ''"

    def make(folder: Path) -> None:
        full = {"a": np.arange(60.0), "b": np.arange(60.0), "c": np.arange(60.0), "y": np.arange(60) % 3, **columns}
        parquet.write_table(pa.table(full), folder / "data.parquet")
        text("  uri: data.npz", f"  uri: data.parquet{shards}")(folder)

    return make


def nothing(_: Path) -> None:
    """Makes no mistake: it is in the command."""


CHECK, PREDICT = "check federation.yaml", "predict patients.onnx table.csv"


def federation_file() -> Iterator[Mistake]:
    """Mistakes in federation.yaml."""

    def one(cause: str, make: Callable[[Path], Any], says: str, place: str) -> Mistake:
        return Mistake("The federation file", cause, make, CHECK, says, place)

    yield one("a key is misspelt", text("training:", "trainning:"), "unknown key 'trainning'", "trainning")
    yield one("a number is text", text("rounds: 1", "rounds: many"), "got `str`", "training.rounds")
    yield one("a number is out of range", text("rounds: 1", "rounds: 0"), ">= 1", "training.rounds")
    yield one(
        "a number is infinite",
        text("rounds: 1", "rounds: 1\n  learning_rate: .inf"),
        "not a finite number",
        "training.learning_rate",
    )
    yield one("two learners have one name", text("name: south", "name: north"), "listed twice", "learners")
    yield one("a name has a space", text("name: south", "name: south wing"), "not a safe name", "learners")
    yield one("a framework is unknown", text("numpy", "pytorch"), "'pytorch'", "framework")
    yield one("the YAML is broken", text("data:\n", "data:\n\t"), "line 6, column 1", "federation.yaml")
    yield one(
        "a key is given twice",
        text("store: store", "store: store\nstore: other"),
        "'store' is written twice",
        "federation.yaml",
    )
    yield one("the file is empty", written("federation.yaml", ""), "is not a table of keys", "federation.yaml")
    yield one("the file is not text", written("federation.yaml", b"\xff\xfe\x00"), "not UTF-8", "federation.yaml")
    yield one(
        "the quorum is above the learners",
        text("training:", "quorum: {min_learners: 3}\ntraining:"),
        "is 3, but there are 2",
        "quorum",
    )
    yield one("the store has an unknown scheme", text("store: store", "store: gs://bucket"), "unknown scheme", "store")
    yield one("nothing names the data", text("data:\n  uri: data.npz\n", ""), "is missing", "data")
    yield one(
        "a rule is unknown",
        text("training:", "algorithm: {name: averaging, rule: average}\ntraining:"),
        "'average'",
        "algorithm",
    )
    yield one(
        "a method is unknown",
        text("rounds: 1", "rounds: 1\n  method: scafold"),
        "'scafold'",
        "training.method.name",
    )
    yield one(
        "a method needs another setting",
        text("rounds: 1", "rounds: 1\n  method: scaffold"),
        "scaffold needs it",
        "training.learning_rate",
    )
    yield one(
        "a rule withstands more bad learners than there can be",
        text("training:", "algorithm: {name: averaging, rule: {name: krum, byzantine: 1}}\ntraining:"),
        "1 needs 5 updates, but a round asks for 2 learners",
        "algorithm.rule.byzantine",
    )
    yield one(
        "half of the values are cut off",
        text("training:", "algorithm: {name: averaging, rule: {name: trimmed_mean, share: 0.5}}\ntraining:"),
        "Write a number < 0.5",
        "algorithm.rule.share",
    )
    yield one(
        "a rule and an engine do not go together",
        text("training:", "algorithm: {name: averaging, engine: tff, rule: median}\ntraining:"),
        "'median' is not a rule of TensorFlow Federated",
        "algorithm.rule",
    )
    yield one(
        "the best model has no metric",
        text("training:", "export: {choose: best}\ntraining:"),
        "is missing, and models are compared by it",
        "export.metric",
    )
    yield one(
        "parts do not add up",
        text("data:", "data:\n  parts: {train: 0.9, vote: 0.2, test: 0.1}"),
        "add up to 1.2",
        "data.parts",
    )


def secure_sums() -> Iterator[Mistake]:
    """Mistakes of secure sums, by three learners."""

    def one(
        cause: str, settings: str, says: str, place: str = "algorithm.secure", *,
        make: Callable[[Path], Any] = nothing, command: str = CHECK,
    ) -> Mistake:  # fmt: skip
        section = f"algorithm: {{name: averaging, secure: {settings}}}\ntraining:"
        given = both(text("- name: south\n", "- name: south\n  - name: east\n"), text("training:", section), make)
        return Mistake("Secure sums", cause, given, command, says, place)

    def enrolled(*names: str) -> Callable[[Path], Any]:
        return lambda folder: [fedpipe.enroll(folder / "federation.yaml", name) for name in names]

    def foreign(folder: Path) -> None:
        enrolled("north", "south", "east")(folder)
        fedpipe.roster(folder / "federation.yaml", keys=folder / "other")

    alone = text("  - name: east\n", "")
    yield one("two learners would know each other", "{}", "needs 3 learners, but there are 2", make=alone)
    yield one("there are too few bits", "{bits: 7}", "Write a number >= 8", "algorithm.secure.bits")
    yield one("there are too many bits", "{bits: 33}", "Write a number <= 32", "algorithm.secure.bits")
    yield one(
        "a sum may have too few learners", "{threshold: 2}", "3 learners need 3 to 3", "algorithm.secure.threshold"
    )
    yield one("a rule needs single updates", "{}, rule: median", "cannot be combined", "algorithm.rule")
    yield one(
        "a step of its own trains each round", "{}", "1 cannot be combined", "training.rounds_per_step",
        make=text("rounds: 1", "rounds: 1\n  rounds_per_step: 1"),
    )  # fmt: skip
    yield one(
        "the bound clips all changes", "{bound: 1e-9}", "1e-09 clips", "algorithm.secure.bound",
        command=f"{CHECK} --no-store",
    )  # fmt: skip
    yield one(
        "the first bound clips all changes", "{bound: {quantile: 0.99, initial: 1e-9}}", "1e-09 clips",
        "algorithm.secure.bound.initial", command=f"{CHECK} --no-store",
    )  # fmt: skip
    for command in (CHECK, "run federation.yaml"):
        does = command.split()[0]
        yield one(f"there is no roster ({does})", "{}", "needs the public key of the administrator", command=command)
        yield one(
            f"a learner has no key ({does})", "{}", "no key of east", make=enrolled("north", "south"), command=command
        )
    yield one("another administrator signed the roster", "{}", "is signed with another key", make=foreign)


def cut(**changes: Any) -> Callable[[Path], Any]:
    """Writes a federation whose network is cut, with other arrays where they are given; `y` is at south."""
    arrays = {"x": np.arange(180.0).reshape(60, 3) / 180, "y": np.arange(60) % 3, "patient": np.arange(60), **changes}

    def make(folder: Path) -> None:
        written("federation.yaml", SPLIT)(folder)
        written("model.py", PARTS)(folder)
        np.savez(folder / "north.npz", **{name: arrays[name] for name in ("x", "patient") if arrays[name] is not None})
        np.savez(folder / "south.npz", y=arrays["y"], patient=np.arange(60))

    return make


def split_learning() -> Iterator[Mistake]:
    """Mistakes in cut networks and the rows of their parties."""

    def one(cause: str, make: Callable[[Path], Any], says: str, place: str) -> Mistake:
        return Mistake("Split learning", cause, make, "run federation.yaml", says, place)

    def model(old: str, new: str) -> Callable[[Path], Any]:
        return both(cut(), text(old, new, "model.py"))

    def file(old: str, new: str) -> Callable[[Path], Any]:
        return both(cut(), text(old, new))

    yield one("there are two label parties", file("south, ids", "[north, south], ids"), "`array`", "label_party")
    yield one(
        "the label party has another name", file("party: south", "party: sout"), "no learner 'sout'", "label_party"
    )
    yield one("a party has no file", file(", data: north.npz", ""), "is missing", "learners[0].data")
    yield one("there is no bottom", model("def bottom", "def lower"), "no function 'bottom'", "model.py")
    yield one(
        "a party has no part",
        model(
            "    model = keras.Sequential([keras.Input((3,)",
            "    return None\n    model = keras.Sequential([keras.Input((3,)",
        ),
        "returns None",
        "model.py",
    )
    yield one("the bottom does not fit the top", model("Dense(4)", "Dense(5)"), "top() takes float32 [4]", "model.py")
    yield one(
        "the bottom does not fit the rows", model("Input((3,)", "Input((2,)"), "does not fit its rows", "model.py"
    )
    yield one("the bottom takes no party", model("bottom(party)", "bottom()"), "cannot be called", "model.py")
    yield one("there are no ids", cut(patient=None), "no array 'patient'", "learners[0].data, north")
    yield one("an id is missing", cut(patient=np.array(["", *"ab" * 29, "c"])), "no id", "learners[0].data, north")
    yield one("ids are duplicates", cut(patient=np.arange(60) // 2), "30 ids are duplicates", "learners[0].data, north")
    yield one("rows have another order", cut(patient=np.arange(60)[::-1]), "same order", "learners[1].data, south")
    yield one("a party has fewer rows", cut(x=np.zeros((50, 3)), patient=np.arange(50)), "north has 50", "south")
    yield one(
        "no ids are common",
        both(cut(patient=np.arange(60) + 60), text("ids: patient", "ids: patient, align: intersection")),
        "no id is common",
        "algorithm.ids",
    )
    yield one("a batch is larger than the rows", file("batch_size: 8", "batch_size: 64"), "fewer than a batch", "north")
    yield one("a label is not a class", cut(y=np.arange(60) % 4), "range from 0 to 3", "model.py")


def model_file() -> Iterator[Mistake]:
    """Mistakes in model.py."""

    def one(cause: str, make: Callable[[Path], Any], says: str, place: str = "model.py") -> Mistake:
        return Mistake("model.py", cause, make, CHECK, says, place)

    yield one("the file does not exist", lambda folder: (folder / "model.py").unlink(), "No such file")
    yield one("the syntax is wrong", written("model.py", "def build(:\n"), "SyntaxError")
    yield one("there is no such function", text("def build", "def make", "model.py"), "no function 'build'")
    yield one(
        "the function fails", text("return Linear", "return 1 / 0 or Linear", "model.py"), "division by zero (line 5)"
    )
    yield one("the function returns nothing", text("return Linear", "Linear", "model.py"), "returns NoneType")
    yield one("an import fails", written("model.py", "import torch_of_mine\n"), "torch_of_mine")
    yield one("the function takes arguments", text("build()", "build(a, b)", "model.py"), "build() takes a table")
    yield one("a setting is unknown", text("features=3", "inputs=3", "model.py"), "'inputs' (line 5)")
    yield one("a loss is unknown", text("outputs=3", "outputs=3, loss='mse'", "model.py"), "unknown loss 'mse'")
    yield one(
        "there are more classes than outputs",
        text("outputs=3", "outputs=2", "model.py"),
        "range from 0 to 2, but the model has 2",
    )
    yield one(
        "the features have another shape",
        text("features=3", "features=4", "model.py"),
        "shape (3,), but the model takes (4,)",
    )
    yield one(
        "no weights have such a name",
        text("training:", "share: {local: [head/*]}\ntraining:"),
        "'head/*' matches none of the weights",
        "share.local[0]",
    )
    yield one(
        "all weights stay at the learners",
        text("training:", "share: {local: ['*']}\ntraining:"),
        "'*' matches all weights, so nothing would be shared",
        "share.local[0]",
    )
    yield one(
        "a method is not defined for the optimizer",
        both(
            text("rounds: 1", "rounds: 1\n  method: scaffold\n  learning_rate: 0.1"),
            text("outputs=3", "outputs=3, momentum=0.9", "model.py"),
        ),
        "scaffold is not defined for SGD with momentum",
        "training.method",
    )
    yield one("the file exits", written("model.py", "raise SystemExit(3)\n"), "SystemExit")


def datasets() -> Iterator[Mistake]:
    """Mistakes in the data of a training."""

    def one(cause: str, make: Callable[[Path], Any], says: str, place: str = "data.npz") -> Mistake:
        return Mistake("Data", cause, make, CHECK, says, place)

    def objects(folder: Path) -> None:
        data(folder, x=np.array([[1, None, 3]] * 60, dtype=object))

    def ragged(folder: Path) -> None:
        rows = np.empty(60, object)
        rows[:] = [[1.0] * (1 + k % 2) for k in range(60)]
        data(folder, x=rows)

    def cut(folder: Path) -> None:
        content = (folder / "data.npz").read_bytes()
        (folder / "data.npz").write_bytes(content[: len(content) // 2])

    def own_data(folder: Path) -> None:
        np.savez(folder / "own.npz", x=np.zeros((20, 5)), y=np.zeros(20, int))
        text("- name: south", "- name: south\n    data: own.npz")(folder)

    yield one("the file does not exist", lambda folder: (folder / "data.npz").unlink(), "no such dataset")
    yield one(
        "the format is unknown",
        both(written("data.xlsx", "PK"), text("data.npz", "data.xlsx")),
        "unsupported format",
        "data.xlsx",
    )
    yield one(
        "an array has another name", lambda folder: data(folder, x=None, features=np.ones((60, 3))), "no array 'x'"
    )
    yield one("a feature is NaN", lambda folder: data(folder, x=broken(np.nan)), "NaN or infinity, first in row 8")
    yield one("a feature is infinite", lambda folder: data(folder, x=broken(np.inf)), "NaN or infinity, first in row 8")
    yield one(
        "features are text", lambda folder: data(folder, x=np.full((60, 3), "a")), "the features are text", "model.py"
    )
    yield one("features are Python objects", objects, "objects")
    yield one("rows differ in length", ragged, "objects")
    yield one(
        "features and labels differ in number",
        lambda folder: data(folder, y=np.zeros(59, int)),
        "60 features but 59 labels",
    )
    yield one(
        "labels are one-hot for a loss of classes",
        lambda folder: data(folder, y=np.eye(3)[np.arange(60) % 3]),
        "labels have shape (3,)",
        "model.py",
    )
    yield one("labels are text", lambda folder: data(folder, y=np.array(["a", "b", "c"] * 20)), "text")
    yield one(
        "a label is NaN",
        lambda folder: data(folder, y=np.where(np.arange(60) == 3, np.nan, 1.0)),
        "NaN or infinity, first in row 4",
    )
    yield one("labels are fractions", lambda folder: data(folder, y=np.arange(60) / 7), "not whole numbers", "model.py")
    yield one(
        "a label is negative", lambda folder: data(folder, y=np.arange(60) % 3 - 1), "range from -1 to 1", "model.py"
    )
    yield one("there are no examples", lambda folder: data(folder, x=np.zeros((0, 3)), y=np.zeros(0, int)), "empty")
    yield one(
        "there are fewer examples than learners",
        lambda folder: data(folder, x=np.zeros((1, 3)), y=[0]),
        "1 examples cannot be dealt to 2",
        "data.shards",
    )
    yield one("the file is cut off", cut, "cannot be read")
    yield one("the file is something else", written("data.npz", "hello"), "cannot be read")
    yield one(
        "a Parquet file is broken", both(frame(), written("data.parquet", "PAR1")), "cannot be read", "data.parquet"
    )
    yield one("a column of keys does not exist", frame("ward"), "'ward'", "data.parquet")
    yield one("a column holds text", frame(c=["a"] * 60), "'a' is not a number", "data.parquet")
    yield one("a column holds dates", frame(c=pa.array([0] * 60, pa.date32())), "not a number", "data.parquet")
    yield one("a column has a null", frame(c=pa.array([None, *[1.0] * 59])), "row 1", "data.parquet")
    yield one(
        "a column of keys has nulls",
        frame("site", site=pa.array([None, *["a", "b"] * 29, "a"])),
        "key is missing",
        "data.parquet",
    )
    yield one("a learner's own data have other columns", own_data, "(5,)", "south")


def predictions() -> Iterator[Mistake]:
    """Mistakes in files to predict for."""

    def one(
        cause: str, make: Callable[[Path], Any], says: str, place: str = "table.csv",
        command: str = PREDICT,
    ) -> Mistake:  # fmt: skip
        return Mistake("Predictions", cause, make, command, says, place)

    def table(content: str | bytes) -> Callable[[Path], Any]:
        return written("table.csv", content)

    yield one("a column is missing", table("age,smoker,sex\n1,no,f\n"), "'seen' is missing")
    yield one("a name is written differently", table(TABLE.replace("age", "Age")), "'age' is missing")
    yield one("a name is given twice", table(TABLE.replace("sex", "age")), "'age'")
    yield one("a cell is not a number", table(TABLE.replace("49", "old")), "'old' is not a number")
    yield one(
        "a comma may be for decimals or thousands",
        table(TABLE.replace(",", ";").replace("49", "4,900")),
        "'4,900' is not a number",
    )
    yield one("a number is too large", table(TABLE.replace("49", "1e400")), "too large for a number")
    yield one("a cell is empty that never was", table(TABLE.replace("49", "")), "the cell is empty")
    yield one(
        "a date may have the day or the month first",
        table(TABLE.replace("1970-01-01", "1/2/1970")),
        "'1/2/1970' is not a date",
    )
    yield one("a boolean is a word of one's own", table(TABLE.replace("yes", "often")), "'often' is not a boolean")
    yield one("the file is empty", table(""), "the table is empty")
    yield one("there is only a header", table("age,smoker,sex,seen\n"), "but no rows")
    yield one("a row is too short", table(TABLE + "1,no\n"), "row 3 (line 4) has 2 cells, not 4")
    yield one("the text is Latin-1", table(TABLE.replace("f", "ü").encode("latin-1")), "line 3 is not text in UTF-8")
    yield one("the text is UTF-16 without a mark", table(TABLE.encode("utf-16-le")), "zero byte")
    yield one("a quote is not closed", table(TABLE.replace("m", '"m')), "begins at line 2")
    yield one("the header may be an example", written("p.csv", f"{','.join(map(str, range(10)))}\n" * 2), "may be a header or an example", "p.csv",
              command="predict colours.onnx p.csv")  # fmt: skip
    yield one(
        "a row has too few features",
        written("p.csv", "1,2,3\n"),
        "3 features, but the model takes 4",
        "p.csv",
        command="predict colours.onnx p.csv",
    )
    yield one(
        "the file does not exist", nothing, "no such file", "absent.csv", command="predict patients.onnx absent.csv"
    )
    yield one(
        "the format is unknown", nothing, "unsupported format", "model.py", command="predict patients.onnx model.py"
    )
    yield one("a picture is for a model of rows", lambda folder: Image.new("L", (2, 2)).save(folder / "p.png"), "does not take pictures", "p.png",
              command="predict colours.onnx p.png")  # fmt: skip
    yield one(
        "the model is not ONNX", nothing, "is not an ONNX model", "table.csv", command="predict table.csv table.csv"
    )
    yield one("the model does not exist", nothing, "no such file", "no.onnx", command="predict no.onnx table.csv")
    yield one(
        "no server answers", nothing, "does not answer", "127.0.0.1", command="predict http://127.0.0.1:9 table.csv"
    )
    yield one(
        "the folder for predictions does not exist",
        nothing,
        "no such folder",
        "no: ",
        command=f"{PREDICT} -o no/out.csv",
    )
    yield one(
        "predictions in an unknown format",
        nothing,
        "cannot be written in this format",
        "out.xlsx",
        command=f"{PREDICT} -o out.xlsx",
    )


def servers() -> Iterator[Mistake]:
    """Mistakes with a server."""

    def one(cause: str, make: Callable[[Path], Any], command: str, says: str, place: str) -> Mistake:
        return Mistake("The server", cause, make, command, says, place)

    yield one("the folder of models does not exist", nothing, "serve --models absent", "no such folder", "absent")
    yield one(
        "the file of the token is empty",
        written("token", ""),
        "serve --models . --token-file token",
        "no ASCII token",
        "token",
    )
    yield one("the port is taken", nothing, "serve --models . --port {taken}", "not available", "{taken}")
    yield one("there is no such version", nothing, "promote clinic 7 -f federation.yaml", "no model 'clinic'", "clinic")
    yield one(
        "there is no such model", nothing, "promote other --latest -f federation.yaml", "no model 'other'", "other"
    )


def stores_and_runs() -> Iterator[Mistake]:
    """Mistakes with stores, runs and identities."""

    def one(cause: str, make: Callable[[Path], Any], command: str, says: str, place: str) -> Mistake:
        return Mistake("Stores, runs and identities", cause, make, command, says, place)

    yield one("the file does not exist", nothing, "run absent.yaml", "No such file", "absent.yaml")
    yield one(
        "the store cannot be written",
        text("store: store", "store: /proc/nope"),
        CHECK,
        "cannot be written",
        "/proc/nope",
    )
    yield one("the store is a file", written("store", "x"), CHECK, "is a file", "store")
    yield one("nothing was trained", nothing, "export federation.yaml", "no trained model", "federation.yaml")
    yield one("there is no such run", nothing, "export federation.yaml --run june", "no run 'june'", "clinic")
    yield one("there is no such run to report", nothing, "report june -f federation.yaml", "no run 'june'", "june")
    yield one("one run is compared", nothing, "compare june -f federation.yaml", "two runs", "compare")
    yield one("no run can be stopped", nothing, "stop june -f federation.yaml", "no run 'june'", "clinic")
    yield one("there is no such learner", nothing, "enroll west -f federation.yaml", "no learner 'west'", "west")
    yield one("nobody is enrolled", nothing, "revoke north -f federation.yaml", "not enrolled", "north")
    yield one("the folder is taken", nothing, "init .", "already exists", ".")
    yield one("an option is misspelt", nothing, "run federation.yaml --storre x", "No such option", "--storre")
    yield one("a parameter is unknown", nothing, "run federation.yaml -p lr=0.1", "unknown parameter 'lr'", "lr")


def altered_invitation(folder: Path) -> None:
    """Writes an invitation of another site, with the name of this one."""
    made = make_invitation("1a" * 32, "clinic", "north", "s3://bucket/h", created=0, expires=2**36)
    write_invitation(folder / "north.yaml", made)
    text('"learner": "north"', '"learner": "south"', "north.yaml")(folder)


def sites() -> Iterator[Mistake]:
    """Mistakes with sites, by the operator and at the site."""

    def one(cause: str, make: Callable[[Path], Any], command: str, says: str, place: str) -> Mistake:
        return Mistake("Sites", cause, make, command, says, place)

    yield one(
        "a site is invited that the file does not have", nothing, "invite nort", "no learner 'nort'", "federation.yaml"
    )
    yield one("an invitation lives too long", nothing, "invite north --expires 30d", "at most 7 days", "--expires")
    yield one(
        "a folder is given an endpoint", nothing, "invite north --endpoint https://x", "no endpoint", "--endpoint"
    )
    yield one("nobody was invited here", nothing, "enroll --requests", "no key of the administrator", "keys")
    yield one("the file is not an invitation", nothing, "site join model.py", "is not", "model.py")
    yield one("an invitation was altered", altered_invitation, "site join north.yaml", "was altered", "north.yaml")
    yield one("the site has no file", nothing, "site rotate", "cannot be read", "site.yaml")
    yield one(
        "a key of site.yaml is misspelt", written("site.yaml", "polcy: {}\n"), "site status", "polcy", "site.yaml"
    )


MISTAKES = [
    *federation_file(), *secure_sums(), *split_learning(), *model_file(), *datasets(), *predictions(), *servers(), *stores_and_runs(), *sites(),
]  # fmt: skip


def shown(message: str, folder: Path, port: int) -> str:
    """Returns a message as the page shows it: without the folder, the port and breaks of lines."""
    text = " ".join(message.replace(f"file://{folder}/", "file:///home/me/").replace(f"{folder}/", "").split())
    return text.replace(str(port), "8080").split("fedpipe: ", 1)[-1]  # progress may come before


def row_of(mistake: Mistake, message: str) -> str:
    """Returns the line of the page for a mistake and its message."""
    fence = "``" if "`" in message else "`"
    space = " " if message.endswith("`") else ""
    return f"- {mistake.cause[0].upper()}{mistake.cause[1:]}: {fence}{space}{message}{space}{fence}"
