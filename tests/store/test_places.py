"""Paths become URIs and paths again, whatever their characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import InputError, StoreError
from fedpipe.store import LocalStore, check_uri, chosen_uri, file_uri, open_store, path_of, suffix_of
from fedpipe.store.files import obstacle, write_whole

NAMES = [
    "proj#1", "a?b", "50% off", "x%20y", "x%2fy", "a;b", "a&b=c", "é ü 漢", "[x]", "'\"`$", "a:b", "back\\slash", "tab\tnew\nline",
    " space ", "~", "@host", "~1+2", "\udcff",
]  # fmt: skip


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_folders(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    uri = file_uri(folder)
    assert path_of(uri) == folder
    assert not {"#", "?", " ", "\n"} & set(uri)
    for given_as in (str(folder), uri, check_uri(uri)):
        assert check_uri(given_as) == uri
        store = open_store(given_as)
        assert store.uri == uri
        assert store.create("a/b", b"1") in (True, False)
    assert (folder / "a" / "b").read_bytes() == b"1"
    assert names_in(tmp_path) == [name]
    assert check_uri(name, folder=tmp_path) == uri
    assert open_store(open_store(uri).below("part").uri).uri == file_uri(folder / "part")


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_any_name(name: str) -> None:
    path = Path("/") / name
    assert path_of(file_uri(path)) == path
    assert path_of(check_uri(file_uri(path))) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a%20b", "/a b"),
        ("file:///a b", "/a b"),
        ("file:///a%23b", "/a#b"),
        ("file:///%C3%A9", "/é"),
        ("file:///é", "/é"),
        ("file:///a%2525", "/a%25"),
        ("file:///a;b&c=d", "/a;b&c=d"),
        ("file:///[x]", "/[x]"),
        ("/a%20b#c?d", "/a%20b#c?d"),
    ],
)
def test_what_a_uri_names(uri: str, path: str) -> None:
    assert path_of(uri) == Path(path)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///a#b", "has a part after '#', and a folder has none. Write %23 for a '#' in a name"),
        ("file:///a?b", "has an unknown parameter 'b'. Remove the query. In a name, write %3F."),
        ("file:///a#", "has a part after '#'"),
        ("file:///50%", "has a lone %. Write %25 for it"),
        ("file:///50%zz", "has a lone %"),
        ("file://localhost/a", "names a host. Write file:///folder, with three slashes."),
        ("", "the store has no name. Use s3://bucket/prefix"),
        (" ", "the store has no name"),
        ("a\0b", "contains a zero byte"),
        ("s3://[x]/p", "is malformed: "),
        ("s3://b/p#q", "has a part after '#'. Remove it."),
        ("s3://b/a b", "contains a space or a control character. Remove it."),
        ("s3://b/p\n", "contains a space or a control character"),
        ("s3://b/p#", "has a part after '#'. Remove it."),
        ("s3://b?endpoint=http://a&endpoint=http://b", "has a parameter twice. Keep one."),
    ],
)
def test_ambiguous_uris_are_refused(uri: str, message: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(uri)
    assert message in str(caught.value)


def test_a_scheme_in_capitals() -> None:
    assert check_uri("S3://b/p?region=x") == "s3://b/p?region=x"
    assert check_uri("FILE:///a%20b") == "file:///a%20b"


def test_an_empty_option_is_not_a_missing_one() -> None:
    assert chosen_uri(None, "file:///a") == "file:///a"
    with pytest.raises(StoreError, match="the store has no name"):
        chosen_uri("", "file:///a")


@pytest.mark.parametrize(
    ("place", "suffix"),
    [
        ("/a#1/x.npz", ".npz"),
        ("file:///a%231/x.npz", ".npz"),
        ("s3://b/x.npz?endpoint=http://h.x", ".npz"),
        ("a.b/c", ""),
    ],
)
def test_suffixes(place: str, suffix: str) -> None:
    assert suffix_of(place) == suffix


class TestObstacles:
    def test_none(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "a" / "b"):
            assert obstacle(folder) == ""
        assert names_in(tmp_path) == []

    def test_a_folder_in_use_keeps_its_objects(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.create("a", b"1")
        assert obstacle(tmp_path) == ""
        assert list(store.keys()) == ["a"]

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for folder in (tmp_path / "file", tmp_path / "file" / "x"):
            assert obstacle(folder) == f"{tmp_path}/file is a file, not a folder"

    def test_a_dangling_link(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "absent")
        assert obstacle(tmp_path / "link") == ""

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["long", "zero"])
    def test_impossible_names(self, tmp_path: Path, name: str) -> None:
        assert obstacle(tmp_path / name).startswith("the folder ")
        assert names_in(tmp_path) == []

    def test_a_file_system_of_the_kernel(self) -> None:
        assert obstacle(Path("/proc/nope")) == "the folder cannot be written: No such file or directory"


@pytest.mark.parametrize("name", [".", "file/x", "x" * 300], ids=["no name", "below a file", "long"])
def test_files_that_cannot_be_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        write_whole(Path(name), b"")
    assert caught.value.remedy
    assert names_in(tmp_path) == ["file"]
