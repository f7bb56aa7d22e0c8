"""Compares what files claim to hold with the memory of this machine, before they are read: a small file may grow.

A compressed file of 1 MiB may hold 1 GiB, and its headers may claim any number.
"""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedpipe.errors import DataError

_MOST_ARRAYS = 100_000
_MOST_HEADER = 2**20
_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Returns the bytes of memory that this process may still take, by the machine and its container's limit.

    Source: the Linux kernel's documentation, cgroup-v2, interface files `memory.max` and `memory.current`.
    """
    found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        text = Path("/proc/meminfo").read_text()
        found = [int(text.partition("MemAvailable:")[2].split()[0]) * 1024]
    except (OSError, ValueError, IndexError):  # another system
        pass
    try:
        most = (_CGROUP / "memory.max").read_text().strip()
        if most != "max":
            found.append(max(0, int(most) - int((_CGROUP / "memory.current").read_text())))
    except (OSError, ValueError):
        pass
    return min(found)


def check_claim(size: int, where: str) -> None:
    """Checks that this machine has the memory for a file's content of `size` bytes. Raises DataError."""
    if size > (free := free_memory()):
        raise DataError(
            f"it needs {_shown(size)} of memory, but {_shown(free)} are free",
            where=where,
            remedy="Use a part of the data, or a machine with more memory.",
        )


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def check_arrays(file: BinaryIO, where: str) -> None:
    """Checks the headers of an .npz or .npy file against its size and the memory, and rewinds the file.

    Raises:
        DataError: the arrays need more memory than there is.
        ValueError, zipfile.BadZipFile: a header claims another size than its array has.
    """
    if file.read(4) == b"PK\x03\x04":
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_ARRAYS:
                raise ValueError(f"it holds {len(entries)} arrays, but at most {_MOST_ARRAYS} are read")
            check_claim(sum(entry.file_size for entry in entries), where)
            for entry in entries:
                with archive.open(entry) as member:
                    _check_header(member, entry.file_size, entry.filename)
    else:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(0)
        check_claim(size, where)
        _check_header(file, size, "it")
    file.seek(0)


def _check_header(file: Any, size: int, name: str) -> None:
    if file.read(6) != b"\x93NUMPY":
        return  # NumPy names the mistake
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file, max_header_size=_MOST_HEADER)
    claimed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and file.tell() + claimed != size:
        raise ValueError(f"{name} claims {claimed} bytes of values, but has {size - file.tell()}")
