"""Signs published models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedpipe.commands.members import check_enrolled, find_member, open_place
from fedpipe.commands.opened import StoreGiven
from fedpipe.errors import InputError, NotFoundError
from fedpipe.federation.sources import Source
from fedpipe.identity.signing import COORDINATOR, KEYS, find_key, key_folder, keys_at_hand, public_key, signer_of
from fedpipe.registry.publication import ModelVersion, Origin, find_origin, read_model, sign_publication, versions
from fedpipe.store import Store


def sign(
    source: Source, name: str, numbers: Sequence[int], *, store: StoreGiven = None, keys: str | Path | None = None
) -> list[ModelVersion]:
    """Signs published versions with the coordinator's current key.

    Versions need this when the coordinator was enrolled, or got a new key, after they were published.

    Args:
        source: the federation file, or its content.
        name: of the model.
        numbers: the versions; each must have the digest in its origin.
        store: a store to use instead of the federation's.
        keys: folder of the key files; `keys` next to the federation file by default.

    Raises:
        InputError: the coordinator is not enrolled, or its key is missing.
        NotFoundError: there is no such version; none was signed.
        CorruptError: a version differs from its origin; none was signed.
    """
    place = open_place(source, store)
    known = check_enrolled(place, find_member(place, COORDINATOR))
    private = _private_key(place.source, keys, known.key)
    models = place.store.below("models")
    published = versions(models)
    origins = {entry: _origin(models, published, entry) for entry in (ModelVersion(name, n) for n in numbers)}
    for entry, origin in origins.items():
        read_model(models, entry, origin)
    for entry, origin in origins.items():
        sign_publication(models, entry, origin, signer_of(private))
    return list(origins)


def _private_key(source: Path, keys: str | Path | None, public: str) -> str:
    folder = key_folder(source, keys)
    with keys_at_hand(source, keys):
        found = [find_key(COORDINATOR, {KEYS: str(folder)}), find_key(COORDINATOR)]
    private = next((key for key in found if key and public_key(key) == public), found[0] or found[1])
    if private is None or public_key(private) != public:
        what = "does not match the enrolled one" if private else "is missing"
        raise InputError(
            f"the coordinator's key {what}", where=str(folder), remedy="Specify the folder of the keys with --keys."
        )
    return private


def _origin(models: Store, published: Mapping[str, list[int]], entry: ModelVersion) -> Origin:
    origin = find_origin(models, entry)
    if origin is None or entry.version not in published.get(entry.name, []):
        known = "; ".join(f"{model} {', '.join(map(str, numbers))}" for model, numbers in sorted(published.items()))
        raise NotFoundError(
            f"there is no {entry}", where=models.uri, remedy=f"Published versions: {known}." if known else None
        )
    return origin
