"""Tests the signature of a published model: over its name, its version, and its origin."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import CorruptError
from fedpipe.identity.enrolment import NOBODY, Enrolled, Enrolment
from fedpipe.identity.signing import Signature, make_key, public_key, signer_of
from fedpipe.registry.publication import ModelVersion, Origin, check_publication, read_model, sign_publication
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import decode

KEY, OTHER = make_key(), make_key()
ENTRY = ModelVersion("m", 1)
ORIGIN = Origin(
    federation="f", run="r", weights=f"sha256:{'1' * 64}", digest=f"sha256:{'2' * 64}", opset=17, samples="holdout",
    compared=2, max_abs_difference=1e-7,
)  # fmt: skip
ENROLLED = Enrolled(coordinator=Enrolment(key=public_key(KEY), since=1.0e9))


def signed(entry: ModelVersion = ENTRY, origin: Origin = ORIGIN, key: str = KEY) -> MemoryStore:
    """Returns a folder of models with one signature."""
    models = MemoryStore()
    sign_publication(models, entry, origin, signer_of(key), clock=lambda: 1.5e9)
    return models


def signature(models: MemoryStore) -> Signature:
    return decode(models.read(keys.signature(*ENTRY)).data, Signature, where="")


def test_a_signature_by_the_coordinator_is_valid() -> None:
    check_publication(signed(), ENTRY, ORIGIN, ENROLLED)


def test_the_same_work_gives_the_same_bytes() -> None:
    assert signed().read(keys.signature(*ENTRY)).data == signed().read(keys.signature(*ENTRY)).data


def test_anybody_may_publish_without_an_enrolled_coordinator() -> None:
    check_publication(MemoryStore(), ENTRY, ORIGIN, NOBODY)


@pytest.mark.parametrize(
    "changed",
    [
        {"federation": "g"}, {"run": "s"}, {"weights": f"sha256:{'3' * 64}"}, {"digest": f"sha256:{'3' * 64}"},
        {"opset": 18}, {"samples": "random"}, {"compared": 3}, {"max_abs_difference": 2e-7},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_every_field_of_the_origin_is_signed(changed: dict[str, object]) -> None:
    with pytest.raises(CorruptError, match="the signature does not fit m version 1"):
        check_publication(signed(), ENTRY, msgspec.structs.replace(ORIGIN, **changed), ENROLLED)


@given(st.integers(0, 127), st.sampled_from("0123456789abcdef"))
def test_no_digit_of_a_signature_can_change(position: int, digit: str) -> None:
    models = signed()
    good = signature(models)
    value = good.value[:position] + digit + good.value[position + 1 :]
    models.replace(keys.signature(*ENTRY), msgspec.json.encode(msgspec.structs.replace(good, value=value)))
    if value == good.value:
        check_publication(models, ENTRY, ORIGIN, ENROLLED)
    else:
        with pytest.raises(CorruptError):
            check_publication(models, ENTRY, ORIGIN, ENROLLED)


def test_its_time_is_signed_too() -> None:
    models = signed()
    later = msgspec.structs.replace(signature(models), time=1.6e9)
    models.replace(keys.signature(*ENTRY), msgspec.json.encode(later))
    with pytest.raises(CorruptError, match="does not fit"):
        check_publication(models, ENTRY, ORIGIN, ENROLLED)


def test_somebody_elses_key() -> None:
    with pytest.raises(CorruptError, match="signed with another key than the enrolled one"):
        check_publication(signed(key=OTHER), ENTRY, ORIGIN, ENROLLED)


def test_a_valid_signature_stays_and_any_other_is_replaced() -> None:
    models = signed()
    first = models.read(keys.signature(*ENTRY))
    sign_publication(models, ENTRY, ORIGIN, signer_of(KEY))
    assert models.read(keys.signature(*ENTRY)).version == first.version
    for spoiled in (b"no JSON", signed(key=OTHER).read(keys.signature(*ENTRY)).data,
                    signed(origin=msgspec.structs.replace(ORIGIN, run="s")).read(keys.signature(*ENTRY)).data):  # fmt: skip
        models.replace(keys.signature(*ENTRY), spoiled)
        sign_publication(models, ENTRY, ORIGIN, signer_of(KEY))
        check_publication(models, ENTRY, ORIGIN, ENROLLED)


def test_a_model_has_the_digest_of_its_origin() -> None:
    models = MemoryStore()
    models.create(keys.model(*ENTRY), b"x")
    assert read_model(models, ENTRY, None) == b"x"
    with pytest.raises(CorruptError, match="the model has the digest"):
        read_model(models, ENTRY, ORIGIN)
