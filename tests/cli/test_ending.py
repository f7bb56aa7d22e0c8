"""How commands end early: Ctrl-C in a real terminal at any moment, and signals of the system."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fedpipe.cli.ending import EndedError, ended_by_signals
from tests.federations import change
from tests.processes import COMMAND, LIMIT, assert_ended, terminal

STOPPED = "stopped; run the same command again to resume"


@pytest.fixture
def long(numpy_digits: Path) -> Path:
    """A federation that trains for an hour: what ends sooner was interrupted."""
    change(numpy_digits, **{"rounds: 10": "rounds: 100000", "local_epochs: 2": "local_epochs: 30"})
    return numpy_digits


MOMENTS = {
    "imports": ("reading", 1),
    "compilation": ("compiling", 1),
    "training": (r"round \d+ of", 2),
}


@pytest.mark.parametrize(("awaited", "count"), MOMENTS.values(), ids=MOMENTS)
def test_ctrl_c_in_a_terminal(long: Path, awaited: str, count: int) -> None:
    with terminal("run", "federation.yaml", cwd=long) as running:
        running.wait_for(f"(?s)(?:{awaited}.*?){{{count}}}")
        running.press_ctrl_c()
        assert running.end() == 130
    assert running.output.count(STOPPED) == 1
    assert "Traceback" not in running.output
    assert running.output.rfind("\x1b[?25h") >= running.output.rfind("\x1b[?25l")  # the cursor is shown


def test_it_resumes_after_ctrl_c(numpy_digits: Path) -> None:
    file = change(numpy_digits, **{"rounds: 10": "rounds: 60", "local_epochs: 2": "local_epochs: 20"})
    with terminal("run", file.name, cwd=numpy_digits) as running:
        running.wait_for("round 2 of")
        running.press_ctrl_c()
        assert running.end() == 130
    done = subprocess.run(
        [COMMAND, "run", file.name], cwd=numpy_digits, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "round 1 of" not in done.stderr
    assert "round 60 of" in done.stderr


def test_a_second_ctrl_c_ends_at_once(long: Path) -> None:
    """Even where a training in this process cannot be interrupted: here, one of days.

    The terminal's second signal is lost while the first one waits to be handled, so it is pressed as a user would.
    """
    change(long, **{"local_epochs: 30": "local_epochs: 100000000"})
    with terminal("run", "federation.yaml", cwd=long) as running:
        running.wait_for("learn hospital|coordinate")
        time.sleep(1.0)  # so that it trains, as a rule
        running.press_ctrl_c()
        assert running.end(pressing=0.3) == 130
    assert "Traceback" not in running.output
    assert running.output.rfind("\x1b[?25h") >= running.output.rfind("\x1b[?25l")


@pytest.mark.parametrize("command", [["watch", "run-1", "--wait"], ["plot", "run-1", "--wait"]])
def test_commands_that_wait(long: Path, command: list[str]) -> None:
    with terminal(*command, cwd=long) as running:
        running.wait_for("waiting for run run-1 to begin")
        running.press_ctrl_c()
        assert running.end() == 130
    assert running.output.count(STOPPED) == 1
    assert "Traceback" not in running.output


def test_watch_of_a_run_in_progress(long: Path) -> None:
    with terminal("run", "federation.yaml", cwd=long) as running:
        running.wait_for("round 1 of")
        with terminal("watch", "run-1", cwd=long) as watching:
            watching.wait_for("round 1 ")
            watching.press_ctrl_c()
            assert watching.end() == 130
        assert running.process.poll() is None
        running.press_ctrl_c()
        assert running.end() == 130
    assert "Traceback" not in watching.output
    assert watching.output.count("\x1b[?25l") == 0 or watching.output.rfind("\x1b[?25h") > watching.output.rfind(
        "\x1b[?25l"
    )


@pytest.mark.parametrize("presses", [1, 2])
def test_serve(long: Path, presses: int) -> None:
    """A server that is stopped has done its work: the code is 0, and nothing is to be resumed."""
    with terminal("serve", "-f", "federation.yaml", "--port", "0", cwd=long) as running:
        running.wait_for("serving at http.*(?s:.*)nothing is published in .* yet")
        for _ in range(presses):
            running.press_ctrl_c()
        assert running.end() in ((0,) if presses == 1 else (0, 130))
    assert "Traceback" not in running.output


@pytest.mark.heavy
@pytest.mark.parametrize("awaited", ["checking", r"round 1\b"])
def test_simulate(digits: Path, awaited: str) -> None:
    """While TensorFlow Federated is imported, and between its rounds."""
    change(digits, **{"rounds: 10": "rounds: 500"})
    with terminal("simulate", "federation.yaml", cwd=digits) as running:
        running.wait_for(awaited, 150)
        running.press_ctrl_c()
        assert running.end() == 130
    assert running.output.count(STOPPED) == 1
    assert "Traceback" not in running.output


def test_explore(long: Path) -> None:
    code = "def load(uri):\n    import pathlib, time\n    pathlib.Path('loads').touch()\n    time.sleep(1000)\n"
    (long / "model.py").write_text(f"{(long / 'model.py').read_text()}\n\n{code}")
    change(long, **{"  - name: hospital-b\n": "  - name: hospital-b\n    data: own.npz\n"})
    with terminal("explore", "federation.yaml", cwd=long) as running:
        running.wait_for("looking", until=lambda: next(long.rglob("loads"), None) is not None)
        running.press_ctrl_c()
        assert running.end() == 130
    assert running.output.count(STOPPED) == 1
    assert "Traceback" not in running.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signals_of_the_system(long: Path, number: signal.Signals) -> None:
    mark = {"STARTED_BY": f"{long}-{number}"}
    with subprocess.Popen(
        [COMMAND, "run", "federation.yaml"], cwd=long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **mark},
    ) as running:  # fmt: skip
        assert running.stderr is not None
        while "round 1 of" not in running.stderr.readline():
            assert running.poll() is None
        running.send_signal(number)
        _, err = running.communicate(timeout=LIMIT)
    assert_ended(mark)
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        assert running.returncode == -number
    else:
        assert running.returncode == 128 + number
        assert err.strip().endswith(f"ended by {number.name}; run the same command again to resume")


def test_nohup_is_respected(long: Path) -> None:
    """A run that ignores SIGHUP survives the end of its terminal."""
    with subprocess.Popen(
        ["nohup", COMMAND, "run", "federation.yaml"], cwd=long, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stderr is not None
        while "round 1 of" not in running.stderr.readline():
            assert running.poll() is None
        running.send_signal(signal.SIGHUP)
        while "round 3 of" not in running.stderr.readline():
            assert running.poll() is None
        running.terminate()
        running.communicate(timeout=LIMIT)


def lose(number: signal.Signals) -> None:
    """Loses the exception of a signal, and works on."""
    with ended_by_signals():
        with contextlib.suppress(BaseException):
            signal.raise_signal(number)
        time.sleep(LIMIT)
        raise AssertionError("the signal is lost")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_exception_that_is_lost_is_raised_again(number: signal.Signals) -> None:
    """Python drops an exception in a destructor, and libraries catch what they should not."""
    with pytest.raises((KeyboardInterrupt, EndedError)):
        lose(number)


def test_the_cleaning_up_is_not_disturbed() -> None:
    done = []

    def clean() -> None:
        time.sleep(1.2)
        done.append("cleaned")

    def end() -> None:
        with ended_by_signals(), contextlib.ExitStack() as stack:
            stack.callback(clean)
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                time.sleep(0.7)
                done.append("waited")

    with pytest.raises(KeyboardInterrupt):
        end()
    assert done == ["waited", "cleaned"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_signal_that_another_thread_receives_ends_a_wait_of_the_main_thread() -> None:
    """The system chooses the thread; Python calls the handler in the main one, which may wait for a lock."""

    @ended_by_signals()
    def wait() -> None:
        threading.Timer(0.3, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
        threading.Event().wait(LIMIT)
        raise AssertionError("the wait was not ended")

    with pytest.raises(KeyboardInterrupt):
        wait()
