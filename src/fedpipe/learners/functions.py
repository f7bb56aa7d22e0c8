"""A user's functions for a custom learner: how they are called, and what they may return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from fedpipe.errors import FedpipeError, ModelError
from fedpipe.learners.framework import Arrays
from fedpipe.learners.user_code import described, failed, is_stop
from fedpipe.suggestion import suggestion

_FILE = "model.py"


class Function:
    """A function of the user, which gets those of the offered keywords that it has parameters for.

    Args:
        name: of the function.
        function: the user's.
        positional: names of the arguments that it always gets, in order.
        offered: names of keywords that it may have.

    Raises:
        ModelError: it cannot be called so.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], positional: tuple[str, ...], offered: tuple[str, ...] = ()
    ) -> None:
        self.name, self._function, self._offered = name, function, offered
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some that are written in C
            signature = inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in positional])
        parameters = list(signature.parameters.values())
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        taken = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
        try:
            bound = signature.bind_partial(*positional).arguments
            self._named = {name for name in taken if name not in bound}
            required = {p.name for p in parameters if p.name in self._named and p.default is p.empty}
            signature.bind(*positional, **dict.fromkeys(required & set(offered)))
        except TypeError as error:
            more = f", *, {', '.join(offered)}" if offered else ""
            raise ModelError(
                f"{name}() cannot be called with {', '.join(positional)}, because of {_told(error)}", where=_FILE,
                remedy=f"Write def {name}({', '.join(positional)}{more}){'; keywords are optional' if more else ''}.",
            ) from error  # fmt: skip

    @classmethod
    def of(
        cls, given: Callable[[str], Any], owner: str, name: str, positional: tuple[str, ...],
        offered: tuple[str, ...] = (),
    ) -> Function:  # fmt: skip
        """Return the function of that name.

        Args:
            given: returns what the user's object has by a name, or None.
            owner: that object, for messages.
            name: of the function.
            positional: see the class.
            offered: see the class.

        Raises:
            ModelError: there is none.
        """
        function = given(name)
        if not callable(function):
            what = "has no function" if function is None else f"has {type(function).__name__} instead of a function"
            raise ModelError(
                f"the learner of {owner} {what} {name!r}", where=_FILE,
                remedy="Give it initial_weights, train, evaluate and predict, as docs/frameworks.md describes.",
            )  # fmt: skip
        return cls(name, function, positional, offered)

    def takes(self, name: str) -> bool:
        """Return whether it has a parameter for a keyword."""
        return self._open or name in self._named

    def check_more(self, names: Collection[str], where: str) -> None:
        """Check that it has parameters for a user's further keywords.

        Args:
            names: the keywords.
            where: the key of the federation file that has them.

        Raises:
            ModelError: it has none, or fedpipe gives the keyword itself.
        """
        for name in names:
            if name in self._offered:
                raise ModelError(f"fedpipe gives {name!r} to {self.name}()", where=f"{where}.{name}",
                                 remedy="Remove it, and set the key of `training` instead.")  # fmt: skip
            if not self.takes(name):
                free = sorted(self._named - set(self._offered))
                raise ModelError(
                    f"{self.name}() of model.py has no parameter {name!r}", where=f"{where}.{name}",
                    remedy=suggestion(name, free) if free else "Add it, or remove the key.",
                )  # fmt: skip

    def __call__(self, *arguments: Any, **offered: Any) -> Any:
        """Call the function. Raises ModelError when it fails; with the line."""
        try:
            return self._function(*arguments, **{name: v for name, v in offered.items() if self.takes(name)})
        except FedpipeError:
            raise
        except BaseException as error:
            if is_stop(error):
                raise
            raise failed(self.name, error) from error


def _told(error: TypeError) -> str:
    return str(error).replace("missing a required argument", "the required parameter").removeprefix("got ")


def named_arrays(value: Any, where: str) -> Arrays:
    """Return what a user's function returned as arrays by name.

    Args:
        value: a mapping of names to arrays, or to all that NumPy takes for one, such as tensors on the CPU.
        where: the function, for messages.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        what = f"{type(value).__name__}" if not isinstance(value, Mapping) else "an empty mapping" if not value else (
            "a mapping whose keys are not all names")  # fmt: skip
        raise ModelError(
            f"{where} returns {what}, not arrays by name", where=_FILE,
            remedy='Return a dict such as {"kernel": array, "bias": array}.',
        )  # fmt: skip
    found = {}
    for name, given in value.items():
        try:
            array = np.asarray(given)
        except Exception as error:  # of the framework that the user has chosen
            raise ModelError(
                f"{where} returns {type(given).__name__} as {name!r}, not an array, because {described(error)}",
                where=_FILE, remedy="Return NumPy arrays; of a tensor, use detach().cpu().numpy().",
            ) from error  # fmt: skip
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise ModelError(
                f"{where} returns {type(given).__name__} as {name!r}, not an array of numbers", where=_FILE,
                remedy="Return NumPy arrays of numbers.",
            )  # fmt: skip
        found[name] = array
    return found


def checked_metrics(value: Any, where: str, names: Collection[str] = ()) -> dict[str, float]:
    """Return the metrics that a user's function returned as numbers by name.

    Args:
        value: a mapping of names to numbers.
        where: the function, for messages.
        names: the expected names; none if any are right.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise ModelError(
            f"{where} returns {type(value).__name__}, not metrics by name", where=_FILE,
            remedy='Return a dict such as {"loss": 0.3, "accuracy": 0.9}.',
        )  # fmt: skip
    found = {}
    for name, number in value.items():
        try:
            found[str(name)] = float(number)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{where} returns {type(number).__name__} as the metric {name!r}, not a number", where=_FILE,
                remedy="Return one number for each metric.",
            ) from error  # fmt: skip
    if names and found.keys() != set(names):
        raise ModelError(
            f"{where} returns {', '.join(sorted(found)) or 'no metric'}, but the learner's metrics are "
            f"{', '.join(sorted(names))}", where=_FILE,
            remedy=f"Set metrics = {tuple(found)!r} in the learner." if "loss" in found else "Return a loss too.",
        )  # fmt: skip
    return {name: found[name] for name in names} if names else found
