"""Chooses the adapter of a framework; none is imported before its first use."""

from __future__ import annotations

from fedpipe.federation.federation import Federation
from fedpipe.learners.framework import Framework


def framework_of(federation: Federation) -> Framework:
    """Return the adapter of a federation's framework; none is imported before its first use."""
    if federation.framework == "numpy":
        from fedpipe.learners.numpy import NumpyFramework

        return NumpyFramework()
    if federation.framework == "custom":
        from fedpipe.learners.custom import CustomFramework

        return CustomFramework()
    if federation.split:
        from fedpipe.learners.keras.cut import CutKeras

        return CutKeras(federation)
    from fedpipe.learners.keras.framework import KerasFramework

    return KerasFramework()
