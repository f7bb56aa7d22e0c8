"""The directions of imports, and what an import may cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedpipe

ROOT = Path(__file__).parents[1]
TESTING = "fedpipe.store.testing"  # the contract for stores; only tests import it
HEAVY = {"kfp", "kubernetes", "tensorflow", "keras", "onnxruntime", "tf2onnx", "sklearn", "pyarrow"}
FACES = {"fedpipe.components", "fedpipe.pipelines", "fedpipe.engine.preload", "fedpipe.templates"}


def modules() -> list[str]:
    paths = (ROOT / "src" / "fedpipe").rglob("*.py")
    names = {".".join(p.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__") for p in paths}
    return sorted(n for n in names if not any(n == f or n.startswith(f + ".") for f in FACES))


def imported(code: str) -> set[str]:
    code += "; import sys; print(' '.join(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_imports_go_in_the_decided_directions() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_no_module_of_the_body_imports_a_framework() -> None:
    code = "; ".join(f"import {name}" for name in modules() if name not in ("fedpipe.__main__", TESTING))
    assert imported(code) & (HEAVY | {"pytest"}) == set()


def test_a_step_imports_no_command_line() -> None:
    assert imported("import fedpipe.steps.contract, fedpipe.steps.aggregate") & {"typer", "rich", "jinja2"} == set()


def test_the_python_api_is_the_commands_and_the_types_of_the_file() -> None:
    from typer.main import get_command

    from fedpipe.cli.main import app

    assert fedpipe.__all__ == sorted(fedpipe.__all__)
    functions = {name for name in fedpipe.__all__ if name[0].islower()}
    commands = set(get_command(app).commands) - {"logs", "site", "step"}  # type: ignore[attr-defined]
    assert commands <= functions
    assert functions - commands == {
        "change_schedule", "compile_pipeline", "delete_schedule", "open_store", "predict_file", "read_federation", "schedules",
    }  # fmt: skip
    for name in fedpipe.__all__:
        assert getattr(fedpipe, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedpipe.nothing
    assert set(fedpipe.__all__) <= set(dir(fedpipe))


def test_every_error_stands_in_the_drawn_tree() -> None:
    from fedpipe import errors

    names = [n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)]
    drawn = dict(re.findall(r"(\w+Error)\s+(\d|exit code)", errors.__doc__ or ""))
    assert drawn == {n: "exit code" if n == "FedpipeError" else str(getattr(errors, n).exit_code) for n in names}


def test_every_public_function_of_the_body_has_a_docstring() -> None:
    missing = []
    for path in sorted((ROOT / "src" / "fedpipe").rglob("*.py")):
        described_by_the_protocol = path.parent.name == "store"
        for node in _outer(ast.parse(path.read_text())):
            if not node.name.startswith("_") and not ast.get_docstring(node) and not described_by_the_protocol:
                missing.append(f"{path.name}:{node.lineno} {node.name}")
    assert missing == []


def _outer(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions and public classes of a module, and their methods; not what is inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node
            yield from _outer(node)


def test_no_address_of_a_registry_and_no_folder_of_a_machine_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    home = str(Path.home())
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.suffix not in (".npz", ".png"):
            text = path.read_text(errors="replace")
            assert "pythonhosted" + ".org" not in text, name
            assert "pypi" + ".org" not in text, name
            assert home + "/" not in text, name


HOUSE = ROOT / "docs" / "architecture.md"


def named_paths() -> set[tuple[str, str]]:
    """The `path.py` and `path.py:name` of the page, without those of users and those that stand for any."""
    found = re.findall(r"`([\w./-]+\.py)(?::([\w.]+))?`", HOUSE.read_text())
    return {(path, name) for path, name in found if path != "model.py" and "NAME" not in path}


@pytest.mark.parametrize(("path", "name"), sorted(named_paths()))
def test_the_page_of_the_house_names_what_exists(path: str, name: str) -> None:
    place = next((p for p in (ROOT / "src" / "fedpipe" / path, ROOT / path) if p.is_file()), None)
    assert place is not None, path
    scope: list[ast.stmt] = ast.parse(place.read_text()).body
    for part in name.split(".") if name else ():
        scope = next((inner for inner in (_named(node, part) for node in scope) if inner is not None), [])
        assert scope, f"{path} has no {name}"


def _named(node: ast.stmt, name: str) -> list[ast.stmt] | None:
    """Returns the content of a definition or an assignment of that name; None for any other statement."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
        return node.body
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [node] if any(isinstance(t, ast.Name) and t.id == name for t in targets) else None


def test_the_page_of_the_house_names_every_room() -> None:
    drawn = HOUSE.read_text().split("```")[1]
    inside = (ROOT / "src" / "fedpipe").iterdir()
    rooms = {f"{p.name}/" if p.is_dir() else p.name for p in inside if not p.name.startswith(("_", "py."))}
    assert rooms <= set(re.findall(r"^  (\S+)", drawn, re.M))
