"""The structure of a Keras model's inputs and outputs: one tensor, or several by position or by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedpipe.data.ports import TEXT, chosen, fed, is_positional
from fedpipe.data.trees import Array, Tree, leaves, length_of, mapped
from fedpipe.errors import ModelError
from fedpipe.rounds.plan import Port


class Side(NamedTuple):
    """The inputs or the outputs of a model.

    Args:
        ports: each of them, in the order of the model.
        keys: of the dict that the model takes or returns; None for a tuple, and for a single tensor.
        single: whether it is one tensor without a dict or tuple.
        optional: outputs without a loss, which need no labels.
    """

    ports: tuple[Port, ...]
    keys: tuple[str, ...] | None = None
    single: bool = False
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the ports."""
        return [port.name for port in self.ports]

    def packed(self, named: Mapping[str, Any]) -> Any:
        """Return values by name as the model takes them: one value, a tuple, or a dict."""
        values = [named[port.name] for port in self.ports]
        if self.single:
            return values[0]
        return tuple(values) if self.keys is None else dict(zip(self.keys, values, strict=True))

    def flat(self, found: Any) -> list[Any]:
        """Return the values of a model's result, in the order of the ports."""
        if self.single:
            return [found]
        return [found[key] for key in self.keys] if self.keys is not None else list(found)

    def arranged(self, tree: Tree, what: str = "features") -> Any:
        """Return arrays as the model takes them. Raises ModelError when a name, a shape or a dtype does not fit."""
        return self.packed(fed(self.ports, tree, what))

    def labelled(self, y: Tree) -> Any:
        """Return labels as the model's losses take them; 0 for an output without a loss.

        Raises:
            ModelError: a name does not fit.
        """
        arrays = dict(leaves(y))
        names = chosen(self.names, list(arrays), "labels", self.optional)
        missing = np.zeros(length_of(y), np.float32)
        return self.packed({port: arrays[names[port]] if port in names else missing for port in self.names})

    def of_element(self, value: Any, what: str) -> Any:
        """Return a tensor, or a tuple or dict of tensors, as the model takes it. Raises ModelError for wrong names."""
        named = value if isinstance(value, Mapping) else {"": value}
        if isinstance(value, tuple | list):
            named = {str(position): part for position, part in enumerate(value)}
        names = chosen(self.names, list(named), what, self.optional)
        found: dict[str, Any] = {port: named[names[port]] if port in names else np.float32(0) for port in self.names}
        if what == "features":
            found = {port.name: found[port.name][..., None] if self.lacks_last(port, found[port.name].shape)
                     else found[port.name] for port in self.ports}  # fmt: skip
        return self.packed(found)

    @staticmethod
    def lacks_last(port: Port, shape: Any) -> bool:
        """Return whether a single example lacks the last dimension of 1, which `fed` adds to arrays."""
        return port.shape[-1:] == (1,) and shape.rank == len(port.shape) - 2

    def zeros(self, count: int, free: int = 1) -> dict[str, Array]:
        """Return made-up examples: zeros, and empty text; `free` is the size of a free dimension."""
        found: dict[str, Array] = {}
        for port in self.ports:
            shape = (count, *(size or free for size in port.shape[1:]))
            found[port.name] = np.full(shape, "", object) if port.dtype == TEXT else np.zeros(shape, port.dtype)
        return found


