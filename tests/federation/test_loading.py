"""YAML: merge keys, duplicates, aliases, and files that stand for more than they contain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpipe.errors import FederationError
from fedpipe.federation.file import read_federation
from fedpipe.federation.loading import load

HEAD = "name: digits\nlearners: [{name: a, data: a.npz}]\ntraining: {rounds: 1, batch_size: 1}\n"


def loaded(folder: Path, text: str) -> Any:
    path = folder / "federation.yaml"
    path.write_text(text)
    return load(path)


MERGES = {
    "one": ("a: &a {x: 1, y: 2}\nb: {<<: *a, z: 3}", {"x": 1, "y": 2, "z": 3}),
    "its own keys win, before": ("a: &a {x: 1, y: 2}\nb: {x: 9, <<: *a}", {"x": 9, "y": 2}),
    "its own keys win, after": ("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 9}", {"x": 9, "y": 2}),
    "a list, whose first wins": ("a: &a {x: 1, y: 1}\nc: &c {y: 2, z: 2}\nb: {<<: [*a, *c]}", {"x": 1, "y": 1, "z": 2}),
    "the other order": ("a: &a {x: 1, y: 1}\nc: &c {y: 2, z: 2}\nb: {<<: [*c, *a]}", {"x": 1, "y": 2, "z": 2}),
    "nested": ("a: &a {x: 1}\nc: &c {<<: *a, y: 2}\nb: {<<: *c, z: 3}", {"x": 1, "y": 2, "z": 3}),
    "nothing": ("a: &a {}\nb: {<<: *a, z: 3}", {"z": 3}),
    "an empty list": ("b: {<<: [], z: 3}", {"z": 3}),
    "a table in place": ("b: {<<: {x: 1}, z: 3}", {"x": 1, "z": 3}),
    "the same source twice": ("a: &a {x: 1}\nb: {<<: [*a, *a]}", {"x": 1}),
    "a quoted key merges nothing": ("b: {'<<': 1}", {"<<": 1}),
    "an alias of a value": ("a: &a {x: [1]}\nb: {y: *a}", {"y": {"x": [1]}}),
    "a number as YAML 1.2 reads it": ("b: {x: 1e-4}", {"x": 1e-4}),
}


@pytest.mark.parametrize(("text", "expected"), MERGES.values(), ids=MERGES.keys())
def test_merges(tmp_path: Path, text: str, expected: Any) -> None:
    assert loaded(tmp_path, text)["b"] == expected


def test_a_placement_that_learners_share(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(
        "name: digits\ntraining: {rounds: 1, batch_size: 1}\nlearners:\n"
        "- {name: a, data: a.npz, placement: &gpu {accelerator: {count: 2}, memory: 8Gi}}\n"
        "- {name: b, data: b.npz, placement: {<<: *gpu, memory: 16Gi}}\n"
    )
    first, second = (learner.placement for learner in read_federation(path).learners)
    assert (first.memory, second.memory) == ("8Gi", "16Gi")
    assert first.accelerator == second.accelerator
    assert second.accelerator is not None
    assert second.accelerator.count == 2


NOT_YAML = {
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is written twice"),
    "a key twice in a merged table": ("a: &a {x: 1, x: 2}\nb: {<<: *a}", "line 1: the key 'x' is written twice"),
    "two merges": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "line 4: the key '<<' is written twice"),
    "a merge of a number": ("b: {<<: 3}", "line 1: a table is expected after <<"),
    "a merge of a list of numbers": ("b: {<<: [3]}", "line 1: a table is expected after <<"),
    "a table in itself": ("b: &b {<<: *b}", "line 1: a table merges itself"),
    "an unknown alias": ("b: *nothing", "line 1, column 4: found undefined alias 'nothing'"),
    "a key that is a list": ("[a]: b", "line 1: a key is a list or a table"),
    "a key that is a table": ("{a: 1}: b", "line 1: a key is a list or a table"),
    "an impossible date": ("a: 2024-99-99", "month must be in 1..12"),
    "a number of many digits": (f"a: {'1' * 5000}", "4300"),
    "a bracket": ("a: [", "line 1, column 5: expected the node content"),
    "a tag of Python": ("a: !!python/tuple [1]", "could not determine a constructor"),
    "a control character": ("a: \x01", "unacceptable character"),
    "two documents": ("a: 1\n---\nb: 2", "but found another document"),
    "a base64 that is none": ("a: !!binary 'x'", "failed to decode base64 data"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), NOT_YAML.values(), ids=NOT_YAML.keys())
def test_what_is_not_yaml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FederationError) as caught:
        loaded(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "federation.yaml") in str(caught.value)
    assert caught.value.remedy


def bomb(each: str) -> str:
    lines = ["x0: &x0 {k: 1, l: 2}"]
    for n in range(1, 30):
        lines.append(f"x{n}: &x{n} {each.format(', '.join([f'*x{n - 1}'] * 10))}")
    return HEAD + "\n".join(lines)


BOMBS = {
    "aliases": (bomb("[{}]"), "has more than 200000 values"),
    "merges": (bomb("{{<<: [{}]}}"), "unknown key"),
    "merges of many keys": (
        HEAD
        + "a: &a {"
        + ", ".join(f"k{n}: 1" for n in range(1000))
        + "}\n"
        + "\n".join(f"b{n}: {{<<: [{', '.join(['*a'] * 20)}]}}" for n in range(10)),
        "the merges bring in more than 100000 keys",
    ),
    "a list in itself": (HEAD + "x: &x [*x]", "is nested too deeply"),
    "a table in itself": (HEAD + "x: &x {y: *x}", "is nested too deeply"),
    "a large file": (HEAD + "#" * 2**23, "has more than 8388608 bytes"),
}


@pytest.mark.parametrize(("text", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_files_that_stand_for_more_than_they_contain(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(text)
    with pytest.raises(FederationError) as caught:
        read_federation(path)
    assert message in str(caught.value)


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert read_federation(path).name == "digits"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"cannot be read: Is a directory\. Name the file in it\."):
        load(tmp_path)
