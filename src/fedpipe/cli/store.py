"""Commands that tend the store: put, prune, repair, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpipe.cli.options import FEDERATION, FederationOption, JsonOption, StoreOption, forwarded, given_days
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import busy, note, say, show_json, show_table

if TYPE_CHECKING:
    from fedpipe.commands.prune import Prune

commands = Panel("The store")

_LEFT = {"gone": "nothing", "records": "its records and report", "result": "its result, without replays"}


@commands.add("fedpipe put digits.npz", "fedpipe put digits.npz -f demo/federation.yaml")
@forwarded
def put(
    dataset: Annotated[Path, typer.Argument(help="The file to upload.", metavar="FILE")],
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
) -> None:
    """Upload a dataset to the federation's store, under its digest, and show its URI for `data.uri`."""
    from fedpipe.commands.put import put as upload

    with busy("uploading"):
        made = upload(file, dataset, store=store)
    say(f"{'already there' if made.found else f'uploaded {made.size} bytes'}; in the federation file:")
    say(f"data: {{uri: {made.uri}}}")


@commands.add(
    "fedpipe prune --keep-runs 20",
    "fedpipe prune --keep-runs 20 --older-than 30d --yes",
    "fedpipe prune --drop-replays",
)
@forwarded
def prune(
    file: FederationOption = FEDERATION,
    keep_runs: Annotated[
        int | None,
        typer.Option("--keep-runs", min=0, max=1_000_000, help="Remove all runs but the latest N.", metavar="N"),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", help="Remove runs that have not changed for so long: 12h, 30d, 8w.", metavar="AGE"
        ),
    ] = None,
    drop_replays: Annotated[
        bool, typer.Option("--drop-replays", help="Remove from ended runs what only a replay needs.")
    ] = False,
    abandoned: Annotated[
        list[str] | None,
        typer.Option("--abandoned", help="An unfinished run that nobody will resume; repeatable.", metavar="RUN"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only show what would be removed.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show, or with --yes remove, old runs and objects that nothing needs.

    HEAD's run, published models, ledgers and enrolments always stay. Without --keep-runs and --older-than no run is
    removed. Nothing is removed while a run is at work.
    """
    from fedpipe.commands.prune import prune as remove

    rules = {
        "keep_runs": keep_runs,
        "older_than": given_days(older_than, "--older-than"),
        "abandoned": tuple(abandoned or ()),
    }
    with busy("removing" if yes else "looking at the store"):
        found = remove(file, store=store, drop_replays=drop_replays, yes=yes, **rules)  # type: ignore[arg-type]
    if as_json:
        show_json(found._asdict() | {"runs": [loss._asdict() for loss in found.runs]})
    else:
        _show(found)


@commands.add("fedpipe repair", "fedpipe repair -f demo/federation.yaml --yes")
@forwarded
def repair(
    file: FederationOption = FEDERATION,
    yes: Annotated[bool, typer.Option("--yes", help="Repair; without it, only show what would be done.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show, or with --yes repair, objects of runs that cannot be read.

    A record that cannot be read is removed with all later rounds of its run, and HEAD moves back to the last good one.
    The next `fedpipe run` resumes from there.
    """
    from fedpipe.commands.repair import repair as mend

    with busy("looking at the store"):
        found = mend(file, store=store, yes=yes)
    if as_json:
        show_json([damage._asdict() for damage in found])
    elif not found:
        say("everything can be read")
    else:
        show_table(((one.key, one.why, one.repair) for one in found), head=("object", "mistake", "repair"))
        say("done" if yes else "nothing is changed; add --yes to repair it")


@commands.add("fedpipe verify run-1", "fedpipe verify run-1 -f demo/federation.yaml --json")
@forwarded
def verify(
    run: Annotated[str, typer.Argument(help="A run with secure sums, or with common rows.", metavar="RUN")],
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute a run's secure sums, bit for bit, from masked vectors and revealed secrets.

    Of a cut network whose parties found their common rows, check their statements.
    """
    from fedpipe.commands.verify import VerifiedRows
    from fedpipe.commands.verify import verify as recompute

    with busy("recomputing sums"):
        found = recompute(file, run, store=store)
    if as_json:
        show_json([one._asdict() for one in found])
        return
    rows = [one for one in found if isinstance(one, VerifiedRows)]
    if rows:
        show_table(
            map(tuple, [[str(cell) for cell in one] for one in rows]), head=("party", "rows", "common", "dropped")
        )
        say("the statements of all parties agree")
        return
    sums = [one for one in found if not isinstance(one, VerifiedRows)]
    show_table(
        ((str(one.round), str(one.learners), one.weights) for one in sums), head=("round", "learners", "weights")
    )
    say(f"{len(sums)} sums follow from the masked vectors, to the last bit")


def _show(found: Prune) -> None:
    if found.runs:
        show_table(
            ((loss.run, f"{loss.age / 86400:.1f} d", _LEFT[loss.fate]) for loss in found.runs),
            head=("run", "age", "what stays"),
        )
    size = _shown(found.size)
    if found.unknown:
        note(f"{found.unknown} objects are not fedpipe's, and stay")
    if not found.objects:
        say("there is nothing to remove")
    elif found.done:
        say(f"removed {found.objects} objects, {size}")
    else:
        say(f"would remove {found.objects} objects, {size}; add --yes to remove them")


def _shown(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
