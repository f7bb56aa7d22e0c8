"""Follows a run in its store, and keeps it up to date in MLflow from a thread in the background.

The thread reads what is committed and sends what MLflow lacks. So a server that is away delays nothing: its points
follow with those of a later round, of a later step, or of `fedpipe watch`.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from msgspec.structs import replace

from fedpipe.errors import FedpipeError, ServiceError, one_line
from fedpipe.federation.tracking import Tracking
from fedpipe.reports.story import Story, read_story
from fedpipe.rounds.ballots import start_scores
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import current_plan
from fedpipe.rounds.timings import find_timing
from fedpipe.store import Store, keys
from fedpipe.tracking.mlflow import Place, Run, find_place, open_run
from fedpipe.tracking.points import final_points, parameters_of, points_of, unsent
from fedpipe.version import __version__

log = logging.getLogger("fedpipe")

FILES_SECONDS = 30.0
"""Longest time for the upload of a report and a model, after the run."""
LARGEST_FILE = 2**30
_AGAIN_SECONDS = 2.0
_CLOSINGS = ("aggregate", "tally", "simulate")

Status = Literal["FINISHED", "FAILED", "KILLED"]
_SECONDS: dict[Status | None, float] = {None: 10.0, "FINISHED": 10.0 + FILES_SECONDS, "FAILED": 5.0, "KILLED": 3.0}
"""Longest wait for MLflow at the end of a step or a run."""


class Tracker:
    """Sends a run to MLflow while it is a context; without a server it does nothing. It never raises.

    Args:
        store: the federation's store.
        run: the run's name.
        tracking: the settings of the federation file.
        uri: of the whole store.
        continues: another step follows, so the run stays open in MLflow.
        every: seconds after which it looks for news by itself; None: it is woken.
    """

    def __init__(
        self, store: Store, run: str, tracking: Tracking, *, uri: str = "", continues: bool = False,
        every: float | None = None,
    ) -> None:  # fmt: skip
        self._every = every
        self.page = ""
        self.failure: FedpipeError | None = None
        self._store, self._run, self._uri, self._continues = store, run, uri or store.uri, continues
        self._news, self._ended = threading.Event(), threading.Event()
        self._status: Status | None = None
        self._thread: threading.Thread | None = None
        try:
            self._place = find_place(tracking)
        except ServiceError as error:
            self._place = None
            self._warn(error)

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Starts the thread, if there is a server."""
        if self._place is not None:
            sender = _Sender(self._store, self._run, self._uri, self._place)
            self._thread = threading.Thread(target=self._work, args=(sender,), name="tracking", daemon=True)
            self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close(None if self._continues else "FINISHED")
        else:
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")

    def close(self, status: Status | None) -> None:
        """Sends the rest, with a limit of time; a status ends the run in MLflow, None leaves it open."""
        self._status = status
        self._ended.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(_SECONDS[status])
            if self._thread.is_alive():
                self._warn(ServiceError("MLflow does not answer in time"))
        if self.failure is not None:
            log.warning("run %s is incomplete in MLflow; `fedpipe watch %s` sends the rest", self._run, self._run)

    @property
    def outcome(self) -> str:
        """The page of the run, or the reason why the server lacks a part of it; empty without a server."""
        if self.failure is not None:
            return f"MLflow lacks a part of the run: {self.failure}"
        return f"MLflow: {self.page}" if self.page else ""

    def wake(self) -> None:
        """Notices that a round may be committed."""
        self._news.set()

    def _work(self, sender: _Sender) -> None:
        while True:
            self._news.wait(self._every)
            self._news.clear()
            ended = self._ended.is_set()
            try:
                self._send(sender, ended)
                self.failure, self.page = None, sender.page
            except FedpipeError as error:
                sender.forget()
                self._warn(error)
                self._ended.wait(_AGAIN_SECONDS)
            except Exception as error:  # a tracking server must not end a run, whatever it answers
                sender.forget()
                self._warn(ServiceError(f"the run cannot be tracked, because {one_line(error)}"))
            if ended:
                return

    def _send(self, sender: _Sender, ended: bool) -> None:
        """Sends what is new, once more when the server refuses it: another process may have been faster."""
        for second in (False, True):
            try:
                sender.send()
                if ended:
                    sender.end(self._status)
                return
            except ServiceError as error:
                if second or not error.status:
                    raise
                sender.forget()

    def _warn(self, error: FedpipeError) -> None:
        """Logs the first of several failures."""
        if self.failure is None:
            log.warning("tracking: %s", error)
        self.failure = error


