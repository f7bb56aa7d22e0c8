"""Approval: nothing that a coordinator sends runs before the site has agreed to exactly that.

A plan is described by digests (`Description`): its code, its settings, the version of fedpipe and the image. The site's
signed decision names the digest of the description, so every change of any of them asks again. So does code that is
older than what was approved last.

    approvals/<sha256>        the site's decision, signed by its key
    approvals/objects/<sha256>    the code and the settings that it is about, for the difference to the next plan
    approvals/waiting/<sha256>    the description of a plan that waits
    approvals/reviews/        what reviewers signed
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from msgspec import Meta, Struct

from fedpipe.codec import read_json
from fedpipe.errors import CorruptError, FedpipeError, InputError
from fedpipe.federation.names import Name, Section
from fedpipe.identity.enrolment import PublicKey, format_time
from fedpipe.identity.signing import Signature, Signer
from fedpipe.identity.statements import is_signed_by, signed_with
from fedpipe.rounds.plan import differences
from fedpipe.sites.description import Description, Offer
from fedpipe.store.files import write_whole
from fedpipe.store.objects import Digest, canonical, decode, digest_of

Verdict = Literal["waits", "approved", "refused"]
Way = Literal["ask", "listed", "signed-by", "any"]
_MOST_KEPT = 4 * 2**20
"""Most bytes of the code or the settings of a plan."""
_EMPTY = re.compile(r"[\w.\[\]-]+: absent -> (?:None)?", re.ASCII)
"""The line of a setting that a plan has and leaves empty."""
MOST_WAITING = 64
"""Most plans that wait: others are not kept until some of these are decided."""
_T = TypeVar("_T")


class Approving(Section, frozen=True, kw_only=True):
    """The way in which plans are approved."""

    by: Annotated[
        Way,
        Meta(
            description="`ask`: a person at the site; `listed`: the digests of `plans`; `signed-by`: `needed` of "
            "`reviewers`; `any`: every plan that the policy allows"
        ),
    ] = "ask"
    plans: Annotated[tuple[Digest, ...], Meta(description="digests of plans that are approved, for `listed`")] = ()
    reviewers: Annotated[tuple[PublicKey, ...], Meta(description="public keys of reviewers, for `signed-by`")] = ()
    needed: Annotated[int, Meta(ge=1, le=1000, description="how many of the reviewers must sign")] = 1
    revoked: Annotated[
        tuple[PublicKey, ...], Meta(description="public keys of reviewers whose signatures no longer count")
    ] = ()


class Flaw(NamedTuple):
    """A mistake in who approves: the key, the mistake, and the remedy."""

    key: str
    what: str
    remedy: str


def mistakes_of(settings: Approving) -> Iterator[Flaw]:
    """Yield what is wrong with who approves."""
    counted = set(settings.reviewers) - set(settings.revoked)
    if settings.by == "signed-by" and settings.needed > len(counted):
        remedy = "Add their public keys to approve.reviewers, as `fedpipe site reviewer` prints them."
        yield Flaw("needed", f"{settings.needed} of {len(counted)} reviewers cannot sign", remedy)
    if settings.by == "listed" and not settings.plans:
        yield Flaw("plans", "lists no plan", "Add digests, as `fedpipe site pending` shows them.")


class Approval(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site's decision about a plan. `number` counts the decisions of a site; `since` is in seconds since 1970."""

    format: int = 1
    learner: Name
    plan: Digest
    code: Digest
    verdict: Verdict
    why: Annotated[str, Meta(max_length=2000)] = ""
    by: Way = "ask"
    who: Annotated[str, Meta(max_length=200)] = ""
    number: Annotated[int, Meta(ge=0, le=2**53)] = 0
    since: Annotated[float, Meta(ge=0, le=2.0**37)]
    signature: Signature | None = None

    @property
    def shown(self) -> str:
        """The decision in words, for others."""
        if self.verdict == "waits":
            return f"waits for approval since {format_time(self.since)}"
        return f"{self.verdict} the plan{f': {self.why}' if self.why else ''}"


