"""Decide what a store may lose: old runs, what only replays need, and objects that nothing names.

A run has one of four fates:

    whole       everything stays, so the run can be resumed and replayed
    result      an ended run loses what only a replay needs: updates and earlier weights. Its last weights stay
    records     only records, plan, summary and report stay; `runs`, `report` and `compare` need no more
    gone        nothing stays

HEAD's run stays whole or keeps its result. Other runs of HEAD's chain keep their records, so the chain has no gap. An
object stays while a small object that stays has its digest. Nothing here deletes: `fedpipe.rounds.pruning` does.

A learner may leave anything below its own prefix. So a run exists by the coordinator's objects, which also decide how
late it changed. A learner's folder of no run is `gone` after a day.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from msgspec import Struct, UnsetType

from fedpipe.errors import CorruptError, InputError, NotFoundError, StoreError, StoreUnavailableError, TooLargeError
from fedpipe.rounds.cut import RULE as SPLIT
from fedpipe.rounds.history import read_head, read_record
from fedpipe.rounds.manifests import Manifest, Record, Ref
from fedpipe.store import Entry, Store, access, is_safe, keys
from fedpipe.store.objects import find

Fate = Literal["whole", "result", "records", "gone"]
IDLE = 24 * 3600.0
"""Seconds without a change after which a run without a summary is not at work, and an unnamed object is garbage."""
_READERS = 16
_LARGEST = 2**20
"""Most bytes of an object that may name others; larger ones are weights and data.

