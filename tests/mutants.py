"""Changes one operator or constant at a time and reports the changes that no test notices (`make mutants`).

A mutant is the source with one small mistake: `<=` for `<`, `or` for `and`, 4 for 3. It is *noticed* when a test of its
room fails, or runs into the time limit. The share of noticed mutants measures how much the tests say about the code.

Why not an existing tool: mutmut 3.8 also changes strings, so most of its survivors here are messages, skips defaults and
constants of modules, and draws no sample. cosmic-ray 8.7 starts Python and pytest for every mutant, several seconds each.

One run of the tests records the lines and seconds of each test. A mutant then meets only the tests that run its line:
those of the file that mirrors its module first, then the fastest. Each mutant has a process of its own, forked from one
that has imported pytest and the libraries, and imports fedpipe from a copy of src/ that holds the mutant.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.mutations import Mutant, find_mutants

ROOT = Path(__file__).parents[1]
TESTS = {
    "aggregation": ("tests/aggregation",),
    "identity": ("tests/identity", "tests/commands/test_identities.py"),
    "rounds": ("tests/rounds", "tests/faults/test_invariants.py", "tests/faults/test_simulated.py"),
    "sessions": ("tests/sessions", "tests/faults/test_simulated.py"),
}
"""The tests of each room whose code is changed."""
WARM = (
    "_pytest.assertion.rewrite", "Crypto.PublicKey.ECC", "Crypto.Signature.eddsa", "coverage", "email.mime.text",
    "h5py", "hypothesis.extra.numpy", "http.client", "minio", "ml_dtypes", "msgspec", "multiprocessing.pool", "numpy.ma",
    "numpy.random", "rich.console", "rich.progress", "typer.testing", "urllib3", "yaml",
)  # fmt: skip
"""Imported once, before processes fork: neither fedpipe nor libraries that start threads."""
ENVIRONMENT = {"FEDPIPE_FAULTS": "10", "FEDPIPE_FAULT_SEED": "0", "OPENBLAS_NUM_THREADS": "1"}
MEMORY = 6 * 2**30
"""Bytes of address space that a mutant may take: an endless loop must not take the machine's memory."""


