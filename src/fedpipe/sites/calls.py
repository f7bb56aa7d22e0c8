"""Forbids system calls to the process of a site that trains, by seccomp: those that namespaces and Landlock let pass.

Sockets could lead out, such as to the host of a virtual machine; pairs of sockets too, if they send datagrams. System V
segments, message queues and keys of the kernel would be left to later code, or be those of others. Modes, owners and
times of files stay as they are, but their changes succeed: copies of files need that. Limits of other processes, such
as the agent, cannot be changed. Ways around all this are closed: io_uring, and the calls of another architecture.

Source: seccomp(2), Linux kernel documentation, userspace-api/seccomp_filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from fedpipe.steps.fence import has_one_thread

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_KIND_OF_SOCKET = 0xF
"""The bits of a socket's type without its flags."""
_ALLOW, _ANSWER = 0x7FFF0000, 0x00050000
_DENY = _ANSWER | errno.EPERM
_X32 = 0x40000000


class _Machine(NamedTuple):
    """An architecture: its number in audits, and the numbers of its calls."""

    audit: int
    socket: int
    pair: int
    limit: int
    lasting: tuple[int, ...]
    shared: tuple[int, ...]
    attributes: tuple[int, ...]
    labels: tuple[int, ...]


_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E, socket=41, pair=53, limit=302,
        lasting=(248, 249, 250, 425),  # add_key request_key keyctl io_uring_setup
        # shmget shmat shmctl, semget semop semctl semtimedop, msgget msgsnd msgrcv msgctl, mq_open mq_unlink
        shared=(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241),
        attributes=(90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280),  # of chmod, chown, utime
        labels=(188, 189, 190, 197, 198, 199, 463, 466, 469),  # of setxattr, removexattr; file_setattr
    ),
    "aarch64": _Machine(
        audit=0xC00000B7, socket=198, pair=199, limit=261, lasting=(217, 218, 219, 425),
        shared=(194, 196, 195, 190, 193, 191, 192, 186, 189, 188, 187, 180, 181),
        attributes=(52, 53, 452, 54, 55, 88), labels=(5, 6, 7, 14, 15, 16, 463, 466, 469),
    ),
}  # fmt: skip


def forbid(network: bool, memory: bool, services: bool) -> bool:
    """Forbid these calls to this process, which has one thread, and to all that it starts, for good.

    Args:
        network: it has a network of its own, so it may have sockets of the internet, which lead nowhere.
        memory: it has a shared memory of its own, so it may have segments and queues.
        services: it sees no sockets of services, so it may have sockets in folders.

    Returns:
        Whether the kernel does it.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None or not has_one_thread():
        return False
    families: list[int] = [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK] if network else []
    families += [socket.AF_UNIX] if services else []
    program = b"".join(_program(machine, families, memory))
    content = ctypes.create_string_buffer(program)
    pointer = struct.pack("@HP", len(program) // 8, ctypes.addressof(content))
    prctl = ctypes.CDLL(None).prctl
    return bool(prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and prctl(_SECCOMP, _FILTER, pointer, 0, 0) == 0)


def _program(machine: _Machine, families: list[int], memory: bool) -> Iterator[bytes]:
    """Yield the instructions of the filter; each has a code, two relative jumps, and a number."""
    yield _step(_LOAD, _ARCHITECTURE)
    yield _step(_EQUAL, machine.audit, 1, 0)
    yield _step(_RETURN, _DENY)
    yield _step(_LOAD, _NUMBER)
    yield _step(_AT_LEAST, _X32, 0, 1)
    yield _step(_RETURN, _DENY)
    yield from _answered(machine.lasting + (() if memory else machine.shared), _DENY)
    yield from _answered(machine.attributes, _ANSWER)
    yield from _answered(machine.labels, _ANSWER | errno.EOPNOTSUPP)
    yield from _only(machine.socket, families)
    if socket.AF_UNIX not in families:
        yield from _connected(machine.pair)
    yield from _only(machine.limit, [0])  # this process itself
    yield _step(_RETURN, _ALLOW)


def _answered(calls: tuple[int, ...], answer: int) -> Iterator[bytes]:
    for call in calls:
        yield _step(_EQUAL, call, 0, 1)
        yield _step(_RETURN, answer)


def _only(call: int, firsts: list[int]) -> Iterator[bytes]:
    """Allow a call with one of these numbers as its first argument only."""
    yield _step(_EQUAL, call, 0, 2 * len(firsts) + 2)
    yield _step(_LOAD, _FIRST_ARGUMENT)
    for first in firsts:
        yield _step(_EQUAL, first, 0, 1)
        yield _step(_RETURN, _ALLOW)
    yield _step(_RETURN, _DENY)


def _connected(call: int) -> Iterator[bytes]:
    """Allow a pair of sockets in folders that send to each other only: streams, or packets in their order."""
    yield _step(_EQUAL, call, 0, 8)
    yield _step(_LOAD, _FIRST_ARGUMENT)
    yield _step(_EQUAL, socket.AF_UNIX, 0, 5)
    yield _step(_LOAD, _SECOND_ARGUMENT)
    yield _step(_AND, _KIND_OF_SOCKET)
    yield _step(_EQUAL, socket.SOCK_STREAM, 1, 0)
    yield _step(_EQUAL, socket.SOCK_SEQPACKET, 0, 1)
    yield _step(_RETURN, _ALLOW)
    yield _step(_RETURN, _DENY)


def _step(code: int, number: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("@HBBI", code, if_true, if_false, number)
