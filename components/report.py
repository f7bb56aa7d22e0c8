"""Reports on the run."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def report(page: dsl.Output[dsl.HTML], place: dict, evaluation: dict = {}, onnx: dict = {}, job: str = ""):
    """Writes summary.json and report.html to the store and shows the page.

    Args:
        place: Location of the run.
        evaluation: Output of the evaluate step.
        onnx: Output of the export step.
        job: Id of the pipeline job, the source of the model in a registry.
        page: The report.
    """
    return container("report")
