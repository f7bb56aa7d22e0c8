"""Passes that need the chunks of all updates together: what they hold at a time."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.aggregation.feeds import PIECE, Feed, Source
from fedpipe.aggregation.passes import together
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import digest_of


@pytest.mark.parametrize(
    ("learners", "size", "piece"),
    [(3, 2 * PIECE, PIECE), (32, PIECE, 2**23 // 32), (2100, 8192, 4096)],
    ids=["few", "8 MiB of all together", "at least 4 KiB of each"],
)
def test_the_more_updates_the_smaller_their_chunks(store: MemoryStore, learners: int, size: int, piece: int) -> None:
    arrays = {"w": np.arange(size // 4, dtype=np.float32)}
    data = weights.dumps(arrays)
    digest, layout = digest_of(data), weights.layout_of(arrays)
    for number in range(learners):
        store.create(keys.content(digest, f"l{number}"), data)
    sources = [Source(f"l{number}", digest, len(data), 1.0, number) for number in range(learners)]
    with contextlib.ExitStack() as stack:
        feeds = [stack.enter_context(contextlib.closing(Feed(store, source, layout))) for source in sources]
        chunks = [(chunk.stop - chunk.start, len(values)) for chunk, values in together(stack, feeds, layout)]
    assert {count for _, count in chunks} == {learners}
    assert sum(length for length, _ in chunks) == size
    assert max(length for length, _ in chunks) == piece
