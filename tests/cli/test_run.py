"""run: a store or a parameter that cannot be used is one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpipe.cli.run import _accepted
from tests import servers
from tests.cli.conftest import Result
from tests.cli.test_start import change


def test_an_unknown_parameter(fedpipe: Callable[..., Result], numpy_digits: Path) -> None:
    done = fedpipe("run", numpy_digits / "federation.yaml", "-p", "learning=1")
    assert "unknown parameter 'learning'. Choose one of: batch_size, data" in done.err


def test_a_run_without_export_does_not_claim_that_nothing_was_trained(
    fedpipe: Callable[..., Result], numpy_digits: Path
) -> None:
    path = numpy_digits / "federation.yaml"
    text = "".join(line for line in path.read_text().splitlines(True) if not line.startswith("export:"))
    path.write_text(f"{text}\nexport: none\n")
    done = fedpipe("run", path, "-p", "rounds=1", "--out", numpy_digits / "out")
    assert done.code == 0, done.err
    assert "nothing was trained" not in done.out
    assert "federated: accuracy" in done.out


@pytest.mark.parametrize(
    ("rounds", "accepted"),
    [
        ([], False),
        ([{"round": 1}], True),
        ([{"round": 0, "vote": {"accepted": True}}, {"round": 1, "vote": {"accepted": False}}], False),
        ([{"round": 1, "vote": {"accepted": False}}, {"round": 2, "vote": {"accepted": True}}], True),
    ],
)
def test_accepted_rounds(rounds: list[dict[str, Any]], accepted: bool) -> None:
    assert _accepted(rounds) == accepted


@pytest.mark.usefixtures("s3_keys")
class TestStores:
    def go(self, fedpipe: Callable[..., Result], numpy_digits: Path, uri: str, message: str) -> None:
        done = fedpipe("run", numpy_digits / "federation.yaml", "--store", uri)
        assert done.code == 2
        assert message in done.err

    def test_no_bucket(self, fedpipe: Callable[..., Result], numpy_digits: Path, minio_server: servers.Server) -> None:
        uri = f"s3://absent/x?endpoint={minio_server.endpoint}"
        self.go(fedpipe, numpy_digits, uri, "the bucket 'absent' does not exist")

    def test_refused(
        self,
        fedpipe: Callable[..., Result],
        numpy_digits: Path,
        minio_server: servers.Server,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        uri = f"s3://tests/x?endpoint={minio_server.endpoint}"
        self.go(fedpipe, numpy_digits, uri, "refuses the credentials")

    def test_an_endpoint_given_by_the_federation_serves_another_prefix(
        self, fedpipe: Callable[..., Result], numpy_digits: Path, minio_server: servers.Server
    ) -> None:
        place = f"store: {{uri: s3://tests/one, endpoint: {minio_server.endpoint}}} "
        change(numpy_digits, "federation.yaml", "store: store ", place)
        self.go(fedpipe, numpy_digits, "s3://absent/two", "the bucket 'absent' does not exist")
        assert "honours conditional writes" in fedpipe("check", numpy_digits / "federation.yaml").out
