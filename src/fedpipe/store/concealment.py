"""Takes keys out of the environment before code of others runs in the process.

Outside of pods, the user's `model.py` runs in the process that reads the store and signs. Anything in `os.environ` is
one line away for it, and for each program that it starts. So workers conceal keys first: this module keeps them, and
`environ` finds them. That does not isolate them. Code in the same process can search its memory. On Linux it can read
the environment that the process was started with. In a pod, another process holds the keys (`fedpipe.store.held`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping

CONCEALED = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FEDPIPE_SECRET_DIR", "FEDPIPE_SIGNING_KEY",
    "FEDPIPE_KEYS", "FEDPIPE_FOUND_KEYS", "FEDPIPE_TOKEN", "FEDPIPE_CLIENT_CERTIFICATE",
)  # fmt: skip
"""Variables that hold keys, or the folders of keys."""

_kept: dict[str, str] = {}
_lock = threading.Lock()
_holders = 0


class _Environ(Mapping[str, str]):
    """The environment, with the variables that were concealed."""

    def __getitem__(self, name: str) -> str:
        return os.environ[name] if name in os.environ else _kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**_kept, **os.environ})

    def __len__(self) -> int:
        return len({**_kept, **os.environ})


environ: Mapping[str, str] = _Environ()
"""The environment for those who need keys."""


def conceal() -> None:
    """Take the keys out of `os.environ`, for the rest of this process or until as many calls of `reveal`."""
    global _holders
    with _lock:
        _holders += 1
        for name in CONCEALED:
            if name in os.environ:
                _kept[name] = os.environ.pop(name)


def reveal() -> None:
    """Put the keys back, if this was the last of those who concealed them."""
    global _holders
    with _lock:
        _holders -= 1
        if not _holders:
            for name, value in _kept.items():
                os.environ.setdefault(name, value)
            _kept.clear()


@contextlib.contextmanager
def concealed() -> Iterator[None]:
    """Take the keys out of `os.environ` for a while."""
    conceal()
    try:
        yield
    finally:
        reveal()


@contextlib.contextmanager
def changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change variables of the environment for a while, in this process and in those that it starts."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
