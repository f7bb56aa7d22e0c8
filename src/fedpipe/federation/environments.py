"""Environments: which image a step runs in, and what that image contains."""

from __future__ import annotations

from typing import Literal

Environment = Literal["core", "keras", "custom", "tff", "serve"]
"""An image, and the Python environment in it: see `images/`. `custom` is the user's own: see docs/frameworks.md."""

ENVIRONMENTS: dict[str, Environment] = {
    "shard": "core",
    "explore": "core",
    "describe": "keras",
    "initialise": "keras",
    "train": "keras",
    "aggregate": "core",
    "learn": "keras",
    "coordinate": "core",
    "vote": "keras",
    "tally": "core",
    "score": "keras",
    "evaluate": "keras",
    "export": "keras",
    "report": "core",
    "simulate": "tff",
}
"""Each step, and where it runs unless the federation file asks for another place (`Federation.environment_of`)."""

FrameworkName = Literal["keras", "numpy", "custom"]
"""The frameworks that train and measure models: see `fedpipe.learners`."""

FRAMEWORKS: dict[FrameworkName, Environment] = {"keras": "keras", "numpy": "core", "custom": "custom"}
"""Each framework, and the environment that contains it."""

WITH_FRAMEWORK = ("describe", "initialise", "train", "learn", "vote", "score", "evaluate")
"""Steps that need the framework. An export needs the packages of ONNX too: `keras` has them, and a user's `custom`."""
