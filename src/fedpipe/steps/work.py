"""Does the work of a step in a process of its own, under the parent that supervises it.

In a step that runs code of others, this process has no keys: the parent holds them and answers its requests
(`fedpipe.store.keyholder`). Files with keys are behind a fence, where the kernel has one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fedpipe.errors import FedpipeError, StoreUnavailableError, WorkerDiedError, one_line
from fedpipe.federation.tracking import TRACKING_KEYS
from fedpipe.identity.signing import FOUND_KEYS, KEYS, key_answers
from fedpipe.rounds.floors import FLOORS, read_floors
from fedpipe.steps.contract import execute, inputs_of, log, start_log
from fedpipe.steps.early import is_early
from fedpipe.steps.fence import FENCED
from fedpipe.store import SECRET_DIR, endpoint_of
from fedpipe.store.concealment import CONCEALED
from fedpipe.store.credentials import SOURCES
from fedpipe.store.held import KEYHOLDER
from fedpipe.store.keyholder import Keyholder, Other
from fedpipe.store.network import CLIENT_CERTIFICATE
from fedpipe.tracking.model_registry import TOKEN, TOKEN_PATH

FOREIGN = frozenset({"describe", "evaluate", "export", "initialise", "learn", "score", "simulate", "train", "vote"})
"""Steps that run the user's `model.py`."""
PROGRAM = """
from fedpipe.steps.fence import fence, fenced_paths
paths = fenced_paths()
is_fenced = paths is None or fence(paths)
from fedpipe.steps.work import main
main(is_fenced)
"""
"""The program of the process: its fence comes before all that could start threads, which would stay outside."""
_TOKENS = "/var/run/secrets"
"""Where a pod has the tokens of its service account."""
_SERVICES = (*TRACKING_KEYS.values(), TOKEN, TOKEN_PATH)
"""Variables with keys of other services."""


class Ended(NamedTuple):
    """How a try ended: its exit code, the reason of a failure, whether to try again, and whether the process died."""

    code: int
    why: str = ""
    again: bool = False
    died: bool = False


def main(is_fenced: bool) -> None:
    """Do the work of a step: the descriptors of the report and of the parent's life, the step's name, its input.

    Args:
        is_fenced: files with keys are out of reach, or there are none.
    """
    report, alive, name, text = sys.argv[1:]
    threading.Thread(target=_end_with_parent, args=(int(alive),), daemon=True).start()
    start_log()
    if not is_fenced:
        log.info("this kernel cannot keep files with keys from the code of the model (docs/threats.md)")
    ended = _ended(name, json.loads(text))
    with contextlib.suppress(OSError):
        os.write(int(report), json.dumps(ended).encode())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(ended.code)


def _end_with_parent(pipe: int) -> None:
    """End this process when its parent is gone, whatever it does at that moment."""
    os.read(pipe, 1)
    os._exit(1)


def _ended(name: str, executor_input: dict[str, Any]) -> Ended:
    try:
        execute(name, executor_input)
    except FedpipeError as error:
        return Ended(error.exit_code, str(error), again=isinstance(error, StoreUnavailableError | WorkerDiedError))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return Ended(
            1,
            f"{type(error).__name__}: {one_line(error, 500)}",
            again=isinstance(error, OSError | MemoryError | SystemExit),
            died=True,
        )
    return Ended(0)


@contextlib.contextmanager
def surroundings(name: str, executor_input: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Yield the environment and the open descriptors of the process that works, and answer its requests meanwhile.

    Args:
        name: the step.
        executor_input: KFP's executor input.

    Raises:
        InputError, StoreError: the input names no store.
    """
    uri = store_of(name, executor_input)
    if name not in FOREIGN or not uri.startswith("s3://"):
        yield dict(os.environ), []
        return
    with Keyholder(endpoint_of(uri), answers()) as holder:
        handle = holder.theirs.fileno()
        yield {**keyless(), KEYHOLDER: str(handle), FENCED: os.pathsep.join(secret_paths())}, [handle]


def answers() -> dict[str, Other]:
    """Return the answers of a process that holds keys to questions that are not about a store."""
    return key_answers() | {"floors": lambda _, __: msgspec.to_builtins(read_floors())}


def keyless() -> dict[str, str]:
    """Return this process's environment without keys and without the places of keys."""
    return {k: v for k, v in os.environ.items() if k not in (*CONCEALED, *SOURCES, *_SERVICES, FLOORS)}


def secret_paths() -> list[str]:
    """Return the files and folders with keys that the environment names."""
    paths = [os.environ.get(variable, "") for variable in (SECRET_DIR, KEYS, FOUND_KEYS, CLIENT_CERTIFICATE, *SOURCES)]
    return [str(Path(p).absolute()) for p in (*paths, _TOKENS) if p and Path(p).exists()]


def store_of(name: str, executor_input: Mapping[str, Any]) -> str:
    """Return the URI of a step's store. Raises InputError."""
    values = executor_input.get("inputs", {}).get("parameterValues", {})
    if is_early(name, values):
        return str(values["store"])
    inputs = inputs_of(name, executor_input)
    return str(inputs.place.store if hasattr(inputs, "place") else inputs.store)
