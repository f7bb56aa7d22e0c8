"""Write the report of a run: summary.json and report.html in the store, and the page in the UI."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from fedpipe.reports.catalogue import add_line
from fedpipe.reports.report import render
from fedpipe.reports.story import read_story, summarise
from fedpipe.rounds.plan import RunPlace
from fedpipe.steps.contract import Html
from fedpipe.store import keys


class Inputs(Struct, frozen=True, kw_only=True):
    """The run, and the steps that precede its report."""

    place: RunPlace
    evaluation: dict[str, Any] = {}
    onnx: dict[str, Any] = {}


class Outputs(Struct, frozen=True, kw_only=True):
    """The page."""

    page: Html


def run(inputs: Inputs) -> Outputs:
    """Write or rewrite the report; everything in it is in the store."""
    store = inputs.place.open()
    story = read_story(store, inputs.place.run, inputs.place.store)
    page = render(story)
    store.replace(keys.report(inputs.place.run), page.encode())
    store.replace(keys.summary(inputs.place.run), json.dumps(summarise(story), indent=2).encode())
    add_line(store, inputs.place.run)
    return Outputs(page=Html(content=page))
