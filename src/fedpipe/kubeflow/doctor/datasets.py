"""Checks whether the datasets of a federation are where its pods read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedpipe.data.examples import size_of_dataset
from fedpipe.errors import ClusterError, DataError, StoreError
from fedpipe.federation.federation import Federation
from fedpipe.kubeflow.doctor.finding import Finding
from fedpipe.kubeflow.forwarding import reachable_stores
from fedpipe.kubeflow.where import Where
from fedpipe.store import is_uri


def check_datasets(federation: Federation, pod_uri: str, where: Where) -> Iterator[Finding]:
    """Checks that each dataset exists, with the credentials of this machine.

    Args:
        federation: the federation.
        pod_uri: URI of its store, as pods reach it; datasets are at its endpoint unless they name another.
        where: where Kubeflow is.
    """
    reaching = federation.reaching(pod_uri)
    with reachable_stores(where) as reached:
        if federation.sharded:
            yield _check("data", reaching.data.uri, reached, own=False)
        for learner in reaching.learners:
            if learner.data:
                yield _check(f"data of {learner.name}", learner.data, reached, own=True)


def _check(subject: str, uri: str, reached: Callable[[str], str], *, own: bool) -> Finding:
    """Looks at one dataset; a learner's own is often for its pods only, so a missing one is a warning only."""
    if not is_uri(uri) or uri.startswith("file://"):
        if own:
            return Finding("ok", subject, f"{uri} is a path in the pods of the learner, and not looked at here")
        remedy = "Run `fedpipe put FILE`, and use the URI that it prints."
        return Finding("error", subject, f"pods cannot read {uri}, a file on this machine", remedy)
    if not uri.startswith("s3://"):
        return Finding("ok", subject, f"{uri} is not looked at here")
    try:
        size = size_of_dataset(reached(uri))
    except DataError as error:
        return Finding("warning" if own else "error", subject, f"{uri}: {error.what}", error.remedy or "")
    except (StoreError, ClusterError) as error:
        return Finding("warning", subject, f"{uri} cannot be looked at from here: {error.what}", error.remedy or "")
    return Finding("ok", subject, f"{uri} has {size} bytes")
