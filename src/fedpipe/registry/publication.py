"""Published models, below `models/`; who published one is told by a signature beside it.

    <name>/<version>/origin.json       what it was made from, and the digest of its bytes
    <name>/<version>/signature.json    the enrolled coordinator's signature of name, version and origin
    <name>/<version>/model.onnx        written last: what is there is whole

Where a coordinator is enrolled (`fedpipe enroll --coordinator`), the server serves no version that its key did not
sign: whoever may write in the store, but has not the key, can neither publish nor pass an old version off as a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from fedpipe.errors import CorruptError
from fedpipe.identity.enrolment import Enrolled, flaw_of, make_signature
from fedpipe.identity.signing import Signature, public_key, verify
from fedpipe.rounds.manifests import Manifest
from fedpipe.store import Store, keys
from fedpipe.store.objects import Digest, digest_of, encode, find


class Origin(Manifest, frozen=True, kw_only=True):
    """Where a published model comes from, and how well it was verified.

    `samples` says what it was compared on: `holdout` (the central test set) or `random` (when there is none).
    """

    federation: str
    run: str
    weights: Digest
    digest: Digest
    opset: int
    samples: str
    compared: int
    max_abs_difference: float


LARGEST = 2 * 2**30
"""Bytes of a model: what one protobuf message can hold."""


class ModelVersion(NamedTuple):
    """A version of a model; `keys.model(*entry)` is its key in the folder of models."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def versions(models: Store) -> dict[str, list[int]]:
    """The published versions by model, ascending. Raises StoreError."""
    found: dict[str, list[int]] = {}
    for name, number in filter(None, map(keys.parse_model, models.keys())):
        found.setdefault(name, []).append(number)
    return {name: sorted(numbers) for name, numbers in found.items()}


def find_origin(models: Store, entry: ModelVersion) -> Origin | None:
    """Reads the origin of a version; returns None if there is none. Raises CorruptError and StoreError."""
    return find(models, keys.origin(*entry), Origin)


def read_model(models: Store, entry: ModelVersion, origin: Origin | None) -> bytes:
    """A model's bytes.

    Args:
        models: the folder of models.
        entry: the version.
        origin: tells the digest that they must have; None where nobody does.

    Raises:
        CorruptError: they have another digest.
        StoreError: they are not there, are too large, or the store does not answer.
    """
    data = models.read(keys.model(*entry), limit=LARGEST).data
    if origin is not None and digest_of(data) != origin.digest:
        raise CorruptError(
            f"the model has the digest {digest_of(data)}, its origin says {origin.digest}",
            where=f"{models.uri}/{keys.model(*entry)}",
        )
    return data


def sign_publication(
    models: Store, entry: ModelVersion, origin: Origin, private: str, clock: Callable[[], float] = time.time
) -> None:
    """Writes the signature of a version, unless one by this key is there and good.

    Args:
        models: the folder of models.
        entry: the version.
        origin: what it was made from.
        private: the coordinator's key.
        clock: seconds since 1970.
    """
    try:
        there = find(models, keys.signature(*entry), Signature)
    except CorruptError:
        there = None
    content = _signed_bytes(entry, origin)
    if there is None or there.key != public_key(private) or not verify(there.key, content(there), there.value):
        models.replace(keys.signature(*entry), encode(make_signature(private, content, clock)))


def check_publication(models: Store, entry: ModelVersion, origin: Origin, enrolled: Enrolled) -> None:
    """Checks who published a version; anybody may where no coordinator is enrolled.

    Raises:
        CorruptError: the enrolled coordinator did not sign it.
        StoreError: the store does not answer.
    """
    if enrolled.coordinator is None:
        return
    signature = find(models, keys.signature(*entry), Signature)
    if flaw := flaw_of(enrolled.coordinator, signature, _signed_bytes(entry, origin), "the coordinator", str(entry)):
        raise CorruptError(
            flaw,
            where=f"{models.uri}/{keys.signature(*entry)}",
            remedy=f"Whoever has the key and trusts it: `fedpipe sign {entry.name} {entry.version}`.",
        )


def _signed_bytes(entry: ModelVersion, origin: Origin) -> Callable[[Signature], bytes]:
    """What is signed: canonical bytes with an empty signature, told apart from all else."""
    return lambda signature: b"fedpipe model\n" + encode((*entry, origin, replace(signature, value="0" * 128)))
