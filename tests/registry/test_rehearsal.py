from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.data.examples import Examples
from fedpipe.errors import ExportError, MissingExtraError, ModelError
from fedpipe.learners.numpy import NumpyModel
from fedpipe.registry.rehearsal import rehearse
from tests.federations import make_federation
from tests.models import LINEAR

RNG = np.random.default_rng(0)
FEW = Examples(RNG.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2]))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fedpipe" / "rehearsals"


def notes(cache: Path) -> int:
    return len(list(cache.iterdir())) if cache.exists() else 0


def rehearsed(cache: Path, code: str = LINEAR, examples: Examples | None = FEW, **more: Any) -> bool:
    """Whether it was rehearsed, and not found."""
    before = notes(cache)
    text = rehearse(make_federation(framework="numpy", **more), code, examples)
    assert text == "15 parameters, input (None, 4), loss softmax"
    return notes(cache) > before


def test_once_for_each_model_and_its_settings(cache: Path) -> None:
    assert rehearsed(cache)
    assert not rehearsed(cache)
    assert rehearsed(cache, code=LINEAR + "# another digest\n")
    assert rehearsed(cache, export={"opset": 18})
    assert rehearsed(cache, examples=Examples(FEW.x.astype(np.float64), FEW.y))  # type: ignore[union-attr]
    assert not rehearsed(cache, export={"opset": 18}, quorum={"deadline": 5.0})
    assert not rehearsed(cache, training={"rounds": 9, "batch_size": 1})
    summed = {"training": {"rounds": 3, "batch_size": 1, "rounds_per_step": "all"}}
    assert rehearsed(cache, algorithm={"name": "averaging", "secure": {}}, **summed)
    assert rehearsed(cache, algorithm={"name": "averaging", "secure": {"bound": 2.0}}, **summed)


def test_an_export_in_another_image_is_left_to_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core image trains linear models, and has no packages of ONNX."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError):
        rehearse(make_federation(framework="numpy"), LINEAR, FEW)
    assert rehearse(make_federation(framework="numpy"), LINEAR, FEW, elsewhere=True)
    with pytest.raises(ModelError):
        rehearse(make_federation(framework="numpy"), LINEAR, Examples(FEW.x[:, :2], FEW.y), elsewhere=True)  # type: ignore[index]
    assert not notes(cache)


def test_another_version_of_a_package_is_rehearsed_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any package: model.py may use it, or what it uses does."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for version in ("1.0", "1.1"):
        (tmp_path / "site" / f"some_layers-{version}.dist-info").mkdir(parents=True)
        assert rehearsed(cache)
        assert not rehearsed(cache)
        (tmp_path / "site" / f"some_layers-{version}.dist-info").rmdir()


@pytest.mark.parametrize("changed", ["a_helper.py", "a_package/inner/rates.py", "another_helper.py"])
def test_a_file_that_the_model_imports_is_rehearsed_again(
    changed: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the top or in a function, by itself or through another file."""
    site = tmp_path / "mine"
    texts = {"a_helper.py": "import another_helper\n", "a_package/inner/rates.py": "A = 1\n", "another_helper.py": "\n"}
    for name, text in texts.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.partition("/")[0].removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(site))
    code = f"import a_helper\n\n{LINEAR}\n\ndef other():\n    from a_package.inner import rates\n"
    assert rehearsed(cache, code=code)
    assert not rehearsed(cache, code=code)
    (site / changed).write_text(texts[changed] + "B = 2\n")
    assert rehearsed(cache, code=code)
    (site / changed).write_text(texts[changed])
    assert not rehearsed(cache, code=code), "as it was"


def test_without_a_place_for_its_notes_it_is_repeated(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file where the folder would be")
    for _ in range(2):
        rehearse(make_federation(framework="numpy"), LINEAR, FEW)


def test_a_mistake_is_not_noted(cache: Path) -> None:
    federation = make_federation(framework="numpy", export={"tolerance": 1e-30})
    for _ in range(2):
        with pytest.raises(ExportError, match=r"differs from the trained one by .*tolerance is 1e-30"):
            rehearse(federation, LINEAR, Examples(1000 * FEW.x, FEW.y))  # type: ignore[operator]
    assert not notes(cache)


def test_without_an_export_nothing_is_converted(cache: Path) -> None:
    federation = make_federation(framework="numpy", export="none")
    assert federation.exported is None
    rehearse(federation, LINEAR, Examples(FEW.x, FEW.y))
    assert notes(cache) == 1


def test_a_training_that_breaks_is_found() -> None:
    """The loss of the first examples is finite, and the weights after a step are not."""
    training = {"rounds": 1, "batch_size": 6, "learning_rate": 1e9}
    large = Examples(1e36 * FEW.x, FEW.y)  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"the weights cannot be exchanged, because tensor '.*' holds NaN or infinity"):
        rehearse(make_federation(framework="numpy", training=training), LINEAR, large)


def test_labels_are_tried_even_when_the_rest_has_passed(cache: Path) -> None:
    assert rehearsed(cache)
    with pytest.raises(ModelError, match="the labels range from 0 to 7"):
        rehearse(make_federation(framework="numpy"), LINEAR, Examples(FEW.x, np.array([0, 1, 2, 7, 1, 2])))


def test_own_data_is_used_where_it_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    train = NumpyModel.train

    def watched(self: NumpyModel, weights: Any, part: Any, *rest: Any, **more: Any) -> Any:
        seen.append(part.x)
        return train(self, weights, part, *rest, **more)

    monkeypatch.setattr(NumpyModel, "train", watched)
    np.savez(tmp_path / "b.npz", x=np.full((20, 4), 7.0), y=np.tile([0, 1], 10))
    learners = [{"name": "a", "data": "/nowhere/a.npz"}, {"name": "b", "data": str(tmp_path / "b.npz")}]
    rehearse(make_federation(framework="numpy", learners=learners), LINEAR, None)
    (x,) = seen
    assert np.unique(x).tolist() == [7.0]
