"""The bodies of the components, which run in the containers: one module each, `run(inputs) -> outputs`.

    fedpipe step NAME '{{$}}'

The one argument is the KFP executor input; `contract.execute` parses it, runs the body and writes the executor
output. A body has two structs, `Inputs` and `Outputs`, that mirror the component's face in `components/`.
"""

from __future__ import annotations

from fedpipe.federation.environments import ENVIRONMENTS

STEPS = tuple(ENVIRONMENTS)
"""The names of all steps."""

SESSION = ("learn", "coordinate")
"""Steps of a session: they mostly wait for each other, so all of them must run at once."""

WAITING = (*SESSION, "simulate")
"""Steps that wait for others' work, round after round, and report their progress."""

TRACKED = ("aggregate", "tally", "coordinate", "simulate", "report")
"""Steps that send rounds to a tracking server: those that commit one, and the last one."""
