from pathlib import Path

import pytest

from fedpipe.errors import StoreError
from fedpipe.store import LocalStore, check_uri, open_store, with_endpoint


def test_paths_are_relative_to_the_folder(tmp_path: Path) -> None:
    for text in ("store", "./store", "file://store", "file://./store"):
        assert check_uri(text, folder=tmp_path) == f"file://{tmp_path / 'store'}"


def test_full_uris_stay_as_they_are() -> None:
    for text in ("file:///a/b", "s3://b/p?endpoint=http://h:1&region=x&style=virtual", "memory://m"):
        assert check_uri(text) == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ftp://x", "'ftp://x' has an unknown scheme. Use s3://bucket/prefix"),
        ("s3:///p", "'s3:///p' names no bucket. Write s3://bucket/prefix."),
        ("s3:/b/p", "'s3:/b/p' lacks // after s3:. Write s3://... for a URI, or ./s3:/b/p for a folder of this name."),
        ("s3:b", "'s3:b' lacks // after s3:"),
        ("file:/a", "'file:/a' lacks // after file:"),
        ("s3://b?endpiont=x", r"an unknown parameter 'endpiont'. Use only endpoint, region and style."),
        ("s3://b?style=host", r"has the style 'host'. Use path or virtual."),
        ("s3://b/a/../c", r"'s3://b/a/../c' has a part '.' or '..'. Write the whole key without it."),
        ("s3://b/./c", r"has a part '.' or '..'"),
        ("file:///a?region=x", r"an unknown parameter 'region'. Remove the query."),
    ],
)
def test_mistakes(text: str, what: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(text)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "full"),
    [
        ("s3://b/k", "s3://b/k?endpoint=http://minio:9000&region=eu"),
        ("s3://b/k?region=us", "s3://b/k?endpoint=http://minio:9000&region=us"),
        ("s3://b/k?style=virtual", "s3://b/k?endpoint=http://minio:9000&region=eu&style=virtual"),
        ("s3://b/k?endpoint=https://s3.amazonaws.com", "s3://b/k?endpoint=https://s3.amazonaws.com"),
        ("file:///k", "file:///k"),
    ],
)
def test_one_rule_for_endpoints(uri: str, full: str) -> None:
    """A URI that names no endpoint is at the store's; what it does name of the bucket counts."""
    assert with_endpoint(uri, "s3://store/prefix?endpoint=http://minio:9000&region=eu") == full
    assert with_endpoint(uri, "s3://store/prefix") == with_endpoint(uri, "file:///store") == uri


def test_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), LocalStore)
