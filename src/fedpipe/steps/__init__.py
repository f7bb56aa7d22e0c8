"""What the containers do: one module per component, `run(inputs) -> outputs`.

    fedpipe step NAME '{{$}}'

The one argument is the KFP executor input; `contract.execute` parses it, runs the body and writes the executor
output. A body has two structs, `Inputs` and `Outputs`, that mirror the component's face in `components/`.
"""

from __future__ import annotations

STEPS: dict[str, str] = {
    "shard": "core",
    "explore": "core",
    "initialise": "keras",
    "train": "keras",
    "train_private": "tff",
    "aggregate": "core",
    "aggregate_tff": "tff",
    "learn": "keras",
    "learn_private": "tff",
    "coordinate": "core",
    "coordinate_tff": "tff",
    "vote": "keras",
    "tally": "core",
    "score": "keras",
    "evaluate": "keras",
    "export": "keras",
    "report": "core",
    "simulate": "tff",
}
"""Each step and the environment (image) in which it runs."""

SESSION = ("learn", "learn_private", "coordinate", "coordinate_tff")
"""Steps of a session: they wait for each other most of the time, so all of them must run at once."""

WAITING = (*SESSION, "simulate")
"""Steps that wait for what they have others do, round after round, and tell how far they are."""
