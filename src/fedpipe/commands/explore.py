"""Shows the data of the learners before a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from fedpipe.commands.shown import Explored, save
from fedpipe.compiled.compiler import read_code
from fedpipe.data.examples import read_examples
from fedpipe.data.exploration import View, view_of
from fedpipe.data.shards import dealt
from fedpipe.engine.workers import CrashError, Workers
from fedpipe.errors import FederationError, FedpipeError
from fedpipe.federation.federation import Federation, LearnerSettings
from fedpipe.federation.sources import Source, read_source
from fedpipe.learners.parts import as_examples
from fedpipe.learners.reading import own_parts
from fedpipe.learners.user_code import load_code
from fedpipe.reports.exploration_page import render_html, render_json
from fedpipe.steps.explore import private
from fedpipe.store.objects import digest_of


def explore(source: Source, output: str | Path | None = None, **changes: Any) -> Explored:
    """Looks at the learners' data, including their own files where this machine can read them.

    Args:
        source: a federation file, or its content.
        output: a file for the page; none by default.
        changes: keys of the federation file with new values.

    Args:
        source: a federation file.
        output: the page, or a .json file with the same numbers.

    Raises:
        FederationError: the parties of a cut network hold no examples.
        DataError: the dataset cannot be dealt out.
        InputError: the file cannot be written.

    >>> import fedpipe
    >>> found = fedpipe.explore("demo/federation.yaml")
    >>> len(found.views), len(found.classes)
    (5, 10)
    """
    federation = read_source(source, changes)
    if federation.split:
        raise FederationError(
            "parties of a cut network hold columns, and none has examples with labels to explore", where="algorithm",
            remedy="See the rows of each party: fedpipe check.",
        )  # fmt: skip
    federation = federation.reaching(federation.store_uri)
    dealt_out = dealt(federation, federation.data.uri)[0] if federation.sharded else {}
    views, left_out = [], private(federation)
    with Workers(preload=federation.needs_tensorflow) as processes:
        for learner in federation.learners:
            if learner.at == "site":
                left_out[learner.name] = "its data stay at its site"
            if learner.name in left_out:
                continue
            try:
                parts = dealt_out.get(learner.name)
                views.append(
                    view_of(learner.name, parts, federation.data.statistics)
                    if parts
                    else _look_at_own(federation, learner, processes)
                )
            except FedpipeError as error:
                left_out[learner.name] = str(error)
            except CrashError as error:
                left_out[learner.name] = error.reason
    found = Explored(federation.name, tuple(views), left_out)
    if output is not None:
        save(render_json(found) if Path(output).suffix == ".json" else render_html(found), output)
    return found


def _look_at_own(federation: Federation, learner: LearnerSettings, processes: Workers) -> View:
    """Looks at a learner's own file, read by `load` of model.py where it has one, which needs its framework."""
    code, settings = read_code(federation), federation.data
    if re.search(r"^def load\(", code, re.MULTILINE):
        environment = federation.environment_of("initialise")
        return cast(View, processes.call(loaded_view, federation, code, learner.name, environment=environment))
    examples, _ = read_examples(learner.data, **settings.columns)
    return view_of(learner.name, {"examples": examples}, settings.statistics)


def loaded_view(federation: Federation, code: str, name: str) -> View:
    """Looks at the data that `load` of model.py returns for a learner. Raises DataError and ModelError."""
    data = code.encode()
    parts = own_parts(federation, name, load_code(data, digest_of(data)))
    return view_of(name, {part: as_examples(value) for part, value in parts.items()}, federation.data.statistics)
