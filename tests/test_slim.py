"""Images without what no program needs: packages work as before, and the files they came from stay as they are."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SITE = Path(next(p for p in sys.path if p.endswith("site-packages")))
PACKAGES = (
    "numpy", "numpy.libs", "pyarrow", "h5py", "h5py.libs", "Crypto", "onnxruntime", "PIL", "pillow.libs", "pygments"
)  # fmt: skip
USE = """
import sys
sys.path.insert(0, sys.argv[1])
import io, json
from numpy import *
import h5py, numpy, numpy.testing, pyarrow.compute, pyarrow.csv, pyarrow.dataset, pyarrow.fs, pyarrow.parquet, pygments
from Crypto.Cipher import AES
from PIL import Image, ImageDraw
from onnx import parser
from rich.console import Console
from rich.syntax import Syntax
from fedpipe.registry.prediction import open_model, runtime
assert all(one.__file__.startswith(sys.argv[1]) for one in (h5py, numpy, pyarrow, pygments, Image, runtime()))
for form in ("PNG", "JPEG"):
    with io.BytesIO() as file:
        picture = Image.new("L", (8, 8), 9)
        ImageDraw.Draw(picture).text((0, 0), "a")
        picture.save(file, form)
        print(Image.open(file, formats=[form]).getpixel((7, 7)))
try:
    json.loads("{")
except ValueError:
    Console(file=sys.stdout, width=60).print_exception()
Console(file=sys.stdout, width=60).print(Syntax("def a(): return 'b'", "python"))
path = sys.argv[1] + "/made"
pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), path + ".parquet")
assert pyarrow.dataset.dataset(path + ".parquet").to_table().column("a").to_pylist() == [1, 2]
with h5py.File(path + ".h5", "w") as file:
    file["a"] = numpy.linalg.inv(numpy.eye(2) * 2)
    assert file["a"][0, 0] == 0.5
text = '<ir_version: 9, opset_import: ["": 17]> g (float[n, 2] x) => (float[n, 2] y) { y = Softmax<axis = 1>(x) }'
print(open_model(parser.parse_model(text).SerializeToString()).run({"x": numpy.eye(2, dtype="float32")})[0].tolist())
print(numpy.random.default_rng(0).normal(), AES.new(b"0" * 16, AES.MODE_ECB).encrypt(b"1" * 16).hex())
"""


@pytest.fixture(scope="module")
def slim() -> ModuleType:
    path = ROOT / "images" / "slim"
    spec = importlib.util.spec_from_loader("slim", importlib.machinery.SourceFileLoader("slim", str(path)))
    assert spec
    module = importlib.util.module_from_spec(spec)
    assert spec.loader
    spec.loader.exec_module(module)
    return module


def shared(source: str, target: str) -> None:
    """The same file under another name, as an installer with a cache makes it."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.so*") if path.is_file()
    }


