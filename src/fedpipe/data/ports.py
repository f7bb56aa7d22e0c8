"""The inputs and outputs of a model, and the arrays of a tree that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedpipe.data.trees import Array, Tree, are_strings, leaves
from fedpipe.errors import ModelError
from fedpipe.rounds.plan import Port

TEXT = "string"
"""The dtype of a port that takes text."""


def ports_of(tree: Tree, name: str = "input") -> tuple[Port, ...]:
    """Returns ports that take a tree's arrays: with the names of a dict, numbered for a tuple.

    >>> ports_of(np.zeros((5, 3), np.float32))
    (Port(name='input', dtype='float32', shape=(None, 3)),)
    """
    found = []
    for key, leaf in ordered(dict(leaves(tree))).items():
        dtype = TEXT if leaf.dtype == object else leaf.dtype.name
        label = f"{name}_{key}" if key.isdecimal() else key or name
        found.append(Port(label, dtype, (None, *leaf.shape[1:])))
    return tuple(found)


def is_positional(names: Sequence[str]) -> bool:
    """Returns whether names are the positions of a tuple: "0", "1", ..."""
    return set(names) == {str(position) for position in range(len(names))}


def ordered(named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns named values; those of a tuple by their positions, with "10" after "9"."""
    return {key: named[key] for key in sorted(named, key=int)} if is_positional(list(named)) else dict(named)


def chosen(names: Sequence[str], given: Sequence[str], what: str, optional: Sequence[str] = ()) -> dict[str, str]:
    """Returns the given name for each port that has one, in the order of the ports.

    Args:
        names: of the ports.
        given: names of arrays: those of the ports, or "0", "1", ... by position, or "" for an only array.
        what: the kind of arrays, for messages, such as `features`.
        optional: ports that need no array.

    Raises:
        ModelError: names are unknown or missing; the message lists both.
    """
    required = [name for name in names if name not in optional]
    for wanted in (list(names), required):
        if len(given) == 1 and len(wanted) == 1 and given[0] in ("", "0", wanted[0]):
            return {wanted[0]: given[0]}
        if len(given) == len(wanted) and not set(given) & set(names) and is_positional(given):
            return {name: str(position) for position, name in enumerate(wanted)}
    if set(required) <= set(given) <= set(names):
        return {name: name for name in names if name in given}
    found = f"named {_listed(given)}" if any(given) else "one array without a name"
    flaws = [f"{word} {_listed(wrong)}" for word, wrong in (
        ("missing are", [name for name in required if name not in given]),
        ("unknown are", [name for name in given if name and name not in names]),
    ) if wrong and any(given)]  # fmt: skip
    raise ModelError(
        f"the {what} are {found}, but the model has {_listed(names)}{': ' if flaws else ''}{'; '.join(flaws)}",
        remedy=f"Return a dict with these names, or a tuple of {len(required)} arrays in this order."
        if len(names) > 1
        else "Return one array.",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def fed(ports: Sequence[Port], tree: Tree, what: str = "features") -> dict[str, Array]:
    """Returns the array for each input of a model, by the input's name.

    An array without the last dimension of 1 gets it, as Keras does.

    Raises:
        ModelError: a name, a shape or a dtype does not fit; the message has the array and the input.
    """
    arrays = dict(leaves(tree))
    names = chosen([port.name for port in ports], list(arrays), what)
    return {port.name: _fitted(port, arrays[names[port.name]], what, many=len(ports) > 1) for port in ports}


def _fitted(port: Port, array: Array, what: str, *, many: bool) -> Array:
    where = f"{what} {port.name!r}" if many else what
    if (port.dtype == TEXT) != are_strings(array):
        given, taken = ("text", "numbers") if port.dtype != TEXT else ("numbers", "text")
        raise ModelError(
            f"the {where} are {given}, but the model takes {taken} (dtype {port.dtype})",
            remedy="Turn text into numbers first, or begin the model with keras.layers.StringLookup."
            if given == "text" else "Give text, or change the dtype of the model's input.",
        )  # fmt: skip
    shape, rank = port.shape, len(port.shape)
    if array.ndim == rank - 1 and shape[-1] == 1:
        array = array[..., np.newaxis]
    if array.ndim != rank or any(s is not None and s != n for s, n in zip(shape[1:], array.shape[1:], strict=True)):
        raise ModelError(
            f"the {where} have shape {array.shape[1:]}, but the model takes {tuple(shape[1:])}",
            remedy="Change the input or reshape the data.",
        )
    return array


def cast(ports: Sequence[Port], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Returns arrays in the dtypes of their ports."""
    return {p.name: arrays[p.name] if p.dtype == TEXT else arrays[p.name].astype(p.dtype, copy=False) for p in ports}


def made_up(ports: Sequence[Port], count: int, seed: int, words: Sequence[str] = ()) -> dict[str, Array]:
    """Returns random examples for the inputs of a model, by name: numbers from 0 to 1, and the given words.

    >>> made_up([Port("x", "int64", (None, 2))], 3, 0)["x"].shape
    (3, 2)
    """
    generator, found = np.random.default_rng(seed), {}
    for port in ports:
        shape = (count, *(size or 8 for size in port.shape[1:]))
        if port.dtype == TEXT:
            found[port.name] = generator.choice(np.array([*words, ""], object), shape)
        elif np.dtype(port.dtype).kind in "iub":
            found[port.name] = generator.integers(0, 2, shape).astype(port.dtype)
        else:
            found[port.name] = generator.random(shape).astype(port.dtype)
    return found
