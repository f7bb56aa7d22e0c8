"""Holds a column of texts in few bytes: Python's own lists take fifty bytes more for each cell."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class _Block(NamedTuple):
    """Holds cells, one after another in one text, and the end of each in it."""

    text: str
    ends: array[int]

    def cells(self) -> list[str]:
        text, begins = self.text, itertools.chain((0,), self.ends)
        return [text[begin:end] for begin, end in zip(begins, self.ends, strict=False)]


class Texts(Sequence[str]):
    """Holds the cells of a column in blocks of equal length; only the last one is shorter.

    >>> column = Texts()
    >>> column.extend(["a", "", "bc"])
    >>> len(column), column[2], list(column)
    (3, 'bc', ['a', '', 'bc'])
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._count = 0

    def extend(self, cells: Sequence[str]) -> None:
        """Adds a block of cells, as many as in the first block, or fewer at the end."""
        text = "".join(cells)
        self._blocks.append(
            _Block(text, array("Q" if len(text) > _SHORT else "I", itertools.accumulate(map(len, cells))))
        )
        self._count += len(cells)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(block.cells() for block in self._blocks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self._count))]
        position = range(self._count)[index]  # raises IndexError, and counts from the end
        number, row = divmod(position, len(self._blocks[0].ends))
        text, ends = self._blocks[number]
        return text[ends[row - 1] if row else 0 : ends[row]]


_SHORT = 2**32 - 1
"""The largest end that takes four bytes."""
