"""The InferenceService that makes KServe split requests as `fedpipe promote` decided; checked by KServe's own description."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.errors import InputError, NotFoundError
from fedpipe.serving.kserve import inference_service
from fedpipe.serving.promotion import promote, split_for
from fedpipe.store import LocalStore, MemoryStore
from tests.cli.conftest import Result
from tests.cli.conftest import fedpipe as fedpipe  # the fixture
from tests.tracking.registry_server import mistake_in

DESCRIPTION = yaml.safe_load((Path(__file__).parent / "inferenceservice.yaml").read_text())


@pytest.fixture
def models() -> MemoryStore:
    """A folder in a bucket with three versions of a model."""
    store = MemoryStore()
    for version in (1, 2, 3):
        store.create(f"digits/{version}/model.onnx", b"onnx")
    store.uri = "s3://bucket/prefix/digits/models"
    return store


def decided(models: MemoryStore, version: int | None, **options: Any) -> dict[str, Any]:
    """The manifest after `fedpipe promote digits VERSION`."""
    promote(models, "digits", split_for(models, "digits", version, **options))
    return inference_service(models, "digits")


def predictor(manifest: dict[str, Any]) -> tuple[str, int | None]:
    """The version in the manifest's URI, and its share."""
    assert mistake_in(manifest, DESCRIPTION) == ""
    (place,) = manifest["spec"]["predictor"]["storageUris"]
    version = place["uri"].split("/")[-2]
    assert place == {
        "uri": f"s3://bucket/prefix/digits/models/digits/{version}/", "mountPath": f"/mnt/models/digits/{version}",
    }  # fmt: skip
    return version, manifest["spec"]["predictor"].get("canaryTrafficPercent")


def test_a_canary_and_its_promotion(models: MemoryStore) -> None:
    """KServe keeps the revision of the manifest before as the stable one, so it must be applied after each decision."""
    assert predictor(inference_service(models, "digits")) == ("3", None)
    assert predictor(decided(models, 2)) == ("2", None)
    assert predictor(decided(models, 3, canary=0.1)) == ("3", 10)
    assert predictor(decided(models, 3, canary=0.5)) == ("3", 50)
    assert predictor(decided(models, 3)) == ("3", None)
    assert predictor(decided(models, 1)) == ("1", None)  # rolled back
    assert predictor(decided(models, None, latest=True)) == ("3", None)


def test_settings(models: MemoryStore) -> None:
    manifest = inference_service(models, "digits", runtime="kserve-tritonserver")
    assert mistake_in(manifest, DESCRIPTION) == ""
    assert manifest["spec"]["predictor"]["model"] == {
        "modelFormat": {"name": "onnx"}, "protocolVersion": "v2", "runtime": "kserve-tritonserver",
    }  # fmt: skip


def test_the_description_refuses_other_fields(models: MemoryStore) -> None:
    manifest = inference_service(models, "digits")
    manifest["spec"]["predictor"]["canaryTrafficPercentage"] = 3
    assert mistake_in(manifest, DESCRIPTION) == ".spec.predictor.canaryTrafficPercentage: is unknown"
    del manifest["spec"]["predictor"]["canaryTrafficPercentage"]
    manifest["spec"]["predictor"]["storageUris"][0]["mountPath"] = "relative"
    assert "mountPath: 'relative' has another form" in mistake_in(manifest, DESCRIPTION)


def test_a_folder_is_refused_before_anything_is_decided(tmp_path: Path, fedpipe: Callable[..., Result]) -> None:
    (tmp_path / "models" / "digits" / "1").mkdir(parents=True)
    (tmp_path / "models" / "digits" / "1" / "model.onnx").write_bytes(b"onnx")
    done = fedpipe("promote", "digits", "1", "--models", tmp_path / "models", "--kserve", tmp_path / "isvc.yaml")
    assert done.code == 2
    assert "KServe cannot read a store of the kind 'file'" in done.err
    assert not (tmp_path / "models" / "digits" / "traffic.json").exists()
    with pytest.raises(InputError, match="KServe cannot read"):
        inference_service(LocalStore(tmp_path / "models"), "digits")


def test_a_model_without_a_version() -> None:
    with pytest.raises(NotFoundError, match="model 'digits' has no version"):
        inference_service(MemoryStore(), "digits")
