"""The keys of the store: each is spelled here once.

Keys are relative to the federation's part of the store, `<prefix>/<federation>/`. The module is used by its name:

    from fedpipe.store import keys

    store.read(keys.record("first", 3))

`store/access.py` lists every kind of key, with its writers and readers.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from fedpipe.errors import CorruptError

HEAD = "HEAD"
ENROLLED = "enrolled"
ROSTER = "roster"
PRUNING = "pruning"
"""The mark that objects are being removed; it changes with each removal."""
CATALOGUE = "catalogue"
JOINING = "joining"
"""The folder of invitations and requests to join, which only the administrator of the store reads and writes."""
RUNS = "runs"
"""The folder that has a folder for each run."""
MOST_LEFT = 20_000
"""Most objects in a party's folder of a run that readers list; a run of 1000 rounds leaves about 8000."""
MODELS = "models"
"""The folder of published models. Servers also read it alone, so the keys of models are relative to it."""
RESERVED_RUNS = frozenset({"proposals"})
"""Names that a run cannot have. In `learners/*/proposals/*`, a pattern of earlier policies, `*` also stands for
`a/runs`."""

Kind = Literal["objects", "proposals", "personal", "coordinator"]
"""Every learner reads the proposals of others. Only the owner reads `personal`, only the coordinator `coordinator`."""


def content(digest: str, owner: str | None = None, kind: Kind = "objects") -> str:
    """Returns the key of an object that is named by its content.

    Args:
        digest: `sha256:` and 64 hexadecimal digits.
        owner: the learner that keeps it; none for global objects.
        kind: proposals and personal weights exist only with an owner; without one they are objects.

    Raises:
        CorruptError: the digest is malformed.
    """
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise CorruptError(f"{digest[:100]!r} is not a digest")
    name = digest.removeprefix("sha256:")
    if kind == "coordinator":
        return f"coordinator/{name}"
    return f"learners/{owner}/{kind}/{name}" if owner else f"objects/{name}"


def invitation(learner: str) -> str:
    """Returns the key of the terms of a site's current invitation."""
    return f"{JOINING}/{learner}/invitation"


def joining(learner: str, name: str, what: Literal["request", "answer"]) -> str:
    """Returns the key of a site's request to join, or of the answer to it.

    Args:
        learner: the site's name.
        name: 32 hexadecimal digits, the number of its invitation.
        what: the request or the answer.
    """
    return f"{JOINING}/{learner}/{name}/{what}"


def parse_joining(key: str) -> tuple[str, str] | None:
    """Returns the learner and the number of the invitation of a request to join; None for any other key."""
    found = re.fullmatch(rf"{JOINING}/([a-z0-9\-]{{1,40}})/([0-9a-f]{{32}})/request", key, re.ASCII)
    return (found[1], found[2]) if found else None


def rotation(learner: str) -> str:
    """Returns the key of a site's request for new keys."""
    return f"{learner_folder(learner)}rotation"


def probe(name: str) -> str:
    """Returns the key of the object that `Store.probe` writes and removes."""
    return f"probe-{name}"


def run_folder(run: str, learner: str = "") -> str:
    """Returns the prefix of a run's keys, of the coordinator or of one learner."""
    return f"{learner_folder(learner)}runs/{run}/" if learner else f"{RUNS}/{run}/"


def shards(run: str) -> str:
    """Returns the key of the request that a run's shards were made from."""
    return f"{run_folder(run)}shards"


def plan(run: str) -> str:
    """Returns the key of the plan of a run's last try."""
    return f"{run_folder(run)}plan"


def statistics(learner: str, run: str) -> str:
    """Returns the key of a learner's statistics, its answer before the first round."""
    return answer(learner, run, 0, STATISTICS)


STATISTICS = "statistics"
ALIGNED = "aligned"
"""The answer of a party of a cut network that has found the rows that it has in common with the others."""


