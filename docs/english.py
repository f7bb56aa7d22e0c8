"""Checks the English of the project by the word list below; `make check` runs it.

    python docs/english.py                       everything
    python docs/english.py docs src/fedpipe/cli  only these files and folders

Prints `file:line: finding -> replacement`, with a count for each room, and exits with 1 when there is a finding.

Markdown is checked as prose: no inline code, and at most 25 words a sentence. In Python, docstrings, comments and
string literals with a space are checked; docstrings outside tests and benchmarks have at most 25 words a sentence too.
Other files are checked line by line.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LONGEST = 25
"""Words of a sentence in Markdown and in docstrings."""

WORDS: dict[str, str] = {
    r"(?<!-)beside": "next to, with, and, compared with",
    r"anew": "again; redraw, regenerate, retry",
    r"(?:go|goes|going|gone|went) on": "continue, resume, proceed",
    r"(?<!there )(?:is|are|was|were) no (?!longer|later|larger|smaller|more|less)[a-z]+": "is not a ..., is not valid",
    r"nobody can tell": "it is unclear whether",
    r"worth nothing": "stop working",
    r"of no kind": "has an unsupported format",
    r"whoever": "name the party: the learner, a client, anyone who",
    r"shall": "must, is to, should",
    r"told|(?<!nobody can )tells?(?! \S+(?: \S+){0,4} apart)": "reports, shows, says, names; only people tell",
    r"must be said": "specify, set, give",
    r"(?:the model|the version|the one) of then": "the model at that point",
    r"from then on": "from now on, stop working, afterwards",
    r"is there twice": "is listed twice",
}
"""Banned words, and their replacements: regular expressions for whole words of any case; a space is any gap."""

HEADLESS = re.compile(r"(?:what(?!'s)|whatever|who|whom|whose)\s", re.I)
"""A sentence that begins with such a clause and asks no question: name its subject."""

EXEMPT = {
    "docs/english.py": "the word list itself",
    "tests/test_docs.py": "sentences that the word list must find",
    "tests/tracking/model-registry.yaml": "a description that another project publishes",
}
"""Files that are not checked, and why."""

ROOMS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", ".ci", "docs", "examples", "helm",
         "images", "src", "components", "pipelines", "benchmarks", "tests")  # fmt: skip
SHORT = ("src/", "components/", "pipelines/")
"""Code whose docstrings have short sentences."""
SUFFIXES = {".md", ".py", ".yaml", ".yml", ".tpl", ".txt", ".html", ".js", ".css", ".json", ".go", ".sh", ""}

_ABBREVIATIONS = re.compile(r"\b(?:et al|e\.g|i\.e|vs|cf|approx|no|fig)\.", re.I)
_SENTENCE = re.compile(r"(?<=[.!?])[)\"'*]*\s+(?=[A-Z0-9`\"'(*\[])")
_TABLE = re.compile(r"\S {3,}\S|<- |\.\. math::|>>> ")
_DIRECTIVE = re.compile(r"#\s*(?:noqa|type:|fmt:|shellcheck|mypy:|ruff:).*")
_BANNED = {name: re.compile(rf"\b(?:{name})\b".replace(" ", r"\s"), re.I) for name in WORDS}


class Text(NamedTuple):
    """A piece of prose: its text, and the line on which each of its characters stands."""

    text: str
    line_of: Callable[[int], int]
    sentences: bool = True
    counted: bool = False


class Finding(NamedTuple):
    """Something to rewrite."""

    path: str
    line: int
    what: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what} -> {self.instead}"


def lined(lines: list[tuple[int, str]], **how: bool) -> Text:
    """Join numbered lines to one text."""
    starts, text = [], ""
    for number, line in lines:
        starts.append((len(text), number))
        text += line + "\n"
    return Text(text.rstrip(), lambda at: [number for start, number in starts if start <= at][-1], **how)


def findings_in(path: str, texts: Iterable[Text]) -> Iterator[Finding]:
    """Find banned words, headless clauses and long sentences."""
    for text in texts:
        for name, pattern in _BANNED.items():
            for match in pattern.finditer(text.text):
                shown = " ".join(match[0].split())
                yield Finding(path, text.line_of(match.start()), f"'{shown}'", WORDS[name])
        for start, sentence in sentences_of(text.text) if text.sentences else ():
            line = text.line_of(start)
            if HEADLESS.match(sentence) and len(sentence.split()) > 2 and not sentence.rstrip("*)").endswith("?"):
                beginning = " ".join(sentence.split()[:4])
                yield Finding(path, line, f"a sentence begins '{beginning}'", "name the subject, or begin with a verb")
            if text.counted and (count := len(words_of(sentence))) > LONGEST:
                beginning = " ".join(sentence.split()[:6])
                yield Finding(path, line, f"{count} words: '{beginning} ...'", f"at most {LONGEST} words")


def sentences_of(text: str) -> Iterator[tuple[int, str]]:
    """Split a text into sentences, each with its position."""
    shielded = _ABBREVIATIONS.sub(lambda match: match[0].replace(".", "\0"), text)
    start = 0
    for gap in _SENTENCE.finditer(shielded):
        yield start, text[start : gap.start()]
        start = gap.end()
    if text[start:].strip():
        yield start, text[start:].lstrip("\n")


def words_of(sentence: str) -> list[str]:
    """The words of a sentence: inline code is one, punctuation is none."""
    return [word for word in sentence.split() if re.search(r"\w", word)]


def markdown(source: str) -> Iterator[Text]:
    """Prose of a Markdown file: paragraphs, items, headings and cells; and code blocks, line by line."""
    block: list[tuple[int, str]] = []
    fence = ""
    for number, line in enumerate(_uncommented(source).splitlines(), 1):
        bare = line.strip()
        if fence:
            if bare.startswith(fence):
                fence = ""
            elif not bare.startswith("┌"):
                yield lined([(number, bare)], sentences=False)
            continue
        starts_one = re.match(r"#{1,6} |[-*+] |\d+\. |\||>|```|~~~|$", bare)
        if starts_one and block:
            yield lined(block, counted=True)
            block = []
        if bare.startswith(("```", "~~~")):
            fence = bare[:3]
        elif bare.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", prose(bare)):
                yield lined([(number, cell.strip())], counted=True)
        elif bare:
            block.append((number, prose(re.sub(r"^(#{1,6}|[-*+]|\d+\.|>) ", "", bare))))
    if block:
        yield lined(block, counted=True)


def _uncommented(source: str) -> str:
    return re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), source, flags=re.S)


def prose(line: str) -> str:
    """A line without inline code, targets of links and addresses."""
    line = re.sub(r"`[^`]*`", "`x`", line)
    line = re.sub(r"\]\([^)]*\)", "]", line)
    return re.sub(r"https?://\S+", "address", line)


def python(source: str, *, short: bool = False) -> Iterator[Text]:
    """Docstrings, string literals that hold a space, and comments, of which consecutive lines are one text.

    Args:
        source: the file.
        short: whether sentences of docstrings are counted.
    """
    tree = ast.parse(source)
    docstrings = set(_docstrings(tree)) if short else set()
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inside -= {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.JoinedStr):
            value = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            value = node.value
        else:
            continue
        if " " in value.strip():
            yield from paragraphs(re.sub(r"`[^`]*`", "`x`", value), node.lineno, counted=id(node) in docstrings)
    yield from comments(source)


def _docstrings(tree: ast.AST) -> Iterator[int]:
    """The identities of all strings that are statements."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def paragraphs(value: str, first: int, *, counted: bool = False) -> Iterator[Text]:
    """The paragraphs of a docstring or a message; `Args` and the like begin new ones with each entry.

    Tables, formulas, examples and sources are not counted.
    """

    def text(block: list[tuple[int, str]]) -> Text:
        is_prose = not any(_TABLE.search(line) or line.startswith("Source:") for _, line in block)
        return lined(block, counted=counted and is_prose)

    block: list[tuple[int, str]] = []
    for number, line in enumerate(value.splitlines(), first):
        entry = re.match(r"\s*(\w+): |\s*(Args|Returns|Raises|Source):", line)
        if block and (not line.strip() or entry):
            yield text(block)
            block = []
        if line.strip():
            block.append((number, line.strip()))
    if block:
        yield text(block)


