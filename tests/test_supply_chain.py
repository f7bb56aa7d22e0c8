"""The words for the supply chain: locks with hashes, an SBOM that is that of its lock, audits, images by digest."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests import servers

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
LOCK = "pkg-one==1.0 \\\n    --hash=sha256:00\nPkg_Two[extra]==2.0.1 ; python_version < '4' \\\n    --hash=sha256:11\n# note==3\n"


def sbom(**versions: str) -> str:
    components = [{"type": "library", "name": name, "version": version} for name, version in versions.items()]
    return json.dumps({"bomFormat": "CycloneDX", "components": components})


def compared(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "sbom.json").write_text(text)
    (folder / "lock.txt").write_text(LOCK)
    command = [sys.executable, ROOT / "images" / "check-sbom", folder / "sbom.json", folder / "lock.txt"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_sbom_is_that_of_its_lock(tmp_path: Path) -> None:
    assert compared(tmp_path, sbom(**{"pkg_one": "1.0", "pkg.two": "2.0.1"})).returncode == 0


@pytest.mark.parametrize(
    ("versions", "line"),
    [
        ({"pkg-one": "1.0"}, "pkg-two: absent in the SBOM, 2.0.1 in the lock"),
        ({"pkg-one": "1.0", "pkg-two": "2.0.2"}, "pkg-two: 2.0.2 in the SBOM, 2.0.1 in the lock"),
        ({"pkg-one": "1.0", "pkg-two": "2.0.1", "note": "3"}, "note: 3 in the SBOM, absent in the lock"),
    ],
)
def test_a_difference_ends_the_build(tmp_path: Path, versions: dict[str, str], line: str) -> None:
    done = compared(tmp_path, sbom(**versions))
    assert (done.returncode, done.stderr) == (1, f"{line}\n")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"components": [{}]}', '{"components": 3}'])
def test_an_sbom_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    done = compared(tmp_path, text)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_every_image_checks_its_sbom() -> None:
    assert "check-sbom /opt/fedpipe/sbom.cdx.json" in (ROOT / "images" / "install").read_text()
    for file in (ROOT / "images").glob("*/Dockerfile"):
        assert file.read_text().count("images/check-sbom") == 1, file


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_is_pinned_by_hash(lock: Path) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", lock.read_text(), flags=re.M).strip())
    assert len(entries) >= 1
    for entry in entries:
        assert re.match(r"[A-Za-z0-9][\w.\-]*(\[[^\]]*\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
        assert "://" not in entry


class Osv(BaseHTTPRequestHandler):
    """Answers as the database does: one known vulnerability, and no entry for others."""

    bad: ClassVar[dict[str, list[str]]] = {}
    asked: ClassVar[list[dict[str, Any]]] = []
    broken: ClassVar[bytes] = b""

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        self.asked.extend(queries)
        named = [self.bad.get(query["package"]["name"], []) for query in queries]
        body = (
            self.broken
            or json.dumps({"results": [{"vulns": [{"id": i} for i in ids]} if ids else {} for ids in named]}).encode()
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Writes nothing."""


@contextlib.contextmanager
def database(bad: dict[str, list[str]], broken: bytes = b"") -> Iterator[str]:
    handler = type("Handler", (Osv,), {"bad": bad, "asked": [], "broken": broken})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/querybatch"
    finally:
        server.shutdown()
        server.server_close()


def audited(url: str, *locks: Path) -> subprocess.CompletedProcess[str]:
    names = ("http_proxy", "https_proxy", "all_proxy")
    environment = {name: value for name, value in os.environ.items() if name.lower() not in names}
    return subprocess.run(
        [sys.executable, ROOT / "requirements" / "audit", *locks],
        env=environment | {"AUDIT_URL": url}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_an_audit_names_package_lock_and_vulnerability() -> None:
    with database({"msgspec": ["GHSA-1", "CVE-2"]}) as url:
        done = audited(url)
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if line.startswith("msgspec "))
    assert re.fullmatch(r"msgspec \S+ \(.*core.*\): CVE-2, GHSA-1", line)
    assert f"of {len(LOCKS)} locks, 1 with known vulnerabilities" in done.stdout


def test_an_audit_without_findings(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(LOCK)
    with database({}) as url:
        done = audited(url, tmp_path / "lock.txt")
    assert (done.returncode, done.stdout) == (0, "2 packages of 1 locks, 0 with known vulnerabilities\n")


@pytest.mark.parametrize("broken", [b"{}", b"[]", b"x", b'{"results": []}', b'{"results": [3, 4]}'])
def test_an_answer_that_is_none(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "lock.txt").write_text(LOCK)
    with database({}, broken) as url:
        done = audited(url, tmp_path / "lock.txt")
    assert done.returncode == 3
    assert "NOT CHECKED" in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_it_says_so() -> None:
    done = audited(f"http://127.0.0.1:{servers.free_port()}/v1/querybatch")
    assert done.returncode == 3
    assert "NOT CHECKED" in done.stderr


def test_the_papers_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert "## Reporting a vulnerability" in (ROOT / "SECURITY.md").read_text()
    for file in (ROOT / "images").glob("*/Dockerfile"):
        assert 'org.opencontainers.image.licenses="Apache-2.0"' in file.read_text()


def built(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "images" / "build", "core"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_base_without_a_digest_can_be_refused(tmp_path: Path) -> None:
    """A builder that only shows what it is asked, since none is needed to refuse."""
    builder = tmp_path / "podman"
    builder.write_text('#!/bin/sh\necho "$@"\n[ "$1" != build ] || exit 7\n')
    builder.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BUILDER": "podman"}
    for base in ({}, {"BASE_IMAGE": "python:3.11-slim"}):
        done = built(**path, **base, REQUIRE_DIGESTS="1")
        assert done.returncode == 2
        assert "has no digest" in done.stderr
    pinned = f"python@sha256:{'ab' * 32}"
    done = built(**path, BASE_IMAGE=pinned, REQUIRE_DIGESTS="1")
    assert done.returncode == 7
    assert f"--build-arg BASE_IMAGE={pinned}" in done.stdout
    assert f"org.opencontainers.image.base.name={pinned}" in done.stdout