def parcel(learner: str, name: str) -> str:
    """Returns the key of an object that a party of a split network sends to another.

    Args:
        learner: the party that sends it.
        name: 64 hexadecimal digits, which both parties derive from what it is (`fedpipe.rounds.parcels`).
    """
    return f"{learner_folder(learner)}parcels/{name}"


def record(run: str, number: int) -> str:
    """Returns the key of a round's record."""
    return f"{run_folder(run)}{number}/record"


def parse_record(key: str, run: str) -> int | None:
    """Returns the round of a record; None for any other key."""
    found = re.fullmatch(rf"{re.escape(run_folder(run))}(0|[1-9]\d{{0,8}})/record", key, re.ASCII)
    return int(found[1]) if found else None


def candidate(run: str, number: int) -> str:
    """Returns the key of the record that becomes a round's if the learners accept it."""
    return f"{run_folder(run)}{number}/candidate"


def board(run: str) -> str:
    """Returns the key of a session's board."""
    return f"{run_folder(run)}board"


CURRENT = f"{RUNS}/_current"
"""The sessions that are current, for the agents of sites; no run can have this name."""


def presence(learner: str) -> str:
    """Returns the key of a site's note that its agent is present."""
    return f"{learner_folder(learner)}runs/_presence"


def pulse(run: str, step: str = "") -> str:
    """Returns the key of the object that a session's coordinator renews while it works, or another step."""
    return f"{run_folder(run)}{step}{'.' if step else ''}pulse"


def results(run: str, step: str, job: str) -> str:
    """Returns the key of a step's results, which other steps of the same job await."""
    return f"{run_folder(run)}{step}.{hashlib.sha256(job.encode()).hexdigest()[:16]}.results"


def listed(run: str, number: int, name: str) -> str:
    """Returns the key of a list that the coordinator of a secure sum shows to its learners.

    Args:
        run: the run's name.
        number: the round.
        name: `keys`, `members`, `agreements` or `reveals`.
    """
    return f"{run_folder(run)}{number}/{name}"


def stop(run: str) -> str:
    """Returns the key whose presence ends a session after its current round."""
    return f"{run_folder(run)}stop"


def evaluation(run: str) -> str:
    """Returns the key of the evaluation of a run's final model."""
    return f"{run_folder(run)}evaluation"


def onnx(run: str) -> str:
    """Returns the key of the note that names a run's published model."""
    return f"{run_folder(run)}onnx"


def summary(run: str) -> str:
    """Returns the key of a run's summary; it is there once the run has ended."""
    return f"{run_folder(run)}summary.json"


def report(run: str) -> str:
    """Returns the key of a run's report."""
    return f"{run_folder(run)}report.html"


def pruned(run: str) -> str:
    """Returns the key of the note that a run has lost objects."""
    return f"{run_folder(run)}pruned"


def states(run: str) -> str:
    """Returns the prefix of the states that a simulated run keeps."""
    return f"{run_folder(run)}program/"


def state(run: str, number: int) -> str:
    """Returns the key of the state after a round of a simulated run."""
    return f"{states(run)}{number}"


def timing(run: str, number: int, step: str, learner: str = "") -> str:
    """Returns the key of a step's timing, in the learner's part for a learner's step."""
    return f"{run_folder(run, learner)}{number}/{step}.time"


def parse_timing(key: str, run: str, learner: str = "") -> tuple[int, str] | None:
    """Returns the round and the step of a timing; None for any other key."""
    prefix = re.escape(run_folder(run, learner))
    found = re.fullmatch(rf"{prefix}(0|[1-9]\d{{0,8}})/([a-z0-9_\-]{{1,100}})\.time", key, re.ASCII)
    return (int(found[1]), found[2]) if found else None


def events(run: str, number: int, learner: str = "") -> str:
    """Returns the key of a TensorBoard event file: a learner's in one round, or a simulated round's."""
    name = run if learner else f"{number:06d}"
    return f"{run_folder(run, learner)}{number}/tensorboard/events.out.tfevents.{name}"


