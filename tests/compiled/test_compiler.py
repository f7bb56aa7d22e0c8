from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.compiled.compiler import as_json, compile_pipeline, images_of, manifest_of, read_code
from fedpipe.compiled.estimate import Estimate
from fedpipe.compiled.graph import check_arguments, read_graph
from fedpipe.errors import FederationError, InputError, ModelError
from fedpipe.federation.file import parse_federation, read_federation
from fedpipe.federation.mistakes import quantity
from fedpipe.pipelines.frame import form_of
from fedpipe.rounds.plan import Settings
from tests.federations import make_federation

PLACED = """
name: placed
store: {uri: s3://bucket/prefix, endpoint: http://minio:9000}
data: {uri: s3://data/d.npz}
images: {registry: example.org/team, tag: v7}
learners:
  - name: a
    secret: a-keys
    placement:
      node_selector: {pool: a}
      tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]
      accelerator: {type: nvidia.com/gpu, count: 2}
      cpu: 500m
      memory: 8Gi
  - name: b
training: {rounds: 1, rounds_per_step: 1, batch_size: 4}
"""


EXAMPLES = Path(__file__).parents[2] / "examples" / "placement"


@pytest.fixture
def compiled(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (tmp_path / "f.yaml").write_text(PLACED)
    (tmp_path / "model.py").write_text("def build(): ...\n")
    compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
    pipeline, platform = yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_each_learner_has_its_own_secret_and_placement(compiled: Any) -> None:
    pipeline, platform = compiled
    tasks = {t["taskInfo"]["name"]: t["componentRef"]["name"] for t in pipeline["root"]["dag"]["tasks"].values()}
    labels = {name: pipeline["components"][component]["executorLabel"] for name, component in tasks.items()}

    def secret(name: str) -> Any:
        found, *more = platform[labels[name]]["secretAsEnv"]
        for signing in more:
            assert signing["secretName"] == found["secretName"]
            assert signing["optional"]
            assert signing["keyToEnv"] == [{"secretKey": "signingkey", "envVar": "FEDPIPE_SIGNING_KEY"}]
        assert len(more) == (found["secretName"] == "a-keys" or name == "export")
        assert {k["secretKey"]: k["envVar"] for k in found["keyToEnv"]} == {
            "accesskey": "AWS_ACCESS_KEY_ID",
            "secretkey": "AWS_SECRET_ACCESS_KEY",
        }
        return found["secretName"]

    assert secret("1 train a") == secret("score a") == "a-keys"
    assert secret("1 train b") == secret("1 aggregate") == secret("shard") == "mlpipeline-minio-artifact"
    assert secret("export") == "mlpipeline-minio-artifact"  # the only step of the coordinator with the key
    placed = platform[labels["1 train a"]]
    assert placed["nodeSelector"] == {"labels": {"pool": "a"}}
    assert placed["tolerations"] == [{"effect": "NoSchedule", "key": "gpu", "operator": "Exists"}]
    assert "nodeSelector" not in platform[labels["1 train b"]]
    resources = pipeline["deploymentSpec"]["executors"][labels["1 train a"]]["container"]["resources"]
    assert resources["accelerator"]["resourceCount"] == "2"
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["resourceMemoryLimit"] == "8Gi"


def test_without_a_secret_pods_use_the_identity_of_their_service_account(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(PLACED.replace("name: placed", 'name: placed\nsecret: ""'))
    (tmp_path / "model.py").write_text("def build(): ...\n")
    compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
    _, platform = yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    secrets = {secret["secretName"] for one in executors for secret in one.get("secretAsEnv", ())}
    assert secrets == {"a-keys"}


def test_images_are_those_of_the_federation(compiled: Any) -> None:
    images = {e["container"]["image"] for e in compiled[0]["deploymentSpec"]["executors"].values()}
    assert images == {"example.org/team/core:v7", "example.org/team/keras:v7"}


def test_only_a_private_learner_of_a_session_has_a_step_for_its_test(tmp_path: Path) -> None:
    """The others test the last model in their session; the private one trains in an image with another Keras."""
    privacy = "{noise_multiplier: 1.0, l2_norm_clip: 1.0, microbatches: 4, delta: 1.0e-5, target_epsilon: 3.0}"
    text = PLACED.replace("  - name: b\n", f"  - name: b\n    privacy: {privacy}\n").replace("rounds: 1", "rounds: 2")
    (tmp_path / "f.yaml").write_text(text.replace("rounds_per_step: 1", "rounds_per_step: all"))
    (tmp_path / "model.py").write_text("def build(): ...\n")
    compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
    tasks = {task.name: task for task in read_graph(tmp_path / "p.yaml").tasks}
    assert {name for name in tasks if name.split()[0] in ("learn", "score")} == {"learn a", "learn b", "score b"}
    assert (tasks["learn b"].environment, tasks["score b"].environment) == ("tff", "keras")
    coordinate, score = tasks["coordinate"], tasks["score b"]
    assert score.after == {"initialise", coordinate.key}
    assert score.key in tasks["evaluate"].after


def test_a_private_proposer_runs_in_another_image(tmp_path: Path) -> None:
    """Uses the tff image for its training alone; votes and other proposals stay in keras, and the tally in core."""
    privacy = "{noise_multiplier: 1.0, l2_norm_clip: 1.0, microbatches: 4, delta: 1.0e-5, target_epsilon: 3.0}"
    text = PLACED.replace("  - name: b\n", f"  - name: b\n    privacy: {privacy}\n").replace("rounds: 1", "rounds: 2")
    (tmp_path / "f.yaml").write_text(f"{text}algorithm: {{name: collective}}\n")
    (tmp_path / "model.py").write_text("def build(): ...\n")
    compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
    pipeline, platform = yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)
    executors = pipeline["deploymentSpec"]["executors"]
    tasks = {t["taskInfo"]["name"]: t["componentRef"]["name"] for t in pipeline["root"]["dag"]["tasks"].values()}
    containers = {n: executors[pipeline["components"][c]["executorLabel"]]["container"] for n, c in tasks.items()}
    images = {name: container["image"].split("/")[-1] for name, container in containers.items()}
    assert (images["1 propose a"], images["2 propose b"]) == ("keras:v7", "tff:v7")
    assert {images[f"{n} vote {k}"] for n in (1, 2) for k in "ab"} == {"keras:v7"}
    assert images["1 tally"] == "core:v7"
    assert containers["2 propose b"]["command"] == ["fedpipe", "step", "train"]
    rounds = {f"{n} {act}" for n in (1, 2) for act in ("vote a", "vote b", "tally")}
    assert {n for n in tasks if n[0] in "012"} == rounds | {"0 score a", "0 score b", "1 propose a", "2 propose b"}
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    label = pipeline["components"][tasks["2 vote a"]]["executorLabel"]
    assert placed[label]["nodeSelector"] == {"labels": {"pool": "a"}}


def test_learners_with_numpy_run_in_the_core_image(tmp_path: Path) -> None:
    """All but the export, which needs the packages of ONNX; with Keras, the graph says that it needs TensorFlow."""
    for each in ("1", "all"):
        text = PLACED.replace("rounds_per_step: 1", f"rounds_per_step: {each}")
        (tmp_path / "f.yaml").write_text(f"{text}framework: numpy\n")
        (tmp_path / "model.py").write_text("def build(): ...\n")
        compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
        graph = read_graph(tmp_path / "p.yaml")
        assert {task.name for task in graph.tasks if task.environment != "core"} == {"export"}
        assert not graph.needs_tensorflow
        (tmp_path / "f.yaml").write_text(text)
        compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
        assert read_graph(tmp_path / "p.yaml").needs_tensorflow


class TestSessions:
    @staticmethod
    def tasks(folder: Path, rounds: int, each: Any, **more: Any) -> dict[str, Any]:
        (folder / "m.py").write_text("def build(): ...\n")
        training = {"rounds": rounds, "batch_size": 4, "rounds_per_step": each}
        compile_pipeline(
            make_federation(("a", "b"), training=training, model=f"{folder}/m.py:build", **more), folder / "p.yaml"
        )
        return next(iter(yaml.load_all((folder / "p.yaml").read_text(), yaml.CSafeLoader)))

    @pytest.mark.parametrize("algorithm", ["averaging", "collective"])
    def test_learners_and_coordinator_run_concurrently(self, tmp_path: Path, algorithm: str) -> None:
        pipeline = self.tasks(tmp_path, 50, "all", algorithm=algorithm)
        tasks = {t["taskInfo"]["name"]: t.get("dependentTasks", []) for t in pipeline["root"]["dag"]["tasks"].values()}
        assert {n for n in tasks if "learn" in n or "coordinate" in n} == {"learn a", "learn b", "coordinate"}
        assert tasks["learn a"] == tasks["learn b"] == tasks["coordinate"] == []  # they await initialise in their pods

    def test_parameters_of_the_form(self, tmp_path: Path) -> None:
        stopping = {"patience": 4, "metric": "loss"}
        (tmp_path / "m.py").write_text("def build(): ...\n")
        training = {"rounds": 7, "batch_size": 4, "early_stopping": stopping, "max_seconds": 9.5}
        compile_pipeline(make_federation(training=training, model=f"{tmp_path}/m.py:build"), tmp_path / "p.yaml")
        pipeline = next(iter(yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)))
        form = {k: v["defaultValue"] for k, v in pipeline["root"]["inputDefinitions"]["parameters"].items()}
        assert {k: form[k] for k in ("rounds", "min_learners", "deadline", "patience", "max_seconds")} == {
            "rounds": 7, "min_learners": 2, "deadline": 3600.0, "patience": 4, "max_seconds": 9.5,
        }  # fmt: skip

    def test_the_form_has_values_where_the_file_has_none(self) -> None:
        """A learning rate of 0 is that of model.py, which is not run; early stopping needs settings in the file."""
        form = form_of(make_federation(tuple("abcdefg")))
        assert {name for name, value in form.items() if value == 0} == {"learning_rate", "patience"}
        assert (form["min_learners"], form["max_seconds"]) == (4, 366 * 86_400)

    @pytest.mark.parametrize("quorum", [{}, {"min_learners": 8, "deadline": 5}])
    @pytest.mark.parametrize("training", [{}, {"local_epochs": 0, "local_steps": 3}, {"rounds_per_step": 1}])
    def test_the_form_as_it_is_changes_nothing(self, training: dict[str, Any], quorum: dict[str, Any]) -> None:
        """More than half of the learners would be too few for this rule, so a quorum of that number is a mistake."""
        federation = make_federation(
            tuple("abcdefghi"), training={"rounds": 2, "batch_size": 1, **training}, quorum=quorum,
            algorithm={"name": "averaging", "rule": {"name": "bulyan", "byzantine": 1}},
        )  # fmt: skip
        form = {k: v for k, v in form_of(federation).items() if k in Settings.__struct_fields__}
        assert Settings(**form).applied(federation) == federation

    def test_sessions_follow_each_other_and_the_last_goes_to_the_end(self, tmp_path: Path) -> None:
        tasks = self.tasks(tmp_path, 7, 3)["root"]["dag"]["tasks"].values()
        spans = {
            t["taskInfo"]["name"]: tuple(
                int(t["inputs"]["parameters"][k]["runtimeValue"]["constant"]) for k in ("first", "last")
            )
            for t in tasks
            if "coordinate" in t["taskInfo"]["name"]
        }
        assert spans == {"1-3 coordinate": (1, 3), "4-6 coordinate": (4, 6), "7-end coordinate": (7, 0)}
        later = next(t for t in tasks if t["taskInfo"]["name"] == "4-6 learn a")
        assert "coordinate" in later["dependentTasks"]


