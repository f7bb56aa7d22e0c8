"""Divides a Keras 2 model for TFF: lookups of texts come before the rounds, and TFF trains the rest.

TFF builds models in TensorFlow graphs and computes in another process, where lookup tables fail. These have no weights,
so the texts of each client are looked up once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.ports import fed
from fedpipe.data.trees import Array, Tree, joined, leaves, length_of, only_array
from fedpipe.errors import ModelError
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.structure import Side, sides_of, tensors
from fedpipe.learners.parts import Part, as_examples
from fedpipe.learners.user_code import described

_EARLY = (
    "CategoryEncoding", "Discretization", "HashedCrossing", "Hashing", "IntegerLookup", "StringLookup",
    "TextVectorization",
)  # fmt: skip
"""Layers of Keras that look up or encode, without weights; TFF's graphs cannot hold most of them."""
Forms = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and the shape of one example, of each array."""
_ROWS = 1024
"""Examples that are looked up at a time."""


class Entry:
    """Leads examples into a simulated model.

    Args:
        model: the user's model, of Keras 2.

    Attributes:
        side: inputs of the user's model.
        body: the model that TFF trains, with inputs by name; None if it is the whole model, with one input of numbers.

    Raises:
        ModelError: the model cannot be divided.
    """

    def __init__(self, model: Any) -> None:
        _, keras = frameworks()
        if not getattr(model, "_nodes_by_depth", None):
            raise ModelError(
                "a model that computes in its own call() cannot be simulated",
                where="model.py",
                remedy="Make it by keras.Model(inputs, outputs). To rehearse it on this machine, use `fedpipe run`.",
            )
        self.side: Side = sides_of(model)[0]
        given = dict(zip(self.side.names, self.side.flat(model.input), strict=True))
        found = _frontier(model, given)
        self.body, self._front = None, None
        if len(given) > 1 or found.keys() != given.keys():
            self.body = keras.Model(dict(found), model.outputs[0])
            self._front = keras.Model(model.input, dict(found))
            _check_front(self._front, found.keys() - given.keys())

    def arrays(self, x: Tree) -> Tree:
        """Returns features as TFF gets them: one array, or arrays by the names of the body's inputs.

        Raises:
            ModelError: the features do not fit the model.
        """
        named = fed(self.side.ports, x)
        if self._front is None:
            return only_array(dict(named), "features")
        found = [self._looked_up({k: v[start : start + _ROWS] for k, v in named.items()})
                 for start in range(0, length_of(dict(named)), _ROWS)]  # fmt: skip
        return joined(found)

    def _looked_up(self, named: dict[str, Array]) -> Tree:
        assert self._front is not None
        try:
            found = self._front(tensors(self.side.packed(named), frameworks()[0]), training=False)
        except Exception as error:
            raise ModelError(f"the features cannot be looked up: {described(error)}", where="model.py") from error
        return {name: np.asarray(value) for name, value in found.items()}

    def entered(self, part: Part) -> Part:
        """Returns a part with the features that TFF gets. Raises ModelError."""
        if not isinstance(part, Examples) and self.body is None:
            return part
        examples = as_examples(part)
        return Examples(self.arrays(examples.x), only_array(examples.y, "labels"))

    def packed(self, x: Tree) -> Any:
        """Returns features as the user's model takes them."""
        return tensors(self.side.arranged(x), frameworks()[0])


def _frontier(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the tensors by name with which TFF begins: inputs of numbers, and results of lookups."""
    tensorflow, _ = frameworks()
    early = {id(tensor): (name, tensor) for name, tensor in given.items()}
    late = {id(tensor) for tensor in tensorflow.nest.flatten(model.outputs)}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            takes_text = any(tensor.dtype == tensorflow.string for tensor in node.keras_inputs)
            known = all(id(tensor) in early for tensor in node.keras_inputs)
            if known and (takes_text or type(node.layer).__name__ in _EARLY):
                _add(early, node.layer.name, tensorflow.nest.flatten(node.outputs))
            elif takes_text:
                raise _undivided(node.layer.name, "takes text together with results of layers")
            else:
                late |= {id(tensor) for tensor in node.keras_inputs}
    return {name: tensor for key, (name, tensor) in early.items() if key in late}


def _add(early: dict[int, tuple[str, Any]], layer: str, found: list[Any]) -> None:
    names = {name for name, _ in early.values()}
    for tensor in found:
        number = next(k for k in range(len(names) + 1) if (f"{layer}_{k}" if k else layer) not in names)
        names.add(name := f"{layer}_{number}" if number else layer)
        early[id(tensor)] = (name, tensor)


def _check_front(front: Any, looked_up: Collection[str]) -> None:
    """Checks that lookups have no weights, and results of a fixed shape. Raises ModelError."""
    tensorflow, _ = frameworks()
    for layer in front.layers:
        if layer.weights:
            raise _undivided(layer.name, "takes text and has weights")
    for name in sorted(looked_up):
        tensor = front.output[name]
        if type(tensor.type_spec) is not tensorflow.TensorSpec:
            raise _undivided(name, "returns ragged or sparse tensors")
        if tensor.dtype == tensorflow.string or None in tensor.shape[1:]:
            free = "text" if tensor.dtype == tensorflow.string else "rows of several lengths"
            raise _undivided(name, f"returns {free}", "Set output_sequence_length of TextVectorization.")


def _undivided(layer: str, what: str, remedy: str = "") -> ModelError:
    remedy = remedy or "Look texts up by StringLookup or TextVectorization first. To rehearse it so, use `fedpipe run`."
    return ModelError(f"the layer {layer!r} {what}, which cannot be simulated", where="model.py", remedy=remedy)


def zeros_of(forms: Forms) -> Tree:
    """Returns one made-up example of these forms: zeros, and empty text."""
    made = {n: np.full((1, *s), "", object) if d == "object" else np.zeros((1, *s), d) for n, d, s in forms}
    return made if list(made) != [""] else made[""]


def forms_of(tree: Tree) -> Forms:
    """Returns the forms of arrays."""
    return tuple((name, str(leaf.dtype), leaf.shape[1:]) for name, leaf in leaves(tree))


def spec_of(tree: Tree) -> Any:
    """Returns the specification of batches of such arrays for TFF."""
    tensorflow, _ = frameworks()
    found = {name: tensorflow.TensorSpec((None, *leaf.shape[1:]), leaf.dtype) for name, leaf in leaves(tree)}
    return OrderedDict(sorted(found.items())) if isinstance(tree, dict) else found[""]
