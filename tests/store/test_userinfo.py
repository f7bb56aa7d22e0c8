"""Credentials in URIs are refused wherever a URI can be typed, and no message repeats them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

import fedpipe
from fedpipe.cli.main import app
from fedpipe.commands.identities import prepare
from fedpipe.data.examples import read_examples
from fedpipe.errors import FedpipeError, InputError, StoreError
from fedpipe.federation.file import parse_federation, read_federation
from fedpipe.kubeflow.clients import open_kfp
from fedpipe.kubeflow.where import Where
from fedpipe.serving.client import RemoteModel
from fedpipe.store import check_uri, chosen_uri, endpoint_of, open_store
from fedpipe.store.userinfo import check_no_credentials, credentials_in

SECRET = "hunter2-hunter2"
WITH_CREDENTIALS = [
    f"https://user:{SECRET}@host",
    f"https://user:{SECRET}/x+y@host/bucket",
    f"https://user:{SECRET}%40host",
    f"https://{SECRET}@host/x",
    f"HTTPS://USER:{SECRET}@host",
    f"https:/user:{SECRET}@host",
    f"https:\\\\user:{SECRET}@host",
    f"//user:{SECRET}@host",
    f"user:{SECRET}@host:9000",
    f"s3://key:{SECRET}@bucket",
    f"s3://key:ab/{SECRET}@bucket/prefix",
    f"s3://:{SECRET}@bucket/prefix",
    f"s3://key:{SECRET}",
    f"s3:key:{SECRET}@bucket",
    f"s3://key%3A{SECRET}%40bucket",
    f"s3://bucket/prefix#key:{SECRET}@host",
    f"https://host/x#https://key:{SECRET}@host",
    f"s3://bucket/p?endpoint=https://user:{SECRET}@host:9000",
    f"s3://bucket/p?endpoint={quote(f'https://user:{SECRET}@host', safe='')}",
    f"s3://bucket/p?endpoint=user:{SECRET}@host:9000",
    f"s3://bucket/p?region=x&secret_key={SECRET}",
    f"s3://bucket/p?aws_secret_access_key={SECRET}",
    f"https://host/data.npz?X-Amz-Signature={SECRET}",
    f"https://host/data.npz?sv=1&sig={SECRET}",
    f"https://host/data.npz?token={SECRET}",
    f"file://user:{SECRET}@host/folder",
    f"memory://user:{SECRET}@shelf",
    f"postgresql://user:{SECRET}@host/patients",
    f"gs://user:{SECRET}@bucket/x.npz",
]
WITHOUT = [
    "s3://bucket/prefix?endpoint=http://host:9000&region=eu-central-1",
    "s3://bucket/prefix?endpoint=http%3A%2F%2Fhost%3A9000",
    "s3://bucket/a@b/c:d@e.npz",
    "file:///data@2/x.npz", "file://data@2", "/data@2/x.npz", "data@v2.npz", "./a:b@c.npz", "../a/b:c@d",
    "memory://shelf", "http://[::1]:9000", "http://host:9000/a@b", "https://host/v2/models/digits",
    "postgresql://host:5432/patients", "store", "",
]  # fmt: skip
FEDERATION: dict[str, Any] = {
    "name": "tiny", "framework": "numpy", "learners": [{"name": "a", "data": "a.npz"}],
    "training": {"rounds": 1, "batch_size": 8},
}  # fmt: skip


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_a_uri_with_credentials_is_refused_without_showing_it(uri: str) -> None:
    with pytest.raises(InputError, match=r"contains a (user name or password|parameter for credentials)") as caught:
        check_no_credentials(uri, "store")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("uri", WITHOUT)
def test_a_uri_without_credentials_stays(uri: str) -> None:
    assert check_no_credentials(uri, "store") == uri


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).filter(lambda t: t.strip("-"))
SECRETS = st.text("abcXYZ019/+=-_.~!$&'()*,;:@", min_size=1, max_size=20)


@given(st.sampled_from(["s3", "http", "https", "ftp", "gs", "memory", "postgresql"]), NAMES, SECRETS, NAMES, NAMES)
def test_any_password_before_any_host_is_found(scheme: str, user: str, password: str, host: str, path: str) -> None:
    first, slash, _ = password.partition("/")
    assume(not (slash and (first.isdigit() or not first)))  # `user:12/x@host` may be a host, its port and a path
    for text in (password, quote(password, safe="")):
        assert credentials_in(f"{scheme}://{user}:{text}@{host}/{path}")
        assert credentials_in(f"s3://{path}?endpoint={scheme}://{user}:{quote(text, safe='')}@{host}")


@given(st.sampled_from(["s3", "http", "https", "gs"]), NAMES, st.lists(NAMES | st.just("a@b"), max_size=3))
def test_a_host_and_a_path_are_no_credentials(scheme: str, host: str, path: list[str]) -> None:
    assert not credentials_in("/".join([f"{scheme}://{host}", *path]), bare=True)
    assert not credentials_in("/".join([f"http://{host}:9000", *path]), bare=True)


def places(uri: str) -> dict[str, dict[str, Any]]:
    """The keys of the federation file that hold a URI, or text that reaches the pipeline."""
    return {
        "store": {"store": uri},
        "store.uri": {"store": {"uri": uri}},
        "store.endpoint": {"store": {"uri": "s3://bucket/p", "endpoint": uri}},
        "data.uri": {"data": {"uri": uri}},
        "learners[0].data": {"learners": [{"name": "a", "data": uri}]},
    }


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_every_key_of_the_federation_file(uri: str, tmp_path: Path) -> None:
    for path, changes in places(uri).items():
        file = tmp_path / "federation.yaml"
        file.write_text(yaml.safe_dump(FEDERATION | changes))
        with pytest.raises(FedpipeError) as caught:
            read_federation(file)
        assert path in str(caught.value)
        assert "contains a" in str(caught.value)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": {"registry": f"https://user:{SECRET}@registry/fedpipe"}},
        {"model": f"https://user:{SECRET}@host/model.py"},
        {"training": {"rounds": 1, "batch_size": 8, "fit": {"log": f"https://user:{SECRET}@host"}}},
        {"training": {"rounds": 1, "batch_size": 8, "unknown": f"https://user:{SECRET}@host"}},
        {"learners": [{"name": "a", "secret": f"s3://key:{SECRET}@bucket"}]},
    ],
)
def test_other_keys_that_reach_the_pipeline(changes: dict[str, Any]) -> None:
    with pytest.raises(FedpipeError, match="contains a user name or password") as caught:
        parse_federation(FEDERATION | changes)
    assert SECRET not in str(caught.value)


def test_images_by_digest_stay() -> None:
    digest = "sha256:" + "0" * 64
    made = parse_federation(FEDERATION | {"images": {"registry": "host:5000/fedpipe", "digests": {"core": digest}}})
    assert made.images.registry == "host:5000/fedpipe"


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_every_function_that_takes_a_uri(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {
        "check_uri": lambda: check_uri(uri),
        "chosen_uri": lambda: chosen_uri(uri, "s3://b"),
        "open_store": lambda: open_store(uri),
        "endpoint": lambda: open_store("s3://bucket", endpoint=uri),
        "prepare": lambda: prepare(uri),
        "read_examples": lambda: read_examples(uri, features="x", labels="y"),
        "RemoteModel": lambda: RemoteModel(uri),
        "open_kfp": lambda: open_kfp(Where(host=uri)),
    }
    for name, call in calls.items():
        with pytest.raises(FedpipeError, match="contains a") as caught:
            call()
        assert SECRET not in str(caught.value), name
    monkeypatch.setenv("AWS_ENDPOINT_URL", uri)
    with pytest.raises(FedpipeError, match="contains a") as caught:
        endpoint_of("s3://bucket")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_options_and_run_time_parameters(uri: str, numpy_digits: Path) -> None:
    file, data = numpy_digits / "federation.yaml", numpy_digits / "digits.npz"
    for arguments in (
        ["run", str(file), "--store", uri],
        ["run", str(file), "-p", f"store={uri}"],
        ["run", str(file), "-p", f"data={uri}"],
        ["submit", str(file), "-p", f"store={uri}"],
        ["runs", "-f", str(file), "--store", uri],
        ["predict", f"https://user:{SECRET}@host", str(data)],
    ):
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, FedpipeError), (arguments, done.output)
        assert "contains a" in str(done.exception), arguments
        assert SECRET not in str(done.exception) + done.output


def test_nothing_is_compiled_with_credentials(numpy_digits: Path) -> None:
    file = numpy_digits / "federation.yaml"
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"store": f"s3://b?endpoint=https://user:{SECRET}@host"}))
    with pytest.raises(InputError, match="contains a"):
        fedpipe.compile_pipeline(read_federation(file), numpy_digits / "pipeline.yaml")
    assert not (numpy_digits / "pipeline.yaml").exists()


@pytest.mark.parametrize(
    "text",
    [
        f"cannot open https://user:{SECRET}@host/x",
        f"('https://user:{SECRET}@host', 443)",
        f"endpoint=https%3A%2F%2Fuser%3A{SECRET}%40host",
        f"proxy http://{SECRET}@proxy:3128 does not answer",
    ],
)
def test_no_error_repeats_what_a_foreign_error_shows(text: str) -> None:
    for error in (StoreError(text), StoreError("x", where=text), StoreError("x", remedy=text)):
        assert SECRET not in f"{error} {error!r} {error.args}"
        assert "***" in str(error)
    assert str(StoreError("ask a@b.org at https://host/a@b")) == "ask a@b.org at https://host/a@b"
