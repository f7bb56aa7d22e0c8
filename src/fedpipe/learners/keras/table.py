"""The table that a user's `build(table)` gets: inputs of the model, and its columns as one tensor of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpipe.data.schema import Column, Schema, columns_by_input
from fedpipe.errors import ModelError


class Table:
    """The columns of a table as Keras tensors. All layers are Keras's own, and part of the model and its ONNX form.

    A model of a table begins with its inputs:

        def build(table):
            outputs = keras.layers.Dense(table.outputs)(table.encoded)
            model = keras.Model(table.inputs, outputs)

    Args:
        schema: of the table.
        keras: Keras 3, or Keras 2 for private training and simulations.
        tensorflow: TensorFlow.
    """

    def __init__(self, schema: Schema, keras: Any, tensorflow: Any) -> None:
        self._keras, self._ops = keras, _ops_of(keras, tensorflow)
        self.columns = schema.columns
        """The columns, in the order of the data."""
        self.classes = schema.classes
        """Names of the classes, in order; empty for a regression, or if the classes have no names."""
        self.target_mean, self.target_deviation = schema.mean, schema.deviation
        """Mean and standard deviation of labels that are numbers, for the last layer of a regression."""
        self._inputs: dict[str, Any] = {}
        self._columns = columns_by_input(schema.columns)
        for name, own in self._columns.items():
            dtype = "float32" if name == "numbers" else "string"
            self._inputs[name] = keras.Input((len(own),), name=name, dtype=dtype)

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs by name: those of `numbers`, `categories` and `texts` that the table has."""
        return dict(self._inputs)

    @property
    def outputs(self) -> int:
        """The outputs that a model needs: one for each class; one for two classes or a regression."""
        return len(self.classes) if len(self.classes) > 2 else 1

    @property
    def encoded(self) -> Any:
        """All columns but texts as one tensor (batch, width) of finite numbers.

        Numbers are normalised, and a missing one is the mean. A column with missing values adds a column that is 1
        where a value is missing. A category becomes one column for each of its values, and one for unknown values.
        """
        pieces = self._numbers() if "numbers" in self._inputs else []
        for position, column in enumerate(self._columns.get("categories", ())):
            pieces.append(self._one_hot(position, column))
        if not pieces:
            raise ModelError(
                "the table has texts only, which table.encoded leaves out",
                where="model.py",
                remedy="Use table.inputs['texts'], for example with keras.layers.TextVectorization.",
            )
        return pieces[0] if len(pieces) == 1 else self._keras.layers.Concatenate(name="encoded")(pieces)

    def _numbers(self) -> list[Any]:
        numbers, own = self._inputs["numbers"], self._columns["numbers"]
        means = np.array([column.mean for column in own], np.float32)
        deviations = np.array([column.deviation for column in own], np.float32)
        absent = self._ops.isnan(numbers)  # also where no value is missing in a train part: new rows may lack some
        filled = self._ops.where(absent, np.zeros_like(means), (numbers - means) / deviations)
        flagged = [position for position, column in enumerate(own) if column.missing]
        if not flagged:
            return [filled]
        if len(flagged) == len(own):
            return [filled, self._ops.cast(absent, "float32")]
        indicators = self._ops.take(self._ops.cast(absent, "float32"), np.array(flagged, np.int32), axis=1)
        return [filled, indicators]

    def _one_hot(self, position: int, column: Column) -> Any:
        words = ["", *column.categories] if column.missing else list(column.categories)
        lookup = self._keras.layers.StringLookup(vocabulary=words, num_oov_indices=1, output_mode="one_hot")
        return lookup(self._inputs["categories"][:, position : position + 1])


class _TensorFlowOps:
    """The operations on tensors of Keras 2, which has none of its own."""

    def __init__(self, tensorflow: Any) -> None:
        self.isnan, self.where, self.cast = tensorflow.math.is_nan, tensorflow.where, tensorflow.cast
        self.take = tensorflow.gather


def _ops_of(keras: Any, tensorflow: Any) -> Any:
    return keras.ops if hasattr(keras, "ops") else _TensorFlowOps(tensorflow)
