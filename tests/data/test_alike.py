"""Names that are probably one, written in different ways."""

from __future__ import annotations

import pytest

from fedpipe.data.alike import alike, alike_note


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["neg", "Neg", "pos"], [["neg", "Neg"]]),
        (["0", "1", "no", "yes"], [["0", "no"], ["1", "yes"]]),
        (["Straße", "STRASSE"], [["Straße", "STRASSE"]]),
        (["u\u0308ber", "\u00fcber"], [["u\u0308ber", "\u00fcber"]]),
        (["not known", "notknown"], [["not known", "notknown"]]),
        (["1", "1.0", "01"], [["1", "1.0", "01"]]),
        (["m", "f", "d"], []),
        (["0", "1", "2"], []),
        ([], []),
    ],
)
def test_names_are_alike(names: list[str], groups: list[list[str]]) -> None:
    assert sorted(map(sorted, alike(names))) == sorted(map(sorted, groups))
    assert bool(alike_note(names, "classes")) == bool(groups)


def test_the_note_shows_the_names() -> None:
    assert alike_note(["a", "A", "b"], "classes") == "the classes 'a' and 'A' may be the same"
