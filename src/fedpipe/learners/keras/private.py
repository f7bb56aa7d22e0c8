"""The user's model with DP-SGD: per-example clipping and noise by TensorFlow Privacy, in the tff environment.

That environment has Keras 2, so the model is rebuilt there, and its variables are matched with the weights by name.

Nobody must be able to draw the noise again. So TensorFlow's random operations get no seed here, and use the machine's
entropy. With a seed of the run, everybody with the federation file could subtract the noise.

Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.schema import Schema
from fedpipe.errors import MissingExtraError, ModelError
from fedpipe.federation.training import Privacy, Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.framework import Arrays, Correction
from fedpipe.learners.keras.datasets import singles_of
from fedpipe.learners.keras.model import built
from fedpipe.learners.keras.structure import sides_of
from fedpipe.learners.keras.training import CompiledModel, check_private
from fedpipe.learners.parts import Part, size_of
from fedpipe.learners.user_code import find_function, load_code
from fedpipe.rounds.budget import training_event
from fedpipe.weights import Array


@functools.lru_cache(maxsize=2)
def cached_private_model(
    code: bytes, digest: str, function: str, privacy: Privacy, schema: Schema | None = None
) -> PrivateModel:
    """Return the built model; a worker that runs several steps builds and traces it once."""
    return PrivateModel(code, digest, function, privacy, schema)


class PrivateModel(CompiledModel):
    """A Keras 2 model whose optimizer clips and adds noise.

    Args:
        code: the user's file.
        digest: the required digest of its bytes.
        function: its function that makes the model.
        privacy: clipping and noise.
        schema: of the federation's table, if it has one.

    Raises:
        ModelError: the model cannot be trained with DP-SGD; with the reason.
    """

    private = True

    def __init__(self, code: bytes, digest: str, function: str, privacy: Privacy, schema: Schema | None = None) -> None:
        tensorflow, keras = frameworks()
        self.module, self._privacy = load_code(code, digest), privacy
        keras.backend.clear_session()
        self.keras = built(find_function(self.module, function), keras, schema)
        check_private(self.keras)
        self.inputs, self.outputs = sides_of(self.keras)
        metrics = self.keras.compiled_metrics  # a vote may be decided by one of them
        self.keras.compile(
            optimizer=_private_optimizer(self.keras.optimizer, privacy, tensorflow), loss=_single_losses(self.keras),
            metrics=metrics._user_metrics, weighted_metrics=metrics._user_weighted_metrics,
        )  # fmt: skip
        self._variables = {v.name.removesuffix(":0"): v for v in self.keras.weights}
        self._rate = float(self.keras.optimizer.learning_rate.numpy())
        self._names: dict[str, str] = {}

    def reset(self, seed: int) -> None:
        """Reset the optimizer to its state in the fresh model; the seed is not used (see above).

        A seed that model.py may have set is removed here, before anything is traced.
        """
        frameworks()[0].random.set_seed(None)
        for variable in self.keras.optimizer.weights:
            variable.assign(np.zeros(variable.shape, variable.dtype.as_numpy_dtype))
        self.keras.optimizer.learning_rate = self._rate

    def reset_draws(self, seed: int) -> None:
        """Do nothing: a private model draws from the machine's entropy."""

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Set weights by the names that Keras 3 gives them. Raises ModelError."""
        self._names = match_names(
            {name: value.shape for name, value in weights.items()},
            {name: tuple(v.shape) for name, v in self._variables.items()},
        )
        for theirs, ours in self._names.items():
            self._variables[ours].assign(weights[theirs])

    def weights(self) -> Arrays:
        """Return the weights, by the names in `set_weights`."""
        return {theirs: np.array(self._variables[ours].numpy()) for theirs, ours in self._names.items()}

    @property
    def trainable(self) -> tuple[str, ...]:
        """See `Model.trainable`."""
        own = {id(variable) for variable in self.keras.trainable_weights}
        return tuple(theirs for theirs, ours in self._names.items() if id(self._variables[ours]) in own)

    def correct(self, correction: Correction | None) -> None:
        """Refuse corrections: reading the federation file has refused their methods with privacy. Raises ModelError."""
        if correction is not None:
            raise ModelError("a private training cannot correct its gradients", where="training.method")

    def optimizer_state(self) -> Arrays:
        """Return the optimizer's variables by number."""
        return {f"{k:06d}": np.array(v.numpy()) for k, v in enumerate(self.keras.optimizer.weights)}

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """Set what `optimizer_state` returned. Raises ModelError."""
        self.keras.optimizer._create_all_weights(self.keras.trainable_variables)
        variables = self.keras.optimizer.weights
        if [tuple(v.shape) for v in variables] != [state[name].shape for name in sorted(state)]:
            raise ModelError("the optimizer state does not fit the model")
        for name, variable in zip(sorted(state), variables, strict=True):
            variable.assign(state[name])

    def set_learning_rate(self, rate: float) -> None:
        """See `CompiledModel.set_learning_rate`."""
        self.keras.optimizer.learning_rate = rate

    def feed(self, part: Part, training: Training, seed: int) -> dict[str, Any]:
        """Return whole batches, shuffled by the machine's entropy; each example at most once in a pass."""
        if isinstance(part, Examples) and part.weight is not None:
            raise ModelError(
                "a private training takes no sample weights",
                remedy="Return (x, y) from `load`, or remove the privacy section.",
            )
        count = size_of(part)
        steps = training_event(training, self._privacy, count).steps
        shuffled = singles_of(part, self.inputs, self.outputs).shuffle(count, reshuffle_each_iteration=True)
        batches = shuffled.batch(training.batch_size, drop_remainder=True).repeat().take(steps)
        return {"x": batches, "epochs": 1, "shuffle": False}


