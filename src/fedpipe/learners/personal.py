"""Weights that stay at a learner: local ones, a personal model, and control variates.

They are an object below `learners/<name>/personal/`, which only the learner reads. The manifest of its update has the
digest. A learner continues from its last update that counted in an accepted round, of this run or of one before it. So
a repeated training begins from the same bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fedpipe import weights
from fedpipe.errors import CorruptError, NotFoundError
from fedpipe.federation.federation import Federation
from fedpipe.federation.methods import PERSONAL, Scaffold
from fedpipe.learners.framework import NONE, Arrays, Model
from fedpipe.learners.sharing import SharedModel
from fedpipe.rounds.history import history, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store
from fedpipe.store.objects import fetch_file, put_file
from fedpipe.weights import Array

_SEPARATOR = ":"


class Kept(NamedTuple):
    """The weights that a learner keeps from round to round.

    Args:
        local: weights that are not shared.
        model: its personal model.
        control: its control variates.
        residual: what rounding took away from its last update.
    """

    local: Mapping[str, Array] = NONE
    model: Mapping[str, Array] = NONE
    control: Mapping[str, Array] = NONE
    residual: Mapping[str, Array] = NONE

    def save(self, store: Store, learner: str, folder: Path) -> str | None:
        """Write what is kept into the learner's own folder, and return its digest; None when there is nothing."""
        named = {
            f"{part}{_SEPARATOR}{name}": value
            for part, arrays in self._asdict().items()
            for name, value in sorted(arrays.items())
        }
        if not named:
            return None
        digest = weights.save(named, folder / "personal")
        put_file(store, folder / "personal", digest, learner, "personal")
        return digest

    @classmethod
    def load(cls, store: Store, learner: str, digest: str) -> Kept:
        """Read what a learner has kept, verified. Raises CorruptError and NotFoundError."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "personal"
            fetch_file(store, digest, path, learner, "personal")
            named = weights.load(path)
        parts: dict[str, Arrays] = {part: {} for part in cls._fields}
        for name, value in named.items():
            part, _, rest = name.partition(_SEPARATOR)
            if part not in parts:
                raise CorruptError(f"{name!r} is not a weight that a learner keeps", where=f"{store.uri}: {digest}")
            parts[part][rest] = value
        return cls(**parts)


NOTHING = Kept()


def keeps(model: Model, federation: Federation) -> bool:
    """Return whether learners keep weights from round to round."""
    exchange = federation.training.exchange
    rounds_off = exchange is not None and exchange.keeps_residual
    return isinstance(model, SharedModel) or isinstance(federation.method, (*PERSONAL, Scaffold)) or rounds_off


def last_kept(store: Store, model: Model, federation: Federation, learner: str, record: Record | None) -> Kept:
    """Return what a learner kept after its last update that counted; nothing before the first.

    Args:
        store: the federation's store.
        model: of the federation.
        federation: its settings.
        learner: its name.
        record: of the last round, accepted or not.

    Raises:
        CorruptError: it is lost or altered, so the learner cannot continue from it.
    """
    if not keeps(model, federation):
        return NOTHING
    found = find_kept(store, learner, record)
    if found is None or record is None:
        return NOTHING
    run, digest = found
    try:
        kept = Kept.load(store, learner, digest)
    except NotFoundError as error:
        raise CorruptError(
            f"the weights that {learner} keeps are lost: {error.what}", where=store.uri,
            remedy="Restore the learner's folder from a copy, or begin with `training.start: fresh`.",
        ) from error  # fmt: skip
    return kept if run == record.run else kept._replace(control=NONE, residual=NONE)  # those of a run end with it


def find_kept(store: Store, learner: str, record: Record | None) -> tuple[str, str] | None:
    """Return the run and the digest of what a learner kept last, in the chain of records that ends at this one."""
    while record is not None:
        if record.accepted:
            found = next((u.personal for u in record.updates if u.learner == learner), None)
            if found is not None:
                return record.run, found
        if not record.round and record.base != record.weights:  # the run began with new weights
            return None
        ref = record.previous
        record = read_record(store, ref.run, ref.round) if ref else None
    return None


def completed(model: Model, kept: Kept) -> Model:
    """Return the model with a learner's local weights, if some are not shared."""
    return model.owned(kept.local) if isinstance(model, SharedModel) else model


def find_personal(store: Store, plan: Plan, model: Model, learner: str) -> tuple[Model, Arrays | None] | None:
    """Return a learner's personal model after a run, and its weights; None when it has none.

    Args:
        store: the federation's store.
        plan: the run's plan.
        model: of the plan.
        learner: its name.

    Returns:
        The model, and its weights, which are None when they are the shared ones, completed by local ones.

    Raises:
        CorruptError: its weights are lost or altered.
    """
    if not plan.federation.personal or not (records := history(store, plan.run)):
        return None
    kept = last_kept(store, model, plan.federation, learner, records[-1])
    if not kept.local and not kept.model:
        return None
    return completed(model, kept), dict(kept.model) or None
