from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.errors import InputError, ModelError
from fedpipe.federation_file import parse_federation, read_federation
from fedpipe.kubeflow import Estimate, compile_pipeline, read_code
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
training: {rounds: 1, batch_size: 4}
"""


@pytest.fixture
def compiled(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (tmp_path / "f.yaml").write_text(PLACED)
    (tmp_path / "model.py").write_text("def build(): ...\n")
    compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
    pipeline, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_each_learner_has_its_own_secret_and_place(compiled: Any) -> None:
    pipeline, platform = compiled
    tasks = {t["taskInfo"]["name"]: t["componentRef"]["name"] for t in pipeline["root"]["dag"]["tasks"].values()}
    labels = {name: pipeline["components"][component]["executorLabel"] for name, component in tasks.items()}

    def secret(name: str) -> Any:
        (found,) = platform[labels[name]]["secretAsEnv"]
        assert {k["secretKey"]: k["envVar"] for k in found["keyToEnv"]} == {
            "accesskey": "AWS_ACCESS_KEY_ID",
            "secretkey": "AWS_SECRET_ACCESS_KEY",
        }
        return found["secretName"]

    assert secret("1 train a") == secret("score a") == "a-keys"
    assert secret("1 train b") == secret("1 aggregate") == secret("shard") == "mlpipeline-minio-artifact"
    placed = platform[labels["1 train a"]]
    assert placed["nodeSelector"] == {"labels": {"pool": "a"}}
    assert placed["tolerations"] == [{"effect": "NoSchedule", "key": "gpu", "operator": "Exists"}]
    assert "nodeSelector" not in platform[labels["1 train b"]]
    resources = pipeline["deploymentSpec"]["executors"][labels["1 train a"]]["container"]["resources"]
    assert resources["accelerator"]["resourceCount"] == "2"
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["resourceMemoryLimit"] == "8Gi"


def test_images_are_those_of_the_federation(compiled: Any) -> None:
    images = {e["container"]["image"] for e in compiled[0]["deploymentSpec"]["executors"].values()}
    assert images == {"example.org/team/core:v7", "example.org/team/keras:v7"}


def test_a_private_proposer_runs_in_another_image(tmp_path: Path) -> None:
    """The tff image for its training alone; votes and the others' proposals stay in keras, the tally in core."""
    privacy = "{noise_multiplier: 1.0, l2_norm_clip: 1.0, microbatches: 4, delta: 1.0e-5, target_epsilon: 3.0}"
    text = PLACED.replace("  - name: b\n", f"  - name: b\n    privacy: {privacy}\n").replace("rounds: 1", "rounds: 2")
    (tmp_path / "f.yaml").write_text(f"{text}algorithm: {{name: collective}}\n")
    (tmp_path / "model.py").write_text("def build(): ...\n")
    compile_pipeline(read_federation(tmp_path / "f.yaml"), tmp_path / "p.yaml")
    pipeline, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    executors = pipeline["deploymentSpec"]["executors"]
    tasks = {t["taskInfo"]["name"]: t["componentRef"]["name"] for t in pipeline["root"]["dag"]["tasks"].values()}
    containers = {n: executors[pipeline["components"][c]["executorLabel"]]["container"] for n, c in tasks.items()}
    images = {name: container["image"].split("/")[-1] for name, container in containers.items()}
    assert (images["1 propose a"], images["2 propose b"]) == ("keras:v7", "tff:v7")
    assert {images[f"{n} vote {k}"] for n in (1, 2) for k in "ab"} == {"keras:v7"}
    assert images["1 tally"] == "core:v7"
    assert containers["2 propose b"]["command"] == ["fedpipe", "step", "train_private"]
    rounds = {f"{n} {act}" for n in (1, 2) for act in ("vote a", "vote b", "tally")}
    assert {n for n in tasks if n[0] in "012"} == rounds | {"0 score a", "0 score b", "1 propose a", "2 propose b"}
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    label = pipeline["components"][tasks["2 vote a"]]["executorLabel"]
    assert placed[label]["nodeSelector"] == {"labels": {"pool": "a"}}


def test_a_learner_step_has_one_artifact_at_most(compiled: Any) -> None:
    for name, component in compiled[0]["components"].items():
        artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
        assert len(artifacts) <= (2 if name.startswith("comp-evaluate") else 1)


def test_no_folder_of_this_machine_and_no_secret_value_in_it(compiled: Any, tmp_path: Path) -> None:
    text = (tmp_path / "p.yaml").read_text()
    assert str(tmp_path) not in text


class TestEstimate:
    @staticmethod
    def of(folder: Path, rounds: int, **more: Any) -> Estimate:
        (folder / "m.py").write_text("def build(): ...\n")
        training = {"rounds": rounds, "batch_size": 1}
        federation = make_federation(tuple("abcde"), training=training, model=f"{folder}/m.py:build", **more)
        return compile_pipeline(federation, folder / "p.yaml")

    def test_against_measured_runs(self, tmp_path: Path) -> None:
        """120 steps of 625 kB and 210 of 886 kB before any status were measured on a backend."""
        steps = {n: 277_000 + n * 2_900 for n in (120, 210)}
        assert steps[120] == pytest.approx(625_000, rel=0.01)
        assert steps[210] == pytest.approx(886_000, rel=0.01)
        found = self.of(tmp_path, 12)
        assert found.steps == 82
        assert found.pods == 164
        assert found.critical_steps == 5 + 2 * 12
        assert not [w for w in found.warnings if "steps" in w]

    def test_near_the_limit(self, tmp_path: Path) -> None:
        assert "130 steps are near what KFP runs well" in self.of(tmp_path, 20).warnings[0]

    def test_beyond_the_limit(self, tmp_path: Path) -> None:
        assert "Argo's limit is 1 MiB: at most 28 rounds fit" in self.of(tmp_path, 40).warnings[0]
        assert self.of(tmp_path, 28).workflow_bytes <= 2**20

    def test_what_pods_cannot_read(self, tmp_path: Path) -> None:
        found = self.of(tmp_path, 1)
        assert any("the store is a folder" in w for w in found.warnings)
        assert any("the data is a file" in w for w in found.warnings)

    def test_rounds_of_votes(self, tmp_path: Path) -> None:
        collective = self.of(tmp_path, 4, algorithm={"name": "collective"})
        assert collective.steps == 5 + 5 + 5 + 4 * (1 + 5 + 1)
        assert collective.critical_steps == 5 + 3 * 4
        assert "4 rounds are no multiple of 5 proposers" in collective.warnings[0]
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