def test_no_step_needs_a_metadata_service(compiled: Any) -> None:
    """Steps hand on parameters only, so KFP needs no more of a step than its executor output."""
    pipeline = compiled[0]
    for name, component in pipeline["components"].items():
        assert "artifacts" not in component.get("inputDefinitions", {}), name
    for name, task in pipeline["root"]["dag"]["tasks"].items():
        assert "artifacts" not in task.get("inputs", {}), name
        for given in task.get("inputs", {}).get("parameters", {}).values():
            assert given.keys() <= {"componentInputParameter", "runtimeValue", "taskOutputParameter"}, name
    for executor in pipeline["deploymentSpec"]["executors"].values():
        assert executor["container"]["args"] == ["{{$}}"]
        assert "importer" not in executor


def test_a_learner_step_has_one_artifact_at_most(compiled: Any) -> None:
    for name, component in compiled[0]["components"].items():
        artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
        assert len(artifacts) <= (3 if name.startswith(("comp-evaluate", "comp-coordinate")) else 1)


def test_steps_that_track_get_the_secret_of_the_tracking_server(tmp_path: Path) -> None:
    """All of its keys are optional; its URL is in the settings of the run, without credentials."""
    text = PLACED.replace("name: placed", "name: placed\ntracking: {mlflow: 'https://mlflow', secret: mlflow-keys}")
    (tmp_path / "f.yaml").write_text(text)
    (tmp_path / "model.py").write_text("def build(): ...")
    compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
    spec, platform = yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    steps = {}
    for name, one in executors.items():
        for secret in one.get("secretAsEnv", ()):
            if secret["secretName"] == "mlflow-keys":
                assert secret["optional"]
                steps[spec["deploymentSpec"]["executors"][name]["container"]["command"][-1]] = [
                    key["envVar"].removeprefix("MLFLOW_TRACKING_") for key in secret["keyToEnv"]
                ]
    assert steps == {step: ["TOKEN", "USERNAME", "PASSWORD"] for step in ("aggregate", "report")}