class Review(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reviewer's approval of a plan."""

    format: int = 1
    plan: Digest
    signature: Signature | None = None


class Pending(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan that waits for a decision, the run that asked first, and since when, in seconds since 1970."""

    format: int = 1
    description: Description
    run: Name
    since: Annotated[float, Meta(ge=0, le=2.0**37)]

    @property
    def digest(self) -> str:
        """The digest that decisions name."""
        return self.description.digest


class Approvals:
    """The decisions of a site, in its folder.

    Args:
        folder: of the decisions; it is made.
        settings: who approves.
        signer: signs with the key of the site's decisions.
        clock: seconds since 1970.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, settings: Approving, signer: Signer, *, clock: Callable[[], float] = time.time
    ) -> None:  # fmt: skip
        self._folder, self._settings, self._signer, self._clock = folder, settings, signer, clock
        for name in ("objects", "waiting", "reviews"):
            try:
                (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                remedy = "Give the user of the agent the right to write there."
                raise InputError(f"cannot be made: {error.strerror}", where=str(folder), remedy=remedy) from error

    def decide(self, offer: Offer, objections: tuple[str, ...] = ()) -> Approval:
        """Return the decision about a plan; one that waits is kept, so that a person can look at it.

        Args:
            offer: the plan.
            objections: of the site's policy; with one, the plan is refused whatever was approved.

        Raises:
            InputError: the decision cannot be read or kept.
            CorruptError: a byte of a decision was changed.
        """
        description = offer.description
        if objections:
            return self._made(description, "refused", "; ".join(objections)[:2000])
        known = self.find(description.digest)
        if known is not None and known.verdict == "refused":
            return known
        later = self._later_code(known)
        why = self._lacking(description, known, later)
        if not why:
            self._keep(offer)
            return known if known and not later else self._written(self._made(description, "approved"))
        waiting = {one.digest for one in self.pending()}
        if description.digest not in waiting and len(waiting) >= MOST_WAITING:
            return self._made(description, "waits", f"{len(waiting)} other plans wait for a decision")
        self._keep(offer, waits=True)
        return self._made(description, "waits", why, since=self._since(description))

    def _lacking(self, description: Description, known: Approval | None, later: Approval | None) -> str:
        """Return what a plan lacks to be approved; empty if nothing."""
        settings, digest = self._settings, description.digest
        if settings.by == "any":
            return ""
        if settings.by == "listed":
            return "" if digest in settings.plans else "it is not among the listed plans"
        if settings.by == "signed-by":
            signed = len(self.reviewers_of(digest, after=later.since if later else 0.0))
            return "" if signed >= settings.needed else f"{signed} of {settings.needed} reviewers have signed it"
        if later:
            return "its code is older than what was approved last"
        return "" if known and known.by == "ask" else "nobody at the site has decided"

    def _later_code(self, known: Approval | None) -> Approval | None:
        """Return the approval of other code after this one: a way back to older code needs another approval."""
        if known is None:
            return None
        later = [item for item in self.decisions() if item.verdict == "approved" and item.number > known.number]
        return next((item for item in reversed(later) if item.code != known.code), None)

    def answer(self, text: str, verdict: Literal["approved", "refused"], why: str = "", who: str = "") -> Approval:
        """Approve or refuse a plan.

        Args:
            text: the digest of its description or its beginning; empty for the only one that waits.
            verdict: the decision.
            why: the reason.
            who: the person who decides.

        Raises:
            InputError: no plan or several fit the text.
        """
        description = self.described(text)
        if verdict == "approved" and self._settings.by in ("listed", "signed-by"):
            raise InputError(
                f"site.yaml approves plans by {self._settings.by!r}, so this command cannot",
                where="approve",
                remedy="Add the digest to approve.plans, or let reviewers sign it: fedpipe site review.",
            )
        return self._written(self._made(description, verdict, why[:2000], who[:200]))

    def _made(
        self, description: Description, verdict: Verdict, why: str = "", who: str = "", since: float | None = None
    ) -> Approval:
        number = 1 + max((item.number for item in self.decisions()), default=0) if verdict != "waits" else 0
        made = Approval(
            learner=description.learner, plan=description.digest, code=description.code, verdict=verdict, why=why,
            by=self._settings.by, who=who, number=number, since=self._clock() if since is None else since,
        )  # fmt: skip
        return signed_with(made, self._signer, self._clock)

    def _written(self, approval: Approval) -> Approval:
        write_whole(self._path("", approval.plan), canonical(approval), mode=0o600)
        with contextlib.suppress(OSError):
            self._path("waiting", approval.plan).unlink()
        return approval

    def find(self, digest: str) -> Approval | None:
        """Return the decision about a plan. Raises CorruptError if a byte of it was changed, and InputError."""
        return self._checked(self._path("", digest))

    def decisions(self) -> list[Approval]:
        """Return all decisions, in their order. Raises as `find`."""
        found = [self._checked(path) for path in self._folder.iterdir() if _is_digest(path.name)]
        return sorted((item for item in found if item), key=lambda item: item.number)

    def _checked(self, path: Path) -> Approval | None:
        approval = _read(path, Approval)
        if approval is None:
            return None
        if f"sha256:{path.name}" != approval.plan or not is_signed_by(approval, self._signer.public):
            remedy = "It was changed. Remove it, and decide again with `fedpipe site pending`."
            raise CorruptError("the decision is not signed by this site", where=str(path), remedy=remedy)
        return approval

    def pending(self) -> list[Pending]:
        """Return the plans that wait for a decision, oldest first. Raises CorruptError and InputError."""
        found = []
        for path in (self._folder / "waiting").iterdir():
            waiting = _read(path, Pending) if _is_digest(path.name) else None
            if waiting is not None and waiting.digest == f"sha256:{path.name}":
                found.append(waiting)
        return sorted(found, key=lambda one: one.since)

    def described(self, text: str = "") -> Description:
        """Return the description of the plan with this digest or its beginning. Raises InputError."""
        waiting = self.pending()
        known = {item.digest: item.description for item in waiting}
        for decided in self.decisions():
            with contextlib.suppress(InputError):
                known.setdefault(decided.plan, decode(self.kept(decided.plan), Description, where=decided.plan))
        wanted = text.removeprefix("sha256:")
        pool = [item.digest for item in waiting] if not wanted else list(known)
        fits = [digest for digest in pool if digest.removeprefix("sha256:").startswith(wanted)]
        if len(fits) == 1:
            return known[fits[0]]
        remedy = "See `fedpipe site pending`."
        if not fits:
            raise InputError(f"no plan has the digest {text!r}" if text else "no plan waits", remedy=remedy)
        raise InputError(f"{len(fits)} plans fit", where="DIGEST", remedy=f"Name one. {remedy}")

    def kept(self, digest: str) -> bytes:
        """Return the code, the settings or the description of a plan by digest. Raises InputError and CorruptError."""
        path = self._path("objects", digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
        if digest_of(data) != digest:
            raise CorruptError("was changed: its bytes do not fit its digest", where=str(path))
        return data

    def difference(self, description: Description) -> tuple[str, list[str]]:
        """Return how a plan differs from the one that was approved last: a unified diff of the code, and settings.

        Without an earlier one, the diff has the whole code. The texts are of others: show them through `cli.text`.
        """
        last = [item for item in self.decisions() if item.verdict == "approved" and item.plan != description.digest]
        before = decode(self.kept(last[-1].plan), Description, where=last[-1].plan) if last else None
        codes = (self.kept(before.code) if before else b"", self.kept(description.code))
        old, new = (code.decode(errors="replace").splitlines() for code in codes)
        lines = difflib.unified_diff(
            old, new, "approved/model.py" if before else "nothing", "asked/model.py", lineterm=""
        )  # fmt: skip
        earlier: dict[str, Any] = read_json(self.kept(before.settings)) if before else {}
        changes = differences(earlier, read_json(self.kept(description.settings)))
        changes = [line for line in changes if not _EMPTY.fullmatch(line)]
        for name in ("fedpipe", "image"):
            values = [str(getattr(one, name)) if one else "" for one in (before, description)]
            if values[0] != values[1]:
                changes.append(f"{name}: {values[0] or 'absent'} -> {values[1] or 'absent'}")
        return "\n".join(lines), changes

    def add_review(self, review: Review) -> None:
        """Keep a review. Raises InputError if it is not signed by a reviewer of site.yaml."""
        flaw = self._flaw_of(review)
        if flaw:
            raise InputError(f"the review does not count: {flaw}", remedy="Ask one of approve.reviewers in site.yaml.")
        assert review.signature is not None
        path = self._folder / "reviews" / f"{review.plan.removeprefix('sha256:')}-{review.signature.key[:16]}"
        write_whole(path, canonical(review), mode=0o600)

    def reviewers_of(self, digest: str, *, after: float = 0.0) -> set[str]:
        """Return the reviewers who signed a plan after a time; each counts once, and a revoked one never."""
        found = set()
        for path in (self._folder / "reviews").glob(f"{digest.removeprefix('sha256:')}-*"):
            with contextlib.suppress(CorruptError):
                review = _read(path, Review)
                made = review.signature if review and review.plan == digest and not self._flaw_of(review) else None
                if made and made.time >= after:
                    found.add(made.key)
        return found

    def _flaw_of(self, review: Review) -> str:
        key = review.signature.key if review.signature else ""
        if key in self._settings.revoked:
            return f"the key {key[:16]} is revoked"
        if key not in self._settings.reviewers:
            return "its signer is not a reviewer of this site" if key else "it is not signed"
        return "" if is_signed_by(review, key) else "its signature does not fit"

    def _keep(self, offer: Offer, *, waits: bool = False) -> None:
        described = canonical(offer.description)
        for data in (offer.code, offer.settings, described):
            path = self._path("objects", digest_of(data))
            if len(data) > _MOST_KEPT:
                raise InputError(f"the plan has a part of {len(data)} bytes", remedy="Refuse it.")
            if not path.exists():
                write_whole(path, data, mode=0o600)
        path = self._path("waiting", offer.description.digest)
        if waits and not path.exists():
            asked = Pending(description=offer.description, run=offer.plan.run, since=float(self._clock()))
            write_whole(path, canonical(asked), mode=0o600)

    def _since(self, description: Description) -> float:
        waiting = _read(self._path("waiting", description.digest), Pending)
        return waiting.since if waiting else self._clock()

    def _path(self, folder: str, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        if not _is_digest(name):
            raise InputError(f"{digest[:100]!r} is not a digest")
        return self._folder / folder / name


def review_of(digest: str, signer: Signer, clock: Callable[[], float] = time.time) -> Review:
    """Sign the approval of a plan as a reviewer."""
    return signed_with(Review(plan=digest), signer, clock)


def read_review(path: Path) -> Review:
    """Read a review file. Raises InputError."""
    try:
        if review := _read(path, Review):
            return review
        raise InputError("there is no such file")
    except FedpipeError as error:
        remedy = "Name a file that `fedpipe site review --out FILE` wrote."
        raise InputError(error.what, where=str(path), remedy=remedy) from error


def _read(path: Path, kind: type[_T]) -> _T | None:
    """Return the struct in a file of this folder, which does not follow links; None without one."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = os.read(handle, _MOST_KEPT)
        finally:
            os.close(handle)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return decode(data, kind, where=str(path))


def _is_digest(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", name) is not None
