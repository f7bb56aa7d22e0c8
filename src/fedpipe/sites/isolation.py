"""Takes network, memory and cores from the process of a site that trains, before it imports anything large.

The process does this to itself as its first act: a new user namespace needs a process with one thread.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000


def leave_network() -> bool:
    """Move this process to a network namespace of its own, which has no way out.

    Returns:
        Whether the system allows it: to root, and to others where user namespaces are not forbidden.

    Source: namespaces(7), user_namespaces(7).
    """
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_NET) == 0:
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, text in maps.items():
            try:
                Path(f"/proc/self/{name}").write_text(text)
            except OSError:
                return True  # it is nobody now, and still without a network
        return True
    return bool(libc.unshare(_NEW_NET) == 0)


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
