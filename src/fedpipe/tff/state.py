"""Keep TFF's states in the store, as safetensors instead of pickles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe import weights
from fedpipe.errors import CorruptError, NotFoundError
from fedpipe.store import Store, keys
from fedpipe.store.objects import digest_of
from fedpipe.tff.runtime import federated

Array = npt.NDArray[Any]

_LARGEST = 2**33
"""Largest state that is read into memory, in bytes."""


def make_state_manager(store: Store, run: str) -> Any:
    """Return a `tff.program.ProgramStateManager` whose versions are the rounds of a run.

    Args:
        store: the federation's store.
        run: the run's name.
    """
    tff = federated()

    class StateManager(tff.program.ProgramStateManager):  # type: ignore[misc,name-defined]
        """Saves the arrays of a state, in the order of the structure, as one object a version."""

        async def get_versions(self) -> list[int] | None:
            """Return the versions in the store."""
            found = sorted(int(key.rpartition("/")[2]) for key in store.keys(keys.states(run)))
            return found or None

        async def load(self, version: int, structure: Any) -> Any:
            """Return the state of a version, in this structure. Raises ProgramStateNotFoundError and CorruptError."""
            key = keys.state(run, version)
            try:
                arrays = weights.loads(store.read(key, limit=_LARGEST).data)
            except NotFoundError as error:
                raise tff.program.ProgramStateNotFoundError(version) from error
            return state_of(arrays, structure, where=key)

        async def save(self, program_state: Any, version: int) -> str:
            """Write a version once and return its digest. Raises ProgramStateExistsError when another one exists."""
            data = weights.dumps(named_leaves(program_state))
            key = keys.state(run, version)
            if not store.create(key, data) and store.read(key, limit=_LARGEST).data != data:
                raise tff.program.ProgramStateExistsError(version=version, path=key)
            return digest_of(data)

    return StateManager()


def named_leaves(state: Any) -> dict[str, Array]:
    """Return the leaves of a state, named by their position; text as its bytes."""
    import tree

    return {f"{k:06d}": _array(leaf) for k, leaf in enumerate(tree.flatten(state))}


def _array(leaf: Any) -> Array:
    array = np.asarray(leaf)
    return np.frombuffer(array.item(), np.uint8) if array.dtype.kind in "SO" else array


def state_of(arrays: Mapping[str, Array], structure: Any, *, where: str) -> Any:
    """Return the leaves of `named_leaves` in this structure; the first axis of an array may grow between rounds.

    Raises:
        CorruptError: they belong to another algorithm.
    """
    import tree

    found = [array for _, array in sorted(arrays.items())]
    leaves = tree.flatten(structure)
    if [_form(array) for array in found] != [_form(_array(leaf)) for leaf in leaves]:
        raise CorruptError("the arrays of the state do not fit the algorithm", where=where)
    return tree.unflatten_as(structure, [_leaf(*pair) for pair in zip(found, leaves, strict=True)])


def _form(array: Array) -> tuple[str, int, tuple[int, ...]]:
    return array.dtype.str, array.ndim, array.shape[1:]


def _leaf(array: Array, like: Any) -> Any:
    if np.asarray(like).dtype.kind in "SO":
        return array.tobytes()
    return array if array.ndim else array[()]
