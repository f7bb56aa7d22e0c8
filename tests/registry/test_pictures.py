from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedpipe.errors import DataError
from fedpipe.registry.card import Spread
from fedpipe.registry.pictures import read_picture
from fedpipe.registry.prediction import TensorSpec

GREY = TensorSpec("x", np.dtype(np.float32), (None, 2, 2, 1))
COLOUR = TensorSpec("x", np.dtype(np.float32), (None, 2, 2, 3))
BYTES = TensorSpec("x", np.dtype(np.uint8), (None, 2, 2, 3))
SHARES = np.array([[0, 0.2], [0.6, 1]])
DEEP = np.rint(SHARES * 65535).astype(np.uint16)
SHALLOW = np.rint(SHARES * 255).astype(np.uint8)


def saved(image: Image.Image, folder: Path, name: str = "p.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def shallow(mode: str) -> Image.Image:
    return Image.fromarray(SHALLOW).convert(mode)


def palette() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    image.putdata([0, 1, 2, 3])
    image.putpalette([level for share in SHARES.ravel() for level in [round(255 * share)] * 3])
    return image


@pytest.mark.parametrize(
    "image",
    [
        shallow("L"), shallow("RGB"), shallow("LA"), shallow("RGBA"), palette(),
        Image.fromarray(DEEP),
        Image.frombytes("I;16B", (2, 2), DEEP.astype(">u2").tobytes()),
    ],
    ids=["L", "RGB", "LA", "RGBA", "P", "I;16", "I;16B"],
)  # fmt: skip
def test_every_mode_gives_the_same_grey_and_colour(image: Image.Image, tmp_path: Path) -> None:
    path = saved(image, tmp_path)
    np.testing.assert_allclose(read_picture(path, GREY)[0, :, :, 0], SHARES, atol=1e-6)
    for channel in range(3):
        np.testing.assert_allclose(read_picture(path, COLOUR)[0, :, :, channel], SHARES, atol=1e-6)
    np.testing.assert_array_equal(read_picture(path, BYTES)[0, :, :, 1], SHALLOW)
    spread = Spread(minimum=-1, maximum=3, mean=0, deviation=1)
    np.testing.assert_allclose(read_picture(path, GREY, spread)[0, :, :, 0], 4 * SHARES - 1, atol=1e-5)


def png(samples: Any, depth: int, colour: int, palette: bytes = b"") -> bytes:
    """Returns a PNG file of any bit depth and colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = np.shape(samples)[:2]
    rows = [np.ravel(row) for row in np.asarray(samples)]
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = ["".join(f"{value:0{depth}b}" for value in row) for row in rows]
        lines = [bytes(int(row[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(row), 8)) for row in bits]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    pieces = [chunk(b"IHDR", head), *([chunk(b"PLTE", palette)] if palette else []), chunk(b"IDAT", body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*pieces, chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6)]
)
def test_every_bit_depth_and_colour_type(depth: int, colour: int, tmp_path: Path) -> None:
    white = 2**depth - 1
    shares = np.rint(np.array([[0, 1 / 3], [2 / 3, 1]]) * white).astype(int)
    channels = {0: 1, 2: 3, 4: 1, 6: 3}[colour]
    samples = np.repeat(shares[..., np.newaxis], channels, axis=2)
    if colour in (4, 6):
        samples = np.concatenate([samples, np.full((2, 2, 1), white)], axis=2)
    (tmp_path / "p.png").write_bytes(png(samples, depth, colour))
    for spec in (GREY, COLOUR):
        found = read_picture(tmp_path / "p.png", spec)
        np.testing.assert_allclose(found[0, :, :, 0], shares / white, atol=1 / 255 if depth == 16 else 1e-6)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_of_every_bit_depth(depth: int, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(png([[0, 1], [1, 0]], depth, 3, bytes([0, 0, 0, 255, 255, 255])))
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png", GREY)[0, :, :, 0], [[0, 1], [1, 0]])


def test_black_and_white(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1"), tmp_path)
    np.testing.assert_array_equal(read_picture(path, GREY)[0, :, :, 0], [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), {}),
        (Image.new("LA", (2, 2), (0, 0)), {}),
        (Image.new("L", (2, 2), 0), {"transparency": 0}),
        (Image.new("RGB", (2, 2), (1, 2, 3)), {"transparency": (1, 2, 3)}),
        (Image.new("P", (2, 2), 0), {"transparency": 0}),
        (Image.fromarray(np.full((2, 2), 300, np.uint16)), {"transparency": 300}),
    ],
)
def test_transparent_pixels_lie_on_white(image: Image.Image, options: dict[str, Any], tmp_path: Path) -> None:
    path = saved(image, tmp_path, **options)
    np.testing.assert_array_equal(read_picture(path, GREY), np.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(read_picture(path, COLOUR), np.ones((1, 2, 2, 3)))


def test_half_transparent_black_is_grey(tmp_path: Path) -> None:
    path = saved(Image.new("RGBA", (2, 2), (0, 0, 0, 51)), tmp_path)
    np.testing.assert_allclose(read_picture(path, GREY), 0.8)


def test_a_deep_picture_is_scaled_by_its_mean(tmp_path: Path) -> None:
    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000
    found = read_picture(saved(Image.fromarray(pixels), tmp_path), GREY)[0, :, :, 0]
    np.testing.assert_allclose(found, pixels.reshape(2, 2, 2, 2).mean(axis=(1, 3)) / 65535, rtol=1e-5)


def test_a_colour_is_grey_by_its_luminance(tmp_path: Path) -> None:
    found = read_picture(saved(Image.new("RGB", (2, 2), (255, 0, 0)), tmp_path), GREY)
    np.testing.assert_allclose(found, 0.299, atol=2e-3)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image = Image.fromarray(np.kron(SHALLOW, np.ones((16, 16), np.uint8)))
    path = saved(image, tmp_path, "p.JPG", exif=exif, quality=95)
    np.testing.assert_allclose(read_picture(path, GREY)[0, :, :, 0], np.rot90(SHARES, -1), atol=0.02)


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.zeros((64, 64), np.uint8)), tmp_path)
    with pytest.raises(DataError, match="the model does not take pictures"):
        read_picture(path, TensorSpec("x", np.dtype(np.float32), (None, 3)))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cannot be read, because .*Save it again as PNG or JPEG"):
        read_picture(path, GREY)
    with pytest.raises(DataError, match="there is no such file"):
        read_picture(tmp_path / "absent.png", GREY)
    for side in (8_000, 20_000):
        with pytest.raises(DataError, match="Scale it down"):
            read_picture(saved(Image.new("1", (side, side)), tmp_path), GREY)


@given(st.binary(max_size=40), st.integers(0, 200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(DEEP).save(buffer, "PNG")
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(buffer.getvalue()[:at] + noise + buffer.getvalue()[at + len(noise) :])
    with contextlib.suppress(DataError):
        assert read_picture(path, GREY).shape == (1, 2, 2, 1)
