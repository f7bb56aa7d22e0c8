"""Describes a plan to a site, by digests: of its code and all its settings, with fedpipe's version and the image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fedpipe.errors import CorruptError
from fedpipe.federation.federation import Federation, LearnerSettings
from fedpipe.federation.names import KUBEFLOWS_SECRET, Name
from fedpipe.federation.placement import Images
from fedpipe.federation.tracking import Tracking
from fedpipe.rounds.plan import Plan, bare_name
from fedpipe.store.objects import Digest, canonical, digest_of
from fedpipe.version import __version__

IMAGE = "FEDPIPE_IMAGE"
"""Environment variable of the site's container: the digest of its image."""


class Description(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The digests of a plan: the same in every run that asks for the same.

    `place` is the store and the name of the federation, so that another one of the same name is another plan.
    """

    format: int = 1
    place: str
    federation: Name
    learner: Name
    code: Digest
    settings: Digest
    fedpipe: str
    image: str = ""

    @property
    def digest(self) -> str:
        """The digest that decisions and reviews name."""
        return digest_of(canonical(self))


class Offer(NamedTuple):
    """A plan with its code, as it came from the store, and its description."""

    plan: Plan
    code: bytes
    description: Description

    @property
    def settings(self) -> bytes:
        """The settings that the description names."""
        return settings_of(self.plan)


def offer_of(plan: Plan, code: bytes, learner: str, place: str, environ: Mapping[str, str] = os.environ) -> Offer:
    """Describe a plan to a site.

    Args:
        plan: from the store.
        code: its model.py, with the digest that the plan names.
        learner: the site's name.
        place: URI of the federation's part of the store.
        environ: names the image of this container.

    Raises:
        CorruptError: the code has another digest.
    """
    if digest_of(code) != plan.code:
        raise CorruptError(f"the code is not the one that the plan names ({plan.code})")
    description = Description(
        place=place, federation=plan.federation.name, learner=learner, code=plan.code,
        settings=digest_of(settings_of(plan)), fedpipe=__version__, image=environ.get(IMAGE, ""),
    )  # fmt: skip
    return Offer(plan, code, description)


def settings_of(plan: Plan) -> bytes:
    """Return all of a plan that can matter to a site; places of others, run and shards are left out."""
    federation = plan.federation
    kept = replace(
        federation, store="store", secret=KUBEFLOWS_SECRET, images=Images(), placement={}, tracking=Tracking(),
        learners=tuple(map(_bare, federation.learners)),
        data=replace(federation.data, uri=bare_name(federation.data.uri), secret=""),
    )  # fmt: skip
    inputs = msgspec.to_builtins(plan.inputs)
    return canonical({"federation": msgspec.to_builtins(_placeless(kept)), "function": plan.function, "inputs": inputs})


def _bare(learner: LearnerSettings) -> LearnerSettings:
    return LearnerSettings(name=learner.name, data=bare_name(learner.data), privacy=learner.privacy)


def _placeless(federation: Federation) -> Federation:
    simulation = replace(federation.simulation, placement=type(federation.simulation)().placement)
    return replace(federation, simulation=simulation, model=bare_name(federation.model))
