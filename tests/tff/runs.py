"""Whole pipelines by the engine, in processes that are warm; the checks before a run are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fedpipe.commands.results import fetch_results
from fedpipe.compiled.compiler import compile_pipeline
from fedpipe.compiled.graph import check_arguments, read_graph, resolve
from fedpipe.engine.local import Engine, Listener
from fedpipe.engine.workers import Workers
from fedpipe.federation.file import read_federation
from fedpipe.rounds.plan import RunPlace
from tests.tff.simulated import Arrays, records_of, weights_of


class Finished(NamedTuple):
    """A finished run: its place, `summary.json`, and the folder with what `fedpipe run` leaves there."""

    place: RunPlace
    summary: dict[str, Any]
    folder: Path

    def weights(self) -> Arrays:
        """The last global weights."""
        return weights_of(self.place, records_of(self.place)[-1])


def finished(
    file: Path, folder: Path, processes: Workers, *, simulation: bool = False, listener: Listener = lambda _: None,
    **parameters: Any,
) -> Finished:  # fmt: skip
    """Runs a federation file, with a store and results in a folder."""
    folder.mkdir()
    compile_pipeline(read_federation(file), folder / "pipeline.yaml", simulation=simulation)
    graph = read_graph(folder / "pipeline.yaml")
    arguments = check_arguments(graph, {"store": f"file://{folder}/store", "run": "r", **parameters})
    results = Engine(graph, arguments, folder=folder, listener=listener, processes=processes).run()
    task = next(task for task in graph.tasks if task.step == "report")
    place = RunPlace(**resolve(task, arguments, results, "")["parameterValues"]["place"])
    return Finished(place, fetch_results(place, folder), folder)
