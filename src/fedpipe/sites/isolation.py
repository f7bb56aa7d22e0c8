"""Takes network, shared memory, devices and cores from the process of a site that trains, before it imports much.

The process does this to itself as its first act: a new user namespace needs a process with one thread. Its parent stays
to end all that it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

_NEW_MOUNT, _NEW_IPC, _NEW_USER, _NEW_NET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_DEATH_SIGNAL, _SUBREAPER = 1, 36
_NO_SETUID, _NO_DEVICES, _RECURSIVE, _SLAVE = 2, 4, 1 << 14, 1 << 19
_DEV = Path("/dev")
SHARED = _DEV / "shm"
"""The folder of POSIX shared memory, and of the semaphores of `multiprocessing`."""
_USABLE = (
    "null", "zero", "full", "random", "urandom", "nvidia*", "nvidia-caps/*", "dri/render*", "kfd", "accel*",
)  # fmt: skip
"""Devices that training needs: those of each system, and GPUs."""


class Apart(NamedTuple):
    """Whether this process has left the network, and has a shared memory of its own, which ends with it."""

    network: bool
    memory: bool


class Devices(NamedTuple):
    """The entries of /dev that training may write, and those that it may not even read."""

    usable: list[Path]
    hidden: list[Path]


def supervise() -> None:
    """Continue in a child of this process. All that is started there ends with it, also what has left its session.

    This process is the parent of those whose own parents have ended, and ends when the child does, or by SIGTERM.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG.
    """
    libc, here = ctypes.CDLL(None), os.getpid()
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if not child:
        libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != here:
            os._exit(1)
        return
    signal.signal(signal.SIGTERM, lambda *_: _kill(child))
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) > 2:  # so that the agent sees when the child closes its pipes
            with contextlib.suppress(OSError):
                os.close(int(path.name))
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0] != child:
            pass
    while left := _children(here):
        for process in left:
            _kill(process)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)
    os._exit(0)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    """Return the processes whose parent this is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == parent:  # a name may be of any bytes
                found.append(int(path.parent.name))
    return found


def leave(memory: int, needed: Collection[str]) -> Apart:
    """Move this process to namespaces of its own: a network without a way out, and an empty shared memory.

    Args:
        memory: most bytes of the shared memory; 0: half of the machine's.
        needed: paths of the site that this process reads or writes; with one of them in the shared memory, it keeps
            that of the machine.

    Returns:
        What the system allows: all of it to root, and to others where user namespaces are not forbidden.

    Source: namespaces(7), user_namespaces(7), mount_namespaces(7).
    """
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    more = _NEW_MOUNT | _NEW_IPC
    for flags in (_NEW_USER | _NEW_NET | more, _NEW_USER | _NEW_NET, _NEW_NET | more, _NEW_NET):
        if libc.unshare(flags) == 0:
            break
    else:
        return Apart(network=False, memory=False)
    if flags & _NEW_USER:
        _keep_identity(user, group)
    return Apart(network=True, memory=bool(flags & _NEW_MOUNT) and not _is_shared(needed) and _own_memory(libc, memory))


def _keep_identity(user: int, group: int) -> None:
    maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, text in maps.items():
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError:
            return  # it is nobody now


def _own_memory(libc: ctypes.CDLL, memory: int) -> bool:
    """Cover the machine's shared memory by an empty one, and return whether the system allows it."""
    options = f"mode=1777{f',size={memory}' if memory else ''}".encode()
    private = libc.mount(b"none", b"/", None, _RECURSIVE | _SLAVE, None) == 0
    made = private and libc.mount(b"tmpfs", bytes(SHARED), b"tmpfs", _NO_SETUID | _NO_DEVICES, options) == 0
    return bool(made)


def _is_shared(paths: Collection[str]) -> bool:
    return any(Path(path).resolve().is_relative_to(SHARED.resolve()) for path in paths if path)


def devices(apart: Apart, needed: Collection[str]) -> Devices:
    """Return the devices that this process may use, with its own shared memory, and all others.

    Args:
        apart: what this process has left.
        needed: as for `leave`.
    """
    usable = [path.resolve() for pattern in _USABLE for path in _DEV.glob(pattern) if path.is_char_device()]
    if apart.memory:
        usable.append(SHARED)
    seen = {*usable, *(path.parent for path in usable), *([SHARED] if _is_shared(needed) else [])}
    return Devices(usable, [path for path in _DEV.glob("*") if path not in seen and not path.is_symlink()])


def limit(memory: int, cores: int) -> None:
    """Limit the memory and the cores of this process, for good.

    Args:
        memory: bytes of data; 0 for no limit.
        cores: their number; 0 for all.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of memory would hold data
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if cores:
        mine = sorted(os.sched_getaffinity(0))[:cores]
        os.sched_setaffinity(0, mine)
        os.environ["OMP_NUM_THREADS"] = str(len(mine))
