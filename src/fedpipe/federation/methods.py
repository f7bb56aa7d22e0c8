"""Settings of what learners share, and of how they train when their data differ."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from fedpipe.federation.names import LARGE, Section

Strength = Annotated[float, Meta(gt=0, le=LARGE)]


class Sharing(Section, frozen=True, kw_only=True):
    """Keeps weights at the learners: FedBN (Li et al. 2021), FedPer (Arivazhagan et al. 2019)."""

    local: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=300)], ...],
        Meta(
            min_length=1,
            max_length=1000,
            description="patterns of names of weights, such as `*batch_normalization*` or `head/*`; a pattern may also "
            "begin at any part of the name",
        ),
    ]


class FedProx(Section, frozen=True, kw_only=True, tag_field="name", tag="fedprox"):
    """Pulls the training towards the shared weights (Li et al. 2020)."""

    mu: Annotated[Strength, Meta(description="weight of half the squared distance from the shared weights")]


class Scaffold(Section, frozen=True, kw_only=True, tag_field="name", tag="scaffold"):
    """Corrects each gradient by control variates (Karimireddy et al. 2020, Algorithm 1, option II)."""


class FedNova(Section, frozen=True, kw_only=True, tag_field="name", tag="fednova"):
    """Divides each update by its number of steps (Wang et al. 2020)."""


class Ditto(Section, frozen=True, kw_only=True, tag_field="name", tag="ditto"):
    """Trains a personal model next to the shared one, and pulls it towards that (Li et al. 2021)."""

    strength: Annotated[
        Strength, Meta(description="weight of half the squared distance of the personal model from the shared one")
    ] = field(name="lambda")


class MrMtl(Section, frozen=True, kw_only=True, tag_field="name", tag="mr_mtl"):
    """Trains only personal models, and shares their mean, which pulls them (MR-MTL, Liu et al. 2022)."""

    strength: Annotated[
        Strength, Meta(description="weight of half the squared distance of the personal model from the mean")
    ] = field(name="lambda")


Method = FedProx | Scaffold | FedNova | Ditto | MrMtl
COUNTS_STEPS = (Scaffold, FedNova)
"""Methods whose round depends on the number of each learner's steps, with plain gradient descent."""
PERSONAL = (Ditto, MrMtl)
"""Methods with a model of each learner's own."""
