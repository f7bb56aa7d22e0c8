"""Reads a PNG or JPEG picture of any mode as one example for a model, in grey or colour as the model takes it."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.errors import DataError, one_line
from fedpipe.registry.card import Spread
from fedpipe.registry.prediction import TensorSpec

Array = npt.NDArray[Any]
PICTURES = (".png", ".jpg", ".jpeg")
"""Suffixes of pictures."""
_MOST_PIXELS = 50_000_000
_SCALE_DOWN = f"Scale it down to at most {_MOST_PIXELS} pixels."
_WHITE_16 = 65535


def read_picture(path: Path, wanted: TensorSpec, spread: Spread | None = None) -> Array:
    """Reads a picture, scaled to the size that a model takes.

    Black becomes the smallest value of the training data and white the largest, or 0 and 1 if they are unknown. A model
    of whole numbers gets 0 to 255. Transparent pixels lie on white, and a camera's orientation is applied.

    Args:
        path: a PNG or JPEG file, with 8 or 16 bits.
        wanted: the model's input.
        spread: spread of the values in training.

    Raises:
        DataError: it cannot be read, is too large, or the model does not take pictures.
    """
    height, width, channels = _size_of(wanted, path)
    shares = _shares(path, (width, height), channels).reshape(1, *wanted.shape[1:])
    if wanted.dtype.kind != "f":
        whole: Array = np.rint(shares * 255).astype(wanted.dtype)
        return whole
    low, high = (spread.minimum, spread.maximum) if spread else (0.0, 1.0)
    return low + (high - low) * shares


def _size_of(wanted: TensorSpec, path: Path) -> tuple[int, int, int]:
    shape = wanted.shape[1:]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3) or not (shape[0] and shape[1]):
        remedy = f"Use features of shape {('n', *wanted.shape[1:])}."
        raise DataError("the model does not take pictures", where=str(path), remedy=remedy)
    return shape[0], shape[1], shape[2]


def _shares(path: Path, size: tuple[int, int], channels: int) -> Array:
    """Returns pixels from 0, black, to 1, white."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about large pictures, which are refused below
            image = Image.open(path, formats=["PNG", "JPEG"])
        with image:
            if image.width * image.height > _MOST_PIXELS:
                what = f"the picture is too large: {image.width} x {image.height} pixels"
                raise DataError(what, where=str(path), remedy=_SCALE_DOWN)
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                return _deep_shares(upright, size, channels)
            return np.asarray(_plain(upright, channels).resize(size, Image.Resampling.BOX), np.float64) / 255
    except Image.DecompressionBombError as error:
        raise DataError("the picture has too many pixels", where=str(path), remedy=_SCALE_DOWN) from error
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path), remedy="Check the path.") from error
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error, struct.error, MemoryError) as error:
        why = one_line(getattr(error, "strerror", None) or error)
        if isinstance(error, UnidentifiedImageError):
            why = "its content is neither PNG nor JPEG"
        raise DataError(
            f"the picture cannot be read, because {why}", where=str(path), remedy="Save it again as PNG or JPEG."
        ) from error


def _plain(image: Any, channels: int) -> Any:
    """Returns an image of 8 bits without transparency, in grey or colour."""
    from PIL import Image

    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    if channels == 3:
        return image.convert("RGB")
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def _deep_shares(image: Any, size: tuple[int, int], channels: int) -> Array:
    """Returns the pixels of a grey image of 16 bits; Pillow's own conversion cuts them off at 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float32)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = _WHITE_16
    scaled = np.asarray(Image.fromarray(values / _WHITE_16).resize(size, Image.Resampling.BOX), np.float64)
    return np.repeat(scaled[..., np.newaxis], channels, axis=-1)
