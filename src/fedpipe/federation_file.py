"""Reads federation.yaml: every mistake with the path of its key and the remedy."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct

from fedpipe.errors import FederationError, FedpipeError
from fedpipe.federation import (
    UNWEIGHTED,
    Averaging,
    ByFractions,
    BySize,
    Collective,
    Federation,
    Mean,
    Privacy,
    Sgd,
    StorePlace,
    tag_of,
)
from fedpipe.preprocessing import parse
from fedpipe.store import check_uri


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, and reads 1e-4 as a number as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                line = node.value[position][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {key!r} is written twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_federation(path: Path) -> Federation:
    """Reads and checks a federation file; relative paths in it are resolved beside it.

    Args:
        path: a YAML file.

    Raises:
        FederationError: what is wrong, with the path of the key and the remedy.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise FederationError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="`fedpipe init DIR` writes a working one.",
        ) from error
    except UnicodeDecodeError as error:
        raise FederationError("is not UTF-8 text", where=str(path)) from error
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  (a subclass of the safe loader)
    except (yaml.YAMLError, TypeError) as error:
        raise FederationError(f"is not YAML: {' '.join(str(error).split())}", where=str(path)) from error
    federation = parse_federation(content, where=str(path))
    return _resolved(federation, path.absolute().parent)


def parse_federation(content: Any, *, where: str = "federation") -> Federation:
    """Checks builtin values (from YAML or JSON) and returns the federation. Raises FederationError."""
    if not isinstance(content, dict):
        raise FederationError("is not a table of keys and values", where=where)
    try:
        federation = msgspec.convert(_in_full(content), Federation)
    except msgspec.ValidationError as error:
        raise _explained(str(error), where) from error
    check_federation(federation, where=where)
    return federation


def _in_full(content: dict[str, Any]) -> dict[str, Any]:
    """What may be said shortly, in full: a name alone, and the server's plain step."""
    full = dict(content)
    algorithm = full["algorithm"] = _named(full.get("algorithm", {"name": "averaging"}))
    if isinstance(algorithm, dict) and "rule" in algorithm:
        algorithm["rule"] = _named(algorithm["rule"])
    for section in (algorithm, simulation := _copied(full.get("simulation", {}))):
        if isinstance(section, dict) and "server_optimizer" in section:
            section["server_optimizer"] = _server(section["server_optimizer"])
    return full | {"simulation": simulation}