The coordinator's own in the folders of runs, such as records, and plans may be larger: they name each learner.
"""
_NAMED = re.compile(rb'(?:"([A-Za-z_]\w*)":)?"sha256:([0-9a-f]{64})"')
_LEAVES = {b"weights", b"base", b"candidate", b"layout", b"optimizer", b"state", b"record", b"data", b"proposed",
           b"personal", b"control"}  # fmt: skip
"""Names of digests whose objects name no others."""
_RUN = re.compile(r"(learners/[^/]+/)?runs/([a-z0-9\-]+)/(.+)", re.ASCII)
_CONTENT = re.compile(r"(?:objects|coordinator|learners/[^/]+/(?:objects|proposals|personal|parcels))/([0-9a-f]{64})")
_PERSONAL = re.compile(r"learners/[^/]+/personal/[0-9a-f]{64}")
_RECORDS = re.compile(r"\d+/record|plan|summary\.json|report\.html|evaluation|onnx|shards|pruned")
"""Keys in the folder of a run that stay when only its records do."""
_STATES = re.compile(r"program/\d+")


class Rules(Struct, frozen=True, kw_only=True):
    """Which runs may go. With none of the first two, none does.

    Args:
        keep_runs: the latest runs that stay.
        older_than: seconds since its last change after which a run may go.
        replays: whether the runs that stay can be replayed.
        abandoned: unfinished runs that nobody will resume, however late they changed.
    """

    keep_runs: int | None = None
    older_than: float | None = None
    replays: bool = True
    abandoned: tuple[str, ...] = ()


class Pruned(Manifest, frozen=True, kw_only=True):
    """The note in the folder of a run that has lost objects; it is written first and, of a run that goes, removed last.

    So a removal that was killed is completed by the next one, and nobody takes such a run for one at work.
    """

    format: int = 1
    kept: Literal["result", "records", "nothing"]


_FATES: dict[Literal["result", "records", "nothing"], Fate] = {
    "result": "result", "records": "records", "nothing": "gone"
}  # fmt: skip


class RunLoss(NamedTuple):
    """The loss of a run: its fate, the number of its small objects that go, and its age in seconds."""

    run: str
    fate: Fate
    objects: int
    age: float


class Loss(NamedTuple):
    """All that a store may lose.

    `small` are keys in the order in which they must go, by run. `content` are objects that are named by their digest.
    """

    runs: tuple[RunLoss, ...]
    notes: dict[str, Pruned]
    small: dict[str, list[str]]
    content: list[str]
    sizes: Mapping[str, int]
    unknown: int

    @property
    def objects(self) -> int:
        """The number of objects."""
        return len(self.sizes)

    @property
    def size(self) -> int:
        """Their bytes together."""
        return sum(self.sizes.values())


class _Run(NamedTuple):
    """A run, or a folder of no run that learners made: then it does not `exist`.

    `changed` is the time of the coordinator's last change, `touched` that of anybody's.
    """

    entries: list[Entry]
    changed: float
    touched: float
    ended: bool
    note: Pruned | None
    exists: bool = True

    @property
    def keys(self) -> list[str]:
        return [entry.key for entry in self.entries]


def find_loss(store: Store, rules: Rules, is_over: Callable[[str], bool] = lambda _: False) -> Loss:
    """Return what the store may lose by these rules.

    Args:
        store: the federation's store.
        rules: which runs may go.
        is_over: whether the session of a run has ended, although it has no summary.

    Raises:
        InputError: a run is at work, or there is no such run.
        CorruptError: HEAD or a record of its chain cannot be read.
    """
    listed = list(store.entries())
    entries = [entry for entry in listed if is_safe(entry.key)]
    if not entries:
        return Loss((), {}, {}, [], {}, len(listed))
    latest = max(entries, key=lambda entry: entry.written)
    now = latest.written + (store.age(latest.key) or 0.0)
    runs = _grouped(store, entries, is_over)
    _check_idle(store, runs, rules, now)
    head = read_head(store)
    fates = _fates(runs, rules, now, head[0].run if head else "", set(_chain(store)))
    small = {run: _small(run, found, fates[run]) for run, found in runs.items()}
    marks = _Marks(store, entries)
    if head:
        marks.add([head[0].weights])
    if head and any(_PERSONAL.fullmatch(key) for key in marks.by_key):
        marks.add(_personal(store, head[0].ref))
    marks.follow(
        key for key in marks.by_key if re.fullmatch(r"models/[^/]+/\d+/origin\.json|learners/[^/]+/shard", key)
    )
    for run, found in runs.items():
        marks.add_run(run, found, fates[run])
    content = marks.garbage(now)
    losing = [key for listed in small.values() for key in listed] + content
    sizes = {key: marks.by_key[key].size for key in losing if key in marks.by_key}
    lost = [
        RunLoss(run, fates[run], len(small[run]), now - found.changed)
        for run, found in runs.items()
        if small[run] or (fates[run] != "whole" and (found.note is None or _FATES[found.note.kept] != fates[run]))
    ]
    kept = {fate: kept for kept, fate in _FATES.items()}
    notes = {loss.run: Pruned(kept=kept[loss.fate]) for loss in lost if loss.fate in kept}
    known = sum(any(row.matches(entry.key) for row in access.TABLE) for entry in entries)
    return Loss(tuple(sorted(lost, key=lambda loss: loss.age)), notes, small, content, sizes, len(listed) - known)


def _grouped(store: Store, entries: Iterable[Entry], is_over: Callable[[str], bool]) -> dict[str, _Run]:
    """Return the runs of the store, the latest first."""
    grouped: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if found := _RUN.fullmatch(entry.key):
            grouped[found[2]].append(entry)
    runs = {}
    for run, listed in grouped.items():
        there, note_key = {entry.key for entry in listed}, keys.pruned(run)
        note = find(store, note_key, Pruned) if note_key in there else None
        own = [entry for entry in listed if entry.key.startswith(keys.run_folder(run))]
        ended = note is not None or keys.summary(run) in there or (bool(own) and is_over(run))
        changed, touched = (
            max((entry.written for entry in some if entry.key != note_key), default=0.0) for some in (own, listed)
        )
        runs[run] = _Run(listed, changed if own else touched, touched, ended, note, bool(own))
    return dict(sorted(runs.items(), key=lambda item: (-item[1].changed, item[0])))


def _check_idle(store: Store, runs: Mapping[str, _Run], rules: Rules, now: float) -> None:
    for run in rules.abandoned:
        if run not in runs:
            raise InputError(f"there is no run {run!r}", where=store.uri, remedy="See `fedpipe runs`.")
    for run, found in runs.items():
        if found.exists and not found.ended and run not in rules.abandoned and now - found.touched < IDLE:
            raise InputError(
                f"run {run!r} is at work: it has not ended, and changed {(now - found.touched) / 60:.0f} minutes ago",
                where=store.uri,
                remedy=f"Wait until it has ended. If it was killed and will not be resumed, add --abandoned {run}.",
            )


def _fates(runs: Mapping[str, _Run], rules: Rules, now: float, head: str, chain: set[str]) -> dict[str, Fate]:
    """Return the fate of each run; a run that has lost objects before keeps at most what was left."""
    fates: dict[str, Fate] = {
        run: "whole" if now - found.touched < IDLE else "gone" for run, found in runs.items() if not found.exists
    }
    existing = [(run, found) for run, found in runs.items() if found.exists]
    for position, (run, found) in enumerate(existing):
        is_late = rules.keep_runs is not None and position < rules.keep_runs
        is_young = rules.older_than is not None and now - found.changed < rules.older_than
        is_chosen = rules.keep_runs is not None or rules.older_than is not None
        if run != head and is_chosen and not is_late and not is_young:
            fates[run] = "records" if run in chain else "gone"
        elif found.note is not None:
            fates[run] = _FATES[found.note.kept]
        else:
            fates[run] = "result" if found.ended and not rules.replays else "whole"
    return fates


def _chain(store: Store) -> Iterator[str]:
    """Yield the runs of HEAD's chain; the first record of each says where it began."""
    head = read_head(store)
    run = head[0].run if head else ""
    seen: set[str] = set()
    while run and run not in seen:
        seen.add(run)
        yield run
        first = read_record(store, run, 0)
        if first is None:
            raise CorruptError(f"the chain is broken at round 0 of run {run!r}", where=store.uri)
        run = first.previous.run if first.previous else ""


