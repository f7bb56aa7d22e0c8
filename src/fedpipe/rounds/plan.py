"""A run's plan: the federation with its run-time settings, its code and its shards, pinned by digest."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from fedpipe.codec import converted
from fedpipe.errors import InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import check_federation
from fedpipe.federation.messages import described
from fedpipe.federation.names import Amount, Count, Interval, Learners, Name, Seconds
from fedpipe.federation.training import EarlyStopping
from fedpipe.store import Store, open_store
from fedpipe.store.objects import Digest, decode, digest_of, encode, get_bytes, put_bytes

Shape = tuple[int | None, ...]


class Port(NamedTuple):
    """An input or an output of a model.

    Args:
        name: as in the model, and in its ONNX file.
        dtype: NumPy's name of its dtype; `string` for text.
        shape: with the examples in front; None where a size is free.
    """

    name: str
    dtype: str
    shape: Shape


class RunPlace(Struct, frozen=True, kw_only=True):
    """The place of a run: all that a step needs to find the rest."""

    store: str
    federation: Name
    run: Name
    plan: str = ""

    def open(self) -> Store:
        """Return the federation's part of the store."""
        return open_store(self.store).below(self.federation)


class Settings(Struct, frozen=True, kw_only=True):
    """The run-time parameters of a pipeline; zero or empty means: as in the federation file."""

    rounds: Interval = 0
    learning_rate: Amount = 0.0
    local_epochs: Count = 0
    batch_size: Count = 0
    min_learners: Learners = 0
    deadline: Seconds = 0.0
    patience: Interval = 0
    max_seconds: Seconds = 0.0

    def applied(self, federation: Federation) -> Federation:
        """Return the federation with these settings. Raises InputError for one that is out of range."""
        for name in Settings.__struct_fields__:
            _check_number(name, getattr(self, name))
        if self.min_learners > len(federation.learners):
            raise InputError(
                f"the quorum of {self.min_learners} exceeds the {len(federation.learners)} learners",
                where="parameter min_learners",
                remedy="Lower it.",
            )
        names = ("rounds", "learning_rate", "local_epochs", "batch_size", "max_seconds")
        training: dict[str, Any] = {name: value for name in names if (value := getattr(self, name))}
        if "local_epochs" in training:
            training["local_steps"] = 0
        if self.patience:
            stopping = federation.training.early_stopping or EarlyStopping(patience=self.patience)
            training["early_stopping"] = msgspec.structs.replace(stopping, patience=self.patience)
        quorum = {name: value for name in ("min_learners", "deadline") if (value := getattr(self, name))}
        changed = msgspec.structs.replace(
            federation,
            training=msgspec.structs.replace(federation.training, **training),
            quorum=msgspec.structs.replace(federation.quorum, **quorum),
        )
        check_federation(changed, where="with these parameters")
        return changed


def _check_number(name: str, value: Any) -> None:
    """Check a run-time parameter against its type. Raises InputError."""
    try:
        converted({name: value}, Settings)
    except msgspec.ValidationError as error:
        what, remedy = described(str(error))
        what = f"{value} is negative" if isinstance(value, int | float) and value < 0 else f"{value}: {what}"
        raise InputError(what, where=f"parameter {name}", remedy=remedy) from error


class Shards(Struct, frozen=True, kw_only=True):
    """Digests of the learners' shards and, when there is one, of the central test set."""

    learners: dict[str, str]
    test: str = ""


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole definition of a run; its digest is in every record of the run.

    `inputs` describes the features in the shards, for a model that does not say what it takes.
    """

    format: int = 1
    run: Name
    federation: Federation
    code: Digest
    function: str
    shards: dict[str, Digest]
    test: Digest | None = None
    inputs: tuple[Port, ...] = ()

    def put(self, store: Store) -> str:
        """Write the plan and return its digest."""
        return put_bytes(store, encode(self))

    @property
    def digest(self) -> str:
        """The plan's digest."""
        return digest_of(encode(self))


def read_plan(store: Store, digest: str) -> Plan:
    """Return the plan with this digest. Raises CorruptError and StoreError."""
    return decode(get_bytes(store, digest), Plan, where=f"plan {digest}")


def differences(old: Plan, new: Plan) -> list[str]:
    """Return the differences between two plans, such as `training.rounds: 5 -> 6`, sorted by path."""
    before, after = _flat(msgspec.to_builtins(old)), _flat(msgspec.to_builtins(new))
    return [
        f"{path}: {before.get(path, 'absent')} -> {after.get(path, 'absent')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path, "absent") != after.get(path, "absent")
    ]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [(f"{path}.{k}" if path else str(k), v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{k}]", v) for k, v in enumerate(value)]
    else:
        return {path.removeprefix("federation."): value}
    return {p: v for key, item in items for p, v in _flat(item, key).items()}
