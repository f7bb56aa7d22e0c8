"""Tells what the run did."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def report(page: dsl.Output[dsl.HTML], place: dict, evaluation: dict = {}, onnx: dict = {}):
    """Writes summary.json and report.html to the store and shows the page.

    Args:
        place: Where the run is.
        evaluation: What `evaluate` gave.
        onnx: What `export` gave.
        page: The report.
    """
    return container("report")
