"""Files that appear only when they are whole."""

from __future__ import annotations

from pathlib import Path

from fedpipe.errors import InputError


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file beside its place and moves it there. Raises InputError when it cannot be written."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