def label_zeros(shape: tuple[int, ...] | Mapping[str, tuple[int, ...]], count: int) -> Tree:
    """Return labels of 0 in these shapes: one, or several by name."""
    if isinstance(shape, Mapping):
        return {name: np.zeros((count, *own), np.float32) for name, own in shape.items()}
    return np.zeros((count, *shape), np.float32)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as numbers; one with a number per class becomes several: `f1_score_0`, `f1_score_1`, ...

    >>> scalars({"loss": 0.5, "f1_score": np.array([0.25, 1.0])})
    {'loss': 0.5, 'f1_score_0': 0.25, 'f1_score_1': 1.0}
    """
    found = {}
    for name, value in metrics.items():
        values = np.asarray(value, np.float64)
        if values.size == 1:
            found[name] = float(values.reshape(()))
        else:
            found |= {f"{name}_{k}": float(v) for k, v in enumerate(values.reshape(-1))}
    return found


def tensors(tree: Any, tensorflow: Any) -> Any:
    """Return packed arrays as tensors where TensorFlow does not take them as they are: text."""

    def of(leaf: Array) -> Any:
        return tensorflow.constant(leaf.tolist(), tensorflow.string, leaf.shape) if leaf.dtype == object else leaf

    if isinstance(tree, tuple):
        return tuple(of(leaf) for leaf in tree)
    return mapped(of, tree)


def sides_of(model: Any, inputs: Sequence[Port] = ()) -> tuple[Side, Side]:
    """Return the inputs and outputs of a Keras 3 or Keras 2 model.

    Args:
        model: the Keras model.
        inputs: the examples' arrays, for a model that does not say what it takes: a subclass of keras.Model.

    Raises:
        ModelError: the inputs are not known, or nested.
    """
    if getattr(model, "inputs", None):
        taken, given = _struct(model, "input"), _struct(model, "output")
        return _side(taken, [_tensor_name(v) for v in model.inputs]), _with_losses(
            _side(given, _output_names(model)), model
        )
    ports = tuple(inputs) or _built_ports(model)
    if not ports:
        raise ModelError(
            "the model has no known input", where="model.py",
            remedy="Call it in build() on a keras.Input of the shape of the features, or call its build(shape).",
        )  # fmt: skip
    side = _side_of_ports(ports)
    return side, _with_losses(_traced(model, side), model)


def _struct(model: Any, which: str) -> Any:
    try:
        found = getattr(model, which)
    except AttributeError:  # a Sequential of Keras 3
        found = getattr(model, f"{which}s")
    if isinstance(found, list | tuple) and len(found) == 1 and not _is_listed(model, which):
        return found[0]
    return found


def _is_listed(model: Any, which: str) -> bool:
    """Return whether a model of one input or output was made with a list of it."""
    return isinstance(getattr(model, f"_{which}s_struct", None), list | tuple)


def _side(struct: Any, names: Sequence[str]) -> Side:
    if isinstance(struct, Mapping):
        keys = tuple(sorted(struct))
        return Side(tuple(_port(struct[key], key) for key in keys), keys)
    if isinstance(struct, list | tuple):
        return Side(tuple(_port(v, name) for v, name in zip(struct, _unique(names), strict=True)))
    return Side((_port(struct, names[0]),), single=True)


def _port(value: Any, name: str) -> Port:
    if isinstance(value, list | tuple | Mapping):
        raise ModelError(
            "the inputs or outputs of the model are nested", where="model.py",
            remedy="Use one tensor, a list of tensors, or a dict of tensors.",
        )  # fmt: skip
    dtype = value.dtype if isinstance(value.dtype, str) else value.dtype.name
    return Port(name, TEXT if dtype == "string" else dtype, tuple(value.shape))


def _unique(names: Sequence[str]) -> list[str]:
    return [f"{n}_{names[:k].count(n)}" if n in names[:k] else n for k, n in enumerate(names)]


def _tensor_name(tensor: Any) -> str:
    return str(tensor.name).split(":")[0]


def _output_names(model: Any) -> list[str]:
    names = getattr(model, "output_names", None)
    return list(names) if names else [str(model.layers[-1].name)]


def _built_ports(model: Any) -> tuple[Port, ...]:
    """Return the input of a subclass of keras.Model that was built for one shape."""
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if len(shapes) != 1:
        return ()
    (shape,) = shapes.values()
    if isinstance(shape, Mapping):
        return tuple(Port(key, "float32", (None, *own[1:])) for key, own in sorted(shape.items()))
    if shape and isinstance(shape[0], list | tuple):
        return tuple(Port(f"input_{k}", "float32", (None, *own[1:])) for k, own in enumerate(shape))
    return (Port("input", "float32", (None, *shape[1:])),) if shape else ()


def _side_of_ports(ports: tuple[Port, ...]) -> Side:
    names = [port.name for port in ports]
    if names == ["input"]:
        return Side(ports, single=True)
    if is_positional([name.removeprefix("input_") for name in names]):
        return Side(ports)
    return Side(ports, tuple(names))


def _traced(model: Any, side: Side) -> Side:
    """Return the outputs of a model that computes in `call`, by calling it on symbolic inputs, which builds it."""
    from fedpipe.frameworks import frameworks
    from fedpipe.learners.user_code import described

    _, keras = frameworks()
    try:
        symbols = {p.name: keras.KerasTensor((None, *p.shape[1:]), p.dtype, name=p.name) for p in side.ports}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of the failure that is reported below
            found = model(side.packed(symbols))
    except Exception as error:
        raise ModelError(
            f"the model cannot be called on the features, because {described(error)}", where="model.py",
            remedy="Make its call() take the features as `load` returns them, or as the data has them.",
        ) from error  # fmt: skip
    count = len(found) if isinstance(found, list | tuple) else 1
    return _side(found, ["output"] if count == 1 else [f"output_{k}" for k in range(count)])


def _with_losses(side: Side, model: Any) -> Side:
    """Mark outputs whose compiled loss is None."""
    losses = model.loss
    if isinstance(losses, Mapping):
        return side._replace(optional=tuple(name for name in side.names if losses.get(name) is None))
    if isinstance(losses, list | tuple) and len(losses) == len(side.ports):
        return side._replace(
            optional=tuple(name for name, loss in zip(side.names, losses, strict=True) if loss is None)
        )
    return side
