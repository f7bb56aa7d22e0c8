"""Every number of the federation file, and every run-time parameter, has two finite bounds."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
import pytest
from msgspec import Meta, Struct

from fedpipe.errors import FederationError, InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import parse_federation, read_federation
from fedpipe.federation.names import FORMS
from fedpipe.rounds.plan import Settings

from .test_file import GOOD, changed


def leaves(kind: Any, metas: tuple[Meta, ...] = ()) -> Iterator[tuple[Any, tuple[Meta, ...]]]:
    """Yield the types inside a type other than structs, with their annotations."""
    if get_origin(kind) is Annotated:
        inner, *own = get_args(kind)
        yield from leaves(inner, (*metas, *own))
    elif get_origin(kind) in (Union, types.UnionType, tuple, dict):
        for inner in get_args(kind):
            yield from leaves(inner, metas)
    elif not (isinstance(kind, type) and issubclass(kind, Struct)):
        yield kind, metas


def structs_below(kind: type[Struct]) -> set[type[Struct]]:
    found: set[type[Struct]] = set()
    left: list[Any] = [kind]
    while left:
        one = left.pop()
        if isinstance(one, type) and issubclass(one, Struct):
            if one not in found:
                found.add(one)
                left += typing.get_type_hints(one, include_extras=True).values()
        else:
            left += get_args(one)
    return found


FIELDS = [
    pytest.param(hint, id=f"{struct.__name__}.{name}")
    for struct in sorted({*structs_below(Federation), Settings}, key=lambda s: s.__name__)
    for name, hint in typing.get_type_hints(struct, include_extras=True).items()
]
NUMBERS = [p for p in FIELDS if any(kind in (int, float) for kind, _ in leaves(p.values[0]))]


def test_the_walk_finds_the_numbers() -> None:
    names = {str(p.id) for p in NUMBERS}
    assert {
        "Quorum.deadline",
        "Privacy.target_epsilon",
        "BySize.sizes",
        "Accelerator.count",
        "Settings.rounds",
    } <= names
    assert len(names) > 60


@pytest.mark.parametrize("hint", NUMBERS)
def test_a_number_has_two_finite_bounds(hint: Any) -> None:
    for kind, metas in leaves(hint):
        if kind in (int, float):
            low = [v for m in metas for v in (m.ge, m.gt) if v is not None]
            high = [v for m in metas for v in (m.le, m.lt) if v is not None]
            assert len(low) == len(high) == 1
            assert all(map(math.isfinite, low + high))
            annotated = Annotated[(kind, *metas)]  # type: ignore[misc,valid-type]
            for wrong in (math.inf, -math.inf, math.nan, 10**30, -(10**30), 1e300):
                with pytest.raises(msgspec.ValidationError):
                    msgspec.convert(wrong, annotated)


@pytest.mark.parametrize("hint", FIELDS)
def test_a_pattern_has_an_explanation(hint: Any) -> None:
    for _, metas in leaves(hint):
        for meta in metas:
            assert meta.pattern is None or meta.pattern in FORMS


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("quorum.deadline", ".inf", "quorum.deadline: is inf, not a finite number. Write a finite number."),
        ("quorum.deadline", "-.inf", "quorum.deadline: is -inf, not"),
        ("quorum.deadline", ".nan", "quorum.deadline: is nan, not"),
        ("quorum.deadline", "1e9", "quorum.deadline: Expected `float` <= 31622400.0. Write a number <= 31622400."),
        ("quorum.deadline", "1e400", "quorum.deadline: is inf, not"),
        ("quorum.deadline", "'.inf'", "quorum.deadline: Expected `float`, got `str`. Write a number, without quotes."),
        ("training.seed", "99999999999999999999", "training.seed: is too large a number. Write a smaller one."),
        ("training.seed", "2147483648", "training.seed: Expected `int` <= 2147483647"),
        ("training.rounds", "1000001", "training.rounds: Expected `int` <= 1000000"),
        ("training.rounds", "1e3", "training.rounds: Expected `int`, got `float`. Write a whole number"),
        ("training.batch_size", "10000000000", "training.batch_size: Expected `int` <= 1000000000"),
        ("training.fit", "{class_weight: {0: .inf}}", "training.fit.class_weight.0: is inf, not a finite number"),
        ("training.fit", "{class_weight: {0: 99999999999999999999}}", "training.fit.class_weight.0: is too large"),
        ("training.evaluate", "{steps: .nan}", "training.evaluate.steps: is nan, not a finite number"),
        (
            "training.callbacks",
            "{EarlyStopping: {min_delta: .inf}}",
            "training.callbacks.EarlyStopping.min_delta: is inf",
        ),
        ("export.tolerance", ".inf", "export.tolerance: is inf"),
    ],
)
def test_files_with_such_numbers(tmp_path: Path, path: str, text: str, message: str) -> None:
    section, key = path.split(".")
    sections = {"training": {"rounds": "2", "batch_size": "8"}, "quorum": {}, "export": {}}
    sections[section][key] = text
    lines = ["name: digits", "learners: [{name: a, data: a.npz}]"]
    lines += [f"{name}: {{{', '.join(f'{k}: {v}' for k, v in keys.items())}}}" for name, keys in sections.items()]
    file = tmp_path / "federation.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(FederationError) as caught:
        read_federation(file)
    assert message in str(caught.value)


def test_useful_numbers_are_accepted() -> None:
    parse_federation(changed("quorum", {"deadline": 365 * 24 * 3600.0, "retries": 100}))
    parse_federation(changed("training", {"rounds": 100_000, "batch_size": 65536, "learning_rate": 100.0}))
    parse_federation(changed("data.shards", {"by": "dirichlet", "alpha": 1e6, "seed": 2**31 - 1}))
    parse_federation({**GOOD, "learners": [{"name": f"l{n}"} for n in range(1000)]})


def test_a_pipeline_of_too_many_steps() -> None:
    content = changed("training", {"rounds": 20_000, "batch_size": 8, "rounds_per_step": 1})
    with pytest.raises(FederationError, match=r"training\.rounds_per_step: makes 40000 steps .* Set it to all"):
        parse_federation(content)
    parse_federation(changed("training", {"rounds": 20_000, "batch_size": 8, "rounds_per_step": 1000}))


@pytest.mark.parametrize(("accountant", "noise"), [("rdp", 1e-300), ("pld", 0.01)])
def test_noise_that_its_accountant_cannot_count(accountant: str, noise: float) -> None:
    privacy = {"noise_multiplier": noise, "l2_norm_clip": 1.0, "microbatches": 8, "delta": 1e-5, "target_epsilon": 1.0}
    with pytest.raises(FederationError, match=r"privacy\.noise_multiplier: .* is too small for the accountant"):
        parse_federation(changed("privacy", {**privacy, "accountant": accountant}))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"deadline": math.inf},
            "parameter deadline: inf: Expected `float` <= 31622400.0. Write a number <= 31622400.",
        ),
        ({"learning_rate": math.nan}, "parameter learning_rate: nan: "),
        ({"rounds": 10**7}, "parameter rounds: 10000000: Expected `int` <= 1000000. Write a number <= 1000000."),
        ({"rounds": 10**99}, "parameter rounds: 1000"),
        ({"rounds": 2.5}, "parameter rounds: 2.5: Expected `int`, got `float`. Write a whole number"),
        ({"rounds": True}, "parameter rounds: True: Expected `int`, got `bool`"),
        ({"max_seconds": -1.0}, "parameter max_seconds: -1.0 is negative. Write a number >= 0."),
    ],
)
def test_parameters_of_a_run(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Settings(**setting).applied(parse_federation(GOOD))
    assert message in str(caught.value)
