"""Stores TFF's states, as safetensors without pickle."""

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
"""Most bytes of a state, which is read into memory."""


def make_state_manager(store: Store, run: str) -> Any:
    """Returns a `tff.program.ProgramStateManager` whose versions are the rounds of a run.

    Args:
        store: the federation's folder of the store.
        run: the run's name.
    """
    tff = federated()

    class StateManager(tff.program.ProgramStateManager):  # type: ignore[misc,name-defined]
        """Saves the arrays of a state, in the order of its structure, as one object per version."""

        async def get_versions(self) -> list[int] | None:
            """Lists the stored versions; None without any."""
            versions = sorted(int(key.rpartition("/")[2]) for key in store.keys(keys.states(run)))
            return versions or None

        async def load(self, version: int, structure: Any) -> Any:
            """Loads the state of a version, in this structure. Raises ProgramStateNotFoundError and CorruptError."""
            key = keys.state(run, version)
            try:
                arrays = weights.loads(store.read(key, limit=_LARGEST).data)
            except NotFoundError as error:
                raise tff.program.ProgramStateNotFoundError(version) from error
            return state_of(arrays, structure, where=key)

        async def save(self, program_state: Any, version: int) -> str:
            """Writes a version once and returns its digest. Raises ProgramStateExistsError if another one exists."""
            data = weights.dumps(named_leaves(program_state))
            key = keys.state(run, version)
            if not store.create(key, data) and store.read(key, limit=_LARGEST).data != data:
                raise tff.program.ProgramStateExistsError(version=version, path=key)
            return digest_of(data)

    return StateManager()


def named_leaves(state: Any) -> dict[str, Array]:
    """Returns the leaves of a state, named by their position; a text becomes its bytes."""
    import tree

    return {f"{k:06d}": _array(leaf) for k, leaf in enumerate(tree.flatten(state))}


def _array(leaf: Any) -> Array:
    array = np.asarray(leaf)
    return np.frombuffer(array.item(), np.uint8) if array.dtype.kind in "SO" else array


def state_of(arrays: Mapping[str, Array], structure: Any, *, where: str) -> Any:
    """Returns a state of this structure from the arrays of `named_leaves`.

    The length of an array's first axis may differ, because it may grow from round to round.

    Args:
        arrays: arrays by the position of their leaf.
        structure: a state with the same structure.
        where: the key of the state in messages.

    Raises:
        CorruptError: the arrays belong to another algorithm.
    """
    import tree

    stored = [array for _, array in sorted(arrays.items())]
    leaves = tree.flatten(structure)
    if [_form(array) for array in stored] != [_form(_array(leaf)) for leaf in leaves]:
        raise CorruptError("the arrays of the state do not fit the algorithm", where=where)
    return tree.unflatten_as(structure, [_leaf(*pair) for pair in zip(stored, leaves, strict=True)])


def _form(array: Array) -> tuple[str, int, tuple[int, ...]]:
    return array.dtype.str, array.ndim, array.shape[1:]


def _leaf(array: Array, like: Any) -> Any:
    if np.asarray(like).dtype.kind in "SO":
        return array.tobytes()
    return array if array.ndim else array[()]
