"""The policy of a site: what its owner allows, whatever a plan asks for."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from fedpipe.federation.names import Section


class Policy(Section, frozen=True, kw_only=True):
    """The data of a site. Nothing in the store changes it."""

    data: Annotated[
        str, Meta(description="the site's own data, as in `learners[].data`; a path starts at the folder of site.yaml")
    ] = ""
