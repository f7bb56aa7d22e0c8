"""Checks the store, its clock, and who is enrolled there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import urllib3

from fedpipe.errors import ClusterError, FedpipeError
from fedpipe.federation.federation import Federation
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.kubeflow.doctor.finding import COORDINATOR, Finding
from fedpipe.kubeflow.forwarding import reached
from fedpipe.kubeflow.where import Where
from fedpipe.store import endpoint_of, open_store

_SKEW = 60.0
"""Seconds by which clocks may differ before it is told; S3 refuses requests from 15 minutes on."""


def check_store(federation: Federation, far: str, where: Where) -> Iterator[Finding]:
    """Check that pods reach the store and may write there."""
    if not far.startswith("s3://"):
        yield Finding("error", "store", f"pods cannot reach {far}", "Set `store` to an s3:// URI.")
        return
    try:
        with reached(far, where) as uri:
            yield from _check_reached(federation, uri)
    except ClusterError as error:
        yield Finding("error", "store", error.what, error.remedy or "")


def _check_reached(federation: Federation, uri: str) -> Iterator[Finding]:
    try:
        yield from _check_clock(uri)
        open_store(uri).probe()
    except FedpipeError as error:
        yield Finding("error", "store", error.what, error.remedy or "")
        return
    yield Finding("ok", "store", f"{uri} can be written, and honours conditional writes")
    yield from check_enrolment(federation, uri)


def check_enrolment(federation: Federation, uri: str) -> Iterator[Finding]:
    """Where some learners are enrolled, all must be; where none is, nobody signs."""
    try:
        enrolled = read_enrolled(open_store(uri).below(federation.name))
    except FedpipeError as error:
        yield Finding("error", "store", error.what, error.remedy or "")
        return
    if enrolled.coordinator is not None and enrolled.coordinator.revoked is not None:
        what = "is revoked: no server takes the models that it publishes"
        yield Finding("error", "coordinator", what, "fedpipe enroll --coordinator")
    elif enrolled.coordinator is not None:
        yield Finding("ok", "coordinator", "is enrolled, and signs the models that it publishes")
    known = enrolled.learners
    for learner in federation.learners if known else ():
        enrolment = known.get(learner.name)
        if enrolment is None or enrolment.revoked is not None:
            what = "is revoked" if enrolment else "is not enrolled, while others are: its updates are refused"
            yield Finding("error", learner.name, what, f"fedpipe enroll {learner.name}")
        else:
            yield Finding("ok", learner.name, "is enrolled")


def signers_of(federation: Federation, far: str, where: Where) -> set[str]:
    """Who must sign, by name; nobody where the store cannot be asked, which is told elsewhere."""
    with contextlib.suppress(FedpipeError), reached(far, where) as uri:
        enrolled = read_enrolled(open_store(uri).below(federation.name))
        known = enrolled.learners | ({COORDINATOR: enrolled.coordinator} if enrolled.coordinator else {})
        return {name for name, enrolment in known.items() if enrolment.revoked is None}
    return set()


def _check_clock(uri: str) -> Iterator[Finding]:
    """Compares this machine's clock with the store's; steps take the store's where it matters."""
    endpoint = endpoint_of(uri)
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(5), retries=False)
    try:
        stamp = pool.request("HEAD", endpoint).headers.get("Date")
    except urllib3.exceptions.HTTPError:
        return  # the probe says that it cannot be reached
    if stamp is None:
        return
    skew = time.time() - parsedate_to_datetime(stamp).timestamp()
    if abs(skew) > _SKEW:
        side = "ahead of" if skew > 0 else "behind"
        yield Finding(
            "warning", "clock", f"this machine is {abs(skew):.0f} s {side} the store", "Set the clocks, such as by NTP."
        )
