"""Takes network, files, memory, devices and cores from the process of a site that trains, before it imports much.

The process does this to itself as its first act, while it has one thread. A user namespace needs that, and Landlock and
seccomp would leave other threads outside, such as those of NumPy. Its parent stays to end all that it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from fedpipe.sites.calls import forbid
from fedpipe.steps.fence import fence, fence_signals, fenced_paths

_NEW_MOUNT, _NEW_IPC, _NEW_USER, _NEW_NET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_DEATH_SIGNAL, _SUBREAPER = 1, 36
_NO_SETUID, _NO_DEVICES, _RECURSIVE, _SLAVE = 2, 4, 1 << 14, 1 << 19
_DEV = Path("/dev")
SHARED = _DEV / "shm"
"""The folder of POSIX shared memory, and of the semaphores of `multiprocessing`."""
_USABLE = ("null", "zero", "full", "random", "urandom")
_GPUS = ("nvidia*", "nvidia-caps/*", "dri/render*", "kfd", "accel*")
"""Devices that training needs: those of each system, and GPUs."""
_RUN = Path("/run")
"""The folder of sockets by which services of the machine are asked, such as to look up names."""


class Apart(NamedTuple):
    """Whether this process has left the network, has a shared memory of its own, and sees no sockets of services."""

    network: bool
    memory: bool
    services: bool


class Devices(NamedTuple):
    """The entries of /dev that training may write, and those that it may not even read."""

    usable: list[Path]
    hidden: list[Path]


class Isolation(Struct, frozen=True):
    """The first message of the process: what is in force.

    Args:
        files: it cannot read files with keys, and writes in its scratch folder, its shared memory and few devices only.
        network: it has none.
    """

    files: bool
    network: bool


def isolate(folder: str, needed: Collection[str], memory: int, cores: int, gpus: int | None) -> Isolation:
    """Take from this process all that it does not need, for good.

    Args:
        folder: the scratch folder, in which it may write.
        needed: as for `leave`.
        memory: as for `leave` and `limit`.
        cores: as for `limit`.
        gpus: the most that it may use; None for all.
    """
    apart = leave(memory, needed)
    limit(memory, cores)
    usable, hidden = devices(apart, needed, gpus)
    files = fence([*(fenced_paths() or ()), *hidden], writable=[Path(folder), *usable])
    # Without the fence, code could take away what covers folders, because its namespace makes it root there.
    forbidden = forbid(apart.network, memory=apart.memory and files, services=apart.services and files)
    return Isolation(files, apart.network or forbidden)


def supervise(agent: int) -> None:
    """Continue in a child of this process. All that is started there ends with it, also what has left its session.

    This process is the parent of those whose own parents have ended. It ends when the child or the agent does, or by
    SIGTERM. Where the kernel keeps its signals to these processes, it ends all in one call. Forks cannot outrun that.

    Args:
        agent: the parent of this process.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG; kill(2).
    """
    libc, here = ctypes.CDLL(None), os.getpid()
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    is_fenced = fence_signals()
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
    threading.Thread(target=_end_with, args=(agent, child), daemon=True).start()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0] != child:
            pass
        while True:
            for process in [-1] if is_fenced else _children(here):
                _kill(process)
            options = 0  # wait for one, and take the others that have ended
            while os.waitpid(-1, options)[0]:
                options = os.WNOHANG
    os._exit(0)


def _end_with(agent: int, child: int) -> None:
    """End the child when the agent has ended, however that happened."""
    try:
        ended = select.poll()
        ended.register(os.pidfd_open(agent), select.POLLIN)
        if os.getppid() == agent:
            ended.poll()
    except OSError:
        if os.getppid() == agent:
            return  # the kernel cannot say; the child sees its pipe closed
    _kill(child)


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
    """Move this process to namespaces of its own: a network without a way out, and empty folders of shared things.

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
        return Apart(network=False, memory=False, services=False)
    if flags & _NEW_USER:
        _keep_identity(user, group)
    own = bool(flags & _NEW_MOUNT) and libc.mount(b"none", b"/", None, _RECURSIVE | _SLAVE, None) == 0
    return Apart(
        network=True,
        memory=own and not _is_in(SHARED, needed) and _covered(libc, SHARED, memory),
        services=own and not _is_in(_RUN, [*needed, sys.prefix, sys.base_prefix]) and _covered(libc, _RUN),
    )


def _keep_identity(user: int, group: int) -> None:
    maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
    for name, text in maps.items():
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError:
            return  # it is nobody now


def _covered(libc: ctypes.CDLL, folder: Path, memory: int = 0) -> bool:
    """Cover a folder by an empty one in memory, and return whether the system allows it."""
    options = f"mode=1777{f',size={memory}' if memory else ''}".encode()
    return bool(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", _NO_SETUID | _NO_DEVICES, options) == 0)


def _is_in(folder: Path, paths: Collection[str]) -> bool:
    return any(Path(path).resolve().is_relative_to(folder.resolve()) for path in paths if path)


def devices(apart: Apart, needed: Collection[str], gpus: int | None = None) -> Devices:
    """Return the devices that this process may use, with its own shared memory, and all others.

    Args:
        apart: what this process has left.
        needed: as for `leave`.
        gpus: 0 for no GPU.
    """
    patterns = _USABLE if gpus == 0 else (*_USABLE, *_GPUS)
    usable = [path.resolve() for pattern in patterns for path in _DEV.glob(pattern) if path.is_char_device()]
    if apart.memory:
        usable.append(SHARED)
    seen = {*usable, *(path.parent for path in usable), *([SHARED] if _is_in(SHARED, needed) else [])}
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