def parse_events(key: str, run: str, learner: str = "") -> tuple[int, str] | None:
    """Returns the round and the name of an event file; None for any other key."""
    prefix = re.escape(run_folder(run, learner))
    found = re.fullmatch(rf"{prefix}(0|[1-9]\d{{0,8}})/tensorboard/([\w\-][\w.\-]{{0,199}})", key, re.ASCII)
    return (int(found[1]), found[2]) if found else None


def learner_folder(learner: str) -> str:
    """Returns the prefix of all that a learner may write."""
    return f"learners/{learner}/"


def approval(learner: str) -> str:
    """Returns the key of a site's last decision about a plan."""
    return f"{learner_folder(learner)}runs/_approval"


def shard(learner: str) -> str:
    """Returns the key of the manifest of a learner's shard."""
    return f"{learner_folder(learner)}shard"


def ledger(learner: str, number: int) -> str:
    """Returns the key of an entry in a learner's privacy ledger; entries count from 1."""
    return f"{learner_folder(learner)}ledger/{number:08d}"


def sign(learner: str, run: str) -> str:
    """Returns the key of a learner's sign in a session."""
    return f"{run_folder(run, learner)}sign"


_PASSING = re.compile(r"learners/[^/]+/runs/[^/]+/(sign|\d+/[^/]+\.time)|runs/[^/]+/\d+/[^/]+\.time")


def is_passing(key: str) -> bool:
    """Returns whether nobody misses the object after a power failure: a sign only wakes its reader."""
    return bool(_PASSING.fullmatch(key))


def score(learner: str, run: str, *, earlier: bool = False) -> str:
    """Returns the key of a learner's score of the final model, or of the best one of earlier rounds."""
    return f"{run_folder(run, learner)}score{'-earlier' if earlier else ''}"


def answer(learner: str, run: str, number: int, name: str) -> str:
    """Returns the key of a learner's answer in a round, or of its note that it gives none.

    Args:
        learner: its name.
        run: the run's name.
        number: the round.
        name: `update` or `ballot`; or `note("dropped")` or `note("absent")`.
    """
    return f"{run_folder(run, learner)}{number}/{name}"


def update(learner: str, run: str, number: int) -> str:
    """Returns the key of the manifest of a learner's update."""
    return answer(learner, run, number, "update")


def ballot(learner: str, run: str, number: int) -> str:
    """Returns the key of a learner's ballot."""
    return answer(learner, run, number, "ballot")


def note(name: str, attempt: int = 1) -> str:
    """Returns the last segment of a note's key; each attempt at a round has notes of its own.

    Args:
        name: `dropped` (from the round) or `absent` (from the vote).
        attempt: how often the round was opened, from 1.
    """
    return name if attempt == 1 else f"{name}-{attempt}"


def model(name: str, version: int) -> str:
    """Returns the key of a model's bytes, below MODELS."""
    return f"{name}/{version}/model.onnx"


def parse_model(key: str) -> tuple[str, int] | None:
    """Returns the name and version of a model, from its key below MODELS; None for any other key."""
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_.\-]{0,99})/([1-9]\d{0,8})/model\.onnx", key, re.ASCII)
    return (found[1], int(found[2])) if found else None


def origin(name: str, version: int) -> str:
    """Returns the key of a model's origin, below MODELS."""
    return f"{name}/{version}/origin.json"


def signature(name: str, version: int) -> str:
    """Returns the key of the signature of a model's origin, below MODELS."""
    return f"{name}/{version}/signature.json"


def traffic(name: str) -> str:
    """Returns the key of the traffic of a model: the versions that answer, below MODELS."""
    return f"{name}/traffic.json"


DATASETS = "datasets/*"
"""Files that users put below a federation's prefix, to be sharded; its steps only read them."""


def dataset(digest: str, name: str) -> str:
    """Returns the key of an uploaded dataset: the start of its digest is a folder, so its name stays.

    Args:
        digest: 64 hexadecimal digits.
        name: the file's name; its suffix is the format.
    """
    return f"{DATASETS.removesuffix('*')}{digest[:16]}/{name}"
