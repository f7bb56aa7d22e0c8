"""Sixty and more mistakes of users, each made for real in a folder, with the command that finds it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

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


class Mistake(NamedTuple):
    """Describes a mistake.

    Args:
        group: part of the page.
        cause: what the user did.
        make: makes the mistake in a folder that has a federation, a model.py, data and two models.
        command: the arguments of `fedpipe`.
        message: regular expression for the cause in the message.
        place: a text that names the place.
        remedy: a text from the remedy.
    """

    group: str
    cause: str
    make: Callable[[Path], Any]
    command: str
    message: str
    place: str
    remedy: str


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
    shards = f"\n  shards: {{by: key, column: {key}}}" if key else ""

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

    def one(cause: str, make: Callable[[Path], Any], message: str, place: str, remedy: str = "") -> Mistake:
        return Mistake("The federation file", cause, make, CHECK, message, place, remedy)

    yield one("a key is misspelt", text("training:", "trainning:"), "x", "trainning")
    yield one("a number is text", text("rounds: 1", "rounds: many"), "x", "training.rounds")
    yield one("a number is out of range", text("rounds: 1", "rounds: 0"), "x", "training.rounds")
    yield one(
        "a number is infinite", text("rounds: 1", "rounds: 1\n  learning_rate: .inf"), "x", "training.learning_rate"
    )
    yield one("two learners have one name", text("name: south", "name: north"), "x", "learners")
    yield one("a name has a space", text("name: south", "name: south wing"), "x", "learners")
    yield one("a framework is unknown", text("numpy", "pytorch"), "x", "framework")
    yield one("the YAML is broken", text("data:\n", "data:\n\t"), "x", "federation.yaml")
    yield one("a key is given twice", text("store: store", "store: store\nstore: other"), "x", "federation.yaml")
    yield one("the file is empty", written("federation.yaml", ""), "x", "federation.yaml")
    yield one("the file is not text", written("federation.yaml", b"\xff\xfe\x00"), "x", "federation.yaml")
    yield one(
        "the quorum is above the learners", text("training:", "quorum: {min_learners: 3}\ntraining:"), "x", "quorum"
    )
    yield one("the store has an unknown scheme", text("store: store", "store: gs://bucket"), "x", "store")
    yield one("nothing names the data", text("data:\n  uri: data.npz\n", ""), "x", "data")
    yield one(
        "a rule is unknown",
        text("training:", "algorithm: {name: averaging, rule: average}\ntraining:"),
        "x",
        "algorithm",
    )
    yield one(
        "parts do not add up", text("data:", "data:\n  parts: {train: 0.9, vote: 0.2, test: 0.1}"), "x", "data.parts"
    )


def model_file() -> Iterator[Mistake]:
    """Mistakes in model.py."""

    def one(
        cause: str, make: Callable[[Path], Any], message: str, place: str = "model.py", remedy: str = ""
    ) -> Mistake:
        return Mistake("model.py", cause, make, CHECK, message, place, remedy)

    yield one("the file does not exist", lambda folder: (folder / "model.py").unlink(), "x")
    yield one("the syntax is wrong", written("model.py", "def build(:\n"), "x")
    yield one("there is no such function", text("def build", "def make", "model.py"), "x")
    yield one("the function fails", text("return Linear", "return 1 / 0 or Linear", "model.py"), "x")
    yield one("the function returns nothing", text("return Linear", "Linear", "model.py"), "x")
    yield one("an import fails", written("model.py", "import torch_of_mine\n"), "x")
    yield one("the function takes arguments", text("build()", "build(a, b)", "model.py"), "x")
    yield one("a setting is unknown", text("features=3", "inputs=3", "model.py"), "x")
    yield one("a loss is unknown", text("outputs=3", "outputs=3, loss='mse'", "model.py"), "x")
    yield one("there are more classes than outputs", text("outputs=3", "outputs=2", "model.py"), "x")
    yield one("the features have another shape", text("features=3", "features=4", "model.py"), "x")
    yield one("the file exits", written("model.py", "raise SystemExit(3)\n"), "x")


def datasets() -> Iterator[Mistake]:
    """Mistakes in the data of a training."""

    def one(
        cause: str, make: Callable[[Path], Any], message: str, place: str = "data.npz", remedy: str = ""
    ) -> Mistake:
        return Mistake("Data", cause, make, CHECK, message, place, remedy)

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

    yield one("the file does not exist", lambda folder: (folder / "data.npz").unlink(), "x")
    yield one(
        "the format is unknown", both(written("data.xlsx", "PK"), text("data.npz", "data.xlsx")), "x", "data.xlsx"
    )
    yield one("an array has another name", lambda folder: data(folder, x=None, features=np.ones((60, 3))), "x")
    yield one("a feature is NaN", lambda folder: data(folder, x=broken(np.nan)), "x")
    yield one("a feature is infinite", lambda folder: data(folder, x=broken(np.inf)), "x")
    yield one("features are text", lambda folder: data(folder, x=np.full((60, 3), "a")), "x")
    yield one("features are Python objects", objects, "x")
    yield one("rows differ in length", ragged, "x")
    yield one("features and labels differ in number", lambda folder: data(folder, y=np.zeros(59, int)), "x")
    yield one(
        "labels are one-hot for a loss of classes", lambda folder: data(folder, y=np.eye(3)[np.arange(60) % 3]), "x"
    )
    yield one("labels are text", lambda folder: data(folder, y=np.array(["a", "b", "c"] * 20)), "x")
    yield one("a label is NaN", lambda folder: data(folder, y=np.where(np.arange(60) == 3, np.nan, 1.0)), "x")
    yield one("labels are fractions", lambda folder: data(folder, y=np.arange(60) / 7), "x")
    yield one("a label is negative", lambda folder: data(folder, y=np.arange(60) % 3 - 1), "x")
    yield one("there are no examples", lambda folder: data(folder, x=np.zeros((0, 3)), y=np.zeros(0, int)), "x")
    yield one("there are fewer examples than learners", lambda folder: data(folder, x=np.zeros((1, 3)), y=[0]), "x")
    yield one("the file is cut off", cut, "x")
    yield one("the file is something else", written("data.npz", "hello"), "x")
    yield one("a Parquet file is broken", both(frame(), written("data.parquet", "PAR1")), "x", "data.parquet")
    yield one("a column holds text", frame(c=["a"] * 60), "x", "data.parquet")
    yield one("a column holds dates", frame(c=pa.array([0] * 60, pa.date32())), "x", "data.parquet")
    yield one("a column has a null", frame(c=pa.array([None, *[1.0] * 59])), "x", "data.parquet")
    yield one(
        "a column of keys has nulls", frame("site", site=pa.array([None, *["a", "b"] * 29, "a"])), "x", "data.parquet"
    )
    yield one("a column of keys does not exist", frame("ward"), "x", "data.parquet")
    yield one("a learner's own data have other columns", own_data, "x", "south")


def predictions() -> Iterator[Mistake]:
    """Mistakes in files to predict for."""

    def one(
        cause: str, make: Callable[[Path], Any], message: str, place: str = "table.csv", remedy: str = "",
        command: str = PREDICT,
    ) -> Mistake:  # fmt: skip
        return Mistake("Predictions", cause, make, command, message, place, remedy)

    def table(content: str | bytes) -> Callable[[Path], Any]:
        return written("table.csv", content)

    yield one("a column is missing", table("age,smoker,sex\n1,no,f\n"), "x")
    yield one("a name is written differently", table(TABLE.replace("age", "Age")), "x")
    yield one("a name is given twice", table(TABLE.replace("sex", "age")), "x")
    yield one("a cell is not a number", table(TABLE.replace("49", "old")), "x")
    yield one("a number has a decimal comma", table(TABLE.replace(",", ";").replace("49", "49,5")), "x")
    yield one("a number is too large", table(TABLE.replace("49", "1e400")), "x")
    yield one("a cell is empty that never was", table(TABLE.replace("49", "")), "x")
    yield one("a date is written another way", table(TABLE.replace("1970-01-01", "1.1.1970")), "x")
    yield one("a boolean is a word of one's own", table(TABLE.replace("yes", "often")), "x")
    yield one("the file is empty", table(""), "x")
    yield one("there is only a header", table("age,smoker,sex,seen\n"), "x")
    yield one("a row is too short", table(TABLE + "1,no\n"), "x")
    yield one("the text is Latin-1", table(TABLE.replace("f", "ü").encode("latin-1")), "x")
    yield one("the text is UTF-16 without a mark", table(TABLE.encode("utf-16-le")), "x")
    yield one("a quote is not closed", table(TABLE.replace("m", '"m')), "x")
    yield one("the header may be an example", written("p.csv", f"{','.join(map(str, range(10)))}\n" * 2), "x", "p.csv",
              command="predict colours.onnx p.csv")  # fmt: skip
    yield one(
        "a row has too few features", written("p.csv", "1,2,3\n"), "x", "p.csv", command="predict colours.onnx p.csv"
    )
    yield one("the file does not exist", nothing, "x", "absent.csv", command="predict patients.onnx absent.csv")
    yield one("the format is unknown", nothing, "x", "model.py", command="predict patients.onnx model.py")
    yield one("a picture is for a model of rows", lambda folder: Image.new("L", (2, 2)).save(folder / "p.png"), "x", "p.png",
              command="predict colours.onnx p.png")  # fmt: skip
    yield one("the model is not ONNX", nothing, "x", "table.csv", command="predict table.csv table.csv")
    yield one("the model does not exist", nothing, "x", "no.onnx", command="predict no.onnx table.csv")
    yield one("no server answers", nothing, "x", "127.0.0.1", command="predict http://127.0.0.1:9 table.csv")
    yield one(
        "the folder for predictions does not exist", nothing, "x", "no/out.csv", command=f"{PREDICT} -o no/out.csv"
    )
    yield one("predictions in an unknown format", nothing, "x", "out.xlsx", command=f"{PREDICT} -o out.xlsx")


def servers() -> Iterator[Mistake]:
    """Mistakes with a server."""

    def one(
        cause: str, make: Callable[[Path], Any], command: str, message: str, place: str, remedy: str = ""
    ) -> Mistake:
        return Mistake("The server", cause, make, command, message, place, remedy)

    yield one("the folder of models does not exist", nothing, "serve --models absent", "x", "absent")
    yield one(
        "the file of the token is empty", written("token", ""), "serve --models . --token-file token", "x", "token"
    )
    yield one("the port is taken", nothing, "serve --models . --port {taken}", "x", "{taken}")
    yield one("there is no such version", nothing, "promote clinic 7 -f federation.yaml", "x", "clinic")
    yield one("there is no such model", nothing, "promote other --latest -f federation.yaml", "x", "other")


def stores_and_runs() -> Iterator[Mistake]:
    """Mistakes with stores, runs and identities."""

    def one(
        cause: str, make: Callable[[Path], Any], command: str, message: str, place: str, remedy: str = ""
    ) -> Mistake:
        return Mistake("Stores, runs and identities", cause, make, command, message, place, remedy)

    yield one("the file does not exist", nothing, "run absent.yaml", "x", "absent.yaml")
    yield one("the store cannot be written", text("store: store", "store: /proc/nope"), CHECK, "x", "/proc/nope")
    yield one("the store is a file", written("store", "x"), CHECK, "x", "store")
    yield one("nothing was trained", nothing, "export federation.yaml", "x", "federation.yaml")
    yield one("there is no such run", nothing, "export federation.yaml --run june", "x", "june")
    yield one("there is no such run to report", nothing, "report june -f federation.yaml", "x", "june")
    yield one("one run is compared", nothing, "compare june -f federation.yaml", "x", "june")
    yield one("no run can be stopped", nothing, "stop june -f federation.yaml", "x", "clinic")
    yield one("there is no such learner", nothing, "enroll west -f federation.yaml", "x", "west")
    yield one("nobody is enrolled", nothing, "revoke north -f federation.yaml", "x", "north")
    yield one("the folder is taken", nothing, "init .", "x", ".")
    yield one("an option is misspelt", nothing, "run federation.yaml --storre x", "x", "--storre")
    yield one("a parameter is unknown", nothing, "run federation.yaml -p lr=0.1", "x", "lr")


def taken_port() -> tuple[socket.socket, int]:
    """Returns a socket that occupies a port, and the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


MISTAKES = [*federation_file(), *model_file(), *datasets(), *predictions(), *servers(), *stores_and_runs()]