class Recorder:
    """A plugin of pytest that keeps the seconds of each test."""

    def __init__(self, file: Path) -> None:
        self._file, self._seconds = file, defaultdict[str, float](float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self._file.write_text("".join(f"{seconds} {test}\n" for test, seconds in self._seconds.items()))


class Alarm:
    """A plugin of pytest that ends its process when a test takes far longer than without a mutant."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self._seconds = seconds

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.alarm(10 + round(4 * self._seconds.get(nodeid, 0.0)))


class Tests:
    """The tests by the lines that they run, from one run without a mutant."""

    def __init__(self, rooms: list[str], copy: Path) -> None:
        from coverage import CoverageData

        data, seconds = copy / "coverage", copy / "seconds"
        os.environ["COVERAGE_FILE"] = str(data)
        chosen = list(dict.fromkeys(test for room in rooms for test in TESTS[room]))
        options = [*chosen, "-m", "not heavy", f"--cov={copy}/src/fedpipe", "--cov-context=test", "--cov-report="]
        process = start(copy, options, [Recorder(seconds)])
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
            sys.exit(f"the tests fail without a mutant:\n{(copy / 'log').read_text()[-3000:]}")
        lines = (line.split(" ", 1) for line in seconds.read_text().splitlines())
        self.seconds = {test: float(number) for number, test in lines}
        coverage = CoverageData(str(data))
        coverage.read()
        self._contexts = {
            str(Path(file).relative_to(copy)): coverage.contexts_by_lineno(file) for file in coverage.measured_files()
        }

    def of(self, mutant: Mutant) -> list[str]:
        """Its room's that run the mutant's line; of a line that runs at import, those that run the module; else all."""
        contexts = self._contexts.get(mutant.path, {})
        by_line = {test for line in mutant.lines for test in contexts.get(line, ())}
        by_file = {test for tests in contexts.values() for test in tests}
        room, mirror = Path(mutant.path).parts[2], f"/test_{Path(mutant.path).stem}.py::"
        ours = {test for test in self.seconds if test.startswith(TESTS[room])}
        known = {test.rpartition("|")[0] for test in by_line} & ours
        known = known or {test.rpartition("|")[0] for test in by_file} & ours or ours
        return sorted(known, key=lambda t: (mirror not in t, f"/{room}/" not in t, self.seconds[t], t))


def start(copy: Path, options: list[str], plugins: list[object]) -> int:
    """Forks a process that runs pytest with fedpipe from a copy of src/; returns its number."""
    if process := os.fork():
        return process
    os.setsid()  # it is ended with all that it started
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with (copy / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path.insert(0, f"{copy}/src")
    os.environ["PYTHONPATH"] = f"{copy}/src"
    fixed = [
        "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", f"--basetemp={copy}/tmp",
        "-W", "ignore::pytest.PytestAssertRewriteWarning",  # libraries are imported before pytest starts
    ]  # fmt: skip
    try:
        code = int(pytest.main([*fixed, *options], plugins=plugins))
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    os._exit(code)


def run(mutants: list[Mutant], tests: Tests, copies: list[Path]) -> Iterator[tuple[Mutant, bool]]:
    """Tries mutants side by side, one in each copy; yields each with whether it was noticed."""
    waiting, running = list(reversed(mutants)), dict[int, tuple[Mutant, Path]]()
    while waiting or running:
        while waiting and len(running) < len(copies):
            mutant = waiting.pop()
            copy = next(copy for copy in copies if copy not in {used for _, used in running.values()})
            chosen = tests.of(mutant)
            _write(copy, mutant.path, mutant.apply((ROOT / mutant.path).read_text()))
            running[start(copy, chosen, [Alarm(tests.seconds)])] = (mutant, copy)
        for process, (mutant, copy) in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)  # also servers of a test that did not end them
                _write(copy, mutant.path, (ROOT / mutant.path).read_text())
                del running[process]
                yield mutant, status != 0
        time.sleep(0.01)


def _write(copy: Path, path: str, source: str) -> None:
    """Writes a module, and removes its bytecode: Python compares sizes and seconds only."""
    (copy / path).write_text(source)
    for compiled in (copy / path).parent.glob(f"__pycache__/{Path(path).stem}.*"):
        compiled.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rooms", nargs="*", default=list(TESTS), help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--sample", type=int, default=200, help="how many mutants are tried")
    parser.add_argument("--jobs", type=int, default=2, help="how many are tried side by side")
    parser.add_argument("--least", type=float, default=0.85, help="the share that must be noticed")
    chosen = parser.parse_args()
    drawn = random.Random(chosen.seed)
    paths = [path for room in chosen.rooms for path in sorted((ROOT / "src/fedpipe" / room).rglob("*.py"))]
    every = [m for path in paths for m in find_mutants(str(path.relative_to(ROOT)), path.read_text(), drawn)]
    mutants = drawn.sample(every, min(chosen.sample, len(every)))
    os.chdir(ROOT)
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{name}/hypothesis"
        _warm_up()
        copies = [Path(name) / str(number) for number in range(chosen.jobs)]
        for copy in copies:
            shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        tests = Tests(chosen.rooms, copies[0])
        print(f"{len(mutants)} of {len(every)} mutants, {len(tests.seconds)} tests, seed {chosen.seed}", flush=True)
        results = []
        for mutant, noticed in run(mutants, tests, copies):
            results.append((mutant, noticed))
            source = (ROOT / mutant.path).read_text()
            print("." if noticed else f"\n{mutant.path}:{mutant.line}\n{mutant.diff(source)}", end="", flush=True)
    return _report(results, chosen.least)


def _warm_up() -> None:
    for name in WARM:
        importlib.import_module(name)
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)  # a failure is enough; no time to shrink its example
    settings.register_profile("mutants", deadline=None, derandomize=True, database=None, phases=phases)


def _report(results: list[tuple[Mutant, bool]], least: float) -> int:
    tried, noticed = Counter[str](), Counter[str]()
    for mutant, was_noticed in results:
        room = Path(mutant.path).parts[2]
        tried[room] += 1
        noticed[room] += was_noticed
    print()
    for room in sorted(tried):
        print(f"{room:<14}{noticed[room]:>4} of {tried[room]:>3} noticed")
    share = noticed.total() / max(tried.total(), 1)
    print(f"{share:.1%} of the mutants were noticed; at least {least:.0%} must be")
    return int(share < least)


if __name__ == "__main__":
    sys.exit(main())
