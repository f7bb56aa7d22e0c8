"""The section `data`: the dataset, how it is dealt out, and how each shard is split."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from fedpipe.federation.names import Fraction, Positive, Section


class Iid(Section, frozen=True, kw_only=True, tag_field="by", tag="iid"):
    """Random shards of equal size."""

    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByLabel(Section, frozen=True, kw_only=True, tag_field="by", tag="label"):
    """Sorted by label, cut into pieces, dealt at random: each learner sees few labels (McMahan et al. 2017)."""

    pieces: Annotated[int, Meta(ge=1, description="pieces for each learner")] = 2
    seed: Annotated[int, Meta(ge=0, description="seed of the deal")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByKey(Section, frozen=True, kw_only=True, tag_field="by", tag="key"):
    """All examples of one key (a writer, a user) go to one learner; sizes are kept as even as keys allow."""

    column: Annotated[str, Meta(description="array or column that holds the key of each example")]
    seed: Annotated[int, Meta(ge=0, description="seed of the order among keys of the same size")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class Dirichlet(Section, frozen=True, kw_only=True, tag_field="by", tag="dirichlet"):
    """Each label is spread over the learners by a draw from Dirichlet(alpha) (Hsu et al. 2019)."""

    alpha: Annotated[float, Meta(gt=0, description="small: few labels each; large: nearly iid")]
    seed: Annotated[int, Meta(ge=0, description="seed of the draws")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class BySize(Section, frozen=True, kw_only=True, tag_field="by", tag="size"):
    """Random shards of given sizes, which must add up to all examples."""

    sizes: Annotated[tuple[Positive, ...], Meta(description="examples of each learner, in the learners' order")]
    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByFractions(Section, frozen=True, kw_only=True, tag_field="by", tag="fractions"):
    """Random shards of given fractions, which must add up to 1."""

    fractions: Annotated[tuple[Fraction, ...], Meta(description="share of each learner, in the learners' order")]
    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


Scheme = Iid | ByLabel | ByKey | Dirichlet | BySize | ByFractions


class Parts(Section, frozen=True, kw_only=True):
    """How each learner's examples are split; the three add up to 1."""

    train: Annotated[Fraction, Meta(description="what the learner trains on")] = 0.8
    vote: Annotated[Fraction, Meta(description="what the learner votes with")] = 0.1
    test: Annotated[Fraction, Meta(description="what the learner tests the shared model on")] = 0.1


class Data(Section, frozen=True, kw_only=True):
    """The dataset that is sharded over the learners without data of their own."""

    uri: Annotated[
        str,
        Meta(
            description="an .npz or .parquet file, or TFF's .h5 or .sqlite (docs/simulation.md): a path beside this "
            "file, or `s3://...`"
        ),
    ] = ""
    features: Annotated[
        str, Meta(description="array of the features; in Parquet a list column, or empty: all others")
    ] = "x"
    labels: Annotated[str, Meta(description="array or column of the labels")] = "y"
    split: Annotated[str, Meta(description="of a SQLite file that has several, such as `train`")] = ""
    shards: Annotated[Scheme, Meta(description="how the examples are dealt out")] = field(default_factory=Iid)
    parts: Annotated[Parts, Meta(description="train, vote and test part of each learner")] = field(
        default_factory=Parts
    )

    @property
    def columns(self) -> dict[str, str]:
        """What is read of a file: the arguments of `read_examples`."""
        return {"features": self.features, "labels": self.labels, "split": self.split}