def _personal(store: Store, ref: Ref | None) -> Iterator[str]:
    """Yield the digests of the weights that each learner keeps, from its last update in HEAD's chain that has some."""
    seen: set[str] = set()
    while ref and (record := read_record(store, ref.run, ref.round)):
        for update in record.updates if record.accepted else ():
            if update.personal and update.learner not in seen:
                seen.add(update.learner)
                yield update.personal
        ref = record.previous


def parts_in(record: Record) -> list[str]:
    """Return the digests of the parts that the weights of a record are made of, if its network is cut."""
    return [update.weights for update in record.updates] if record.rule == SPLIT else []


def _small(run: str, found: _Run, fate: Fate) -> list[str]:
    """Return the keys in a run's folders that go, in an order that leaves a usable run wherever it is interrupted.

    Results come first, then rounds from the last to the first: what is left looks like a run that has not ended.
    """
    own = keys.run_folder(run)
    if fate == "whole":
        return []
    inner = {key: match[3] for key in found.keys if (match := _RUN.fullmatch(key))}
    if fate == "result":
        states = sorted(
            (key for key, name in inner.items() if key.startswith(own) and _STATES.fullmatch(name)), key=_round
        )
        return states[:-1]
    going = [k for k, name in inner.items() if fate == "gone" or not (k.startswith(own) and _RECORDS.fullmatch(name))]
    results = {keys.summary(run), keys.report(run), keys.onnx(run), keys.evaluation(run), keys.board(run)}

    def place(key: str) -> tuple[int, int, bool, str]:
        if key in results:
            return 0, 0, False, key
        if key == keys.shards(run):
            return 3, 0, False, key
        number = _round(f"/{inner[key]}")
        return (1, -number, key != keys.record(run, number), key) if number >= 0 else (2, 0, False, key)

    noted = [keys.pruned(run)] if fate == "gone" else []  # written before, removed last
    return [*sorted(set(going) - set(noted), key=place), *noted]


def _round(key: str) -> int:
    """Return the number in a key; -1 without one."""
    found = re.search(r"/(\d{1,9})(?:/|$)", key)
    return int(found[1]) if found else -1


