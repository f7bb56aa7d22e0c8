"""Show the learners' data before any training: a page and a table."""

from __future__ import annotations

from functools import partial

from msgspec import Struct

from fedpipe.data.exploration import Exploration, view_of
from fedpipe.data.parts import get_shard_parts
from fedpipe.errors import DroppedError
from fedpipe.federation.federation import Federation
from fedpipe.reports.exploration_page import render_html, render_markdown
from fedpipe.rounds.plan import RunPlace, Shards
from fedpipe.rounds.received import Source, guarded
from fedpipe.steps.contract import Html, Markdown
from fedpipe.steps.shard import read
from fedpipe.store import keys

PRIVATE = "it trains with differential privacy, and counts and pictures of its examples are exact"


class Inputs(Struct, frozen=True, kw_only=True):
    """The place and shards of the run, and the federation as text."""

    place: RunPlace
    shards: Shards
    federation: str


class Outputs(Struct, frozen=True, kw_only=True):
    """The page, and its table."""

    page: Html
    table: Markdown


def run(inputs: Inputs) -> Outputs:
    """Explore the shards; the learners' own data stay with them."""
    store, federation = inputs.place.open(), read(inputs.federation)
    left_out = private(federation) | {k.name: "its data stay with it" for k in federation.learners if k.brings_data}
    views = []
    for name, digest in inputs.shards.learners.items():
        if name in left_out:
            continue
        source = Source(store, inputs.place.run, keys.content(digest, name), "shard")
        try:
            parts = guarded(source, partial(get_shard_parts, store, name, digest))
        except DroppedError as error:  # it may change its own shard
            left_out[name] = error.what
            continue
        if parts is None:
            left_out[name] = "its shard was removed"
        else:
            views.append(view_of(name, parts, federation.data.statistics))
    found = Exploration(federation.name, tuple(views), left_out)
    return Outputs(page=Html(content=render_html(found)), table=Markdown(content=render_markdown(found)))


def private(federation: Federation) -> dict[str, str]:
    """Return the learners whose data are not shown, with the reason."""
    return {learner.name: PRIVATE for learner in federation.learners if federation.privacy_of(learner.name)}
