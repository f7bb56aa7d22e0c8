"""A federation whose runs register their models, for tests of both servers of the Model Registry."""

from __future__ import annotations

from pathlib import Path

import fedpipe
from fedpipe.commands.init import Framework, init


def registered(folder: Path, registry: str) -> Path:
    """Makes a federation with two registered versions, of which the first one is promoted, and returns its folder."""
    init(folder, framework=Framework.numpy)
    for name in ("one", "two"):
        fedpipe.run(folder / "federation.yaml", out=folder / name, name=name, training={"rounds": 1},
                    export={"registry": registry})  # fmt: skip
    fedpipe.promote("digits", 1, source=folder / "federation.yaml")
    return folder
