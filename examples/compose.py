"""Three of our components in a pipeline of your own, with a step that is not ours.

    python examples/compose.py federation.yaml mine.yaml     # compile
    fedpipe run mine.yaml                                    # and run on this machine, or upload it to Kubeflow

One learner trains one round; a container of your own then prints the result.
"""

import sys
from pathlib import Path

from kfp import compiler, dsl

from fedpipe import components, read_federation
from fedpipe.compiled.compiler import as_json, read_code


@dsl.container_component
def tell(learner: str, update: str, message: dsl.OutputPath(str)):
    """A step of your own: any container will do."""
    return dsl.ContainerSpec(
        image="alpine:3.20",
        command=["sh", "-c", 'mkdir -p "$(dirname "$2")"; echo "$0 offers update $1" | tee "$2"'],
        args=[learner, update, message],
    )


def make_pipeline(federation_file: Path):
    federation = read_federation(federation_file)
    text, code = as_json(federation), read_code(federation)

    @dsl.pipeline(name="one-learner", description="One learner trains one round; then a step of our own.")
    def pipeline(store: str = federation.store_uri, run: str = "mine", data: str = federation.data.uri):
        shard = components.shard(federation=text, store=store, run=run, data=data)
        begun = components.initialise(
            place=shard.outputs["place"], shards=shard.outputs["shards"], federation=text, code=code
        )
        name = federation.learners[0].name
        trained = components.train(place=begun.outputs["placed"], learner=name, round=1, base=begun.outputs["weights"])
        for task in (shard, begun, trained):
            task.set_caching_options(False)
        tell(learner=name, update=trained.outputs["update"])

    return pipeline


if __name__ == "__main__":
    compiler.Compiler().compile(make_pipeline(Path(sys.argv[1])), sys.argv[2])
