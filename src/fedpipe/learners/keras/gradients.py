"""Changes what a Keras optimizer does with gradients: corrections, clipping and accumulation.

The class of a compiled optimizer is replaced by one that corrects gradients first. So it does not matter how `fit`
computes them, or which optimizer model.py has compiled. Clipping and accumulation are Keras's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedpipe.errors import ModelError
from fedpipe.federation.methods import COUNTS_STEPS, FedNova
from fedpipe.federation.names import tag_of
from fedpipe.federation.training import Training
from fedpipe.learners.framework import Correction
from fedpipe.weights import Array


class Gradients(NamedTuple):
    """The options of an optimizer for gradients.

    Args:
        clip_norm: largest norm of all together; 0: as compiled.
        accumulate: batches whose gradients are averaged.
        corrected: whether they are corrected.
    """

    clip_norm: float = 0.0
    accumulate: int = 1
    corrected: bool = False

    @classmethod
    def of(cls, training: Training) -> Gradients:
        """Return the settings of a training."""
        corrected = training.method is not None and not isinstance(training.method, FedNova)
        return cls(training.clip_norm, training.accumulate, corrected)


PLAIN = Gradients()


def inner(optimizer: Any) -> Any:
    """Return the optimizer that changes the weights, inside one that scales the loss of a mixed precision."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def prepare(model: Any, keras: Any, gradients: Gradients) -> Corrections | None:
    """Give an optimizer that is not yet built the options of the training, and return what corrects its gradients.

    Args:
        model: compiled.
        keras: the package.
        gradients: the options.

    Raises:
        ModelError: the optimizer has such an option already.
    """
    optimizer = inner(model.optimizer)
    if gradients.clip_norm:
        for name in ("clipnorm", "clipvalue"):
            if getattr(optimizer, name, None):
                raise ModelError(
                    f"the optimizer has {name} already", where="training.clip_norm",
                    remedy=f"Remove it, or remove {name} in model.py.",
                )  # fmt: skip
        optimizer.global_clipnorm = gradients.clip_norm
    if gradients.accumulate > 1:
        if optimizer.built:
            raise ModelError(
                "the optimizer has trained already, so it cannot accumulate gradients", where="training.accumulate",
                remedy="Compile the model again at the end of build().",
            )  # fmt: skip
        optimizer.gradient_accumulation_steps = gradients.accumulate
    return Corrections(optimizer, keras, model.trainable_variables) if gradients.corrected else None


def check_plain(optimizer: Any, training: Training) -> None:
    """Check that the method of the training is defined for this optimizer. Raises ModelError."""
    if not isinstance(training.method, COUNTS_STEPS):
        return
    optimizer, tag = inner(optimizer), tag_of(training.method)
    ours = ("global_clipnorm",) if training.clip_norm else ()
    odd = [name for name in _NOT_PLAIN if getattr(optimizer, name, None) and name not in ours]
    odd += ["a schedule"] if callable(getattr(optimizer, "_learning_rate", None)) else []
    odd += ["accumulation"] if (optimizer.gradient_accumulation_steps or 1) != training.accumulate else []
    if type(optimizer).__name__ != "SGD" or odd:
        what = f"SGD with {odd[0]}" if type(optimizer).__name__ == "SGD" else type(optimizer).__name__
        raise ModelError(
            f"{tag} is not defined for the optimizer {what}",
            where="training.method",
            remedy="Compile the model with SGD(learning_rate) alone, or choose fedprox.",
        )


_NOT_PLAIN = ("momentum", "nesterov", "weight_decay", "use_ema", "clipnorm", "global_clipnorm", "clipvalue")


class Corrections:
    """The correction of a compiled model's gradients, as variables that the traced training reads.

    Args:
        optimizer: of the model; its class is replaced.
        keras: the package.
        variables: the trainable ones of the model.
    """

    def __init__(self, optimizer: Any, keras: Any, variables: Any) -> None:
        def made(variable: Any, name: str) -> Any:
            return keras.Variable(np.zeros(variable.shape), dtype=variable.dtype, trainable=False, name=name)

        self._strengths = [keras.Variable(0.0, trainable=False, name="strength") for _ in variables]
        self._anchors = [made(variable, "anchor") for variable in variables]
        self._offsets = [made(variable, "offset") for variable in variables]
        places = {id(variable): place for place, variable in enumerate(variables)}
        plain = type(optimizer)

        def apply(this: Any, gradients: Any, variables: Any) -> Any:
            """Correct the gradients, and pass them on."""
            corrected = [self._corrected(g, v, places[id(v)]) for g, v in zip(gradients, variables, strict=True)]
            return plain._backend_apply_gradients(this, corrected, variables)

        optimizer.__class__ = type(plain.__name__, (plain,), {"_backend_apply_gradients": apply})

    def _corrected(self, gradient: Any, variable: Any, place: int) -> Any:
        strength, anchor, offset = self._strengths[place], self._anchors[place], self._offsets[place]
        # Without an addition, because TensorFlow may add several numbers in another order in another graph.
        pulled = strength.value * (anchor.value - variable.value) - offset.value
        return gradient - pulled if not hasattr(gradient, "indices") else _dense(gradient) - pulled

    def set(self, correction: Correction | None, names: Mapping[str, int]) -> None:
        """Set the correction of the next training.

        Args:
            correction: None for plain training.
            names: the place of each trainable variable, by the name of its weights.
        """
        given = correction or Correction()
        for name, place in names.items():
            anchor, offset = given.anchors.get(name), given.offsets.get(name)
            self._strengths[place].assign(0.0 if anchor is None else given.strength)
            self._anchors[place].assign(_or_zeros(anchor, self._anchors[place]))
            self._offsets[place].assign(_or_zeros(offset, self._offsets[place]))


def _or_zeros(value: Array | None, variable: Any) -> Any:
    return np.zeros(variable.shape) if value is None else value


def _dense(gradient: Any) -> Any:
    """Return the gradient of an embedding, which has only the rows that were used, as a whole array."""
    from fedpipe.frameworks import frameworks

    return frameworks()[0].convert_to_tensor(gradient)
