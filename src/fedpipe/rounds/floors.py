"""Floors: what a learner demands of every plan, kept where no coordinator can change it.

They are a small YAML file next to the learner's keys. It is `floors` in the mounted secret (`FEDPIPE_SECRET_DIR`), or
the file that `FEDPIPE_FLOORS` names in its pod:

    privacy: {noise_multiplier: 1.0, target_epsilon: 4.0, delta: 1.0e-5, sampling: poisson}
    code: ["sha256:..."]       # of model.py, and of any other file of the federation
    plans: ["sha256:..."]      # of the run's definition, `plan` in round 0's record
    leaves: {metrics: [loss], examples: 20}     # numbers that may leave besides weights
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from fedpipe.codec import converted
from fedpipe.errors import DroppedError, InputError
from fedpipe.federation.messages import described
from fedpipe.federation.names import LARGE, MOST_NOISE
from fedpipe.federation.training import Privacy
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.releases import Leaving, released
from fedpipe.store import SECRET_DIR, held
from fedpipe.store.concealment import environ
from fedpipe.store.objects import Digest

log = logging.getLogger("fedpipe")
S = TypeVar("S")
FLOORS = "FEDPIPE_FLOORS"
"""Environment variable: the file of the floors; `floors` in the mounted secret by default."""


class LeastPrivacy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least protection: fewer noise, or more epsilon or delta, is refused. `sampling: none` assumes less."""

    noise_multiplier: Annotated[float, Meta(ge=0, le=MOST_NOISE)] = 0.0
    target_epsilon: Annotated[float, Meta(gt=0, le=LARGE)] = LARGE
    delta: Annotated[float, Meta(gt=0, lt=1)] | None = None
    l2_norm_clip: Annotated[float, Meta(gt=0, le=LARGE)] = LARGE
    sampling: Literal["poisson", "none"] = "poisson"

    def flaw(self, privacy: Privacy | None) -> str:
        """Return what a training protects less than this; empty if nothing."""
        if privacy is None:
            return "the plan has no privacy for it"
        if privacy.noise_multiplier < self.noise_multiplier:
            return f"noise_multiplier is {privacy.noise_multiplier:g}, the least is {self.noise_multiplier:g}"
        for name in ("target_epsilon", "delta", "l2_norm_clip"):
            most: float | None = getattr(self, name)
            if most is not None and getattr(privacy, name) > most:
                return f"{name} is {getattr(privacy, name):g}, the most is {most:g}"
        if self.sampling == "none" and privacy.sampling != "none":
            return "sampling is poisson, but must be none"
        return ""


class Floors(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The demands of a learner; without a section, nothing is demanded of it."""

    privacy: LeastPrivacy | None = None
    code: tuple[Digest, ...] | None = None
    plans: tuple[Digest, ...] | None = None
    leaves: Leaving | None = None

    def check_code(self, digest: str) -> None:
        """Refuse code that is not allowed. Raises DroppedError."""
        if self.code is not None and digest not in self.code:
            raise DroppedError(f"its floors do not allow the code {digest}", lasting=True)

    def check_privacy(self, privacy: Privacy | None) -> None:
        """Refuse a training with less privacy. Raises DroppedError."""
        if self.privacy is not None and (flaw := self.privacy.flaw(privacy)):
            raise DroppedError(f"its floors demand more privacy: {flaw}", lasting=True)

    def check(self, plan: Plan, learner: str) -> None:
        """Refuse a plan that falls below the floors.

        Raises:
            DroppedError: the reason.
        """
        digest = plan.definition.digest
        if self.plans is not None and digest not in self.plans:
            raise DroppedError(f"its floors do not allow the plan {digest}", lasting=True)
        self.check_code(plan.code)
        self.check_privacy(plan.federation.privacy_of(learner))


def read_floors(environ: Mapping[str, str] = environ) -> Floors:
    """Return the floors of this pod or machine; without any, those that demand nothing.

    A process whose parent holds the keys asks it.

    Raises:
        InputError: the file cannot be read, or is malformed; nothing is assumed then.
    """
    if line := held.line():
        return converted(line.ask(held.Request("floors"))[0], Floors)
    named, mounted = environ.get(FLOORS), environ.get(SECRET_DIR)
    if named:
        path = Path(named)
    elif mounted and (path := Path(mounted, "floors")).exists():
        pass
    else:
        return Floors()
    return floors_in(path)


def floors_in(path: Path) -> Floors:
    """Return the floors in a file. Raises InputError if it cannot be read, or is malformed."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
        return converted({} if content is None else content, Floors)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"the floors cannot be read: {why}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise InputError("the floors are not YAML", where=str(path), remedy="Correct the file.") from error
    except msgspec.ValidationError as error:
        what, remedy = described(str(error))
        raise InputError(f"the floors are malformed: {what}", where=str(path), remedy=remedy) from error


def released_here(statement: S) -> S:
    """Return a learner's statement with the numbers and texts that may leave this pod or machine. Raises InputError."""
    leaves = read_floors().leaves
    if leaves is None:
        return statement
    made = released(leaves, statement)
    for text in made.withheld:
        log.warning("this does not leave: %s", text)
    changed: S = made.statement
    return changed


def check_floors(plan: Plan, learner: str) -> None:
    """Refuse a plan below the floors of this pod or machine. Raises DroppedError and InputError."""
    read_floors().check(plan, learner)
