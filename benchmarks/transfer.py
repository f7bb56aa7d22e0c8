"""Upload and download of 512 MiB, with the SHA-256 verified, compared with `mc cp`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from tests import binaries, servers

from benchmarks.measure import MIB, Row, at_least, repeated
from fedpipe.store import keys, open_store
from fedpipe.store.objects import fetch_file, put_file

SIZE = 512 * MIB


def run() -> list[Row]:
    """MB/s to and from a MinIO on this machine."""
    os.environ.update(AWS_ACCESS_KEY_ID=servers.ACCESS_KEY, AWS_SECRET_ACCESS_KEY=servers.SECRET_KEY)
    mc = str(binaries.find_binary("mc"))
    with tempfile.TemporaryDirectory() as name, servers.running("minio", Path(name) / "minio") as server:
        folder = Path(name)
        host = server.endpoint.removeprefix("http://")
        environment = {
            **os.environ,
            "MC_HOST_bench": f"http://{servers.ACCESS_KEY}:{servers.SECRET_KEY}@{host}",
            "MC_CONFIG_DIR": str(folder / "mc"),
        }
        store = open_store(server.uri)
        data = os.urandom(SIZE)
        (folder / "file").write_bytes(data)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        del data

        def copy(source: str, target: str) -> None:
            subprocess.run(
                [mc, "--quiet", "cp", source, target], env=environment, check=True, stdout=subprocess.DEVNULL
            )

        def upload() -> None:
            """The digest is known from writing the file; each part's SHA-256 is signed, and verified by the server."""
            store.delete(keys.content(digest))
            put_file(store, folder / "file", digest)

        def download() -> None:
            (folder / "ours").unlink(missing_ok=True)
            fetch_file(store, digest, folder / "ours")

        def mc_download() -> None:
            (folder / "theirs").unlink(missing_ok=True)
            copy("bench/tests/mc", str(folder / "theirs"))

        up, mc_up = repeated(upload, lambda: copy(str(folder / "file"), "bench/tests/mc"))
        down, mc_down = repeated(download, mc_download)
    speed = SIZE / 1e6
    return [
        at_least("upload of 512 MiB, verified by the server", speed / up, speed / mc_up, "mc cp", 0.9, "MB/s"),
        at_least("download of 512 MiB, verified", speed / down, speed / mc_down, "mc cp", 1.0, "MB/s"),
    ]
