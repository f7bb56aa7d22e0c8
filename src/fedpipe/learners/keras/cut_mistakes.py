"""Mistakes in the parts of a cut network, which are found before it is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from fedpipe.errors import ModelError
from fedpipe.frameworks import frameworks
from fedpipe.learners.cut import BOTTOM, TOP
from fedpipe.learners.keras.gradients import inner
from fedpipe.learners.keras.structure import Side
from fedpipe.learners.user_code import find_function
from fedpipe.rounds.plan import Port

SENT = "float32"
"""The dtype of activations and gradients; fewer bytes are a matter of the exchange."""


def maker(module: ModuleType, part: str) -> Callable[[], Any]:
    """Return a function without parameters that makes a part by the user's function. Raises ModelError."""
    if part == TOP:
        return _function(module, TOP)
    party = part.removeprefix(f"{BOTTOM}-")
    bottom = _function(module, BOTTOM, party)

    def make() -> Any:
        made = bottom(party)
        if made is None:
            raise ModelError(
                f'bottom("{party}") returns None, but {party} holds features', where="model.py",
                remedy="Return the part of every party with features.",
            )  # fmt: skip
        return made

    make.__name__ = BOTTOM
    return make


def _function(module: ModuleType, name: str, *arguments: str) -> Callable[..., Any]:
    """Return the user's function, which takes these arguments. Raises ModelError."""
    function: Callable[..., Any] = find_function(module, name)
    form = f"Define it as `def {name}({'party' if arguments else ''})`."
    if isinstance(function, frameworks()[1].Model):
        raise ModelError(f"{name} is a model, not a function that makes one", where="model.py", remedy=form)
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        given = "the name of a party" if arguments else "no argument"
        raise ModelError(f"{name}() cannot be called with {given}: {error}", where="model.py", remedy=form) from error
    except ValueError:  # of a built-in function
        pass
    return function


def shown(part: str) -> str:
    """Return the call that makes a part: `bottom("alice")` or `top()`."""
    return f"{TOP}()" if part == TOP else f'{BOTTOM}("{part.removeprefix(f"{BOTTOM}-")}")'


def check_part(part: str, model: Any, taken: Side, given: Side) -> None:
    """Check that a part takes and returns one tensor, and leaves its steps to fedpipe. Raises ModelError."""
    if part != TOP and len(taken.ports) != 1:
        names = ", ".join(taken.names)
        raise ModelError(
            f"{shown(part)} has several inputs: {names}", where="model.py", remedy="Take one tensor of features."
        )
    if part != TOP and not taken.single:
        what = f"{shown(part)} takes a list or dict of tensors"
        raise ModelError(what, where="model.py", remedy="Take one tensor of features.")
    if len(given.ports) != 1 or not (given.single or part == TOP):
        kind = "several tensors" if len(given.ports) != 1 else "a list or dict of tensors"
        raise ModelError(f"{shown(part)} returns {kind}", where="model.py", remedy="Return one tensor.")
    if type(model).train_step is not frameworks()[1].Model.train_step:
        raise ModelError(
            f"{shown(part)} has a train_step() of its own, which the parties do not call", where="model.py",
            remedy="Remove it: a batch of a cut network crosses the parties.",
        )  # fmt: skip
    if getattr(inner(model.optimizer), "use_ema", False):
        raise ModelError(
            f"the optimizer of {shown(part)} has use_ema, whose averages would replace the weights in the end",
            where="model.py", remedy="Compile it without use_ema.",
        )  # fmt: skip


def check_apart(parts: Mapping[str, Any]) -> None:
    """Check that no two parts have weights in common. Raises ModelError."""
    holders: dict[int, str] = {}
    for part, model in parts.items():
        for variable in model.variables:
            if (other := holders.setdefault(id(variable), part)) != part:
                raise ModelError(
                    f"{shown(other)} and {shown(part)} share {variable.path!r}", where="model.py",
                    remedy="Make new layers in each call: every party has weights of its own.",
                )  # fmt: skip


def check_fits(party: str, found: Any, port: Port) -> None:
    """Check that the output of a bottom is what the top takes. Raises ModelError."""
    shape = tuple(found.shape)
    if shape[1:] != port.shape[1:] or str(found.dtype) != port.dtype:
        raise ModelError(
            f'bottom("{party}") returns {found.dtype} {list(shape[1:])} a row, but top() takes {port.dtype} '
            f"{list(port.shape[1:])}",
            where="model.py",
            remedy="Give both the same shape and dtype.",
        )
    if port.dtype != SENT:
        raise ModelError(
            f'bottom("{party}") returns {port.dtype}, but parties send each other {SENT}', where="model.py",
            remedy=f"Give its last layer, and the input of top(), the dtype {SENT}.",
        )  # fmt: skip
    if None in shape[1:]:
        raise ModelError(
            f'the size of a row of bottom("{party}") is not known: {list(shape[1:])}', where="model.py",
            remedy="Give its input a shape without free dimensions.",
        )  # fmt: skip


def order_of(inputs: Side, parties: tuple[str, ...]) -> tuple[int, ...]:
    """Return the place of each party's activations among the inputs of the top. Raises ModelError."""
    names = inputs.names
    if len(names) != len(parties):
        hold = "1 party holds" if len(parties) == 1 else f"{len(parties)} parties hold"
        raise ModelError(
            f"top() takes {len(names)} inputs, but {hold} features: {', '.join(parties)}",
            where="model.py",
            remedy="Give it one input for each of them.",
        )
    if set(names) == set(parties):
        return tuple(names.index(party) for party in parties)
    for name, party in zip(names, parties, strict=True):
        if name.lower() != party and name.lower() in parties:
            raise ModelError(
                f"top() has an input {name!r} in the place of {party}, and not all inputs have the names of parties",
                where="model.py", remedy=f"Name them {', '.join(parties)}, or none of them after a party.",
            )  # fmt: skip
    return tuple(range(len(names)))
