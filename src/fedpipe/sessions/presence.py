"""The note of a site that its agent is present: its version, and the event it awaits. It is a hint for people."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from fedpipe.errors import StoreError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import Name
from fedpipe.rounds.manifests import Moment
from fedpipe.rounds.protocol import spoken
from fedpipe.rounds.received import Source, usable
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode
from fedpipe.version import __version__

State = Literal["idle", "attends", "waits", "refuses", "fails", "ended"]
"""An agent awaits a session, attends one, or awaits its owner; it refuses a plan, fails, or has ended."""
RENEWED = 300.0
"""Seconds after which an idle agent renews its presence."""
_LOST = 3 * RENEWED
"""Age of a presence, in seconds, at which the agent is probably gone."""


class Presence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of an agent.

    `protocol` is the highest number that it speaks. `seconds` is how long the state had lasted when this was written.
    The age of the object, by the store's clock, adds to it.
    """

    format: int = 1
    learner: Name
    version: Annotated[str, Meta(max_length=100)] = __version__
    protocol: Annotated[int, Meta(ge=1, le=2**31)] = field(default_factory=lambda: spoken()[-1])
    state: State = "idle"
    text: Annotated[str, Meta(max_length=500)] = ""
    seconds: Moment = 0.0


def awaited(federation: Federation) -> str:
    """Return which sites a run waits for and how their agents are started; empty without sites."""
    if not federation.sites:
        return ""
    which = f"site{'s' * (len(federation.sites) > 1)} {', '.join(federation.sites)}"
    return f"waiting for the {which}; start each agent at its site: fedpipe site run -c site.yaml"


def put_presence(store: Store, presence: Presence) -> None:
    """Write the state of a site's agent. Raises StoreError."""
    store.replace(keys.presence(presence.learner), encode(presence))


def read_presence(store: Store, site: str) -> Presence | None:
    """Return the state of a site's agent; None where there is none that can be read."""
    return usable(Source(store, "_presence", keys.presence(site), "presence"), Presence, learner=site)


def protocols(store: Store, sites: Collection[str]) -> Iterator[int]:
    """Yield the highest number that the agent of each site speaks, where it is known."""
    for site in sites:
        found = read_presence(store, site)
        if found is not None:
            yield found.protocol


def waiting_sites(store: Store, sites: Collection[str]) -> list[str]:
    """Return a line for each site that keeps others waiting: its agent never started, is gone, or awaits its owner.

    Raises:
        StoreError: the store does not answer.
    """
    lines = (_line(store, site) for site in sites)
    return [line for line in lines if line]


def _line(store: Store, site: str) -> str:
    found = read_presence(store, site)
    if found is None:
        return f"{site} is a site whose agent has not started yet (fedpipe site run)"
    try:
        age = store.age(keys.presence(site)) or 0.0
    except StoreError:
        age = 0.0
    if found.state == "ended":
        return f"{site} is a site whose agent has ended"
    if found.state in ("waits", "refuses", "fails"):
        return f"{site} is a site that {found.text or found.state}, for {_shown(found.seconds + age)}"
    if found.state == "idle" and age > _LOST:
        return f"{site} is a site whose agent was last heard of {_shown(age)} ago"
    return ""


def _shown(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