def _named(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else _copied(given)


def _copied(given: Any) -> Any:
    return dict(given) if isinstance(given, dict) else given


def _server(given: Any) -> Any:
    optimizer = _named(given)
    if isinstance(optimizer, dict) and optimizer.setdefault("name", "sgd") == "sgd":
        optimizer.setdefault("learning_rate", 1.0)
    return optimizer


def check_federation(federation: Federation, *, where: str) -> None:
    """Checks what types cannot say. Raises FederationError for the first mistake."""
    for path, what, remedy in _mistakes(federation):
        raise FederationError(what, where=f"{where}: {path}", remedy=remedy)


def _resolved(federation: Federation, folder: Path) -> Federation:
    """The same federation with absolute paths and URIs."""

    def place(uri: str) -> str:
        return uri if "://" in uri or not uri else str((folder / uri).resolve())

    if isinstance(federation.store, str):
        store: str | StorePlace = check_uri(federation.store, folder=folder)
    else:
        store = msgspec.structs.replace(federation.store, uri=check_uri(federation.store.uri, folder=folder))
    learners = tuple(msgspec.structs.replace(item, data=place(item.data)) for item in federation.learners)
    data = msgspec.structs.replace(federation.data, uri=place(federation.data.uri))

    def code(name: str) -> str:
        file, _, function = name.partition(":")
        return name and f"{place(file)}:{function or 'build'}"

    simulation = msgspec.structs.replace(
        federation.simulation, process=code(federation.simulation.process), model=code(federation.simulation.model)
    )
    return msgspec.structs.replace(
        federation, store=store, learners=learners, data=data, model=code(federation.model), simulation=simulation
    )


def _explained(message: str, where: str) -> FederationError:
    """msgspec's message with the path in the user's words, and the remedy."""
    what, _, path = message.partition(" - at `")
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    remedy = None
    if match := re.match(r"Object contains unknown field `(.*)`", what):
        known = [name for kind in _structs_at(path) for name in _keys_of(kind)]
        what = f"unknown key {match[1]!r}"
        close = difflib.get_close_matches(match[1], known, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(sorted(set(known)))}."
    elif match := re.match(r"Object missing required field `(.*)`", what):
        what, remedy = f"the key {match[1]!r} is missing", "Add it; docs/federation.md describes each key."
    elif what.startswith("Invalid"):
        remedy = f"Valid: {', '.join(_choices_at(path))}."
    elif "matching regex" in what and path.rsplit(".", 1)[-1] == "name":
        what = "not a safe name"
        remedy = "Use at most 40 lower-case letters, digits and '-', with a letter or digit at both ends."
    elif "matching regex" in what:
        remedy = "docs/federation.md shows the form."
    elif match := re.match(r"Expected `\w+[^`]*` ([<>]=?) (\S+)$", what):
        remedy = f"Write a number {match[1]} {match[2].removesuffix('.0')}."
    elif match := re.match(r"Expected `(\w+)[^`]*`, got", what):
        remedy = _EXPECTED.get(match[1])
    return FederationError(what, where=f"{where}: {path}" if path else where, remedy=remedy)


_EXPECTED = {
    "int": "Write a whole number, without quotes.",
    "float": "Write a number, without quotes.",
    "bool": "Write true or false.",
    "str": "Write text; put it in quotes when it looks like a number.",
    "object": "Write a table of keys and values.",
    "array": "Write a list.",
}


def _structs_at(path: str) -> list[Any]:
    """The structs that may stand at a path such as `learners[...].placement`."""
    kinds: list[Any] = [Federation]
    for part in filter(None, re.sub(r"\[.*?\]", "", path).split(".")):
        kinds = [struct for kind in _types_of(kinds, part) for struct in _structs_in(kind)]
    return kinds


def _types_of(structs: list[Any], name: str) -> list[Any]:
    return [f.type for struct in structs for f in msgspec.structs.fields(struct) if f.name == name]


def _keys_of(struct: Any) -> list[str]:
    tag = struct.__struct_config__.tag_field
    return [f.encode_name for f in msgspec.structs.fields(struct)] + ([tag] if tag else [])


def _choices_at(path: str) -> list[str]:
    """What may be written at a path that has a closed set of values: literals, or the tags of structs."""
    parent, _, name = path.rpartition(".")
    structs = _structs_at(parent)
    tags = [s.__struct_config__.tag for s in structs if s.__struct_config__.tag_field == name]
    return sorted(set(tags or [str(v) for kind in _types_of(structs, name) for v in _literals_in(kind)]))


def _literals_in(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for inner in get_args(kind):
            yield from _literals_in(inner)


def _structs_in(kind: Any) -> Iterator[Any]:
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield kind
    for inner in get_args(kind):
        yield from _structs_in(inner)


def _mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    """What types cannot say: path, what is wrong, remedy."""
    names = [learner.name for learner in f.learners]
    for position, name in enumerate(names):
        if name in names[:position]:
            yield (
                f"learners[{position}].name",
                f"the learner {name!r} is there twice",
                "Give each its own name.",
            )
    count = len(f.sharded)
    if count and not f.data.uri:
        yield "data.uri", "is missing", f"Name a dataset to shard, or give {f.sharded[0]!r} data of its own."
    if not f.training.local_epochs and not f.training.local_steps:
        yield (
            "training.local_epochs",
            "is 0 and local_steps too",
            "One of the two says how long a learner trains.",
        )
    if f.quorum.min_learners > len(names):
        yield (
            "quorum.min_learners",
            f"is {f.quorum.min_learners}, but there are {len(names)} learners",
            "Lower it.",
        )
    parts = (f.data.parts.train, f.data.parts.vote, f.data.parts.test)
    if not math.isclose(sum(parts), 1.0, abs_tol=1e-9):
        yield "data.parts", f"add up to {sum(parts):g}", "train, vote and test must add up to 1."
    if not f.data.parts.train:
        yield "data.parts.train", "is 0", "A learner needs examples to train on."
    if isinstance(f.data.shards, BySize) and len(f.data.shards.sizes) != count:
        yield (
            "data.shards.sizes",
            f"has {len(f.data.shards.sizes)} entries for {count} learners",
            "One for each.",
        )
    if isinstance(f.data.shards, ByFractions):
        fractions = f.data.shards.fractions
        if len(fractions) != count:
            yield (
                "data.shards.fractions",
                f"has {len(fractions)} entries for {count} learners",
                "One for each.",
            )
        if not math.isclose(sum(fractions), 1.0, abs_tol=1e-9):
            yield "data.shards.fractions", f"add up to {sum(fractions):g}", "They must add up to 1."
    yield from _placement_mistakes(f)
    yield from _aggregation_mistakes(f)
    yield from _preprocessing_mistakes(f)
    yield from _session_mistakes(f)
    yield from _simulation_mistakes(f)
    yield from _vote_mistakes(f)
    yield from _privacy_mistakes(f)
    try:
        check_uri(f.store_uri)
    except FedpipeError as error:
        yield "store", error.what, error.remedy or "Use s3://bucket/prefix or file:///folder."


def _placement_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    given = {f"placement.{kind}": placement for kind, placement in f.placement.items()}
    given |= {f"learners[{position}].placement": learner.placement for position, learner in enumerate(f.learners)}
    given["simulation.placement"] = f.simulation.placement
    for kind, placement in f.placement.items():
        if placement.in_form:
            yield f"placement.{kind}.in_form", "a kind of step has no parameters", "Set it at the learners' placements."
    for path, placement in given.items():
        for what in ("cpu", "memory"):
            limit, request = getattr(placement, what), getattr(placement, f"{what}_request")
            if limit and request and quantity(request) > quantity(limit):
                yield f"{path}.{what}_request", f"{request} is more than the limit, {limit}", "Lower it."
        for number, affinity in enumerate(placement.affinity):
            for position, expression in enumerate(affinity.expressions):
                where = f"{path}.affinity[{number}].expressions[{position}].values"
                if expression.operator in ("Exists", "DoesNotExist") and expression.values:
                    yield where, f"must be empty for {expression.operator}", "Remove them."
                if expression.operator in ("In", "NotIn") and not expression.values:
                    yield where, f"is empty, and {expression.operator} compares with it", "Name one value at least."
                if expression.operator in ("Gt", "Lt") and len(expression.values) != 1:
                    yield where, f"has {len(expression.values)} entries, {expression.operator} takes one", "Write one."


def quantity(text: str) -> float:
    """A quantity of Kubernetes as a number.

    >>> quantity("500m"), quantity("2Gi"), quantity("1.5")
    (0.5, 2147483648.0, 1.5)
    """
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text)
    assert match is not None
    return float(match[1]) * _UNITS[match[2]]


_UNITS = {"": 1.0, "m": 1e-3, **{unit: 1e3 ** (k + 1) for k, unit in enumerate("KMGTPE")},
          **{f"{unit}i": 1024.0 ** (k + 1) for k, unit in enumerate("KMGTPE")}}  # fmt: skip


def _aggregation_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    if not isinstance(f.algorithm, Averaging):
        return
    rule, optimizer = f.algorithm.rule, f.algorithm.server_optimizer
    if f.algorithm.engine == "fedpipe":
        for path, part, own in (("rule", rule, Mean), ("server_optimizer.name", optimizer, Sgd)):
            if not isinstance(part, own):
                yield (
                    f"algorithm.{path}",
                    f"{tag_of(part)!r} is of TensorFlow Federated",
                    "Add `engine: tff` to the algorithm.",
                )
    if isinstance(rule, UNWEIGHTED) and f.algorithm.weighting != "uniform":
        yield (
            "algorithm.weighting",
            f"must be uniform beside the rule {tag_of(rule)!r}",
            "Its noise hides one update among others of the same weight.",
        )


def _preprocessing_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    if not f.training.preprocessing:
        return
    try:
        parse(f.training.preprocessing)
    except FederationError as error:
        yield "training.preprocessing", error.what, error.remedy or ""
    for name, value, instead in (("local_epochs", f.training.local_epochs > 1, "`repeat`"),
                                 ("local_steps", f.training.local_steps, "`repeat` and `take`")):  # fmt: skip
        if value:
            yield f"training.{name}", "has no effect beside training.preprocessing", f"Write {instead} there instead."
    if any(f.privacy_of(learner.name) for learner in f.learners):
        yield (
            "training.preprocessing",
            "cannot be used beside privacy",
            "Epsilon is computed for batches as DP-SGD draws them.",
        )


def _session_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    wanted, fewest, stopping = f.quorum.learners_per_round, f.quorum.min_learners, f.training.early_stopping
    if wanted > len(f.learners):
        yield "quorum.learners_per_round", f"is {wanted}, but there are {len(f.learners)} learners", "Lower it."
    if wanted and fewest > wanted:
        yield "quorum.min_learners", f"is {fewest}, but a round asks for {wanted} learners", "Lower it."
    if wanted and isinstance(f.algorithm, Collective):
        yield "quorum.learners_per_round", "cannot be set in collective learning", "Remove it."
    if f.quorum.over_selection > 1 and not wanted:
        yield "quorum.over_selection", "has no effect when all learners are asked", "Set quorum.learners_per_round too."
    if f.training.max_seconds and not f.in_sessions:
        yield "training.max_seconds", "needs a session", "Set training.rounds_per_step to all."
    if stopping is None:
        return
    path = "training.early_stopping"
    if not f.in_sessions:
        yield path, "needs a session", "Set training.rounds_per_step to all."
    if stopping.minimise is None and stopping.metric not in ("loss", "test_loss"):
        yield (
            f"{path}.minimise",
            f"is missing, and nobody can tell whether less {stopping.metric} is better",
            "Write true or false.",
        )
    if stopping.metric.startswith("test_") and not (f.evaluation.every_round or f.vote):
        yield f"{path}.metric", "needs the learners' tests", "Set evaluation.every_round to true."


def _simulation_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    names, held_out = [learner.name for learner in f.learners], f.simulation.held_out
    for position, name in enumerate(held_out):
        path = f"simulation.held_out[{position}]"
        if name not in names:
            yield path, f"there is no learner {name!r}", f"Learners: {', '.join(names)}."
        if name in held_out[:position]:
            yield path, f"{name!r} is there twice", "Name each learner once."
    left = len(names) - len(held_out)
    if held_out and left < max(1, f.quorum.learners_per_round):
        asked = f"a round asks for {f.quorum.learners_per_round}" if f.quorum.learners_per_round else "nobody trains"
        yield "simulation.held_out", f"leaves {left} learners to train, but {asked}", "Hold fewer out."
    if f.simulation.process and f.simulation.model:
        yield "simulation.model", "has no effect on a process of your own", "Build the model in it."


def _vote_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    if f.vote is not None:
        if f.vote.criterion != "loss" and f.vote.minimise is None:
            yield (
                "algorithm.vote.minimise",
                f"is missing, and nobody can tell whether less {f.vote.criterion} is better",
                "Write true or false.",
            )
        if not f.data.parts.vote and f.sharded:
            yield "data.parts.vote", "is 0", "Learners vote with this part of their data."
    if isinstance(f.algorithm, Collective):
        names = [learner.name for learner in f.learners]
        for position, name in enumerate(f.algorithm.proposers):
            path = f"algorithm.proposers[{position}]"
            if name not in names:
                yield path, f"there is no learner {name!r}", f"Learners: {', '.join(names)}."
            if name in f.algorithm.proposers[:position]:
                yield path, f"{name!r} is there twice", "Name each proposer once."


def _privacy_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    given: list[tuple[str, Privacy | None]] = [("privacy", f.privacy)]
    given += [(f"learners[{position}].privacy", learner.privacy) for position, learner in enumerate(f.learners)]
    for path, privacy in given:
        if privacy is None:
            continue
        if f.training.batch_size % privacy.microbatches:
            yield (
                f"{path}.microbatches",
                f"{privacy.microbatches} does not divide training.batch_size, {f.training.batch_size}",
                "Each microbatch has the same number of examples.",
            )
        if f.training.callbacks or "validation_split" in f.training.fit:
            yield (
                "training.callbacks" if f.training.callbacks else "training.fit.validation_split",
                f"cannot be used beside {path}",
                "It acts on what the train examples show without noise, and no epsilon would hold.",
            )
        if f.training.precision != "float32":
            yield "training.precision", f"must be float32 beside {path}", "Gradients are clipped in float32."
