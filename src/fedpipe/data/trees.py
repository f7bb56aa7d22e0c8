"""Features and labels of several arrays: a tree is one array, or a dict of arrays by name, with a row per example.

A tuple or list of arrays becomes a dict with the keys "0", "1", ... Strings are arrays of dtype object that hold `str`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.errors import CorruptError, DataError

Array = npt.NDArray[Any]
Tree = Array | dict[str, Array]


def tree_of(value: Any, what: str, where: str) -> Tree:
    """Returns a user's value as a tree.

    Args:
        value: an array, a mapping of names to arrays, or a tuple of several arrays; anything that NumPy takes.
        what: what it holds, for messages, such as `features`.
        where: its origin, for messages.

    Raises:
        DataError: it is ragged, empty, or holds other objects than numbers and strings.
    """
    if isinstance(value, tuple):
        value = {str(position): leaf for position, leaf in enumerate(value)}
    if isinstance(value, Mapping):
        if not value:
            raise DataError(f"the {what} are an empty table", where=where, remedy="Return at least one array.")
        return {str(name): _array_of(leaf, f"{what} {str(name)!r}", where) for name, leaf in value.items()}
    return _array_of(value, what, where)


def _array_of(value: Any, what: str, where: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        remedy = "Pad them to one length, or cut them."
        raise DataError(f"the {what} are ragged: the examples differ in shape", where=where, remedy=remedy) from error
    return strings_of(array) if array.dtype.kind in "UST" else array


def strings_of(array: Array) -> Array:
    """Returns an array of text, or of UTF-8 bytes, as an array of dtype object that holds `str`."""
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError("an array of bytes is not text in UTF-8", remedy="Encode texts in UTF-8.") from error
    return array.astype(object)


def are_strings(array: Array) -> bool:
    """Returns whether an array has dtype object and holds text only."""
    return array.dtype == object and all(isinstance(value, str) for value in array.reshape(-1))


def leaves(tree: Tree) -> Iterator[tuple[str, Array]]:
    """Yields the arrays with their names; the only array of a tree has the name ""."""
    if isinstance(tree, dict):
        yield from tree.items()
    else:
        yield "", tree


def mapped(function: Callable[[Array], Any], tree: Tree) -> Any:
    """Returns a tree of the results of a function on each array."""
    return {name: function(leaf) for name, leaf in tree.items()} if isinstance(tree, dict) else function(tree)


def only_array(tree: Tree, what: str) -> Array:
    """Returns the array of a tree that has only one, for code that supports no others. Raises DataError."""
    if isinstance(tree, dict) and len(tree) == 1:
        return next(iter(tree.values()))
    if isinstance(tree, dict):
        raise DataError(f"there are several arrays of {what}, but one is expected here: {', '.join(sorted(tree))}")
    return tree


def length_of(tree: Tree) -> int:
    """Returns the number of examples of a tree; its arrays have the same."""
    return len(next(leaf for _, leaf in leaves(tree)))


def joined(trees: Sequence[Tree]) -> Tree:
    """Returns the rows of several trees of the same names, one after another."""
    first = trees[0]
    if isinstance(first, dict):
        return {name: np.concatenate([_of(tree, name) for tree in trees]) for name in first}
    return np.concatenate([_of(tree, "") for tree in trees])


def _of(tree: Tree, name: str) -> Array:
    return dict(leaves(tree))[name]


def size_in_bytes(tree: Tree) -> int:
    """Returns the bytes of all arrays; of strings only their references count."""
    return sum(leaf.nbytes for _, leaf in leaves(tree))


def pack_strings(array: Array) -> tuple[Array, Array]:
    """Returns strings as UTF-8 bytes, and the end of each string in them, shaped like the strings.

    >>> text, ends = pack_strings(np.array(["a", "bc"], object))
    >>> bytes(text), ends.tolist()
    (b'abc', [1, 3])
    """
    pieces = [value.encode() for value in array.reshape(-1)]
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64).reshape(array.shape)
    return np.frombuffer(b"".join(pieces), np.uint8), ends


def unpack_strings(text: Array, ends: Array, where: str) -> Array:
    """Returns the strings that `pack_strings` packed. Raises CorruptError."""
    flat, data = ends.reshape(-1), text.tobytes()
    starts = np.concatenate([np.zeros(min(1, len(flat)), np.int64), flat[:-1]])
    if text.dtype != np.uint8 or ends.dtype != np.int64 or (flat < starts).any() or int(flat[-1:].sum()) != len(data):
        raise CorruptError("the strings do not fill their bytes", where=where)
    found = np.empty(len(flat), object)
    try:
        found[:] = [data[start:end].decode() for start, end in zip(starts.tolist(), flat.tolist(), strict=True)]
    except UnicodeDecodeError as error:
        raise CorruptError("the strings are not UTF-8", where=where) from error
    return found.reshape(ends.shape)
