"""Writes files that appear only once they are complete, and finds obstacles to writing."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
from pathlib import Path

from fedpipe.errors import InputError

SCRATCH = ".fedpipe-tmp"
"""Beginning of the names of incomplete files and folders, which a store does not list."""
_OTHERS = 256
"""Files that a process has open for other purposes."""


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Writes a temporary file in the same folder and renames it.

    Args:
        path: of the file.
        data: its bytes.
        mode: its permissions, which the umask restricts.

    Raises:
        InputError: the file cannot be written.
    """
    if not path.name:
        raise InputError("names no file", where=str(path), remedy="Name a file to write.")
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        remedy = "Choose a file in a folder that exists and can be written."
        raise InputError(f"cannot be written: {error.strerror}", where=str(path), remedy=remedy) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def obstacle(folder: Path) -> str:
    """Return why nothing can be written to a folder, which may not exist yet; empty when something can.

    A file is written to a temporary folder of the same depth, and removed again.
    """
    try:
        there = next(path for path in (folder, *folder.parents) if _exists(path))
        if not there.is_dir():
            return f"{there} is a file, not a folder"
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=there) as temporary:
            inner = Path(temporary) / folder.relative_to(there)
            inner.mkdir(parents=True, exist_ok=True)
            with (inner / "probe").open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        return f"the folder cannot be written: {error.strerror}"
    except ValueError as error:  # such as a zero byte in a name
        return f"the folder has an impossible name: {error}"
    return ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def allow_files(count: int) -> None:
    """Raise the limit of open files and connections of this process, as far as the system allows; it may be 256.

    Args:
        count: of files that are open at once, besides those that any process has.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHERS if most == resource.RLIM_INFINITY else min(count + _OTHERS, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
