"""The keys of the store: each is spelled here once, with its writers and readers.

Keys are relative to the federation's part of the store, `<prefix>/<federation>/`. The module is used by its name:

    from fedpipe.store import keys

    store.read(keys.record("first", 3))

`TABLE` lists every kind of key. The policies of `fedpipe.identity.policies` and the table in `docs/store.md` are made
from it.
"""

from __future__ import annotations

import functools
import re
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from fedpipe.errors import CorruptError

HEAD = "HEAD"
ENROLLED = "enrolled"
ROSTER = "roster"
PRUNING = "pruning"
"""The mark that objects are being removed; it changes with each removal."""
CATALOGUE = "catalogue"
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


def pulse(run: str) -> str:
    """Returns the key of the object that a session's coordinator renews while it works."""
    return f"{run_folder(run)}pulse"


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


def shard(learner: str) -> str:
    """Returns the key of the manifest of a learner's shard."""
    return f"{learner_folder(learner)}shard"


def ledger(learner: str, number: int) -> str:
    """Returns the key of an entry in a learner's privacy ledger; entries count from 1."""
    return f"{learner_folder(learner)}ledger/{number:08d}"


def sign(learner: str, run: str) -> str:
    """Returns the key of a learner's sign in a session."""
    return f"{run_folder(run, learner)}sign"


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


Party = Literal["owner", "learners", "coordinator", "dealer", "server", "administrator"]
"""`owner` is the learner in the key, `learners` are all of them, `server` is `fedpipe serve`. `dealer` is the step that
deals shards: the coordinator's, unless it has a user of its own. `administrator` is that of the store, who enrols."""


class Access(NamedTuple):
    """The parties that write and that may read.

    On a store with identities, policies enforce it. `fedpipe run` writes with one user of the store for all.
    """

    writers: tuple[Party, ...]
    readers: tuple[Party, ...]


class Row(NamedTuple):
    """A kind of key. In its pattern, `<...>` stands for a name, a number or a digest, and `[...]` may be absent."""

    pattern: str
    access: Access
    meaning: str

    def matches(self, key: str) -> bool:
        """Returns whether a key, relative to the federation's part of the store, is of this kind."""
        return bool(_expression(self.pattern).fullmatch(key))

    @property
    def folder(self) -> str:
        """The first segment of the keys of this kind as a pattern of S3 policies: `HEAD`, `probe-*`, `runs/*`."""
        top, slash, _ = self.pattern.partition("/")
        return f"{top}/*" if slash else re.sub("<.*", "*", top)

    @property
    def wildcard(self) -> str:
        """The keys of this kind, for all learners, as a pattern of S3 policies.

        There `*` stands for any text, with `/` too, and `?` for one character. A folder of the coordinator ends at its
        first name, as in `runs/*`: a reader of one run may read all. Folders of learners have keys for other readers
        too, and a name could complete the pattern. So the last segment keeps the length of a digest.

        Raises:
            ValueError: the kind has another form, so no pattern fits it alone.
        """
        if not self.pattern.startswith("learners/"):
            return re.sub("<.*", "*", self.pattern)
        found = re.fullmatch(r"learners/<learner>/([a-z]+)/<sha256>", self.pattern)
        if found is None:
            raise ValueError(f"no pattern of a policy fits {self.pattern!r} alone")
        return f"learners/*/{found[1]}/{'?' * 64}"


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\[", "(?:").replace(r"\]", ")?")
    return re.compile(re.sub("<([a-z0-9]+)>", lambda found: _FORMS[found[1]], text), re.ASCII)


_FORMS = {
    "learner": r"[a-z0-9\-]+", "run": r"[a-z0-9\-]+", "step": r"[a-z0-9_\-]+", "file": r"[\w.\-]+", "name": "[0-9a-f]+",
    "model": r"[A-Za-z0-9][\w.\-]*", "sha256": "[0-9a-f]{64}", "number": r"\d+", "round": r"\d+", "attempt": r"\d+",
    "version": r"[1-9]\d*",
}  # fmt: skip

_OWN = Access(("coordinator",), ("coordinator",))
_GLOBAL = Access(("coordinator",), ("coordinator", "learners"))
_DEALT = Access(("owner", "dealer"), ("owner", "coordinator", "dealer"))
_SPENT = Access(("owner",), ("owner",))
_LEARNERS = Access(("owner",), ("owner", "coordinator"))
_SHOWN = Access(("owner",), ("owner", "coordinator", "learners"))
_SENT = Access(("owner",), ("owner", "learners"))
_PUBLISHED = Access(("coordinator",), ("coordinator", "server"))
_ENROLLED = Access(("administrator",), ("coordinator", "learners", "server"))
_ROSTER = Access(("administrator",), ("coordinator", "learners"))

