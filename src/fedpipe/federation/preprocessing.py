"""A round's preprocessing as an expression of tf.data: `repeat(5).shuffle(100, seed=1).batch(20)`.

The expression is read, never executed: a chain of known calls with plain numbers, and names of functions of model.py.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from fedpipe.errors import FederationError, ModelError

WHERE = "training.preprocessing"


class Step(NamedTuple):
    """A call of the chain with its arguments by name."""

    name: str
    arguments: dict[str, Any]


# A user may write calls with these signatures; `function` is the name of a function of model.py.
def _repeat(count: int) -> None: ...
def _shuffle(buffer_size: int, seed: int | None = None) -> None: ...
def _batch(batch_size: int, drop_remainder: bool = False) -> None: ...
def _prefetch(buffer_size: int) -> None: ...
def _take(count: int) -> None: ...
def _map(function: str) -> None: ...


CALLS: dict[str, Callable[..., None]] = {
    "map": _map, "take": _take, "shuffle": _shuffle, "repeat": _repeat, "batch": _batch, "prefetch": _prefetch,
}  # fmt: skip


def parse(expression: str) -> tuple[Step, ...]:
    """Parse an expression to its calls, in order.

    >>> [step.name for step in parse("repeat(5).shuffle(100, seed=1).batch(20)")]
    ['repeat', 'shuffle', 'batch']

    Raises:
        FederationError: it is not a chain of known calls; the message lists them.
    """
    try:
        node: ast.AST = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(f"{expression[:80]!r} is not an expression") from error
    steps: list[Step] = []
    while True:
        if not isinstance(node, ast.Call):
            raise _refused(f"{ast.unparse(node)[:80]!r} is not a call")
        if isinstance(node.func, ast.Name):
            steps.append(_step(node.func.id, node))
            break
        if not isinstance(node.func, ast.Attribute):
            raise _refused(f"{ast.unparse(node.func)[:80]!r} is not a call of a name")
        steps.append(_step(node.func.attr, node))
        node = node.func.value
    steps.reverse()
    _check_order(steps)
    return tuple(steps)


def _step(name: str, call: ast.Call) -> Step:
    if name not in CALLS:
        raise _refused(f"there is no {name!r}")
    signature = inspect.signature(CALLS[name], eval_str=True)
    shown = f"{name}({', '.join(str(p).replace(': str', '') for p in signature.parameters.values())})"
    try:
        given = [_value(node) for node in call.args]
        bound = signature.bind(*given, **{str(k.arg): _value(k.value) for k in call.keywords})
    except TypeError as error:
        raise _refused(f"{name}: {error}; write {shown}") from error
    bound.apply_defaults()
    for parameter, value in bound.arguments.items():
        kind = signature.parameters[parameter].annotation
        if not _fits(value, kind):
            raise _refused(f"{name}: {parameter} cannot be {value!r}; write {shown}")
    return Step(name, dict(bound.arguments))


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return node
    raise TypeError(f"{ast.unparse(node)[:40]!r} is neither a number nor a name")


def _fits(value: Any, kind: Any) -> bool:
    if kind is str:
        return isinstance(value, ast.Name)
    if kind is bool:
        return isinstance(value, bool)
    optional = kind is not int  # a seed: it may be missing, or 0
    if value is None:
        return optional
    least = 0 if optional else 1
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def _check_order(steps: list[Step]) -> None:
    names = [step.name for step in steps]
    if names.count("batch") > 1:
        raise _refused("batch is listed twice")
    if "batch" in names and set(names[names.index("batch") + 1 :]) - {"prefetch", "take", "repeat"}:
        raise _refused("after batch, only take, repeat and prefetch may follow")


def _refused(what: str) -> FederationError:
    return FederationError(
        what, where=WHERE,
        remedy=f"Chain calls of {', '.join(CALLS)}, such as `repeat(5).shuffle(100, seed=1).batch(20).prefetch(10)`.",
    )  # fmt: skip


def applied(steps: tuple[Step, ...], dataset: Any, module: ModuleType, *, batch_size: int, seed: int) -> Any:
    """Apply the calls to a dataset of single (x, y), and return it in batches.

    Args:
        steps: of the expression.
        dataset: a tf.data.Dataset.
        module: model.py, for `map`.
        batch_size: used when the expression has no `batch`.
        seed: used by a `shuffle` without one.

    Raises:
        ModelError: model.py has no such function.
    """
    for name, arguments in steps:
        if name == "map":
            dataset = dataset.map(function_of(module, arguments["function"].id))
        elif name == "shuffle":
            chosen = seed if arguments["seed"] is None else arguments["seed"]
            dataset = dataset.shuffle(arguments["buffer_size"], seed=chosen)
        else:
            dataset = getattr(dataset, name)(**arguments)
    return dataset if any(step.name == "batch" for step in steps) else dataset.batch(batch_size)


def function_of(module: ModuleType, name: str) -> Callable[..., Any]:
    """Return a function of model.py that takes (x, y) and returns them changed. Raises ModelError."""
    found: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(found):
        raise ModelError(
            f"there is no function {name!r}", where=WHERE, remedy="Define it in model.py: (x, y) -> (x, y)."
        )
    return found


def check_functions(steps: tuple[Step, ...], module: ModuleType) -> None:
    """Check that model.py has the functions of `map`. Raises ModelError."""
    for step in steps:
        if step.name == "map":
            function_of(module, step.arguments["function"].id)
