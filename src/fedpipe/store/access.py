"""The writers and readers of each kind of key of the store.

The policies of `fedpipe.identity.policies` and the table in `docs/store.md` are made from `TABLE`.
"""

from __future__ import annotations

import functools
import re
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from fedpipe.store.keys import DATASETS

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
            return self.folder
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
    "version": r"[1-9]\d*", "job": "[0-9a-f]{16}",
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
_JOINING = Access(("administrator",), ("administrator",))
_ASKED = Access(("owner",), ("owner", "administrator"))

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
    Row("runs/<run>/<step>.<job>.results", _GLOBAL, "results for steps that have started before it has ended"),
    Row("runs/<run>/<step>.pulse", _GLOBAL, "renewed every 15 s while that step works"),
    Row("runs/_current", _GLOBAL, "the sessions that are current, for the agents of sites ([sites](sites.md))"),
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
    Row("learners/<learner>/runs/_approval", _LEARNERS, "a site: its last decision about a plan ([sites](sites.md))"),
    Row("learners/<learner>/objects/<sha256>", _DEALT, "shards, weights of updates, optimizer states"),
    Row("learners/<learner>/proposals/<sha256>", _SHOWN, "weights that it proposed"),
    Row("learners/<learner>/personal/<sha256>", _SPENT, "weights, and places of rows, that stay at the learner"),
    Row("learners/<learner>/parcels/<sha256>", _SENT, "messages for another party of a cut network"),
    Row("learners/<learner>/ledger/<number>", _SPENT, "a private training: the spent budget, over all runs"),
    Row("learners/<learner>/runs/<run>/sign", _LEARNERS, "a session: the learner's last answer"),
    Row("learners/<learner>/runs/_presence", _LEARNERS, "a site: its agent's version, and the event it awaits"),
    Row("learners/<learner>/runs/<run>/<round>/statistics", _LEARNERS, "its statistics of a table, without rows"),
    Row("learners/<learner>/runs/<run>/<round>/aligned", _LEARNERS, "how many of its rows are common to all parties"),
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
    Row("learners/<learner>/rotation", _ASKED, "a site's request for new keys ([identities](identities.md#sites))"),
    Row("models/<model>/<version>/origin.json", _PUBLISHED, "the origin of a version, and the model's digest"),
    Row("models/<model>/<version>/signature.json", _PUBLISHED, "the coordinator's signature, if it is enrolled"),
    Row("models/<model>/<version>/model.onnx", _PUBLISHED, "the model; a version is never overwritten"),
    Row("models/<model>/traffic.json", _PUBLISHED, "which versions answer ([serving](serving.md))"),
    Row("enrolled", _ENROLLED, "public keys of those who must sign ([identities](identities.md))"),
    Row("joining/<learner>/invitation", _JOINING, "the terms of a site's invitation, signed by the administrator"),
    Row("joining/<learner>/<name>/request", _JOINING, "a site's request to join, written by a URL in its invitation"),
    Row("joining/<learner>/<name>/answer", _JOINING, "the answer; the site's keys of the store in it are sealed"),
    Row("roster", _ROSTER, "the learners' public keys, signed by the administrator ([secure sums](secure-sums.md))"),
)

FOLDERS = tuple(dict.fromkeys(row.folder for row in TABLE))
"""The first segments of all keys, as patterns: `HEAD`, `probe-*`, `runs/*`."""


def is_taken(segment: str) -> bool:
    """Returns whether the first segment of a key may have this name, so that no other federation may be below it."""
    return any(segment == folder.rstrip("/*") or fnmatchcase(segment, folder) for folder in (*FOLDERS, DATASETS))