def comments(source: str) -> Iterator[Text]:
    """The comments of a Python file."""
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text, number = _DIRECTIVE.sub("", token.string).lstrip("#").strip(), token.start[0]
        if block and (number != block[-1][0] + 1 or token.line[: token.start[1]].strip()):
            yield lined(block)
            block = []
        block.append((number, text))
    if block:
        yield lined(block)


def plain(source: str) -> Iterator[Text]:
    """Any other file, line by line."""
    for number, line in enumerate(source.splitlines(), 1):
        yield lined([(number, _DIRECTIVE.sub("", line))], sentences=False)


def check_file(path: Path, root: Path = ROOT) -> list[Finding]:
    """Check one file."""
    name = path.relative_to(root).as_posix()
    try:
        source = path.read_text()
    except UnicodeDecodeError:
        return []
    readers = {".md": markdown, ".py": partial(python, short=name.startswith(SHORT))}
    return sorted(findings_in(name, readers.get(path.suffix, plain)(source)), key=lambda finding: finding.line)


def files(rooms: Iterable[str], root: Path = ROOT) -> list[Path]:
    """The files of some rooms, each once; links are not followed."""
    found: set[Path] = set()
    for room in rooms:
        place = root / room
        inner = [place] if place.is_file() else place.rglob("*")
        found |= {p for p in inner if p.is_file() and p.suffix in SUFFIXES and not _is_foreign(p, root)}
    return sorted(found)


def _is_foreign(path: Path, root: Path) -> bool:
    name = path.relative_to(root)
    linked = any((root / parent).is_symlink() for parent in name.parents)
    return (
        linked
        or "__pycache__" in name.parts
        or name.as_posix() in EXEMPT
        or path.name.startswith(("digests.yaml", "chart-values.yaml"))
    )


def room_of(path: str) -> str:
    """The room of a file: its first folder, and that of `src/fedpipe`."""
    parts = path.split("/")
    return "/".join(parts[: 3 if path.startswith("src/fedpipe/") and len(parts) > 3 else 2 if len(parts) > 2 else 1])


def main() -> int:
    """Print the findings; return 1 when there are any."""
    rooms = sys.argv[1:] or ROOMS
    if missing := [room for room in rooms if not (ROOT / room).exists()]:
        sys.exit(f"there is no {missing[0]}")
    found = [finding for path in files(rooms) for finding in check_file(path)]
    for finding in found:
        print(finding)
    for room, count in sorted(Counter(room_of(finding.path) for finding in found).items()):
        print(f"{count:5}  {room}", file=sys.stderr)
    if found:
        print(f"{len(found)} findings; the words are in docs/english.py", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