def slimmed(site: Path, *kind: str) -> str:
    command = [sys.executable, ROOT / "images" / "slim", site, *kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def used(site: Path) -> str:
    done = subprocess.run([sys.executable, "-c", USE, site], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_packages_work_as_before_and_are_smaller(kind: str, tmp_path: Path) -> None:
    """In a closed environment, no program of a user may need pyarrow's client of S3."""
    for name in PACKAGES:
        shutil.copytree(SITE / name, tmp_path / name, copy_function=shared, symlinks=True)
    before, said = digests(SITE / "numpy") | digests(SITE / "pyarrow"), used(tmp_path)
    saved = re.fullmatch(r"slim: (\d+) MB, now (\d+) MB\n", slimmed(tmp_path, kind))
    assert saved
    assert int(saved[2]) < 0.7 * int(saved[1])
    assert used(tmp_path) == said
    assert digests(SITE / "numpy") | digests(SITE / "pyarrow") == before
    for waste in ("numpy/_core/tests", "numpy/_core/include", "pyarrow/include", "pyarrow/tests", "Crypto/SelfTest"):
        assert (SITE / waste).exists()
        assert not (tmp_path / waste).exists()
    assert any((tmp_path / "pyarrow").glob("libarrow_s3.so*")) == (kind == "open")
    assert not any((tmp_path / "onnxruntime" / "capi").glob("libonnxruntime.so*"))
    again = re.fullmatch(r"slim: (\d+) MB, now (\d+) MB\n", slimmed(tmp_path, kind))
    assert again
    assert again[1] == again[2]


def test_a_library_keeps_what_is_loaded(slim: ModuleType, tmp_path: Path) -> None:
    """Its segments are the same bytes; only the table of sections, and what it alone names, is gone."""
    original = next((SITE / "pyarrow").glob("lib.*.so")).read_bytes()
    path = tmp_path / "lib.so"
    path.write_bytes(original)
    path.chmod(0o755)
    assert slim.strip(path) > 0
    found = path.read_bytes()
    assert found[64:] == original[64 : len(found)]
    assert struct.unpack_from("<Q", found, 40) == (0,)
    assert path.stat().st_mode & 0o777 == 0o755
    assert slim.strip(path) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["lib.so"]


def elf(**changes: int) -> bytes:
    """A library of 64 bits with one loaded segment of 120 bytes, and 80 bytes behind it."""
    given = {"type": 1, "offset": 0, "length": 120, "count": 1, "start": 64, "width": 56} | changes
    magic = b"\x7fELF\x02\x01".ljust(16, b"\0")
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", magic, 3, 62, 1, 0, given["start"], 150, 0, 64, given["width"], given["count"], 64, 1, 0
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", given["type"], 5, given["offset"], 0, 0, given["length"], given["length"], 4096)
    return (head + segment).ljust(200, b"x")


def test_a_library_ends_with_its_last_segment(slim: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "lib.so.1"
    path.write_bytes(elf(offset=8, length=150))
    assert slim.strip(path) == 42
    assert path.stat().st_size == 158


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"a script of a linker: GROUP ( libm.so.6 )",
        b"\x7fELF\x01" + elf()[5:],
        elf(length=300),
        elf(type=2),
        elf(count=0),
        elf(width=32),
        elf(start=2**40),
        elf()[:100],
    ],
    ids=["empty", "short", "text", "32 bits", "cut off", "nothing loaded", "no segments", "odd", "far", "torn"],
)
def test_other_files_stay_as_they_are(slim: ModuleType, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(data)
    assert slim.strip(path) == 0
    assert path.read_bytes() == data


def test_copies_of_a_library_become_one_file(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for name, data in (("lib.so", b"1"), ("lib.so.1", b"1"), ("lib.so.1.2", b"2"), ("other.so", b"1")):
        (package / name).write_bytes(data)
    slimmed(tmp_path)
    assert (package / "lib.so").samefile(package / "lib.so.1")
    assert {path.name: path.read_bytes() for path in package.iterdir()} == {
        "lib.so": b"1", "lib.so.1": b"1", "lib.so.1.2": b"2", "other.so": b"1",
    }  # fmt: skip
    assert not (package / "lib.so").samefile(package / "other.so")


def test_packages_that_are_not_in_the_table_stay_whole(tmp_path: Path) -> None:
    """A user's lock may have any package, such as one that needs its headers."""
    for name in ("torch/include/a.h", "mine/tests/test_it.py", "mine/lib.a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    slimmed(tmp_path)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_each_image_is_slim() -> None:
    assert "./slim" in (ROOT / "images" / "install").read_text()
    assert "images/slim" in (ROOT / "images" / "build").read_text()  # a change of it gives another tag
    for file in (ROOT / "images").glob("*/Dockerfile"):
        assert file.read_text().count("images/slim") == 1, file
    assert "!images/slim" in (ROOT / ".dockerignore").read_text().splitlines()


def test_a_large_module_that_nothing_calls_becomes_a_small_one(tmp_path: Path) -> None:
    """TensorFlow imports its client of profilers elsewhere, whose two functions say that they are not there."""
    path = tmp_path / "tensorflow/python/profiler/internal/_pywrap_profiler_plugin.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 10**6)
    slimmed(tmp_path)
    assert not path.exists()
    spec = importlib.util.spec_from_file_location("plugin", path.with_suffix(".py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function in (module.trace, module.monitor):
        with pytest.raises(NotImplementedError, match="is not in this image"):
            function("localhost:1", 1)
