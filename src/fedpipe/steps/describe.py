"""Describe the tables of learners before the first round: one learner, or all in a simulation."""

from __future__ import annotations

from types import ModuleType

from msgspec import Struct

from fedpipe.data.disclosure import basis_of, own_report, schema_of_head
from fedpipe.federation.federation import Federation
from fedpipe.learners.describe import describe
from fedpipe.learners.user_code import load_code
from fedpipe.rounds.plan import RunPlace, Shards
from fedpipe.steps.shard import read
from fedpipe.store.objects import digest_of, encode


class Inputs(Struct, frozen=True, kw_only=True):
    """The place and shards of the run, the federation and model.py as text, and the learner; empty for all."""

    place: RunPlace
    shards: Shards
    federation: str
    code: str
    learner: str = ""


class Outputs(Struct, frozen=True, kw_only=True):
    """Digest of the report, or `head` when HEAD's schema is used; empty for several learners."""

    report: str


def find(inputs: Inputs) -> Outputs | None:
    """Return the report when it is already published."""
    if not inputs.learner:
        return None
    basis = basis_of(read(inputs.federation), inputs.learner, inputs.shards.learners)
    report = own_report(inputs.place.open(), inputs.learner, inputs.place.run, basis)
    return Outputs(report=digest_of(encode(report))) if report else None


def run(inputs: Inputs) -> Outputs:
    """Describe once; a learner that cannot leaves the reason, and the step succeeds."""
    store, federation = inputs.place.open(), read(inputs.federation).reaching(inputs.place.store)
    if schema_of_head(store, federation) is not None:
        return Outputs(report="head")
    module = _module(federation, inputs.code)
    names = [inputs.learner] if inputs.learner else [learner.name for learner in federation.learners]
    reports = [describe(store, federation, inputs.place.run, name, inputs.shards.learners, module) for name in names]
    return Outputs(report=digest_of(encode(reports[0])) if inputs.learner else "")


def _module(federation: Federation, code: str) -> ModuleType | None:
    """Return the user's file if a learner has data of its own, which `load` may read. Raises ModelError."""
    if not any(learner.brings_data for learner in federation.learners):
        return None
    return load_code(code.encode(), digest_of(code.encode()))
