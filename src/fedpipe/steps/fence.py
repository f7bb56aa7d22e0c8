"""Keeps a process from files and processes that hold keys, by Landlock (Linux 5.13 and later).

Landlock restricts the process that asks for it, and all that it starts, for good, without any right. It knows rules
that allow. So all files may be read but those below the given paths: their neighbours, and the neighbours of each
folder on the way to them. Files that are created later directly in one of these folders cannot be read. A fenced
process without rights cannot look into the memory or the environment of a process outside either (`ptrace(2)`).

A process may be confined further. Then it writes in some folders and devices only, and makes no devices. It opens no
TCP connection (Linux 6.7), and sends no signal to processes outside (Linux 6.12).

Source: Linux kernel documentation, userspace-api/landlock.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE = 1 << 2
_WRITE = 1 << 1 | sum(1 << right for right in range(4, 13))
"""Write files, and make or remove entries of folders of each kind."""
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_MAKE_DEVICE = 1 << 6 | 1 << 11
_OF_FILES = 1 << 1 | _TRUNCATE
"""Those of these rights that a file or a device can have."""
_TCP, _SIGNALS, _SCOPES = 0b11, 0b10, 0b11
_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES, _DUMPABLE = 38, 4
FENCED = "FEDPIPE_FENCED"
"""Environment variable: paths that the process may not read."""


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64), ("handled_access_net", ctypes.c_uint64), ("scoped", ctypes.c_uint64),
    )  # fmt: skip


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def fence(secret: Collection[Path], *, writable: Collection[Path] | None = None) -> bool:
    """Forbid this process, and all that it starts, to read these files and folders and to look into other processes.

    Args:
        secret: absolute paths; those that do not exist are ignored.
        writable: the only folders and devices that it may write from now on. Then it opens no TCP connection, and
            signals no process outside. None: it may do as before.

    Returns:
        Whether the kernel does it: for a process of one thread, as others would stay outside.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, _VERSION)
    if version < 1 or not has_one_thread():
        return False
    write = 0
    if writable is not None:
        write = _WRITE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    rules = _Ruleset(
        _READ_FILE | write, _TCP if write and version >= 4 else 0, _SCOPES if write and version >= 6 else 0
    )  # fmt: skip
    size = 8 * (1 + (version >= 4) + (version >= 6))  # older kernels know fewer fields
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return False
    try:
        for path in _readable({path.resolve() for path in secret if path.exists()}):
            _allow(libc, ruleset, path, _READ_FILE)
        for path in writable or ():
            _allow(libc, ruleset, path, write & ~_MAKE_DEVICE if path.is_dir() else write & _OF_FILES)
        return _enforced(libc, ruleset)
    finally:
        os.close(ruleset)


def has_one_thread() -> bool:
    """Return whether this process has no other thread: one would stay outside of what a thread takes on itself."""
    return len(list(Path("/proc/self/task").iterdir())) == 1


def _enforced(libc: ctypes.CDLL, ruleset: int) -> bool:
    """Put a ruleset in force for this thread, and for all that it starts; return whether the kernel does it."""
    return not libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) and not libc.syscall(_RESTRICT_SELF, ruleset, 0)


def fenced_paths() -> list[Path] | None:
    """Return the paths of the environment that this process may not read, and remove them there; None without any."""
    text = os.environ.pop(FENCED, None)
    return None if text is None else [Path(path) for path in text.split(os.pathsep) if path]


def fence_signals() -> bool:
    """Forbid this process, and all that it starts, to signal others; return whether the kernel does it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_CREATE_RULESET, None, 0, _VERSION) < 6:
        return False
    rules = _Ruleset(0, 0, _SIGNALS)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.sizeof(rules), 0)
    if ruleset < 0:
        return False
    try:
        if not _enforced(libc, ruleset):
            return False
    finally:
        os.close(ruleset)
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False


def _readable(secret: Collection[Path]) -> Iterator[Path]:
    """Yield the paths beneath which everything may be read."""
    if not secret:
        yield Path("/")
        return
    hidden = set(secret)
    ways = {parent for path in hidden for parent in path.parents}
    for folder in sorted(way for way in ways if not hidden & {way, *way.parents}):
        for path in folder.iterdir():
            if path not in ways and path not in hidden and not path.is_symlink():
                yield path


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # it is gone, or may not be read anyway
        return
    try:
        rule = _Beneath(rights, handle)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(handle)


def hide_memory() -> None:
    """Keep other processes of the same user from this process's memory and environment, where the kernel can."""
    ctypes.CDLL(None).prctl(_DUMPABLE, 0, 0, 0, 0)