TABLE = (
    Row("HEAD", _OWN, "the last accepted round; moves by compare-and-swap only, never to untrained weights"),
    Row("probe-<name>", _OWN, "a check of conditional writes; removed at once"),
    Row("pruning", _OWN, "whether `fedpipe prune` is removing objects"),
    Row("catalogue", _OWN, "a line for each run that has ended, for `fedpipe runs`"),
    Row("objects/<sha256>", _GLOBAL, "global weights, plans, model code, schemas of tables, central test set"),
    Row("coordinator/<sha256>", _OWN, "states of server optimizers and aggregators"),
    Row("runs/<run>/shards", _GLOBAL, "the inputs of the shards, and their digests"),
    Row("runs/<run>/plan", _GLOBAL, "the plan of the last try: also its settings of evaluation, export and reports"),
    Row("runs/<run>/board", _GLOBAL, "a session: the current request ([sessions](sessions.md))"),
    Row("runs/<run>/pulse", _GLOBAL, "a session: renewed every 15 s while its coordinator works"),
    Row("runs/<run>/stop", _GLOBAL, "a session: a request to end after the current round"),
    Row("runs/<run>/<round>/record", _GLOBAL, "the committed round: updates, dropped learners, rule, result"),
    Row("runs/<run>/<round>/candidate", _GLOBAL, "the aggregate, when learners vote on it"),
    Row("runs/<run>/<round>/keys", _GLOBAL, "a secure sum: the keys of a round, as learners signed them"),
    Row("runs/<run>/<round>/members", _GLOBAL, "a secure sum: the list of the vectors in it"),
    Row("runs/<run>/<round>/agreements", _GLOBAL, "a secure sum: the members' signatures on that list"),
    Row("runs/<run>/<round>/reveals", _GLOBAL, "a secure sum: the secrets that opened it"),
    Row("runs/<run>/<round>/<step>.time", _GLOBAL, "how long a step took"),
    Row("runs/<run>/<round>/tensorboard/<file>", _GLOBAL, "TensorBoard event files of a simulation"),
    Row("runs/<run>/program/<round>", _GLOBAL, "states of a simulation"),
    Row("runs/<run>/evaluation", _GLOBAL, "the final model on the central and the learners' test sets"),
    Row("runs/<run>/onnx", _GLOBAL, "the published version of the final model"),
    Row("runs/<run>/summary.json", _GLOBAL, "the run in numbers; written when it has ended"),
    Row("runs/<run>/report.html", _GLOBAL, "the report"),
    Row("runs/<run>/pruned", _GLOBAL, "a note that `fedpipe prune` has removed objects of the run"),
    Row("learners/<learner>/shard", _DEALT, "the manifest of the learner's current shard"),
    Row("learners/<learner>/objects/<sha256>", _DEALT, "shards, weights of updates, optimizer states"),
    Row("learners/<learner>/proposals/<sha256>", _SHOWN, "weights that it proposed"),
    Row("learners/<learner>/personal/<sha256>", _SPENT, "weights that stay at the learner ([personal](personal.md))"),
    Row("learners/<learner>/parcels/<sha256>", _SENT, "activations or gradients for another party"),
    Row("learners/<learner>/ledger/<number>", _SPENT, "a private training: the spent budget, over all runs"),
    Row("learners/<learner>/runs/<run>/sign", _LEARNERS, "a session: the learner's last answer"),
    Row("learners/<learner>/runs/<run>/<round>/statistics", _LEARNERS, "its statistics of a table, without rows"),
    Row("learners/<learner>/runs/<run>/<round>/update", _LEARNERS, "its update: base, digest, examples, metrics"),
    Row("learners/<learner>/runs/<run>/<round>/keys", _LEARNERS, "a secure sum: its key of a round, signed"),
    Row("learners/<learner>/runs/<run>/<round>/masked", _LEARNERS, "a secure sum: its masked vector, by digest"),
    Row("learners/<learner>/runs/<run>/<round>/agreed", _LEARNERS, "a secure sum: its signature on the members"),
    Row("learners/<learner>/runs/<run>/<round>/revealed", _LEARNERS, "a secure sum: its secrets that open the sum"),
    Row("learners/<learner>/runs/<run>/<round>/dropped[-<attempt>]", _LEARNERS, "why it did not take part"),
    Row("learners/<learner>/runs/<run>/<round>/ballot", _LEARNERS, "its vote, and its scores of base and candidate"),
    Row("learners/<learner>/runs/<run>/<round>/absent[-<attempt>]", _LEARNERS, "why it did not vote"),
    Row("learners/<learner>/runs/<run>/<round>/<step>.time", _LEARNERS, "how long its step took"),
    Row("learners/<learner>/runs/<run>/<round>/tensorboard/<file>", _LEARNERS, "its TensorBoard event files"),
    Row(
        "learners/<learner>/runs/<run>/score[-earlier]",
        _LEARNERS,
        "its tests of the last and the best earlier model",
    ),
    Row("models/<model>/<version>/origin.json", _PUBLISHED, "the origin of a version, and the model's digest"),
    Row("models/<model>/<version>/signature.json", _PUBLISHED, "the coordinator's signature, if it is enrolled"),
    Row("models/<model>/<version>/model.onnx", _PUBLISHED, "the model; a version is never overwritten"),
    Row("models/<model>/traffic.json", _PUBLISHED, "which versions answer ([serving](serving.md))"),
    Row("enrolled", _ENROLLED, "public keys of those who must sign ([identities](identities.md))"),
    Row("roster", _ROSTER, "the learners' public keys, signed by the administrator ([secure sums](secure-sums.md))"),
)

FOLDERS = tuple(dict.fromkeys(row.folder for row in TABLE))
"""The first segments of all keys, as patterns: `HEAD`, `probe-*`, `runs/*`."""

DATASETS = "datasets/*"
"""Files that users put below a federation's prefix, to be sharded; its steps only read them."""


def dataset(digest: str, name: str) -> str:
    """Returns the key of an uploaded dataset: the start of its digest is a folder, so its name stays.

    Args:
        digest: 64 hexadecimal digits.
        name: the file's name; its suffix is the format.
    """
    return f"{DATASETS.removesuffix('*')}{digest[:16]}/{name}"


def is_taken(segment: str) -> bool:
    """Returns whether the first segment of a key may have this name, so that no other federation may be below it."""
    return any(segment == folder.rstrip("/*") or fnmatchcase(segment, folder) for folder in (*FOLDERS, DATASETS))
