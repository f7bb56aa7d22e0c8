"""Checks the store, its clock, and which learners are enrolled there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import urllib3

from fedpipe.errors import ClusterError, FedpipeError
from fedpipe.federation.federation import Federation
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.kubeflow.doctor.finding import THE_COORDINATOR, Finding
from fedpipe.kubeflow.forwarding import reachable_store
from fedpipe.kubeflow.where import Where
from fedpipe.store import endpoint_of, open_store
from fedpipe.store.network import Pool

_LARGEST_SKEW = 60.0
"""Seconds by which clocks may differ without a warning; S3 refuses requests from 15 minutes on."""
_LOOK = 10.0
"""Seconds for a look at a store; a step waits longer."""


def check_store(federation: Federation, pod_uri: str, where: Where) -> Iterator[Finding]:
    """Checks that pods can reach the store and that it accepts writes.

    Args:
        federation: the federation.
        pod_uri: URI of its store, as pods reach it.
        where: where Kubeflow is.
    """
    if not pod_uri.startswith("s3://"):
        yield Finding("error", "store", f"pods cannot reach {pod_uri}", "Set `store` to an s3:// URI.")
        return
    try:
        with reachable_store(pod_uri, where) as uri:
            yield from _check_access(federation, uri)
    except ClusterError as error:
        yield _as_finding(error)


def _check_access(federation: Federation, uri: str) -> Iterator[Finding]:
    try:
        yield from _check_clock(uri)
        open_store(uri, deadline=_LOOK).probe()
    except FedpipeError as error:
        yield _as_finding(error)
        return
    yield Finding("ok", "store", f"{uri} is writable, and honours conditional writes")
    yield from check_enrolment(federation, uri)


def _check_clock(uri: str) -> Iterator[Finding]:
    """Compares this machine's clock with the store's; steps use the store's where it matters."""
    pool = Pool(timeout=urllib3.Timeout(5), retries=False)
    try:
        date = pool.request("HEAD", endpoint_of(uri)).headers.get("Date")
    except urllib3.exceptions.HTTPError:
        return  # the probe reports that the store cannot be reached
    if date is None:
        return
    skew = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(skew) > _LARGEST_SKEW:
        side = "ahead of" if skew > 0 else "behind"
        what = f"this machine is {abs(skew):.0f} s {side} the store"
        yield Finding("warning", "clock", what, "Synchronise the clocks, for example with NTP.")


def check_enrolment(federation: Federation, uri: str) -> Iterator[Finding]:
    """Checks that all learners are enrolled as soon as one is; without enrolments, updates are not signed.

    Args:
        federation: the federation.
        uri: URI of its store, as this machine reaches it.
    """
    try:
        enrolled = read_enrolled(open_store(uri, deadline=_LOOK).below(federation.name))
    except FedpipeError as error:
        yield _as_finding(error)
        return
    if enrolled.coordinator is not None and enrolled.coordinator.revoked is not None:
        what = "is revoked: servers refuse the models that it publishes"
        yield Finding("error", "coordinator", what, "Run `fedpipe enroll --coordinator`.")
    elif enrolled.coordinator is not None:
        yield Finding("ok", "coordinator", "is enrolled, and signs the models that it publishes")
    for learner in federation.learners if enrolled.learners else ():
        enrolment = enrolled.learners.get(learner.name)
        if enrolment is None or enrolment.revoked is not None:
            what = "is revoked" if enrolment else "is not enrolled, but others are: its updates are refused"
            yield Finding("error", learner.name, what, f"Run `fedpipe enroll {learner.name}`.")
        else:
            yield Finding("ok", learner.name, "is enrolled")


def find_signers(federation: Federation, pod_uri: str, where: Where) -> set[str]:
    """Returns the names of those that must sign; empty if the store cannot be read, which `check_store` reports."""
    with contextlib.suppress(FedpipeError), reachable_store(pod_uri, where) as uri:
        enrolled = read_enrolled(open_store(uri, deadline=_LOOK).below(federation.name))
        enrolments = dict(enrolled.learners)
        if enrolled.coordinator:
            enrolments[THE_COORDINATOR] = enrolled.coordinator
        return {name for name, enrolment in enrolments.items() if enrolment.revoked is None}
    return set()


def _as_finding(error: FedpipeError) -> Finding:
    return Finding("error", "store", error.what, error.remedy or "")
