"""Five hospitals that train on the digits: some here, some at their sites, where agents run as processes."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedpipe.commands.identities import enroll
from fedpipe.sites.running import wake
from fedpipe.sites.site import read_site
from fedpipe.store import Store, keys, open_store

LOCAL, SITES = ("hospital-a", "hospital-b"), ("hospital-c", "hospital-d", "hospital-e")
ROUNDS = 4


class Federation:
    """The digits of five hospitals, each with a file of its own.

    Args:
        folder: for all files.
        uri: of the store.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        self.agents: dict[str, subprocess.Popen[str]] = {}

    def write(self, *, sites: tuple[str, ...] = SITES, **changes: Any) -> Path:
        """Writes the federation file, and the data of each learner."""
        content = yaml.safe_load((self.folder / "federation.yaml").read_text())
        with np.load(self.folder / "digits.npz") as data:
            x, y = data["x"], data["y"]
        members = []
        for position, name in enumerate((*LOCAL, *SITES)):
            np.savez(self.folder / f"{name}.npz", x=x[position::5], y=y[position::5])
            members.append({"name": name, "at": "site"} if name in sites else {"name": name, "data": f"{name}.npz"})
        settings = content["data"]
        settings.pop("uri", None)
        settings.pop("shards", None)
        content |= {"learners": members, "store": self.uri}
        content["evaluation"] = {"every_round": True}
        content["training"] |= {"rounds": ROUNDS, **changes}
        (self.folder / "federation.yaml").write_text(yaml.safe_dump(content))
        return self.folder / "federation.yaml"

    @property
    def store(self) -> Store:
        return open_store(self.uri).below(self.name)

    @property
    def name(self) -> str:
        return str(yaml.safe_load((self.folder / "federation.yaml").read_text())["name"])

    def join(self, name: str, **more: Any) -> Path:
        """Enrolls a site by hand, and writes its files."""
        made = enroll(self.folder / "federation.yaml", name, keys=self.folder / "operators-keys")
        secret = yaml.safe_load(made.files[-1].read_text())["data"]
        place = self.folder / "at" / name
        (place / "credentials").mkdir(parents=True)
        for key in ("accesskey", "secretkey"):
            (place / "credentials" / key).write_bytes(base64.b64decode(secret[key]))
        (place / "own.key").write_bytes(base64.b64decode(secret["signingkey"]))
        content = {
            "store": self.uri, "federation": self.name, "name": name, "key": "own.key", "credentials": "credentials",
            "approve": "any", "policy": {"data": str(self.folder / f"{name}.npz")}, **more,
        }  # fmt: skip
        (place / "site.yaml").write_text(yaml.safe_dump(content))
        return place / "site.yaml"

    def start(self, name: str, *options: str, within: Sequence[str] = (), **more: str) -> subprocess.Popen[str]:
        """Starts the agent of a site, whose environment has no keys of the operator.

        Args:
            name: of the site.
            options: of the command.
            within: the command that starts it, such as `ip netns exec`.
            more: variables of its environment.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "FEDPIPE_"))} | more
        path = self.folder / "at" / name / "site.yaml"
        command = [*within, sys.executable, "-m", "fedpipe", "site", "run", "-c", str(path), *options]
        with (self.folder / f"{name}.log").open("a") as log:
            self.agents[name] = subprocess.Popen(command, env=environment, text=True, stdout=log, stderr=log)
        return self.agents[name]

    @contextlib.contextmanager
    def starting(self, *names: str) -> Iterator[None]:
        """Starts agents for one session as soon as it is announced, so that their first look finds it."""
        with self._once_announced(lambda name: self.start(name, "--once"), names):
            yield

    @contextlib.contextmanager
    def waking(self, *names: str) -> Iterator[None]:
        """Lets agents that run already look as soon as a session is announced."""
        with self._once_announced(lambda name: wake(read_site(self.folder / "at" / name / "site.yaml")), names):
            yield

    @contextlib.contextmanager
    def _once_announced(self, act: Callable[[str], object], names: tuple[str, ...]) -> Iterator[None]:
        def acting() -> None:
            until(lambda: self.store.size(keys.CURRENT))
            for name in names:
                act(name)

        thread = threading.Thread(target=acting)
        thread.start()
        yield
        thread.join()

    def log(self, name: str) -> str:
        training = self.folder / "at" / name / "state" / "training.log"
        return (self.folder / f"{name}.log").read_text() + (training.read_text() if training.exists() else "")


def until(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    """Waits for a condition, and returns its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found
