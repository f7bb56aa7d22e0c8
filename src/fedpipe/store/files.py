"""Writes files that appear only once they are complete."""

from __future__ import annotations

import os
from pathlib import Path

from fedpipe.errors import InputError


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Writes a temporary file in the same folder and renames it.

    Args:
        path: of the file.
        data: its bytes.
        mode: its permissions, which the umask restricts.

    Raises:
        InputError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