def test_no_folder_of_this_machine_and_no_secret_value_in_it(compiled: Any, tmp_path: Path) -> None:
    text = (tmp_path / "p.yaml").read_text()
    assert str(tmp_path) not in text


class TestEstimate:
    @staticmethod
    def of(folder: Path, rounds: int, **more: Any) -> Estimate:
        (folder / "m.py").write_text("def build(): ...\n")
        training = {"rounds": rounds, "batch_size": 1, "rounds_per_step": more.pop("rounds_per_step", 1)}
        federation = make_federation(tuple("abcde"), training=training, model=f"{folder}/m.py:build", **more)
        return compile_pipeline(federation, folder / "p.yaml")

    def test_against_measured_runs(self, tmp_path: Path) -> None:
        """Compares with KFP 2.17: 3.6 kB of specification and 4.06 kB of status a step, the limit near 130 steps."""
        found, more = (self.of(tmp_path, rounds) for rounds in (12, 13))
        assert (more.workflow_bytes - found.workflow_bytes) / (more.steps - found.steps) == 3_600 + 4_060
        assert found.workflow_bytes + (130 - found.steps) * 7_660 == pytest.approx(2**20, rel=0.01)
        assert found.steps == 82
        assert found.pods == 165
        assert found.critical_steps == 5 + 2 * 12
        assert not [w for w in found.warnings if "steps" in w]

    def test_near_the_limit(self, tmp_path: Path) -> None:
        (warning,) = [w for w in self.of(tmp_path, 20).warnings if "steps" in w]
        assert warning.startswith(
            "130 steps are more than KFP runs well (100): set training.rounds_per_step to 2 or more"
        )

    def test_beyond_the_limit(self, tmp_path: Path) -> None:
        (warning,) = [w for w in self.of(tmp_path, 40).warnings if "steps" in w]
        assert "Argo's limit is 1 MiB: set training.rounds_per_step to 3 or more, or to all" in warning
        fitting = self.of(tmp_path, 40, rounds_per_step=3)
        assert not [w for w in fitting.warnings if "steps" in w]
        assert fitting.workflow_bytes <= 2**20
        assert [w for w in self.of(tmp_path, 40, rounds_per_step=2).warnings if "steps" in w]

    def test_one_session(self, tmp_path: Path) -> None:
        found = self.of(tmp_path, 1000, rounds_per_step="all")
        assert found.steps == 5 + 5 + 1
        assert found.pods == 23
        assert found.critical_steps == 3
        assert not [w for w in found.warnings if "steps" in w]

    def test_too_many_learners_even_for_one_session(self, tmp_path: Path) -> None:
        (tmp_path / "m.py").write_text("def build(): ...\n")
        names = tuple(f"k{number}" for number in range(128))
        federation = make_federation(names, model=f"{tmp_path}/m.py:build")
        found = compile_pipeline(federation, tmp_path / "p.yaml")
        assert found.warnings[0] == (
            "134 steps make a workflow of about 1076 kB, but Argo's limit is 1 MiB: use fewer learners in one federation."
        )

    def test_a_rehearsal_is_one_step(self, tmp_path: Path) -> None:
        """Its learners have no pods, so they need no room."""
        (tmp_path / "m.py").write_text("def build(): ...\n")
        placed = {"accelerator": {"count": 2}}
        federation = make_federation(
            placement={"learn": placed}, simulation={"placement": {"memory": "8Gi"}}, model=f"{tmp_path}/m.py:build"
        )
        found = compile_pipeline(federation, tmp_path / "p.yaml", simulation=True)
        assert found.requests == ("1 x simulate: 500m cpu, 8Gi memory",)
        assert not [warning for warning in found.warnings if "at the same time" in warning]

    def test_learners_of_one_gpu_pool(self, tmp_path: Path) -> None:
        (tmp_path / "m.py").write_text("def build(): ...\n")
        placed = {"node_selector": {"pool": "gpu"}, "accelerator": {"count": 2}}
        learners = [{"name": name, "placement": placed} for name in "abc"]
        for each, expected in (("all", 1), (1, 0)):
            training = {"rounds": 2, "batch_size": 1, "rounds_per_step": each}
            federation = make_federation(learners=learners, training=training, model=f"{tmp_path}/m.py:build")
            warnings = compile_pipeline(federation, tmp_path / "p.yaml").warnings
            assert (
                sum("3 learners need 6 x nvidia.com/gpu of one pool at the same time" in w for w in warnings)
                == expected
            )

    def test_files_that_pods_cannot_read(self, tmp_path: Path) -> None:
        found = self.of(tmp_path, 1)
        assert any("the store is a folder" in w for w in found.warnings)
        assert any("the data is a file" in w for w in found.warnings)

    def test_rounds_of_votes(self, tmp_path: Path) -> None:
        collective = self.of(tmp_path, 4, algorithm={"name": "collective"})
        assert collective.steps == 5 + 5 + 5 + 4 * (1 + 5 + 1)
        assert collective.critical_steps == 5 + 3 * 4
        assert "4 rounds are not a multiple of 5 proposers" in collective.warnings[0]
        voted = self.of(tmp_path, 4, algorithm={"name": "averaging", "vote": {}})
        assert voted.steps == 5 + 5 + 5 + 4 * (5 + 1 + 5 + 1)
        assert voted.critical_steps == 5 + 4 * 4


