"""Deal the dataset out to the learners, and return the place of the run."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from fedpipe.codec import read_json
from fedpipe.data.examples import Examples
from fedpipe.data.parts import Shard, put_parts, put_shard
from fedpipe.data.shards import dealt
from fedpipe.errors import DataError, DroppedError, InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import parse_federation
from fedpipe.federation.names import SAFE_NAME
from fedpipe.reports.catalogue import drop_line
from fedpipe.rounds.beginning import free_name
from fedpipe.rounds.history import is_settled
from fedpipe.rounds.plan import RunPlace, Shards, differences
from fedpipe.rounds.pruning import entered
from fedpipe.rounds.received import Source, guarded
from fedpipe.sessions.results import Results, publish_results
from fedpipe.store import Store, keys, with_endpoint
from fedpipe.store.objects import canonical, encode
from fedpipe.store.objects import find as find_object

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The federation as JSON text, and the run-time parameters for the store, the data and the run."""

    federation: str
    store: str
    run: str
    data: str = ""
    job: str = ""


class Outputs(Struct, frozen=True, kw_only=True):
    """The place of the run, and its shards."""

    place: RunPlace
    shards: Shards


class _Request(Struct, frozen=True, kw_only=True):
    """The inputs of a run's shards, and the result."""

    data: str
    settings: list[Any]
    learners: tuple[str, ...]
    shards: Shards


def read(federation: str) -> Federation:
    """Return the federation from JSON text. Raises FederationError."""
    return parse_federation(read_json(federation))


def run(inputs: Inputs) -> Outputs:
    """Deal once per run, and not while `fedpipe prune` removes objects that the run could find."""
    name = run_name(inputs.run, inputs.job)
    store = RunPlace(store=inputs.store, federation=read(inputs.federation).name, run=name).open()
    with entered(store, name):
        drop_line(store, name)
        outputs = deal(inputs)
    if inputs.job:
        publish_results(store, name, "shard", Results(job=inputs.job, shards=outputs.shards, ended=True))
    return outputs


def deal(inputs: Inputs) -> Outputs:
    """Deal once per run: a repeated step finds the shards of the first one.

    Until the run has recorded a round, the data are dealt again, because they may have been mended. Later they are
    dealt again only where shards have vanished from the store, and must be the same. Owners may remove their own. The
    run continues without these while there are enough others.
    """
    federation = read(inputs.federation)
    place = RunPlace(store=inputs.store, federation=federation.name, run=run_name(inputs.run, inputs.job))
    store = place.open()
    uri = inputs.data or federation.data.uri
    data = msgspec.structs.replace(federation.data, secret="")
    settings = read_json(canonical((data, federation.evaluation.holdout, federation.training.seed)))
    wanted = _Request(data=uri, settings=settings, learners=federation.sharded, shards=Shards(learners={}))
    key = keys.shards(place.run)
    found = find_object(store, key, _Request)
    settled = found is not None and is_settled(store, place.run)
    if found is not None and settled:
        if encode(msgspec.structs.replace(found, shards=wanted.shards)) != encode(wanted):
            changed = "; ".join(differences(_named(found), _named(wanted))[:5])
            raise InputError(
                f"run {place.run!r} was made with other data or shards ({changed})",
                remedy=f"Use another run name, such as {free_name(store, place.run)}, or restore the settings.",
            )
        lost = _missing(store, place.run, found.shards)
        if not lost:
            log.info("the shards of run %s are already there", place.run)
            return Outputs(place=place, shards=found.shards)
    shards = Shards(learners={})
    try:
        if federation.sharded:
            shards = _written(store, federation, *dealt(federation, with_endpoint(uri, inputs.store)))
    except DataError as error:
        if not (found is not None and settled and _continues_without(federation, lost)):
            raise
        log.warning("%s: %s", ", ".join(lost), error)
        return Outputs(place=place, shards=found.shards)
    if found is not None and settled and shards != found.shards:
        if _continues_without(federation, lost):
            return Outputs(place=place, shards=found.shards)
        raise DataError(
            f"the shards of run {place.run!r} have vanished from the store, and the data are not those of its start",
            where=uri,
            remedy="Restore the data or the store. Or begin another run, such as "
            f"{free_name(store, place.run)}: it continues from HEAD.",
        )
    store.replace(key, encode(msgspec.structs.replace(wanted, shards=shards)))
    return Outputs(place=place, shards=shards)


def _named(request: _Request) -> dict[str, Any]:
    """Return the settings of a request under the names that they have in the federation file."""
    data, holdout, seed = request.settings
    return {
        "data": {**data, "uri": request.data}, "evaluation": {"holdout": holdout}, "training": {"seed": seed},
        "learners": request.learners,
    }  # fmt: skip


def _missing(store: Store, run: str, shards: Shards) -> list[str]:
    """Return the learners whose shards are not in the store; "" stands for the central test set.

    A learner may keep its shard in a form that the store does not give to others; then it is there.
    """

    def is_there(name: str, digest: str) -> bool:
        source = Source(store, run, keys.content(digest, name), "shard")
        with contextlib.suppress(DroppedError):
            return guarded(source, lambda: store.size(source.key)) is not None
        return True

    lost = [name for name, digest in shards.learners.items() if not is_there(name, digest)]
    return [*lost, ""] if shards.test and store.size(keys.content(shards.test)) is None else lost


def _continues_without(federation: Federation, lost: Sequence[str]) -> bool:
    """Return whether a run that has begun can continue without these shards, which their owners may have removed."""
    if "" in lost or len(federation.learners) - len(lost) < federation.min_learners:
        return False
    log.warning("the shards of %s have vanished, and the data are not those of the start", ", ".join(lost))
    return True


def run_name(run: str, job: str) -> str:
    """Return the run's name: the given one, or one made from the KFP job's id. Raises InputError."""
    name = run or re.sub(r"[^a-z0-9-]", "-", job.lower())[:40].strip("-")
    if not re.fullmatch(SAFE_NAME, name):
        raise InputError(
            f"{name!r} is not a safe name",
            where="run",
            remedy="Use at most 40 lower-case letters, digits and '-'.",
        )
    if name in keys.RESERVED_RUNS:
        raise InputError(f"{name!r} is reserved", where="run", remedy="Choose another name.")
    return name


def _written(
    store: Store, federation: Federation, parts: dict[str, dict[str, Examples]], test: Examples | None
) -> Shards:
    made: dict[str, tuple[Shard, str]] = {name: put_shard(store, name, part) for name, part in parts.items()}
    for name, (shard, _) in made.items():
        log.info("%s: %s", name, ", ".join(f"{count} {part}" for part, count in shard.parts.items()))
    digest = put_parts(store, {"test": test})[0] if test is not None else ""
    sizes = {name: shard.parts for name, (shard, _) in made.items()}
    return Shards(learners={name: digest for name, (_, digest) in made.items()}, test=digest, sizes=sizes)