def match_names(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Match names of Keras 3, which begin with the enclosing models, with those of Keras 2.

    >>> match_names({"sequential/dense/kernel": (4, 3)}, {"dense/kernel": (4, 3)})
    {'sequential/dense/kernel': 'dense/kernel'}

    Raises:
        ModelError: there is no one-to-one match with equal shapes.
    """
    found: dict[str, str] = {}
    for name, shape in theirs.items():
        fitting = [k for k, s in ours.items() if (name == k or name.endswith(f"/{k}")) and s == shape]
        if len(fitting) != 1:
            raise ModelError(
                f"the weights {name!r} have no counterpart in the model of Keras 2, which trains privately",
                where="model.py",
                remedy="Give layers unique names, and use layers that Keras 2 and 3 share.",
            )
        found[name] = fitting[0]
    if left := sorted(ours.keys() - set(found.values())):
        raise ModelError(f"Keras 2 creates a variable {left[0]!r} that Keras 3 does not create", where="model.py")
    return found


def _private_optimizer(optimizer: Any, privacy: Privacy, tensorflow: Any) -> Any:
    """Return the optimizer of model.py as TensorFlow Privacy's Keras optimizer of the same name and settings."""
    gaussian_query, dp_optimizer_keras = _optimizers()
    name = type(optimizer).__name__
    base = getattr(tensorflow.keras.optimizers.legacy, name, None)
    if base is None:
        raise ModelError(
            f"the optimizer {name} has no private form",
            where="model.py",
            remedy="With privacy, use SGD, Adam, Adagrad, RMSprop or another classical one.",
        )
    known = base().get_config().keys()
    config = {k: v for k, v in optimizer.get_config().items() if k in known and k != "name"}
    if isinstance(config.get("learning_rate"), dict):
        raise ModelError(
            "the optimizer has a learning rate schedule, which a private training cannot follow",
            where="model.py",
            remedy="Give it a number, or set training.learning_rate.",
        )
    query = gaussian_query.GaussianSumQuery(privacy.l2_norm_clip, privacy.l2_norm_clip * privacy.noise_multiplier)
    make = dp_optimizer_keras.make_keras_generic_optimizer_class
    return make(base)(dp_sum_query=query, num_microbatches=privacy.microbatches, **config)


def _single_losses(model: Any) -> Any:
    """Return the compiled loss as one number per example, which clipping needs."""
    tensorflow, keras = frameworks()
    if isinstance(model.loss, dict | list | tuple) or len(model.outputs) != 1:
        raise ModelError("a private training needs one output and one loss", where="model.py")
    loss = keras.losses.get(model.loss)
    none = tensorflow.keras.losses.Reduction.NONE
    if isinstance(loss, keras.losses.Loss):
        return type(loss).from_config({**loss.get_config(), "reduction": none})

    class Single(keras.losses.Loss):  # type: ignore[misc,name-defined]
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return loss(y_true, y_pred)

    return Single(reduction=none)


def warm_up() -> None:
    """Import TensorFlow Privacy's optimizers. Raises MissingExtraError."""
    _optimizers()
    frameworks()


def _optimizers() -> tuple[Any, Any]:
    try:
        from tensorflow_privacy.privacy.dp_query import gaussian_query
        from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras
    except ImportError as error:
        raise MissingExtraError("tensorflow-privacy", "tff") from error
    return gaussian_query, dp_optimizer_keras
