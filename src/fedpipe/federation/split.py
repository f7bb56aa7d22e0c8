"""The settings of split learning: one network, cut between parties that hold columns of the same rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from fedpipe.federation.names import Count, Name, Section

ExchangeType = Literal["float32", "float16", "int8"]
"""The type of the numbers that parties send each other."""


Alignment = Literal["same", "intersection"]
"""How parties come to the same rows in the same order: they have them, or they find the ids that all have."""

MOST_AHEAD = 16
"""Most batches that a party may be ahead; it keeps what it needs for the gradients of each."""


class Split(Section, frozen=True, kw_only=True, tag_field="name", tag="split"):
    """Cuts one network: each party holds features and a lower part, one holds the labels and the upper part.

    Parties send activations up and gradients down (docs/split-learning.md; Gupta and Raskar 2018).
    """

    label_party: Annotated[Name, Meta(description="the learner that holds the labels, and trains `top()` of model.py")]
    batch_size: Annotated[Count, Meta(description="another place for `training.batch_size`")] = 0
    epochs: Annotated[Count, Meta(description="another place for `training.local_epochs`: epochs of a round")] = 0
    exchange: Annotated[
        ExchangeType,
        Meta(description="numbers that parties send: `float32` is exact, the others are smaller and rounded"),
    ] = "float32"
    ahead: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_AHEAD,
            description="batches that are sent before the gradients of an earlier one have come; 0 is exact, others "
            "move a bottom by old gradients",
        ),
    ] = 0
    label_party_features: Annotated[
        bool, Meta(description="whether the label party holds features too, and so a `bottom(party)` of its own")
    ] = False
    ids: Annotated[
        str,
        Meta(
            description="array or column of ids, by which parties check that their rows have the same order; empty: "
            "only the number of rows is compared"
        ),
    ] = ""
    align: Annotated[
        Alignment,
        Meta(
            description="`same`: all parties have the same rows in the same order. `intersection`: they keep the rows "
            "whose ids are common to all, found by private set intersection"
        ),
    ] = "same"


ALIASES = {"batch_size": "batch_size", "epochs": "local_epochs"}
"""Keys of this section that stand for keys of `training`."""


def with_aliases(content: dict[str, Any]) -> dict[str, Any]:
    """Return a file's content whose `training` has the values that `algorithm` gives; unequal ones stay in both."""
    algorithm, training = content.get("algorithm"), content.get("training", {})
    if not isinstance(algorithm, dict) or algorithm.get("name") != "split" or not isinstance(training, dict):
        return content
    moved = {key: algorithm[key] for key in ALIASES if algorithm.get(key)}
    changed = {**{ALIASES[key]: value for key, value in moved.items()}, **training}
    left = {
        key: value for key, value in algorithm.items() if key not in moved or changed[ALIASES[key]] != moved[key]
    }  # fmt: skip
    return {**content, "algorithm": left, "training": changed}
