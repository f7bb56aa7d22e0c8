"""Plans of a small federation, and the site that decides about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fedpipe.federation.federation import Federation
from fedpipe.identity.signing import make_key
from fedpipe.rounds.plan import Plan
from fedpipe.sites.site import Site, parse_site
from fedpipe.store import MemoryStore
from fedpipe.store.objects import digest_of, put_bytes
from tests.federations import make_federation

CODE = b"def build():\n    return model(3)\n"
PRIVACY = {"noise_multiplier": 1.5, "l2_norm_clip": 1.0, "microbatches": 1, "delta": 1e-5, "target_epsilon": 4.0}


def federation(**more: Any) -> Federation:
    """A federation of three learners; `b` is the site."""
    return make_federation(("a", "b", "c"), **more)


def plan(code: bytes = CODE, *, run: str = "r1", function: str = "build", **more: Any) -> Plan:
    """A plan with this code."""
    return Plan(run=run, federation=federation(**more), code=digest_of(code), function=function, shards={})


def stored(store: MemoryStore, code: bytes = CODE, **more: Any) -> Plan:
    """A plan whose code is in the store."""
    put_bytes(store, code)
    return plan(code, **more)


def training(**more: Any) -> dict[str, Any]:
    """The section `training` of such a federation."""
    return {"rounds": 3, "batch_size": 8, **more}


def site(folder: Path, *, key: bool = True, **more: Any) -> Site:
    """The site `b`, in a folder; with a key unless it has not joined."""
    (folder / "state").mkdir(exist_ok=True)
    if key and not (folder / "state" / "b.key").exists():
        (folder / "state" / "b.key").write_text(make_key())
    return parse_site({"store": "store", "federation": "tiny", "name": "b", **more}, folder, where="site.yaml")


def with_training(given: Plan, **more: Any) -> Plan:
    """The plan with other settings of the training, as no federation file could hold them."""
    changed = replace(given.federation, training=replace(given.federation.training, **more))
    return replace(given, federation=changed)
