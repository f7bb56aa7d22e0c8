"""The coordinator's part of a secure round: it lists, adds, and removes the masks of the sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedpipe.errors import DroppedError
from fedpipe.secure.masks import Term, mark_of
from fedpipe.secure.messages import Bundle, Members, Reveal
from fedpipe.secure.party import Form
from fedpipe.secure.shares import join


def form_of(bundle: Bundle) -> Form:
    """Return the form of the preambles that the learners of a bundle make."""
    return Form(tuple(offer.learner for offer in bundle.offers))


def flaw_of_reveal(reveal: Reveal, form: Form, members: Members, preambles: Mapping[str, bytes]) -> str:
    """Return what is wrong with a reveal; empty if all in it fits the marks of those that it is about.

    Args:
        reveal: signed, and of this list of members.
        form: of the preambles.
        members: the list.
        preambles: of each member's object.
    """
    owner, gone = reveal.learner, set(form.names) - members.vectors.keys()
    if owner not in members.vectors:
        return "reveals secrets of a sum that it is not in"
    if reveal.seeds.keys() != gone:
        return "does not reveal its seeds with exactly those that are missing"
    if not reveal.shares.keys() <= members.vectors.keys() or not reveal.pairs.keys() <= reveal.shares.keys():
        return "reveals shares about learners that are not members"
    for name, seed in reveal.seeds.items():
        if mark_of(bytes.fromhex(seed)) != form.mark_of_seed(preambles[owner], name):
            return f"reveals another seed with {name} than it promised"
    for member, share in reveal.shares.items():
        if mark_of(bytes.fromhex(share)) != form.mark_of_share(preambles[member], owner, member):
            return f"reveals another share of {member} than it was given"
    for member, shares in reveal.pairs.items():
        for name, share in shares.items():
            if name not in gone or mark_of(bytes.fromhex(share)) != form.mark_of_share(preambles[member], owner, name):
                return f"reveals another share of {member} than it was given"
    return ""


def terms_of(
    reveals: Iterable[Reveal], form: Form, members: Members, preambles: Mapping[str, bytes], threshold: int
) -> list[Term]:
    """Return the masks that are left in the sum of the members' vectors.

    Args:
        reveals: at least `threshold`, without flaws.
        form: of the preambles.
        members: the list.
        preambles: of each member's object.
        threshold: the shares that open a secret.

    Raises:
        DroppedError: too few reveals are left, or a member gave shares that belong to no secret; it is named.
    """
    known = {reveal.learner: reveal for reveal in reveals}
    gone = [name for name in form.names if name not in members.vectors]
    terms = []
    for member in sorted(members.vectors):
        shares = {owner: reveal.shares.get(member) for owner, reveal in known.items()}
        terms.append(Term(_joined(shares, member, member, form, preambles, threshold)))
        for name in gone:
            if member in known:
                seed = bytes.fromhex(known[member].seeds[name])
            else:
                shares = {owner: reveal.pairs.get(member, {}).get(name) for owner, reveal in known.items()}
                seed = _joined(shares, member, name, form, preambles, threshold)
            terms.append(Term(seed, minus=member > name))
    return terms


def _joined(
    shares: Mapping[str, str | None], member: str, about: str, form: Form, preambles: Mapping[str, bytes],
    threshold: int,
) -> bytes:  # fmt: skip
    points = {form.of(owner) + 1: bytes.fromhex(share) for owner, share in shares.items() if share}
    if len(points) < threshold:
        raise DroppedError(f"{len(points)} learners opened the box of {member}, but {threshold} are needed")
    secret = join(points, threshold)
    if secret is None or mark_of(secret) != form.mark_of_seed(preambles[member], about):
        raise DroppedError(f"the shares that {member} gave belong to no secret")
    return secret
