from pathlib import Path

import pytest

from fedpipe.registry.imports import imported_files


def test_files_of_packages_are_known_by_their_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are installed, such as in the home of a user."""
    for folder, metadata in (("own", "project.egg-info"), ("installed", "some_layers-1.0.dist-info")):
        (tmp_path / folder / metadata).mkdir(parents=True)
        (tmp_path / folder / f"{folder}_layers.py").write_text("RATE = 0.1\n")
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    found = imported_files("import own_layers\nimport installed_layers\n")
    assert list(found) == [str(tmp_path / "own" / "own_layers.py")]
