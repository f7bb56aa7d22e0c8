"""Each face is compared with its body, and the executor input and output with what KFP's launcher does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kfp.compiler import Compiler

from fedpipe import components
from fedpipe.components.container import image
from fedpipe.errors import InputError, StepError
from fedpipe.federation.environments import ENVIRONMENTS
from fedpipe.rounds.plan import RunPlace, Shards
from fedpipe.steps import STEPS
from fedpipe.steps.contract import (
    Artifact,
    Html,
    MetricsArtifact,
    ModelArtifact,
    body,
    execute,
    local_path,
    parse,
    write_outputs,
)
from fedpipe.steps.early import ABSENT
from fedpipe.steps.supervision import main

KINDS = {
    str: "STRING",
    int: "NUMBER_INTEGER",
    float: "NUMBER_DOUBLE",
    dict: "STRUCT",
    RunPlace: "STRUCT",
    Shards: "STRUCT",
}
ROOT = Path(__file__).parents[2]


def kind_of(annotation: Any) -> str:
    origin = getattr(annotation, "__origin__", annotation)
    return "LIST" if origin is list else KINDS[origin]


def compiled(name: str, folder: Path) -> dict[str, Any]:
    import yaml

    path = folder / f"{name}.yaml"
    Compiler().compile(getattr(components, name), str(path))
    return next(iter(yaml.load_all(path.read_text(), yaml.CSafeLoader)))


def defaults_of(struct: Any) -> dict[str, Any]:
    found = {}
    for field in msgspec.structs.fields(struct):
        if field.default is not msgspec.NODEFAULT:
            found[field.name] = field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            found[field.name] = field.default_factory()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # kfp's own
@pytest.mark.parametrize("name", STEPS)
class TestFaces:
    def test_has_the_inputs_of_its_body(self, name: str, tmp_path: Path) -> None:
        spec = compiled(name, tmp_path)
        face = spec["root"]["inputDefinitions"]["parameters"]
        wanted = {f.name: kind_of(f.type) for f in msgspec.structs.fields(body(name).Inputs)}
        assert {k: v["parameterType"] for k, v in face.items()} == wanted
        absent: dict[str, Any] = {key: {} for key in ABSENT.get(name, ())}  # `early.completed` adds them
        assert {k: v["defaultValue"] for k, v in face.items() if "defaultValue" in v} == {
            **defaults_of(body(name).Inputs), **absent,
        }  # fmt: skip

    def test_has_the_outputs_of_its_body(self, name: str, tmp_path: Path) -> None:
        face = compiled(name, tmp_path)["root"].get("outputDefinitions", {})
        fields = {f.name: f.type for f in msgspec.structs.fields(body(name).Outputs)}
        artifacts = {k: t.schema for k, t in fields.items() if isinstance(t, type) and issubclass(t, Artifact)}
        parameters = {k: kind_of(t) for k, t in fields.items() if k not in artifacts}
        assert {k: v["parameterType"] for k, v in face.get("parameters", {}).items()} == parameters
        found = {k: v["artifactType"]["schemaTitle"] for k, v in face.get("artifacts", {}).items()}
        assert found == artifacts

    def test_has_a_command_of_its_own_and_the_image_of_its_environment(self, name: str, tmp_path: Path) -> None:
        (executor,) = compiled(name, tmp_path)["deploymentSpec"]["executors"].values()
        container = executor["container"]
        assert container["command"] == ["fedpipe", "step", name]
        assert container["args"] == ["{{$}}"]
        assert container["image"] == image(ENVIRONMENTS[name])

    def test_describes_every_name(self, name: str, tmp_path: Path) -> None:
        root = compiled(name, tmp_path)["root"]
        assert all(v.get("description") for v in root["inputDefinitions"]["parameters"].values())
        assert getattr(components, name).description


def test_every_step_has_a_face_and_a_body_of_the_same_name() -> None:
    faces = {p.stem for p in (ROOT / "components").glob("*.py")} - {"__init__", "container"}
    others = {"__init__", "contract", "early", "fence", "shown", "supervision", "work"}
    bodies = {p.stem for p in (ROOT / "src/fedpipe/steps").glob("*.py")} - others
    assert faces == bodies == set(STEPS) == set(components.__all__)


class TestParsing:
    def test_whole_numbers_may_come_as_floats(self) -> None:
        place = {"store": "memory://x", "federation": "f", "run": "r", "plan": ""}
        assert parse("train", {"place": place, "learner": "a", "round": 3.0, "base": "b"}).round == 3

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(InputError, match=r"step train: .*place"):
            parse("train", {})

    def test_an_unsafe_place_is_refused(self) -> None:
        place = {"store": "memory://x", "federation": "../f", "run": "r"}
        with pytest.raises(InputError, match="federation"):
            parse("train", {"place": place, "learner": "a", "round": 3, "base": "b"})


def test_outputs_as_the_launcher_reads_them(tmp_path: Path) -> None:
    outputs = body("train").Outputs(update="u", weights="w", metrics=MetricsArtifact(metadata={"loss": 1.0}))
    runtime = {"name": "projects/1/metrics", "uri": "minio://bucket/metrics", "metadata": {}}
    wanted = {"outputFile": str(tmp_path / "deep" / "out.json"), "artifacts": {"metrics": {"artifacts": [runtime]}}}
    write_outputs(outputs, wanted)
    assert json.loads((tmp_path / "deep" / "out.json").read_text()) == {
        "parameterValues": {"update": "u", "weights": "w"},
        "artifacts": {"metrics": {"artifacts": [{**runtime, "metadata": {"loss": 1.0}}]}},
    }


def test_a_page_is_written_where_its_uri_points(tmp_path: Path) -> None:
    outputs = body("report").Outputs(page=Html(content="<p>"))
    runtime = {"name": "page", "uri": str(tmp_path / "x" / "page")}
    write_outputs(outputs, {"outputFile": str(tmp_path / "o"), "artifacts": {"page": {"artifacts": [runtime]}}})
    assert (tmp_path / "x" / "page").read_text() == "<p>"


def test_the_artifact_of_a_model_shows_which_it_is(tmp_path: Path) -> None:
    """The store has the weights; without a file, Kubeflow's UI reports that nothing is found."""
    shown = {"digest": "sha256:0", "round": 3}
    outputs = body("aggregate").Outputs(weights="sha256:0", model=ModelArtifact(metadata=shown))
    runtime = {"name": "model", "uri": str(tmp_path / "x" / "model")}
    write_outputs(outputs, {"outputFile": str(tmp_path / "o"), "artifacts": {"model": {"artifacts": [runtime]}}})
    assert json.loads((tmp_path / "x" / "model").read_text()) == shown


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("minio://b/k", "/minio/b/k"),
        ("s3://b/k", "/s3/b/k"),
        ("gs://b/k", "/gcs/b/k"),
        ("/a/b", "/a/b"),
        ("file:///a", "/a"),
    ],
)
def test_where_artifacts_are_mounted(uri: str, path: str) -> None:
    assert local_path(uri) == Path(path)


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "a step takes its name"),
            (["trian", "{}"], "unknown step 'trian'"),
            (["train", "{"], "not JSON"),
            (["train", "[]"], "lacks outputs.outputFile"),
            (["train", '{"outputs": {"outputFile": "/tmp/x"}}'], "step train: "),
        ],
    )
    def test_mistakes(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err

    def test_a_step_in_a_process_of_its_own(self, tmp_path: Path, digits: Path) -> None:
        """The shard step as a container runs it; it imports neither kfp nor TensorFlow nor the command line."""
        from fedpipe.compiled.compiler import as_json
        from fedpipe.federation.file import read_federation

        values = {
            "federation": as_json(read_federation(digits / "federation.yaml")),
            "store": f"file://{tmp_path}/store",
            "run": "r1",
            "data": str(digits / "digits.npz"),
            "job": "",
        }
        executor_input = {"inputs": {"parameterValues": values}, "outputs": {"outputFile": str(tmp_path / "out.json")}}
        code = (
            "import sys; from fedpipe.__main__ import main; code = main(); "
            "heavy = {'kfp', 'tensorflow', 'keras', 'typer', 'rich', 'pyarrow', 'matplotlib'} & set(sys.modules); "
            "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
        )
        command = [sys.executable, "-c", code, "step", "shard", json.dumps(executor_input)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        written = json.loads((tmp_path / "out.json").read_text())["parameterValues"]
        assert written["place"] == {
            "store": f"file://{tmp_path}/store",
            "federation": "digits",
            "run": "r1",
            "plan": "",
        }
        assert len(written["shards"]["learners"]) == 5


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(body("tally"), "run", full)
    values = {"place": {"store": "memory://x", "federation": "f", "run": "r"}, "round": 1, "base": ""}
    with pytest.raises(
        StepError,
        match=r"/tmp/x: the disk of step tally cannot be used: No space left on device\. Provide space for a few models",
    ):
        execute("tally", {"inputs": {"parameterValues": values}, "outputs": {"outputFile": str(tmp_path / "o")}})


def test_a_step_notes_its_time_once(tmp_path: Path, digits: Path) -> None:
    from fedpipe.compiled.compiler import as_json
    from fedpipe.federation.file import read_federation
    from fedpipe.store import open_store

    federation = as_json(read_federation(digits / "federation.yaml"))
    values = {
        "federation": federation,
        "store": f"file://{tmp_path}/s",
        "run": "r1",
        "data": str(digits / "digits.npz"),
    }
    executor_input = {"inputs": {"parameterValues": values}, "outputs": {"outputFile": str(tmp_path / "out.json")}}
    first = execute("shard", executor_input)
    store = open_store(f"file://{tmp_path}/s").below("digits")
    noted = store.read("runs/r1/0/shard.time").data
    assert execute("shard", executor_input) == first
    assert store.read("runs/r1/0/shard.time").data == noted
