"""The user's model with DP-SGD: per-example clipping and noise by TensorFlow Privacy, in the tff environment.

That environment has Keras 2, so the model is built anew there and its variables are matched with the weights by name.

Noise must be what nobody can draw again: TensorFlow's random operations get no seed here, so that they take theirs
from the machine's entropy. With a seed of the run, everybody who knows the federation file could subtract the noise.

Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.errors import MissingExtraError, ModelError
from fedpipe.federation.training import Privacy
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.learner import KerasLearner, kept_parts, learner_parts
from fedpipe.learners.keras.model import built, check_private
from fedpipe.learners.user_code import find_function, load_code
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.store import Store
from fedpipe.store.objects import get_bytes

Array = npt.NDArray[Any]


@functools.lru_cache(maxsize=2)
def cached_private_model(code: bytes, digest: str, function: str, privacy: Privacy) -> PrivateModel:
    """The built model; a worker that runs several steps builds and traces it once."""
    return PrivateModel(code, digest, function, privacy)


class PrivateModel:
    """A Keras 2 model whose optimizer clips and adds noise; driven like `KerasModel`.

    Raises:
        ModelError: the model cannot be trained with DP-SGD; the message says why.
    """

    def __init__(self, code: bytes, digest: str, function: str, privacy: Privacy) -> None:
        tensorflow, keras = frameworks()
        self.module = load_code(code, digest)
        keras.backend.clear_session()
        self.keras = built(find_function(self.module, function), keras)
        check_private(self.keras)
        self.keras.compile(
            optimizer=_private_optimizer(self.keras.optimizer, privacy, tensorflow), loss=_single_losses(self.keras)
        )
        self._variables = {v.name.removesuffix(":0"): v for v in self.keras.weights}
        self._rate = float(self.keras.optimizer.learning_rate.numpy())
        self._names: dict[str, str] = {}

    def reset(self, seed: int) -> None:
        """Puts the optimizer where it was when the model was built; the seed is not used (see above).

        A seed that model.py may have set is taken back, here before anything is traced.
        """
        frameworks()[0].random.set_seed(None)
        for variable in self.keras.optimizer.weights:
            variable.assign(np.zeros(variable.shape, variable.dtype.as_numpy_dtype))
        self.keras.optimizer.learning_rate = self._rate

    def reset_draws(self, seed: int) -> None:
        """Nothing to do: a private model draws from the machine's entropy."""

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Takes weights by the names that Keras 3 gives them. Raises ModelError."""
        self._names = match_names(
            {name: value.shape for name, value in weights.items()},
            {name: tuple(v.shape) for name, v in self._variables.items()},
        )
        for theirs, ours in self._names.items():
            self._variables[ours].assign(weights[theirs])

    def weights(self) -> dict[str, Array]:
        """The weights by the names of those that were set."""
        return {theirs: np.array(self._variables[ours].numpy()) for theirs, ours in self._names.items()}

    def optimizer_state(self) -> dict[str, Array]:
        """The optimizer's variables by their number."""
        return {f"{k:06d}": np.array(v.numpy()) for k, v in enumerate(self.keras.optimizer.weights)}

    def set_optimizer_state(self, state: Mapping[str, Array]) -> None:
        """Takes what `optimizer_state` gave. Raises ModelError."""
        self.keras.optimizer._create_all_weights(self.keras.trainable_variables)
        variables = self.keras.optimizer.weights
        if [tuple(v.shape) for v in variables] != [state[name].shape for name in sorted(state)]:
            raise ModelError("the optimizer state does not fit the model")
        for name, variable in zip(sorted(state), variables, strict=True):
            variable.assign(state[name])

    def set_learning_rate(self, rate: float) -> None:
        """Sets the optimizer's learning rate."""
        self.keras.optimizer.learning_rate = rate


def match_names(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Names of Keras 3 to names of Keras 2: Keras 3 writes the names of the enclosing models before a layer's.

    >>> match_names({"sequential/dense/kernel": (4, 3)}, {"dense/kernel": (4, 3)})
    {'sequential/dense/kernel': 'dense/kernel'}

    Raises:
        ModelError: there is no match of one to one with equal shapes.
    """
    found: dict[str, str] = {}
    for name, shape in theirs.items():
        fitting = [k for k, s in ours.items() if (name == k or name.endswith(f"/{k}")) and s == shape]
        if len(fitting) != 1:
            raise ModelError(
                f"the weights {name!r} have no counterpart when the model is built by Keras 2, which trains privately",
                where="model.py",
                remedy="Give layers names of their own; use layers that Keras 2 and 3 share.",
            )
        found[name] = fitting[0]
    if left := sorted(ours.keys() - set(found.values())):
        raise ModelError(f"Keras 2 makes a variable {left[0]!r} that Keras 3 does not make", where="model.py")
    return found


def _private_optimizer(optimizer: Any, privacy: Privacy, tensorflow: Any) -> Any:
    """The optimizer of model.py as TensorFlow Privacy's Keras optimizer of the same name and settings."""
    try:
        from tensorflow_privacy.privacy.dp_query import gaussian_query
        from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras
    except ImportError as error:
        raise MissingExtraError("tensorflow-privacy", "tff") from error
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
    """The compiled loss, one number per example, as clipping needs it."""
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


def make_private_learner(store: Store, plan: Plan, name: str, *, place: RunPlace | None = None) -> KerasLearner:
    """The learner with its private model and its data; with a place it keeps them from round to round.

    Raises:
        DataError, ModelError, CorruptError: why this learner cannot take part.
    """
    privacy = plan.federation.privacy_of(name)
    if privacy is None:
        raise ModelError(f"{name} has no privacy section, and this step trains with differential privacy")
    model = cached_private_model(get_bytes(store, plan.code), plan.code, plan.function, privacy)
    parts = kept_parts(place, name, model.module) if place else learner_parts(store, plan, name, model.module)
    return KerasLearner(model, plan.federation, parts, label=name, privacy=privacy)
