"""Commands for published models: export, sign, promote, serve, predict."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpipe.cli.options import (
    FEDERATION,
    FederationFile,
    FederationOption,
    KeysOption,
    StoreOption,
    forwarded,
    given_folder,
)
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import Styled, busy, note, remark, say, show_table
from fedpipe.errors import InputError

if TYPE_CHECKING:
    from fedpipe.commands.predict import Answers

commands = Panel("Publish and serve")

DAY = 86_400.0
"""Most seconds of an option."""


@commands.add(
    "fedpipe export federation.yaml -o model.onnx", "fedpipe export federation.yaml --part bottom-alice -o alice.onnx"
)
def export(
    file: FederationFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")] = Path("model.onnx"),
    store: StoreOption = None,
    name: Annotated[str | None, typer.Option("--run", help="The run; by default the one at HEAD.")] = None,
    learner: Annotated[
        str | None, typer.Option("--learner", help="Export the personal model of this learner, not the shared one.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option("--part", help="Export one part of a cut network: top, or bottom-PARTY.", metavar="NAME"),
    ] = None,
) -> None:
    """Write the shared model as an ONNX file, verified against the trained model."""
    from fedpipe.commands.export import export as export_model

    with busy("converting"):
        origin = export_model(file, output, store=store, name=name, learner=learner, part=part)
    say(
        f"wrote {output}: opset {origin['opset']}, differs from the trained model by "
        f"{origin['max_abs_difference']:.2g} over "
        f"{origin['compared']} {origin['samples']} samples"
    )
    if origin["local"]:
        say(f"weights that learners do not share are {origin['local']}")
    say(origin["digest"])


@commands.add(
    "fedpipe predict model.onnx data.npz",
    "fedpipe predict http://localhost:8080 digit.png",
    "fedpipe predict http://host/v2/models/digits/versions/3 rows.csv -o predictions.csv",
    "fedpipe predict http://bob:8080 rows.npz --part alice=bottom-alice.onnx",
)
def predict(
    model: Annotated[str, typer.Argument(help="An ONNX file, or the URL of a server.", metavar="FILE|URL")],
    data: Annotated[Path, typer.Argument(help="An .npz, .npy, .csv, .parquet, .png or .jpg file.", metavar="DATA")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write all predictions: .csv, .parquet, .json or .npz.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, max=100_000, help="Rows to show.")] = 10,
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether the first row of a CSV file is its header; else guessed."),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            help="The part of a party, for the top of a cut network; repeatable. Only its activations are sent.",
            metavar="PARTY=FILE|URL",
        ),
    ] = None,
) -> None:
    """Predict with an ONNX file, or with a model on a server."""
    from fedpipe.commands.predict import check_output, predict_file, write_outputs

    if output is not None:
        check_output(output)
    answers = predict_file(model, data, header=header, parts=_parts(part or []))
    for text in answers.remarks:
        note(text)
    count = len(answers.prediction.outputs)
    show_table(_answer_rows(answers, min(rows, count)), ["example", *_answer_head(answers)])
    if count > rows:
        say(f"{rows} of {count} shown")
    if answers.accuracy is not None:
        say(f"accuracy {answers.accuracy:.4f} over {answers.labelled.sum()} examples")
    if output is not None:
        write_outputs(answers, output)
        say(f"wrote {output}")


def _parts(given: Sequence[str]) -> dict[str, str]:
    """Return the parts by party. Raises InputError."""
    found: dict[str, str] = {}
    for text in given:
        party, sign, part = text.partition("=")
        if not (party and sign and part) or party in found:
            what = f"{party} has two parts" if party in found else f"{text!r} is not PARTY=FILE or PARTY=URL"
            raise InputError(what, where="--part", remedy="Write --part alice=bottom-alice.onnx, once for each party.")
        found[party] = part
    return found


def _answer_head(answers: Answers) -> list[str]:
    prediction, labels, _ = answers
    others = list(prediction.by_name)[1:]
    first = ["prediction"] if prediction.classes is not None or not others else list(prediction.by_name)[:1]
    return [*first, *["probability"] * (prediction.classes is not None), *others, *["label"] * (labels is not None)]


def _answer_rows(answers: Answers, count: int) -> Iterator[Sequence[Styled]]:
    prediction, labels, _ = answers
    others = list(prediction.by_name.values())[1:]
    for row in range(count):
        cells = [str(row)]
        if prediction.probabilities is not None:
            cells += [prediction.name(row), f"{prediction.probabilities[row]:.4f}"]
        else:
            cells += [_shown(prediction.outputs[row])]
        cells += [_shown(array[row]) for array in others]
        yield cells + ([answers.label(row)] if labels is not None else [])


def _shown(values: Any) -> str:
    """Return the values of an example, shortened; a single one without brackets."""
    import numpy as np

    if np.size(values) == 1:
        value = np.ravel(values)[0]
        return value if isinstance(value, str) else f"{value:.6g}"
    return np.array2string(np.asarray(values), precision=4, threshold=8)


@commands.add(
    "fedpipe serve -f demo/federation.yaml",
    "fedpipe serve --store s3://bucket/prefix/digits",
    "fedpipe serve --store model-registry://registry:8080/digits/3",
    "fedpipe serve --models folder --port 0",
)
def serve(
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="A store, or one federation in it: s3://bucket/prefix[/NAME] or a folder. Or an entry of the Model "
            "Registry, model-registry:// and HOST:PORT/NAME[/VERSION].",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--federation", "-f", help="A federation file, for its store; by default federation.yaml in this folder."
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", parser=given_folder, help="A folder of NAME/VERSION/model.onnx.", metavar="DIR"),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for a free one.")] = 8080,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            parser=given_folder,
            help="Folder for copies, so that a restart works without the store.",
            metavar="DIR",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the bearer token that clients must send.")
    ] = None,
    poll: Annotated[
        float, typer.Option("--poll", min=0.1, max=DAY, help="Seconds between looks for new versions.")
    ] = 5.0,
    sessions: Annotated[
        int, typer.Option("--sessions", min=0, max=1024, help="Parallel runs; 0 for one per four cores.")
    ] = 0,
    threads: Annotated[
        int, typer.Option("--threads", min=0, max=1024, help="Threads of a run; 0 for cores divided by sessions.")
    ] = 0,
    batch: Annotated[
        int,
        typer.Option("--batch", min=1, max=65_536, help="Largest batch of examples from several requests; 1 for none."),
    ] = 1,
    batch_delay: Annotated[
        float,
        typer.Option("--batch-delay", min=0.0, max=60_000.0, help="Milliseconds that a request waits for others."),
    ] = 2.0,
    body_limit: Annotated[
        float, typer.Option("--body-limit", min=0.001, max=65_536.0, help="Largest request, in MiB.")
    ] = 64.0,
    json_limit: Annotated[
        float, typer.Option("--json-limit", min=0.001, max=65_536.0, help="Most JSON of a request, in MiB.")
    ] = 4.0,
    memory_limit: Annotated[
        float, typer.Option("--memory-limit", min=0.001, max=1e6, help="MiB that all requests hold together.")
    ] = 128.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=DAY, help="Seconds that a request may take.")
    ] = 30.0,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0.0, max=DAY, help="Seconds after SIGTERM in which requests are still accepted."),
    ] = 0.0,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="Log a line of JSON for each request.")
    ] = True,
) -> None:
    """Serve the accepted models over HTTP with the Open Inference Protocol."""
    import logging

    from fedpipe.serving.catalogue import locate
    from fedpipe.serving.limits import Limits
    from fedpipe.serving.runner import Batching
    from fedpipe.serving.server import Options
    from fedpipe.serving.server import serve as serve_models

    body, json, memory = (int(size * 2**20) for size in (body_limit, json_limit, memory_limit))
    options = Options(
        host=host, port=port, cache=cache, token=_token(token_file), poll=poll, sessions=sessions, threads=threads,
        batching=Batching(batch, batch_delay / 1000),
        limits=Limits(body=body, json=json, memory=memory, seconds=timeout), drain=drain, access_log=access_log,
    )  # fmt: skip
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fedpipe").setLevel(logging.INFO)
    place = locate(source=_federation_file(file, store, models), store=store, folder=models)
    serve_models(place, options, on_listening=lambda address: remark(f"serving at {address}"))


def _federation_file(file: Path | None, store: str | None, models: Path | None) -> Path | None:
    """Return the federation file: the one in this folder when no option locates the models."""
    return FEDERATION if not (file or store or models) and FEDERATION.is_file() else file


def _token(file: Path | None) -> str:
    """Return the token in a file, or in FEDPIPE_TOKEN. Raises InputError."""
    if file is None:
        return os.environ.get("FEDPIPE_TOKEN", "")
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the token cannot be read", where=str(file), remedy="Check the path.") from error
    if not token or not token.isascii():
        raise InputError("contains no ASCII token", where=str(file), remedy="Write the token into the file.")
    return token


@commands.add(
    "fedpipe promote digits 3 -f demo/federation.yaml",
    "fedpipe promote digits 4 --canary 0.1",
    "fedpipe promote digits --latest",
)
def promote(
    name: Annotated[str, typer.Argument(help="The model's name.", metavar="NAME")],
    version: Annotated[
        int | None,
        typer.Argument(min=1, max=10**9, help="A version; choose an older one to roll back.", metavar="VERSION"),
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Always the newest version that loads.")] = False,
    canary: Annotated[
        float | None,
        typer.Option("--canary", min=0.0, max=1.0, help="Share of the requests; the current version keeps the rest."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--federation", "-f", help="The federation file.")] = None,
    store: Annotated[str | None, typer.Option("--store", help="A store, as in `fedpipe serve`.")] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", parser=given_folder, metavar="DIR", help="A folder, as in `fedpipe serve`."),
    ] = None,
    kserve: Annotated[
        Path | None, typer.Option("--kserve", metavar="FILE", help="Write the InferenceService for KServe.")
    ] = None,
    runtime: Annotated[str, typer.Option("--runtime", help="The ServingRuntime in that file.")] = "fedpipe",
) -> None:
    """Choose the version of a model that answers; servers follow within seconds."""
    from fedpipe.commands.promote import promote as choose

    source = _federation_file(file, store, models)
    split = choose(
        name, version, source=source, store=store, models=models, latest=latest, canary=canary, kserve=kserve,
        runtime=runtime,
    )  # fmt: skip
    say(f"{name}: {split} from now on")
    if kserve is not None:
        say(f"InferenceService: {kserve}; apply it with kubectl apply -f {kserve}")


@commands.add("fedpipe sign digits 3 -f demo/federation.yaml", "fedpipe sign digits 1 2 3 --keys keys")
@forwarded
def sign(
    name: Annotated[str, typer.Argument(help="The model's name.", metavar="NAME")],
    versions: Annotated[list[int], typer.Argument(min=1, max=10**9, help="Published versions.", metavar="VERSION")],
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    keys: KeysOption = None,
) -> None:
    """Sign published models with the coordinator's current key.

    They need this when the coordinator was enrolled, or got a new key, after they were published.
    """
    from fedpipe.commands.publish import sign as sign_versions

    for entry in sign_versions(file, name, versions, store=store, keys=keys):
        say(f"{entry} is signed by the coordinator")
