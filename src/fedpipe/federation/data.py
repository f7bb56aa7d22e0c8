"""The section `data`: the dataset, how it is sharded, and how each shard is split."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


Kind = Literal["number", "boolean", "date", "category", "text"]
FileKind = Literal["number", "boolean", "date", "category", "text", "ignore"]
AUTO = "auto"
"""The features of a table whose columns are all used, by guessed kinds."""


SHEETS = (".csv", ".tsv", ".parquet")
"""Suffixes of files with columns that have names."""


class ColumnSettings(Section, frozen=True, kw_only=True):
    """Describes a column of features with more than its kind."""

    kind: Annotated[FileKind, Meta(description="how its cells are read")]
    categories: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        Meta(max_length=10_000, description="known values of a category, in order; empty: those in the statistics"),
    ] = ()


class StatisticsSettings(Section, frozen=True, kw_only=True):
    """Limits the statistics of a table that a learner discloses; without rows, and combined over learners."""

    floor: Annotated[
        int, Meta(ge=1, le=2**53, description="fewest train examples of a learner that discloses statistics")
    ] = 10
    rare: Annotated[
        int,
        Meta(ge=1, le=2**53, description="fewest examples of a category or label that a learner discloses"),
    ] = 3


class Data(Section, frozen=True, kw_only=True):
    """Names the dataset that is sharded over the learners without data of their own."""

    uri: Annotated[
        str,
        Meta(
            description="a .csv, .tsv, .parquet or .npz file, or TFF's .h5 or .sqlite (docs/simulation.md): a path "
            "relative to this file, or `s3://...`. `fedpipe put` uploads one. The store gives a URI its endpoint"
        ),
    ] = ""
    secret: Annotated[
        str,
        Meta(description="Kubernetes secret of the user that deals the shards; empty: the federation's"),
    ] = ""
    features: Annotated[
        str | dict[Annotated[str, Meta(min_length=1, max_length=200)], FileKind | ColumnSettings],
        Meta(
            description="for a table (docs/tables.md) kinds of columns by name, such as "
            "`{age: number, sex: category}`, or `auto`, the default for .csv, .tsv and .parquet. Otherwise the array "
            "of the features; in a table a list column, or empty for all others by their places"
        ),
    ] = "x"
    labels: Annotated[str, Meta(description="array or column of the labels")] = "y"
    ignore: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        Meta(description="columns that `features: auto` leaves out, such as numbers of patients"),
    ] = ()
    normalise: Annotated[
        Literal["federated", "none"],
        Meta(
            description="whether `build(table)` of model.py normalises the numbers of a table, by means and deviations "
            "over all learners"
        ),
    ] = "federated"
    statistics: Annotated[StatisticsSettings, Meta(description="statistics of a table that learners disclose")] = field(
        default_factory=StatisticsSettings
    )
    split: Annotated[str, Meta(description="split of a SQLite file that has several, such as `train`")] = ""
    shards: Annotated[Scheme, Meta(description="how the examples are sharded")] = field(default_factory=Iid)
    parts: Annotated[Parts, Meta(description="train, vote and test parts of each learner")] = field(
        default_factory=Parts
    )

    @property
    def is_table(self) -> bool:
        """Return whether the features are columns with kinds."""
        return self.features == AUTO or isinstance(self.features, dict)

    @property
    def kinds(self) -> dict[str, Kind]:
        """Return the declared kinds of columns, in order; empty if they are guessed, or if there is no table."""
        if not isinstance(self.features, dict):
            return {}
        kinds = {name: given if isinstance(given, str) else given.kind for name, given in self.features.items()}
        return {name: kind for name, kind in kinds.items() if kind != "ignore"}

    def categories_of(self, column: str) -> tuple[str, ...]:
        """Return the declared categories of a column; empty if the statistics settle them."""
        given = self.features.get(column) if isinstance(self.features, dict) else None
        return given.categories if isinstance(given, ColumnSettings) else ()

    @property
    def columns(self) -> dict[str, Any]:
        """Return the arguments with which `read_examples` reads a file of this dataset."""
        features = self.kinds if isinstance(self.features, dict) else self.features
        return {
            "features": features, "labels": self.labels, "split": self.split, "ignore": self.ignore, "narrowed": False,
        }  # fmt: skip