class TestCode:
    def test_absent(self, tmp_path: Path) -> None:
        federation = parse_federation({**_content(), "model": f"{tmp_path}/absent.py:build"})
        with pytest.raises(ModelError, match="cannot be read"):
            read_code(federation)

    def test_too_large(self, tmp_path: Path) -> None:
        (tmp_path / "m.py").write_text("#" * 70_000)
        with pytest.raises(ModelError, match="has 70000 bytes"):
            read_code(parse_federation({**_content(), "model": f"{tmp_path}/m.py:build"}))

    def test_binary(self, tmp_path: Path) -> None:
        (tmp_path / "m.py").write_bytes(b"\xff\xfe")
        with pytest.raises(ModelError, match="not UTF-8"):
            read_code(parse_federation({**_content(), "model": f"{tmp_path}/m.py:build"}))


def test_an_output_that_cannot_be_written(digits: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        compile_pipeline(read_federation(digits / "federation.yaml"), digits / "absent" / "p.yaml")


def _content() -> dict[str, Any]:
    return {
        "name": "d",
        "learners": [{"name": "a"}],
        "training": {"rounds": 1, "batch_size": 1},
        "data": {"uri": "x.npz"},
    }


BY_KIND = """
name: tiny
store: s3://bucket/prefix
learners:
  - name: a
    placement:
      cpu: "4"
      cpu_request: 500m
      affinity:
        - expressions: [{key: gpu, values: [a100, h100]}]
        - {weight: 10, expressions: [{key: zone, operator: Exists}]}
      labels: {team: a}
  - {name: b}
training: {rounds: 1, batch_size: 1}
data: {uri: s3://bucket/x.npz}
placement:
  learn:
    cpu: "1"
    memory: 8Gi
    memory_request: 4Gi
    shared_memory: 2Gi
    pull_secrets: [registry]
    labels: {kueue.x-k8s.io/queue-name: gpus}
    annotations: {note: x}
    timeout: 3600
  evaluate: {node_selector: {pool: cpu}}
"""


class TestPlacement:
    @pytest.fixture
    def placed(self, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns settings and resources by the name of the executor."""
        (tmp_path / "f.yaml").write_text(BY_KIND)
        (tmp_path / "model.py").write_text("def build(): ...\n")
        compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
        pipeline, platform = yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)
        executors = pipeline["deploymentSpec"]["executors"]
        resources = {name: executor["container"].get("resources", {}) for name, executor in executors.items()}
        return platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"], resources

    def test_of_a_kind_of_step(self, placed: Any) -> None:
        settings, resources = placed
        learn = settings["exec-learn-2"]
        assert learn["emptyDirMounts"] == [
            {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "2Gi", "volumeName": "shared-memory"}
        ]
        assert [s["secretName"] for s in learn["imagePullSecret"]] == ["registry"]
        assert learn["podMetadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        assert learn["podMetadata"]["annotations"] == {"note": "x"}
        assert learn["activeDeadlineSeconds"] == "3600"
        found = {k: v for k, v in resources["exec-learn-2"].items() if k.startswith("resource")}
        assert found == {
            "resourceCpuLimit": "1", "resourceCpuRequest": "1", "resourceMemoryLimit": "8Gi",
            "resourceMemoryRequest": "4Gi",
        }  # fmt: skip
        assert settings["exec-evaluate"]["nodeSelector"] == {"labels": {"pool": "cpu"}}
        assert "emptyDirMounts" not in settings["exec-evaluate"]

    def test_settings_of_the_learner_come_first(self, placed: Any) -> None:
        settings, resources = placed
        learn = settings["exec-learn"]
        needed, preferred = learn["nodeAffinity"]
        assert needed == {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100", "h100"]}]}
        assert preferred == {"matchExpressions": [{"key": "zone", "operator": "Exists"}], "weight": 10}
        assert learn["podMetadata"]["labels"] == {
            "fedpipe/federation": "tiny", "fedpipe/step": "learn-a", "fedpipe/learner": "a", "team": "a",
        }  # fmt: skip
        assert resources["exec-learn"]["resourceCpuRequest"] == "500m"
        assert resources["exec-learn"]["resourceMemoryLimit"] == "8Gi"
        assert "resourceMemoryLimit" not in resources["exec-evaluate"]
        assert resources["exec-evaluate"]["resourceMemoryRequest"] == "1Gi"

    def test_every_pod_reserves_cores_and_memory(self, placed: Any) -> None:
        _, resources = placed
        for name, found in resources.items():
            assert found["resourceCpuRequest"], name
            assert found["resourceMemoryRequest"], name
        assert resources["exec-coordinate"] == {
            "cpuRequest": 0.25, "memoryRequest": 0.536870912, "resourceCpuRequest": "250m",
            "resourceMemoryRequest": "512Mi",
        }  # fmt: skip
        assert resources["exec-report"]["resourceCpuRequest"] == "100m"

    def test_a_default_request_never_exceeds_a_limit(self, tmp_path: Path) -> None:
        text = BY_KIND.replace("  - {name: b}", "  - {name: b, placement: {cpu: 100m, memory: 64Mi}}")
        (tmp_path / "f.yaml").write_text(text + "  score: {cpu_request: '0', memory: 128Mi}\n")
        federation = read_federation(tmp_path / "f.yaml")
        learn, score = federation.placement_of("vote", "b"), federation.placement_of("score", "a")
        assert (learn.cpu, learn.cpu_request, learn.memory, learn.memory_request) == ("100m", "", "64Mi", "")
        assert (score.cpu_request, score.memory, score.memory_request) == ("500m", "128Mi", "")
        (tmp_path / "model.py").write_text("def build(): ...\n")
        compile_pipeline(federation, tmp_path / "p.yaml")
        pipeline = next(iter(yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)))
        for executor in pipeline["deploymentSpec"]["executors"].values():
            found = executor["container"]["resources"]
            for what in ("Cpu", "Memory"):
                if limit := found.get(f"resource{what}Limit"):
                    assert quantity(found[f"resource{what}Request"]) <= quantity(limit)

    def test_the_estimate_shows_what_is_reserved(self, tmp_path: Path) -> None:
        (tmp_path / "f.yaml").write_text(BY_KIND)
        (tmp_path / "model.py").write_text("def build(): ...\n")
        found = compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
        assert found.requests == (
            "1 x learn: 500m cpu, 4Gi memory", "1 x learn: 1 cpu, 4Gi memory", "1 x coordinate: 250m cpu, 512Mi memory",
            "1 x shard: 250m cpu, 512Mi memory", "1 x initialise: 500m cpu, 1Gi memory",
        )  # fmt: skip

    def test_in_the_form(self, tmp_path: Path) -> None:
        """Checks that selector, tolerations and accelerator of a learner are parameters of a run."""
        placement = (
            "{in_form: true, cpu: '2', node_selector: {pool: a}, accelerator: {count: 2}, "
            "tolerations: [{key: gpu, operator: Exists}]}"
        )
        text = BY_KIND.replace("  - {name: b}", f"  - {{name: clinic-b, placement: {placement}}}")
        (tmp_path / "f.yaml").write_text(text)
        (tmp_path / "model.py").write_text("def build(): ...\n")
        compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
        graph = read_graph(tmp_path / "p.yaml")
        assert {k: v for k, v in graph.parameters.items() if k.startswith("clinic_b_")} == {
            "clinic_b_node_selector": {"pool": "a"},
            "clinic_b_tolerations": [{"key": "gpu", "operator": "Exists"}],
            "clinic_b_accelerator": "nvidia.com/gpu",
            "clinic_b_accelerators": 2,
        }
        given = check_arguments(graph, {"clinic_b_node_selector": '{"pool": "z"}', "clinic_b_accelerators": "1"})
        assert (given["clinic_b_node_selector"], given["clinic_b_accelerators"]) == ({"pool": "z"}, 1)
        pipeline, platform = yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)
        settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-learn-2"]
        assert settings["nodeSelector"] == {
            "nodeSelectorJson": {"componentInputParameter": "clinic_b_node_selector"}
        }  # fmt: skip
        assert settings["tolerations"] == [
            {"tolerationJson": {"componentInputParameter": "clinic_b_tolerations"}}
        ]  # fmt: skip
        resources = pipeline["deploymentSpec"]["executors"]["exec-learn-2"]["container"]["resources"]
        assert "clinic_b_accelerators" in resources["accelerator"]["resourceCount"]
        assert resources["resourceCpuLimit"] == "2"

    def test_the_accelerator_of_a_kind_of_step_is_not_a_parameter(self, tmp_path: Path) -> None:
        text = BY_KIND.replace("  - {name: b}", "  - {name: b, placement: {in_form: true}}")
        (tmp_path / "f.yaml").write_text(text.replace("  learn:\n", "  learn:\n    accelerator: {count: 3}\n"))
        (tmp_path / "model.py").write_text("def build(): ...\n")
        compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
        assert "b_accelerators" not in read_graph(tmp_path / "p.yaml").parameters
        pipeline = next(iter(yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)))
        resources = pipeline["deploymentSpec"]["executors"]["exec-learn-2"]["container"]["resources"]
        assert resources["accelerator"]["resourceCount"] == "3"

    def test_arguments_of_steps_do_not_have_placements(self, tmp_path: Path) -> None:
        (tmp_path / "f.yaml").write_text(BY_KIND)
        assert "kueue" not in as_json(read_federation(tmp_path / "f.yaml"))

    @pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
    def test_the_examples_compile(self, example: Path, tmp_path: Path) -> None:
        shutil.copy(example, tmp_path / "federation.yaml")
        (tmp_path / "model.py").write_text("def build(): ...\n")
        compile_pipeline(read_federation(tmp_path / "federation.yaml"), tmp_path / "p.yaml")
        platform = list(yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader))[1]
        assert len(platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]) >= 5


def test_there_are_examples_of_placements() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == {"a100", "cpu-only", "mixed-pool", "spot"}


class TestManifest:
    """Tests KFP's Kubernetes API mode: the pipeline as objects for a cluster or a Git repository."""

    def test_it_has_the_form_that_kfp_writes(self, digits: Path, tmp_path: Path) -> None:
        """Compares it with the objects that KFP's compiler writes."""
        path = tmp_path / "pipeline.yaml"
        compile_pipeline(read_federation(digits / "federation.yaml"), path)
        pipeline, version = yaml.load_all(manifest_of(path.read_bytes(), "kubeflow"), yaml.CSafeLoader)
        spec, platform = yaml.load_all(path.read_text(), yaml.CSafeLoader)
        theirs = tmp_path / "theirs.yaml"
        _kfp_manifest(theirs)
        their_pipeline, their_version = yaml.load_all(theirs.read_text(), yaml.CSafeLoader)
        for ours, other in ((pipeline, their_pipeline), (version, their_version)):
            assert (ours["apiVersion"], ours["kind"]) == (other["apiVersion"], other["kind"])
            assert set(ours["spec"]) - {"description", "platformSpec"} == set(other["spec"]) - {
                "description",
                "platformSpec",
            }
        assert version["spec"]["pipelineSpec"] == spec
        assert version["spec"]["platformSpec"] == platform
        assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "digits"
        assert pipeline["metadata"]["namespace"] == version["metadata"]["namespace"] == "kubeflow"

    def test_other_content_is_another_version(self, digits: Path, tmp_path: Path) -> None:
        path = tmp_path / "pipeline.yaml"
        compile_pipeline(read_federation(digits / "federation.yaml"), path)
        before = [one["metadata"]["name"] for one in yaml.load_all(manifest_of(path.read_bytes()), yaml.CSafeLoader)]
        assert re.fullmatch(r"digits-0-1-0-[0-9a-f]{12}", before[1])
        (digits / "model.py").write_text((digits / "model.py").read_text() + "\n# changed\n")
        compile_pipeline(read_federation(digits / "federation.yaml"), path)
        after = [one["metadata"]["name"] for one in yaml.load_all(manifest_of(path.read_bytes()), yaml.CSafeLoader)]
        assert before[0] == after[0]
        assert before[1] != after[1]


def _kfp_manifest(path: Path) -> None:
    from kfp import compiler, dsl
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    from fedpipe import components

    def tiny():  # type: ignore[no-untyped-def]  # KFP reads annotations as data
        components.shard(federation="", store="", run="")

    options = KubernetesManifestOptions(pipeline_name="tiny", namespace="kubeflow", include_pipeline_manifest=True)
    compiler.Compiler().compile(
        dsl.pipeline(name="tiny")(tiny), str(path), kubernetes_manifest_options=options, kubernetes_manifest_format=True
    )


class TestImages:
    def test_by_digest_if_there_is_one(self, digits: Path, tmp_path: Path) -> None:
        file = digits / "federation.yaml"
        digest = f"sha256:{'0' * 64}"
        content = yaml.safe_load(file.read_text())
        content["images"] = {"registry": "registry.example/fp", "tag": "7", "digests": {"keras": digest}}
        file.write_text(yaml.safe_dump(content))
        assert images_of(read_federation(file)) == ["registry.example/fp/core:7", f"registry.example/fp/keras@{digest}"]

    @pytest.mark.parametrize("digests", [{"keras": "sha256:0"}, {"other": f"sha256:{'0' * 64}"}, {"core": "latest"}])
    def test_that_are_invalid(self, digits: Path, digests: dict[str, str]) -> None:
        file = digits / "federation.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "images": {"digests": digests}}))
        with pytest.raises(FederationError, match=r"images\.digests"):
            read_federation(file)


def test_a_step_of_many_days_may_still_be_retried(tmp_path: Path, digits: Path) -> None:
    """Argo counts the longest duration from the start of the first try, not between tries."""
    compile_pipeline(read_federation(digits / "federation.yaml"), tmp_path / "pipeline.yaml")
    spec = next(yaml.load_all((tmp_path / "pipeline.yaml").read_text(), yaml.CSafeLoader))
    policies = [task["retryPolicy"] for task in spec["root"]["dag"]["tasks"].values()]
    assert {policy["maxRetryCount"] for policy in policies} == {2}
    assert all(int(policy["backoffMaxDuration"].rstrip("s")) >= 30 * 86_400 for policy in policies)


def test_a_store_that_is_a_folder_in_the_file_may_be_in_s3_at_run_time(tmp_path: Path) -> None:
    """`store` is a parameter, so the Secrets are compiled in, and may be missing where a folder needs none."""
    (tmp_path / "m.py").write_text("def build(): ...\n")
    found = {}
    for store in ("store", "s3://bucket/x"):
        federation = make_federation(store=store, model=f"{tmp_path}/m.py:build")
        compile_pipeline(federation, tmp_path / "p.yaml")
        _, platform = yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
        found[store] = [
            (secret["secretName"], bool(secret.get("optional"))) for one in executors
            for secret in one["secretAsEnv"] if secret["keyToEnv"][0]["envVar"] == "AWS_ACCESS_KEY_ID"
        ]  # fmt: skip
    assert set(found["store"]) == {("mlpipeline-minio-artifact", True)}
    assert set(found["s3://bucket/x"]) == {("mlpipeline-minio-artifact", False)}
    assert len(found["store"]) == len(found["s3://bucket/x"])


def test_the_label_party_scores_after_those_with_features(tmp_path: Path) -> None:
    """All parties learn at once, and the activations of the test rows are there before the score."""
    (tmp_path / "model.py").write_text("def bottom(party): ...\ndef top(): ...\n")
    federation = make_federation(
        learners=[{"name": name, "data": f"{name}.npz"} for name in ("labels", "north", "south")],
        algorithm={"name": "split", "label_party": "labels"}, data={}, model=str(tmp_path / "model.py"),
    )  # fmt: skip
    compile_pipeline(federation, tmp_path / "p.yaml")
    tasks = {task.name: task for task in read_graph(tmp_path / "p.yaml").tasks}
    names = {task.key: name for name, task in tasks.items()}
    after = {name: {names[key] for key in task.after} for name, task in tasks.items()}
    assert {"coordinate", "learn labels", "learn north", "learn south"} <= tasks.keys()
    assert after["learn labels"] == after["learn north"] == set()
    assert {"score north", "score south"} <= after["score labels"]
    assert "score south" not in after["score north"]
