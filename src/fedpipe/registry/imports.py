"""The dependencies of a user's file: the files that it imports, and the installed packages."""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpipe.store.objects import digest_of

_MOST_FILES = 2000
"""Files that are looked at; more are not a user's own modules."""


def imported_files(code: str) -> dict[str, str]:
    """Return the digests of files that a file imports, and those that they import, by path; of no installed package.

    Args:
        code: the text of the file. One that cannot be parsed imports nothing.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting, installed = [code], _installed_folders()
    while waiting:
        for name in _imported_names(waiting.pop()) - seen:
            seen.add(name)
            for path in _own_files(name, installed):
                if str(path) in found or len(found) >= _MOST_FILES:
                    continue
                try:
                    data = path.read_bytes()
                except OSError:  # the import itself will say so
                    continue
                found[str(path)] = digest_of(data)
                waiting.append(data.decode(errors="replace"))
    return found


def installed_packages() -> list[str]:
    """Return the names and versions of all installed packages, as in `numpy-2.4.1.dist-info`."""
    folders = [Path(folder) for folder in sys.path if Path(folder).is_dir()]
    return sorted(one.name for folder in folders for one in folder.glob("*-info"))


def _imported_names(code: str) -> set[str]:
    """Return the first names of all modules that a text imports."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # as deep nesting gives
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"fedpipe"}


def _installed_folders() -> list[Path]:
    """Return the folders of installed packages, also those of a user's home."""
    own = [Path(folder) for folder in sys.path if any(Path(folder).glob("*.dist-info"))]
    return [*own, *(Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib", "stdlib"))]


def _own_files(name: str, installed: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of a module that is in no installed package, whose version is not known."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    places = [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""]]
    for place in places:
        if any(place.is_relative_to(folder) for folder in installed):
            continue
        if place.is_dir():
            yield from sorted(place.rglob("*.py"))[:_MOST_FILES]
        elif place.suffix == ".py":
            yield place
