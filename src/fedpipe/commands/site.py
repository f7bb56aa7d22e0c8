"""The work of a site's own commands: its status."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fedpipe.errors import FedpipeError
from fedpipe.identity.enrolment import format_time, read_enrolled
from fedpipe.sites.site import read_site
from fedpipe.store.concealment import changed_environment


class Status(NamedTuple):
    """The state of a site.

    Args:
        site: its name.
        federation: the federation's name.
        store: URI of the store.
        key: public part of its signing key; empty without one.
        enrolled: whether the federation knows that key; None when the store did not say.
        flaws: all that keeps the site from taking part, each with its remedy.
    """

    site: str
    federation: str
    store: str
    key: str
    enrolled: bool | None
    flaws: tuple[str, ...]


def status(file: str | Path) -> Status:
    """Look whether a site can take part. Writes nothing to the store.

    Args:
        file: its site.yaml.

    Raises:
        InputError: the file, or something that it names, cannot be used.
    """
    site = read_site(file)
    flaws: list[str] = []
    enrolled = None
    if not site.public_key:
        flaws.append(f"the site has no signing key in {site.key}. Join with `fedpipe site join`")
    try:
        with changed_environment(site.surroundings()):
            enrolment = read_enrolled(site.open()).learners.get(site.name)
    except FedpipeError as error:
        flaws.append(str(error))
    else:
        enrolled = enrolment is not None and enrolment.revoked is None and enrolment.key == site.public_key
        if enrolment is not None and enrolment.revoked is not None:
            flaws.append(f"{site.name} was revoked on {format_time(enrolment.revoked)}. Ask the federation's operator")
        elif enrolment is not None and not enrolled:
            flaws.append(f"{site.name} is enrolled with another key. Ask the federation's operator")
    return Status(site.name, site.federation, site.store, site.public_key, enrolled, tuple(flaws))
