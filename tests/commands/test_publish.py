"""Signing of published models, before and after the coordinator gets a key."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.commands.identities import enroll, revoke, rotate
from fedpipe.commands.publish import sign
from fedpipe.errors import CorruptError, InputError, NotFoundError
from fedpipe.identity.signing import COORDINATOR, make_key
from fedpipe.registry.publication import ModelVersion
from fedpipe.serving.catalogue import Catalogue, locate
from fedpipe.store import LocalStore, Store
from tests.served import publish, softmax

FILE = "name: tiny\nstore: store\nlearners: [{name: a}, {name: b}]\ndata: {uri: x.npz}\ntraining: {rounds: 1, batch_size: 1}\n"


def opened(folder: Path) -> Store:
    return LocalStore(folder / "store").below("tiny")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A federation in a folder that published two versions before its coordinator was enrolled."""
    file = tmp_path / "federation.yaml"
    file.write_text(FILE)
    for version in (1, 2):
        publish(opened(tmp_path).below("models"), "m", version, softmax(version))
    return file


def test_versions_from_before_are_served_again(published: Path) -> None:
    def served(version: int) -> bytes:
        catalogue = Catalogue(locate(source=published))
        catalogue.list_models()
        return catalogue.fetch(ModelVersion("m", version))

    assert served(1) == softmax(1)
    enroll(published, COORDINATOR)
    with pytest.raises(CorruptError, match="m version 1 is not signed, and the coordinator is enrolled") as caught:
        served(1)
    assert "fedpipe sign m 1" in str(caught.value.remedy)
    told = CliRunner().invoke(app, ["sign", "m", "1", "-f", str(published)])
    assert told.output == "m version 1 is signed by the coordinator\n"
    assert served(1) == softmax(1)
    with pytest.raises(CorruptError, match="m version 2 is not signed"):
        served(2)
    rotate(published, COORDINATOR)
    with pytest.raises(CorruptError, match="m version 1 is signed with another key than the enrolled one"):
        served(1)
    assert [entry.version for entry in sign(published, "m", [1, 2])] == [1, 2]
    assert served(1) == softmax(1)
    assert served(2) == softmax(2)
    revoke(published, COORDINATOR)
    with pytest.raises(CorruptError, match="the coordinator was revoked on"):
        served(1)


def test_what_cannot_be_signed(published: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the coordinator is not enrolled") as caught:
        sign(published, "m", [1])
    assert caught.value.remedy == "Run `fedpipe enroll --coordinator`."
    enroll(published, COORDINATOR)
    with pytest.raises(InputError, match="the coordinator's key is missing"):
        sign(published, "m", [1], keys=tmp_path / "absent")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "_coordinator.key").write_text(make_key())
    with pytest.raises(InputError, match="the coordinator's key does not match the enrolled one"):
        sign(published, "m", [1], keys=tmp_path / "other")
    with pytest.raises(NotFoundError, match="there is no m version 3") as missing:
        sign(published, "m", [1, 3])
    assert missing.value.remedy == "Published versions: m 1, 2."
    models = opened(tmp_path).below("models")
    models.replace("m/2/model.onnx", softmax(3))
    with pytest.raises(CorruptError, match="the model has the digest"):
        sign(published, "m", [1, 2])
    assert not [key for key in models.keys() if key.endswith("signature.json")]
