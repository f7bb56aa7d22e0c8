"""A run's plan: the federation with its run-time settings, its code and its shards, pinned by digest.

A plan has two parts. Its *definition* decides what is trained, and every record of the run holds its digest. All else
may change between two tries of a run, such as the settings of evaluation, export, reports and placement. A step reads
them from the plan of its own try. `definition_of` draws the line, here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fedpipe.codec import converted
from fedpipe.errors import InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import check_federation
from fedpipe.federation.messages import described
from fedpipe.federation.names import KUBEFLOWS_SECRET, YEAR, Amount, Count, Interval, Learners, Name, Seconds
from fedpipe.federation.placement import Images, Placement
from fedpipe.federation.tracking import Tracking
from fedpipe.federation.training import EarlyStopping, EvaluationSettings, Export, Privacy, Quorum
from fedpipe.store import Store, keys, open_store
from fedpipe.store.objects import Digest, canonical, decode, digest_of, find, get_bytes, put_bytes

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
    """The run-time parameters of a pipeline; zero or empty means: as in the federation file.

    So does the quorum that follows from the file. A `max_seconds` of a year, the most, removes the limit.
    """

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
        if self.max_seconds == YEAR:
            training["max_seconds"] = 0.0
        if "local_epochs" in training:
            training["local_steps"] = 0
        if self.patience:
            stopping = federation.training.early_stopping or EarlyStopping(patience=self.patience)
            training["early_stopping"] = replace(stopping, patience=self.patience)
        quorum = {name: value for name in ("min_learners", "deadline") if (value := getattr(self, name))}
        if self.min_learners == federation.min_updates:
            del quorum["min_learners"]
        changed = replace(
            federation,
            training=replace(federation.training, **training),
            quorum=replace(federation.quorum, **quorum),
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
    """Digests of the learners' shards and of the central test set, if there is one; `sizes` as in `Plan`."""

    learners: dict[str, str]
    test: str = ""
    sizes: dict[str, dict[str, int]] = {}


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a run needs: what defines its training, and the settings of this try of it.

    `sizes` are the examples in each part of the shards, by learner. `inputs` describes the features in the shards, for
    a model that does not say what it takes.
    """

    SPOKEN: ClassVar = True
    format: int = 1
    run: Name
    federation: Federation
    code: Digest
    function: str
    shards: dict[str, Digest]
    test: Digest | None = None
    sizes: dict[str, dict[str, int]] = {}
    inputs: tuple[Port, ...] = ()

    def put(self, store: Store) -> str:
        """Write the plan and return its digest."""
        return put_bytes(store, canonical(self))

    @property
    def digest(self) -> str:
        """The digest of the whole plan, by which the steps of a try find it."""
        return digest_of(canonical(self))

    @property
    def definition(self) -> Plan:
        """The part that defines the training; its digest is in every record of the run."""
        return replace(self, federation=definition_of(self.federation))

    @property
    def measuring(self) -> str:
        """The digest of all that decides how a model is measured: a measurement with other settings is repeated."""
        federation = self.federation
        settings: tuple[Any, ...] = (federation.evaluation, federation.training.evaluate, federation.class_names)
        if (export := federation.exported) and export.choose == "best":
            settings = (*settings, export.metric, export.over, export.minimised)
        return digest_of(canonical((self.definition.digest, *settings)))

    @property
    def exporting(self) -> str:
        """The digest of all that decides how a model is exported: with other settings it is published again."""
        exported = self.federation.exported
        return digest_of(canonical(replace(exported, tolerance=1.0, registry="") if exported else "none"))


def definition_of(federation: Federation) -> Federation:
    """Return a federation with defaults for everything that may change between two tries of a run.

    Places, secrets, images and placements do not change the training. Neither do measurements, unless a vote or early
    stopping decides by them. Names of classes number the labels of a table. A deadline, a quorum and a privacy target
    end or refuse work: messages advise to change them, and a record lists who took part.
    """
    training, stopping = federation.training, federation.training.early_stopping
    decides = federation.vote is not None or (stopping is not None and stopping.metric.startswith("test_"))
    measured = federation if decides else replace(
        federation,
        training=replace(training, evaluate={}),
        evaluation=EvaluationSettings(holdout=federation.evaluation.holdout),
        simulation=replace(federation.simulation, test_every=1),
    )  # fmt: skip
    learners = tuple(
        replace(one, data=bare_name(one.data), secret="", placement=Placement(), privacy=_untargeted(one.privacy))
        for one in federation.learners
    )
    return replace(
        measured,
        store="store", learners=learners, secret=KUBEFLOWS_SECRET, images=Images(), placement={},
        export=Export(classes=federation.class_names if federation.data.is_table else ()),
        data=replace(federation.data, uri=bare_name(federation.data.uri), secret=""),
        privacy=_untargeted(federation.privacy),
        training=replace(measured.training, rounds_per_step="all", tensorboard=True), tracking=Tracking(),
        simulation=replace(measured.simulation, placement=Placement()),
        quorum=Quorum(
            learners_per_round=federation.quorum.learners_per_round, over_selection=federation.quorum.over_selection
        ),
    )  # fmt: skip


def bare_name(uri: str) -> str:
    """Return the last part of a path or URI: the same file in another folder or store is the same data."""
    return re.sub(r".*/", "", uri.partition("?")[0] if "://" in uri else uri)


def _untargeted(privacy: Privacy | None) -> Privacy | None:
    return replace(privacy, target_epsilon=1.0) if privacy else None


def read_plan(store: Store, digest: str) -> Plan:
    """Return the plan with this digest. Raises CorruptError and StoreError."""
    return decode(get_bytes(store, digest), Plan, where=f"plan {digest}")


def current_plan(store: Store, run: str, digest: str) -> Plan:
    """Return the plan of a run's last try, with its settings of evaluation, export and reports.

    Args:
        store: the federation's store.
        run: the run's name.
        digest: of the definition, as in the run's records.

    Raises:
        CorruptError: the plan cannot be read.
    """
    found = find(store, keys.plan(run), Plan)
    return found if found is not None and found.definition.digest == digest else read_plan(store, digest)


def differences(old: Plan | Mapping[str, Any], new: Plan | Mapping[str, Any]) -> list[str]:
    """Return the differences between two plans or tables, such as `training.rounds: 5 -> 6`, sorted by path."""
    before, after = flat(msgspec.to_builtins(old)), flat(msgspec.to_builtins(new))
    return [
        f"{path}: {before.get(path, 'absent')} -> {after.get(path, 'absent')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path, "absent") != after.get(path, "absent")
    ]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the values of a table inside others by their paths, such as `training.rounds` or `learners[0].name`."""
    if isinstance(value, dict):
        items = [(f"{path}.{k}" if path else str(k), v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{k}]", v) for k, v in enumerate(value)]
    else:
        return {path.removeprefix("federation."): value}
    return {p: v for key, item in items for p, v in flat(item, key).items()}
