"""The mistakes that `make mutants` makes, and the places where it makes none."""

from __future__ import annotations

from random import Random

import pytest

from tests.mutations import find_mutants


def mutated(source: str) -> set[str]:
    return {mutant.apply(source) for mutant in find_mutants("x.py", source, Random(0))}


@pytest.mark.parametrize(
    ("source", "mutants"),
    [
        ("a < b", {"a <= b"}),
        ("a not in (b)", {"a in (b)"}),
        ("0 <= é < b", {"1 <= é < b", "-1 <= é < b", "0 < é < b", "0 <= é <= b"}),
        ("a and b or c", {"a or b or c", "a and b and c"}),
        ("a + b", {"a - b"}),
        ("a //= b", set()),
        ("a -= b", {"a += b"}),
        ("f(a) if not a else b", {"f(a) if a else b"}),
        ("x = True", {"x = False"}),
        ("def f() -> int: return g()", {"def f() -> int: return None"}),
        ("if a: pass", {"if not a: pass"}),
        ("a = (b  # and so on\n  and c)", {"a = (b  # and so on\n  or c)"}),
    ],
)
def test_one_change_at_a_time(source: str, mutants: set[str]) -> None:
    assert mutated(source) <= mutants
    assert bool(mutated(source)) == bool(mutants)
    assert len(mutated(source)) >= len(mutants) - source.count("0")  # a constant changes one way or the other


@pytest.mark.parametrize(
    "source",
    [
        '"""1 + 1"""',
        'raise ValueError(f"{a + 1}")',
        'log.info("%s", a + 1)',
        "x: Literal[1] | None",
        "def f(x: Literal[1] | None) -> Literal[1]: ...",
        "Arrays = dict[str, int] | None",
        "class A(Struct, frozen=True): ...",
        "return None",
    ],
)
def test_nothing_that_no_test_could_notice(source: str) -> None:
    source = f"def f():\n  {source}" if source.startswith("return") else source
    assert mutated(source) == set()
