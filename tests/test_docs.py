"""The pages: links lead somewhere, commands exist, and the word list finds bad English."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from fedpipe.cli.main import app

ROOT = Path(__file__).parents[1]
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
PAGES = [ROOT / name for name in LISTED.split() if (ROOT / name).exists()]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} (.*)$", without_code(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            lost.append(target)
    assert lost == []


def words_of_make() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+):.*## (.*)$", (ROOT / "Makefile").read_text(), re.M))


def test_contributing_lists_the_words_of_make() -> None:
    listed = re.findall(r"^\| `make ([a-z0-9-]+)` \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert dict(listed) == words_of_make()


def commands(text: str) -> Iterator[list[str]]:
    """The `fedpipe` and `make` commands in code blocks and in inline code."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    lines = [part for block in blocks for part in re.split(r"(?<!\\)\n|&&", block)]
    for line in [*lines, *re.findall(r"`([^`]*)`", without_code(text))]:
        if found := re.match(r"\s*(?:[A-Z_]+=\S+ )*((?:fedpipe|make) .*)", line, re.S):
            words = shlex.split(found[1].replace("\\\n", " "), comments=True)
            if len(words) > 1:
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_their_options_exist(page: Path) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for program, name, *rest in commands(page.read_text()):
        if program == "make":
            assert name in words_of_make(), name
        elif not name.startswith("-"):
            assert name in known, name
            command = known[name]
            if inner := getattr(command, "commands", None):
                if not rest or rest[0].startswith("-"):
                    continue
                assert rest[0] in inner, (name, rest[0])
                command = inner[rest.pop(0)]
            options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert given <= options, (name, given - options)


@pytest.fixture(scope="module")
def english() -> ModuleType:
    spec = importlib.util.spec_from_file_location("english", ROOT / "docs" / "english.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["english"] = module
    spec.loader.exec_module(module)
    return module


LONG = " ".join(["word"] * 26) + "."
BAD = {
    "a.md": ["Two runs beside each other.", "The run goes on.", "'a' is no name.", "What is signed", "It was told so.",
             "Whoever asks is refused.", "This shall hold.", LONG, "| cell | what the learner does here |",
             "- The page is drawn anew.", "A file of\nno kind that we read."],
    "a.py": ['"""What a learner does."""', "x = f'{name} is no learner'", "y = 1  # nobody can tell which",
             "def f():\n    '''Return.\n\n    Args:\n        x: whoever asks.\n    '''", "raise ValueError('it is told')"],
    "a.yaml": ["key: value  # put this beside that"],
    "src/a.py": [f'"""{LONG}"""', '"""Who votes in a round."""'],
}  # fmt: skip
GOOD = {
    "a.md": ["There is no learner 'c'.", "It is no longer there.", "What is signed?", "`--beside RUN` and `told`",
             "Names tell learners apart.", "See [this](beside.md), et al. too.", LONG.replace("word word", "word", 1),
             "<!-- beside -->", "```sh\nfedpipe report --beside run\n```"],
    "a.py": ["beside = told(goes_on)", '"beside"', "# noqa: whoever", "x = 'a `told` value'"],
    "a.yaml": ["key: --beside"],
    "src/a.py": [f'x = "{LONG}"', f'"""Do.\n\n    key    {LONG}\n"""'],
    "tests/a.py": [f'"""{LONG}"""'],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_the_word_list_finds(english: ModuleType, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"\n{text}\n")
    found = english.check_file(tmp_path / name, tmp_path)
    assert len(found) == 1, found
    assert str(found[0]).startswith(f"{name}:")
    assert 2 <= found[0].line <= 2 + text.count("\n")


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in GOOD.items() for text in texts])
def test_the_word_list_leaves(english: ModuleType, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"\n{text}\n")
    assert english.check_file(tmp_path / name, tmp_path) == []
