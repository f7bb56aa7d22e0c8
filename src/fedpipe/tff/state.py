"""TFF's program state in the store: safetensors, no pickle."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpipe import weights
from fedpipe.errors import CorruptError, NotFoundError
from fedpipe.store import Store
from fedpipe.tff.runtime import federated

_LARGEST = 2**33
"""Bytes of a state that is read into memory."""


def make_state_manager(store: Store, run: str) -> Any:
    """A `tff.program.ProgramStateManager` whose versions are the rounds of a run.

    Args:
        store: the federation's store.
        run: the run's name.
    """
    tff = federated()

    class StateManager(tff.program.ProgramStateManager):  # type: ignore[misc,name-defined]
        """Saves the arrays of a state, in the order of the structure, as one object a version."""

        async def get_versions(self) -> list[int] | None:
            """The versions that are there."""
            found = sorted(int(key.rpartition("/")[2]) for key in store.keys(f"runs/{run}/program/"))
            return found or None

        async def load(self, version: int, structure: Any) -> Any:
            """The state of a version, in this structure. Raises ProgramStateNotFoundError and CorruptError."""
            import tree

            key = state_key(run, version)
            try:
                arrays = weights.loads(store.read(key, limit=_LARGEST).data)
            except NotFoundError as error:
                raise tff.program.ProgramStateNotFoundError(version) from error
            leaves = [np.asarray(leaf) for leaf in tree.flatten(structure)]
            found = [array for _, array in sorted(arrays.items())]
            forms = [[(array.shape, array.dtype) for array in each] for each in (found, leaves)]
            if forms[0] != forms[1]:
                raise CorruptError("the arrays of the state are not what the algorithm keeps", where=key)
            return tree.unflatten_as(structure, [array if array.ndim else array[()] for array in found])

        async def save(self, program_state: Any, version: int) -> None:
            """Writes a version, once. Raises ProgramStateExistsError when another state is there."""
            data = state_bytes(program_state)
            key = state_key(run, version)
            if not store.create(key, data) and store.read(key, limit=_LARGEST).data != data:
                raise tff.program.ProgramStateExistsError(version=version, path=key)

    return StateManager()


def state_key(run: str, version: int) -> str:
    """Where a version of a run's state is."""
    return f"runs/{run}/program/{version}"


def state_bytes(state: Any) -> bytes:
    """The arrays of a state as safetensors, named by their position."""
    import tree

    return weights.dumps({f"{k:06d}": np.asarray(leaf) for k, leaf in enumerate(tree.flatten(state))})