class _Marks:
    """Collects the digests that are named by objects that stay, and by objects that go."""

    def __init__(self, store: Store, entries: Iterable[Entry]) -> None:
        self._store = store
        self.by_key = {entry.key: entry for entry in entries}
        self._by_digest: dict[str, list[str]] = defaultdict(list)
        for key in self.by_key:
            if found := _CONTENT.fullmatch(key):
                self._by_digest[found[1]].append(key)
        self._kept: set[str] = set()
        self._released: set[str] = set()
        self._names: dict[str, list[tuple[bytes, str]]] = {}

    def add(self, digests: Iterable[str]) -> None:
        """Keep these objects."""
        self._kept |= {digest.removeprefix("sha256:") for digest in digests}

    def follow(self, found: Iterable[str]) -> None:
        """Keep all that these objects name, and all that the named ones name in turn."""
        self._kept |= self._reached(found)

    def add_run(self, run: str, found: _Run, fate: Fate) -> None:
        """Keep the objects of a run by its fate; note those that it does not need any more."""
        own = keys.run_folder(run)
        last = {k for k in found.keys if k.startswith(own) and k.count("/") == 2 and not k.endswith((".html", ".json"))}
        records = sorted((k for k in found.keys if re.fullmatch(rf"{re.escape(own)}\d+/record", k)), key=_round)
        if fate == "whole":
            # Records name all that an ended run needs; the manifests of a run in progress are not in one yet.
            self.follow(key for key in found.keys if key in {*records, *last} or not found.ended)
            return
        self._released |= self._reached(records)
        if fate == "gone" or not records:
            return
        plans = self._objects(digest for name, digest in self._named_in(records[:1]) if name == b"plan")
        self.add(plan.rpartition("/")[2] for plan in plans)
        if fate == "records":  # of the plan, code and the manifests of shards, but not their data
            self.add(digest for name, digest in self._named_in(plans) if name != b"test")
            return
        self.follow([*plans, *(key for key in found.keys if key in last)])
        record = read_record(self._store, run, len(records) - 1)
        if record is not None:
            control = () if isinstance(record.control, UnsetType) else (record.control,)
            self.add([record.weights, *record.state.values(), *control, *parts_in(record)])

    def _reached(self, found: Iterable[str]) -> set[str]:
        """Return the digests that these objects name, and those that the named ones name in turn."""
        reached: set[str] = set()
        seen: set[str] = set()
        left = [key for key in found if key.startswith(f"{keys.RUNS}/") or self._is_small(key)]
        while left := [key for key in dict.fromkeys(left) if key not in seen]:
            seen |= set(left)
            named = self._named_in(left)
            reached |= {digest for _, digest in named}
            plans = self._objects(digest for name, digest in named if name == b"plan")
            others = self._objects(digest for name, digest in named if name not in _LEAVES)
            left = [*plans, *filter(self._is_small, others)]
        return reached

    def _is_small(self, key: str) -> bool:
        return self.by_key[key].size <= _LARGEST

    def _objects(self, digests: Iterable[str]) -> list[str]:
        """Return the keys of the objects with these digests, of any owner."""
        return [key for digest in digests for key in self._by_digest.get(digest, ())]

    def _named_in(self, listed: Iterable[str]) -> list[tuple[bytes, str]]:
        """Return the digests in these objects, with their names."""
        wanted = list(listed)
        unread = [key for key in wanted if key not in self._names]
        with ThreadPoolExecutor(_READERS) as readers:
            for key, data in zip(unread, readers.map(self._bytes, unread), strict=True):
                self._names[key] = [(name, digest.decode()) for name, digest in _NAMED.findall(data)]
        return [pair for key in wanted for pair in self._names[key]]

    def _bytes(self, key: str) -> bytes:
        try:
            return self._store.read(key).data
        except (NotFoundError, TooLargeError):
            return b""
        except StoreUnavailableError:
            raise
        except (StoreError, CorruptError):  # a learner may store its own objects in a form that nobody reads
            if key.startswith("learners/"):
                return b""
            raise

    def garbage(self, now: float) -> list[str]:
        """Return the objects that nothing keeps: those of runs that lose them, and others once they are old."""
        return [
            key
            for digest, listed in self._by_digest.items()
            if digest not in self._kept
            for key in listed
            if digest in self._released or now - self.by_key[key].written >= IDLE
        ]
