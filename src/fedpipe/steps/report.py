"""Write the report of a run: summary.json and report.html in the store, and the page in the UI."""

from __future__ import annotations

import json
import logging
from typing import Any

from msgspec import Struct

from fedpipe.errors import FedpipeError
from fedpipe.reports.catalogue import add_line
from fedpipe.reports.report import render
from fedpipe.reports.story import Story, read_story, summarise
from fedpipe.rounds.plan import RunPlace
from fedpipe.steps.contract import Html
from fedpipe.store import Store, keys
from fedpipe.tracking.model_registry import register, source_of

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The run of this KFP job, and the steps that precede its report."""

    place: RunPlace
    evaluation: dict[str, Any] = {}
    onnx: dict[str, Any] = {}
    job: str = ""


class Outputs(Struct, frozen=True, kw_only=True):
    """The page."""

    page: Html


def run(inputs: Inputs) -> Outputs:
    """Write or rewrite the report; everything in it is in the store."""
    store = inputs.place.open()
    story = read_story(store, inputs.place.run, inputs.place.store)
    page = render(story)
    store.replace(keys.report(inputs.place.run), page.encode())
    summary = summarise(story) | _registered(store, story, inputs.job)
    store.replace(keys.summary(inputs.place.run), json.dumps(summary, indent=2).encode())
    add_line(store, inputs.place.run)
    return Outputs(page=Html(content=page))


def _registered(store: Store, story: Story, job: str) -> dict[str, Any]:
    """Register the model, if the file names a registry; a registry that fails does not fail the run."""
    exported = story.plan.federation.exported
    if exported is None or not exported.registry or not story.onnx:
        return {}
    try:
        registered = register(store, story, exported.registry, source_of(story.plan.run, job))
    except FedpipeError as error:
        log.warning("the model is not registered: %s", error)
        return {"registry": {"url": exported.registry, "failed": str(error)}}
    log.info("the model is registered: %s version %d", registered.name, registered.version)
    return {"registry": {"url": exported.registry, **registered._asdict()}}
