"""Keras as a framework of learners: Keras 3, and Keras 2 with TensorFlow Privacy for private training."""

from __future__ import annotations

from typing import Any

from fedpipe.data.schema import Schema
from fedpipe.federation.training import Privacy, Training
from fedpipe.learners.framework import Model
from fedpipe.learners.parts import Part
from fedpipe.rounds.plan import Port


class KerasFramework:
    """See `Framework`. A user's function returns a compiled Keras model."""

    def check(self, training: Training) -> None:
        """Check fit and evaluate arguments and callbacks against Keras's own signatures. Raises ModelError."""
        from fedpipe.learners.keras.arguments import check_arguments

        check_arguments(training)

    def build(
        self, code: bytes, digest: str, function: str, training: Training, privacy: Privacy | None = None,
        inputs: tuple[Port, ...] = (), schema: Schema | None = None,
    ) -> Model:  # fmt: skip
        """See `Framework.build`."""
        if privacy:
            from fedpipe.learners.keras.private import cached_private_model

            return cached_private_model(code, digest, function, privacy, schema)
        from fedpipe.learners.keras.gradients import Gradients
        from fedpipe.learners.keras.model import cached_model

        gradients = Gradients.of(training)
        return cached_model(code, digest, function, training.precision, training.seed, inputs, schema, gradients)

    def read_part(self, value: Any, name: str) -> Part:
        """Return (x, y) or a tf.data.Dataset as a part. Raises DataError."""
        from fedpipe.learners.keras import datasets

        return datasets.read_part(value, name)
