"""Load a user's Python file by digest, and report its errors with their lines."""

from __future__ import annotations

import hashlib
import importlib.abc
import inspect
import re
import signal
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from fedpipe.errors import ModelError
from fedpipe.rounds.floors import read_floors
from fedpipe.store.concealment import concealed
from fedpipe.suggestion import closest


def load_code(code: bytes, digest: str, name: str = "model.py") -> types.ModuleType:
    """Import a user's file whose bytes have this digest.

    Args:
        code: its bytes.
        digest: their required digest.
        name: the file's name, for messages.

    Raises:
        ModelError: the bytes have another digest, or the file cannot be imported; with the line.
        DroppedError: the floors of this learner do not allow it.
    """
    read_floors().check_code(digest)
    if f"sha256:{hashlib.sha256(code).hexdigest()}" != digest:
        raise ModelError(f"the model code is not the one that the plan names ({digest})")
    module = types.ModuleType(f"fedpipe_{name.removesuffix('.py')}")
    module.__file__ = name
    module.__loader__ = _Source(code)  # AutoGraph needs the source of loops, which is not in a file
    sys.modules[module.__name__] = module  # Keras looks classes up by their module
    try:
        with concealed():
            exec(compile(code, name, "exec"), module.__dict__)  # noqa: S102  (the user's own code, pinned by digest)
    except BaseException as error:
        if is_stop(error):
            raise
        raise ModelError(
            f"cannot be imported, because {described(error)}", where=name, remedy=_remedy(error)
        ) from error
    return module


def failed(function: str, error: BaseException, where: str = "model.py") -> ModelError:
    """Return the error that a function of the user's file fails, with its cause and line."""
    return ModelError(f"{function}() fails, because {described(error)}", where=where, remedy=_remedy(error))


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "Install the package wherever the file runs, or remove the import."
    if isinstance(error, SystemExit):
        return "Remove the call that ends the process."
    if isinstance(error, TypeError) and "required positional argument" in str(error):
        return "Give its parameters default values, or remove them."
    line = _line(error)
    return f"Correct line {line}." if line else "Correct the file."


class _Source(importlib.abc.InspectLoader):
    """Provides the source of a user's file."""

    def __init__(self, code: bytes) -> None:
        self._text = code.decode(errors="replace")

    def get_source(self, fullname: str) -> str:
        return self._text


def described(error: BaseException) -> str:
    """Return an error of foreign code in one line: its kind, its cause, and the line number in the user's file."""
    kind, cause = type(error).__name__, cause_of(_text_of(error))
    place = f" (line {line})" if (line := _line(error)) else ""
    cause = cause.removeprefix(f"{kind}: ")
    return f"{kind}: {cause[:300]}{place}" if cause else f"{kind}{place}"


def _line(error: BaseException) -> int | None:
    """Return the last line of the user's file in the trace of an error."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if "/" not in (name := trace.tb_frame.f_code.co_filename) and name.endswith(".py"):  # as `load_code` names it
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    text = _text_of(error)
    if text.startswith("in user code:"):  # AutoGraph's: a trace as text
        lines += [int(number) for number in re.findall(r'^ *File "[^/"]+", line (\d+)', text, re.MULTILINE)]
    return lines[-1] if lines else None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of the user may fail at this too
        return ""


_NOISE = re.compile(
    r"\s*(in user code:|Traceback \(most recent call last\):|Graph execution error:|<stack traces unavailable>"
    r"|Detected at node .*|Exception encountered when calling .*|Stack trace for op definition:.*"
    r"|During handling of the above exception.*|The above exception was the direct cause.*|Original stack trace.*"
    r"|\d+ root error\(s\) found\.|\[\[.*|[-=^~*• ]*)"
)
"""Lines of foreign messages that are not their cause."""
_DETAILS = re.compile(r"\s*(Arguments received by |Call arguments received by |Label values: |Function call stack)")
"""The beginning of details that follow a cause, some of which quote examples."""


def cause_of(text: str) -> str:
    """Return the cause in a foreign message as one line: without traces, arguments and names of operations.

    >>> cause_of("Exception encountered when calling Dense.call().\\n\\nExpected 4 columns.\\n\\nArguments received by")
    'Expected 4 columns.'
    """
    kept: list[str] = []
    code = False
    for line in text.splitlines():
        if kept and _DETAILS.match(line):
            break
        if re.match(r'\s*File ".*", line \d+', line):
            kept, code = [], True  # the cause follows the trace
            continue
        if code and line.startswith("    "):  # the code below the place
            code = False
            if not re.match(r"\s*[A-Z]\w*(Error|Exception|Warning): ", line):
                continue
        code = False
        if found := re.match(r"\s*\((\d+)\) [A-Z_]+: *(.*)", line):  # of several, TensorFlow's first is the cause
            if found[1] != "0":
                break
            line = found[2]
        if not _NOISE.fullmatch(line):
            kept.append(line)
        elif kept and not line.strip():
            break  # the first paragraph
    cause = re.split(r"\s*\[\[|\s*\[Op:|\s+Label values: ", " ".join(" ".join(kept).split()))[0]
    return cause.strip()


def is_stop(error: BaseException) -> bool:
    """Return whether an exception of a user's function is Ctrl-C, and no KeyboardInterrupt that it raised itself."""
    if not isinstance(error, KeyboardInterrupt):
        return not isinstance(error, Exception | SystemExit)
    ours = threading.current_thread() is threading.main_thread()
    return ours and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def find_function(module: types.ModuleType, name: str) -> Callable[[], Any]:
    """Return the user's function of that name. Raises ModelError."""
    function: Callable[[], Any] | None = getattr(module, name, None)
    if not callable(function):
        close = closest(name, [each for each, value in vars(module).items() if callable(value)])
        remedy = f"Did you mean {close!r}?" if close else "Define it as the documentation describes."
        if name != "learner" and callable(getattr(module, "learner", None)):
            remedy = f"For a learner of your own, set `framework: custom` and `model: {module.__file__}:learner`."
        raise ModelError(f"there is no function {name!r}", where=module.__file__, remedy=remedy)
    return function


def called(function: Callable[..., Any], table: Callable[[], Any] | None) -> Any:
    """Call the user's function that makes a model: with the table if it has a parameter.

    Args:
        function: the user's.
        table: makes the argument; None if the features are not a table.

    Raises:
        ModelError: the function has a parameter without a table, or it fails; with the line.
    """
    name = getattr(function, "__name__", "build")
    try:
        wanted = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty and p.kind < 2]
    except (TypeError, ValueError):
        wanted = []
    if wanted and table is None:
        raise ModelError(
            f"{name}() takes a table, but data.features names an array",
            where="model.py",
            remedy="Remove the parameter, or set data.features to auto or to the kinds of columns.",
        )
    arguments = [table()] if wanted and table else []
    try:
        made = function(*arguments)
    except ModelError:
        raise
    except BaseException as error:
        if is_stop(error):
            raise
        raise failed(name, error) from error
    if inspect.isawaitable(made):
        if inspect.iscoroutine(made):
            made.close()
        raise ModelError(
            f"{name}() is asynchronous, so it returns no model",
            where="model.py",
            remedy="Write `def`, not `async def`.",
        )
    return made
