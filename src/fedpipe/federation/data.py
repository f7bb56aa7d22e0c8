"""The section `data`: the dataset, how it is sharded, and how each shard is split."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from fedpipe.federation.names import Fraction, Positive, PositiveAmount, Section, Seed


class Iid(Section, frozen=True, kw_only=True, tag_field="by", tag="iid"):
    """Deals random shards of equal size."""

    seed: Annotated[Seed, Meta(description="seed of the split")] = 0
    minimum: Annotated[Positive, Meta(description="fewest examples that a learner may get")] = 1


class ByLabel(Section, frozen=True, kw_only=True, tag_field="by", tag="label"):
    """Sorts by label and deals pieces at random: each learner sees few labels (McMahan et al. 2017)."""

    pieces: Annotated[Positive, Meta(description="pieces for each learner")] = 2
    seed: Annotated[Seed, Meta(description="seed of the deal")] = 0
    minimum: Annotated[Positive, Meta(description="fewest examples that a learner may get")] = 1


class ByKey(Section, frozen=True, kw_only=True, tag_field="by", tag="key"):
    """Gives all examples of one key (a writer, a user) to one learner; keeps sizes as even as keys allow."""

    column: Annotated[str, Meta(description="array or column that holds the key of each example")]
    seed: Annotated[Seed, Meta(description="seed of the order among keys of the same size")] = 0
    minimum: Annotated[Positive, Meta(description="fewest examples that a learner may get")] = 1


class Dirichlet(Section, frozen=True, kw_only=True, tag_field="by", tag="dirichlet"):
    """Spreads each label over the learners by a draw from Dirichlet(alpha) (Hsu et al. 2019)."""

    alpha: Annotated[PositiveAmount, Meta(description="small: few labels each; large: nearly iid")]
    seed: Annotated[Seed, Meta(description="seed of the draws")] = 0
    minimum: Annotated[Positive, Meta(description="fewest examples that a learner may get")] = 1


class BySize(Section, frozen=True, kw_only=True, tag_field="by", tag="size"):
    """Deals random shards of given sizes, which must add up to all examples."""

    sizes: Annotated[tuple[Positive, ...], Meta(description="examples of each learner, in the learners' order")]
    seed: Annotated[Seed, Meta(description="seed of the split")] = 0
    minimum: Annotated[Positive, Meta(description="fewest examples that a learner may get")] = 1


class ByFractions(Section, frozen=True, kw_only=True, tag_field="by", tag="fractions"):
    """Deals random shards of given fractions, which must add up to 1."""

    fractions: Annotated[tuple[Fraction, ...], Meta(description="share of each learner, in the learners' order")]
    seed: Annotated[Seed, Meta(description="seed of the split")] = 0
    minimum: Annotated[Positive, Meta(description="fewest examples that a learner may get")] = 1


Scheme = Iid | ByLabel | ByKey | Dirichlet | BySize | ByFractions


class Parts(Section, frozen=True, kw_only=True):
    """Splits each learner's examples; the three parts add up to 1."""

    train: Annotated[Fraction, Meta(description="share that the learner trains on")] = 0.8
    vote: Annotated[Fraction, Meta(description="share that it votes with")] = 0.1
    test: Annotated[Fraction, Meta(description="share on which it tests the shared model")] = 0.1


class Data(Section, frozen=True, kw_only=True):
    """Names the dataset that is sharded over the learners without data of their own."""

    uri: Annotated[
        str,
        Meta(
            description="an .npz or .parquet file, or TFF's .h5 or .sqlite (docs/simulation.md): `s3://...` or a path "
            "relative to this file"
        ),
    ] = ""
    features: Annotated[
        str, Meta(description="array of the features; in Parquet a list column, or empty: all others")
    ] = "x"
    labels: Annotated[str, Meta(description="array or column of the labels")] = "y"
    split: Annotated[str, Meta(description="split of a SQLite file that has several, such as `train`")] = ""
    shards: Annotated[Scheme, Meta(description="how the examples are sharded")] = field(default_factory=Iid)
    parts: Annotated[Parts, Meta(description="train, vote and test parts of each learner")] = field(
        default_factory=Parts
    )

    @property
    def columns(self) -> dict[str, str]:
        """Return the arguments with which `read_examples` reads a file of this dataset."""
        return {"features": self.features, "labels": self.labels, "split": self.split}