class _Sender:
    """Brings a run in MLflow up to date with the store."""

    def __init__(self, store: Store, run: str, uri: str, place: Place) -> None:
        self._store, self._name, self._uri, self._place = store, run, uri, place
        self._story: Story | None = None
        self._run: Run | None = None
        self._sent = 0
        self._times: dict[int, int] = {}
        self.page = ""

    def forget(self) -> None:
        """Asks MLflow again how far it has come: a request that failed may have been carried out."""
        self._run, self._sent = None, 0

    def send(self) -> None:
        """Sends the points of all rounds that are committed and new. Raises FedpipeError."""
        if not self._read():
            return
        run = self._opened()
        assert self._story is not None
        records = self._story.records
        if self._sent == len(records):
            return
        points = [point for number in range(self._sent, len(records)) for point in points_of(self._story, number)]
        if left := unsent(points, run.latest):
            run.set_status("RUNNING")  # of a run that had failed
        run.log(left, milliseconds=self._times, tags={"fedpipe.record": records[-1].ref.record})
        self._sent = len(records)

    def _read(self) -> bool:
        """Reads new records; returns whether the run has begun."""
        number = len(self._story.records) if self._story else 0
        while record := read_record(self._store, self._name, number):
            self._add(record)
            number += 1
        return number > 0

    def _add(self, record: Record) -> None:
        if self._story is None:
            plan = current_plan(self._store, self._name, record.plan)
            self._story = Story(store=self._uri, plan=plan, records=(), shards=(), evaluation=None, onnx={}, timings=())
        start = self._story.start
        if self._story.plan.federation.vote and record.round <= 1:  # the votes on the first model are in by round 1
            start = start_scores(self._store, self._story.plan)
        self._story = replace(self._story, records=(*self._story.records, record), start=start)
        self._times[record.round] = self._time_of(record)

    def _time_of(self, record: Record) -> int:
        """Returns when a round ended, in milliseconds: the same ones for each process that asks."""
        timings = (find_timing(self._store, record.run, record.round, step) for step in _CLOSINGS)
        ends = [timing.started + timing.seconds for timing in timings if timing]
        age = self._store.age(keys.record(record.run, record.round)) or 0.0
        return int((max(ends) if ends else time.time() - age) * 1000)

    def _opened(self) -> Run:
        if self._run is None:
            assert self._story is not None
            first, federation = self._story.records[0], self._story.plan.federation
            tags = {
                "fedpipe.federation": federation.name, "fedpipe.run": self._name,
                "fedpipe.begun": first.ref.record,
            }  # fmt: skip
            run = open_run(self._place, federation.name, self._name, tags, self._times[0])
            run.log_parameters(parameters_of(federation))
            more = {"fedpipe.store": self._uri, "fedpipe.version": __version__, "mlflow.source.name": "fedpipe"}
            run.log([], milliseconds={}, tags=more)
            if not self.page:
                log.info("run %s is in MLflow: %s", self._name, run.page)
            self._run, self.page = run, run.page
        return self._run

    def end(self, status: Status | None) -> None:
        """Sends the evaluation and the files of a run that has ended, and its status. Raises FedpipeError."""
        if self._story is None or status is None:
            return
        run = self._opened()
        if status != "FINISHED":
            run.set_status(status, int(time.time() * 1000))
            return
        story = read_story(self._store, self._name, self._uri)
        points = [*points_of(story, len(story.records) - 1), *final_points(story)]
        tags = {"fedpipe.ending": story.ending, "fedpipe.model": str(story.onnx.get("path", "")),
                "fedpipe.model_digest": str(story.onnx.get("digest", ""))}  # fmt: skip
        run.log(
            unsent(points, run.latest), milliseconds=self._times,
            tags={key: value for key, value in tags.items() if value},
        )  # fmt: skip
        self._upload(run, story)
        run.set_status("FINISHED", max(self._times.values()))

    def _upload(self, run: Run, story: Story) -> None:
        """Uploads report, summary and model, if the server takes files; tags name them in the store anyway."""
        if not run.keeps_artifacts():
            log.info("the artifacts of run %s are kept by a store of MLflow's own, so they are not copied", self._name)
            return
        files = {"report.html": keys.report(self._name), "summary.json": keys.summary(self._name)}
        files |= {"model.onnx": str(story.onnx["path"])} if story.onnx else {}
        end = time.monotonic() + FILES_SECONDS
        with tempfile.TemporaryDirectory() as folder:
            for name, key in files.items():
                size = self._store.size(key)
                if size is not None and size <= LARGEST_FILE and (left := end - time.monotonic()) > 0:
                    path = Path(folder) / name
                    self._store.download(key, path)
                    run.upload(name, path, left)
                    path.unlink()
