"""The weighted mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from fedpipe.aggregation.rule import Array, Floats, Rule, total


def mean(
    values: Iterable[Array], weights: Sequence[float], places: Sequence[int] = (), summed: Collection[int] = ()
) -> Floats:
    """Weighted mean in float64.

    .. math:: \\bar w = \\frac{\\sum_k n_k w_k}{\\sum_k n_k}

    Args:
        values: one flat array per learner, each of the same length; taken one at a time.
        weights: positive, one per array.
        places: see `total`.
        summed: see `total`.

    Returns:
        float64, the arrays' length.

    Raises:
        WeightsError: no values, or weights that are not positive and finite.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
    Algorithm 1.
    """
    result = total(values, weights, places, summed)
    result /= float(sum(weights))
    return result


RULES: dict[str, Rule] = {"mean": mean}
