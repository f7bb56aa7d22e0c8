"""The federation file: the one thing a user writes, as frozen typed structs.

Field descriptions are part of the types: `docs/federation.md` and the JSON schema are generated from them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import yaml
from msgspec import Meta, Struct, field

from fedpipe.errors import FederationError, FedpipeError
from fedpipe.store import check_uri

SAFE_NAME = r"^[a-z0-9]([a-z0-9\-]{0,38}[a-z0-9])?\Z"
"""What a name must be, so that it can be part of an object key, a pod's name and a short step name."""

Name = Annotated[str, Meta(pattern=SAFE_NAME)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the file: unknown keys are errors."""


class StorePlace(_Section, frozen=True, kw_only=True):
    """Where the federation's objects live, when a URI alone does not say it."""

    uri: Annotated[str, Meta(description="`s3://bucket/prefix`, `file:///folder` or a path beside this file")]
    endpoint: Annotated[str, Meta(description="`http(s)://host[:port]` of an S3 server; AWS when empty")] = ""
    region: Annotated[str, Meta(description="region of the bucket")] = "us-east-1"


class Iid(_Section, frozen=True, kw_only=True, tag_field="by", tag="iid"):
    """Random shards of equal size."""

    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByLabel(_Section, frozen=True, kw_only=True, tag_field="by", tag="label"):
    """Sorted by label, cut into pieces, dealt at random: each learner sees few labels (McMahan et al. 2017)."""

    pieces: Annotated[int, Meta(ge=1, description="pieces for each learner")] = 2
    seed: Annotated[int, Meta(ge=0, description="seed of the deal")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByKey(_Section, frozen=True, kw_only=True, tag_field="by", tag="key"):
    """All examples of one key (a writer, a user) go to one learner; sizes are kept as even as keys allow."""

    column: Annotated[str, Meta(description="array or column that holds the key of each example")]
    seed: Annotated[int, Meta(ge=0, description="seed of the order among keys of the same size")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class Dirichlet(_Section, frozen=True, kw_only=True, tag_field="by", tag="dirichlet"):
    """Each label is spread over the learners by a draw from Dirichlet(alpha) (Hsu et al. 2019)."""

    alpha: Annotated[float, Meta(gt=0, description="small: few labels each; large: nearly iid")]
    seed: Annotated[int, Meta(ge=0, description="seed of the draws")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class BySize(_Section, frozen=True, kw_only=True, tag_field="by", tag="size"):
    """Random shards of given sizes, which must add up to all examples."""

    sizes: Annotated[tuple[Positive, ...], Meta(description="examples of each learner, in the learners' order")]
    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByFractions(_Section, frozen=True, kw_only=True, tag_field="by", tag="fractions"):
    """Random shards of given fractions, which must add up to 1."""

    fractions: Annotated[tuple[Fraction, ...], Meta(description="share of each learner, in the learners' order")]
    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


Scheme = Iid | ByLabel | ByKey | Dirichlet | BySize | ByFractions


class Parts(_Section, frozen=True, kw_only=True):
    """How each learner's examples are split; the three add up to 1."""

    train: Annotated[Fraction, Meta(description="what the learner trains on")] = 0.8
    vote: Annotated[Fraction, Meta(description="what the learner votes with")] = 0.1
    test: Annotated[Fraction, Meta(description="what the learner tests the shared model on")] = 0.1


class Data(_Section, frozen=True, kw_only=True):
    """The dataset that is sharded over the learners without data of their own."""

    uri: Annotated[str, Meta(description="an .npz or .parquet file: a path beside this file, or `s3://...`")] = ""
    features: Annotated[
        str, Meta(description="array of the features; in Parquet a list column, or empty: all others")
    ] = "x"
    labels: Annotated[str, Meta(description="array or column of the labels")] = "y"
    shards: Annotated[Scheme, Meta(description="how the examples are dealt out")] = field(default_factory=Iid)
    parts: Annotated[Parts, Meta(description="train, vote and test part of each learner")] = field(
        default_factory=Parts
    )


class Toleration(_Section, frozen=True, kw_only=True):
    """A Kubernetes toleration."""

    key: Annotated[str, Meta(description="key of the taint; empty tolerates all")] = ""
    operator: Annotated[Literal["Equal", "Exists"], Meta(description="how the value is compared")] = "Equal"
    value: Annotated[str, Meta(description="value of the taint")] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"], Meta(description="effect; empty: all")
    ] = ""


class Accelerator(_Section, frozen=True, kw_only=True):
    """GPUs of a step."""

    type: Annotated[str, Meta(description="resource name")] = "nvidia.com/gpu"
    count: Annotated[Positive, Meta(description="how many")] = 1


class Placement(_Section, frozen=True, kw_only=True):
    """Where a learner's pods run and what they get."""

    node_selector: Annotated[dict[str, str], Meta(description="labels that the node must have")] = field(
        default_factory=dict
    )
    tolerations: Annotated[tuple[Toleration, ...], Meta(description="taints that are tolerated")] = ()
    accelerator: Annotated[Accelerator | None, Meta(description="GPUs; none by default")] = None
    cpu: Annotated[str, Meta(pattern=r"^(\d+(\.\d+)?m?)?\Z", description="cores, such as `4` or `500m`")] = ""
    memory: Annotated[
        str, Meta(pattern=r"^(\d+(\.\d+)?(E|P|T|G|M|K|Ei|Pi|Ti|Gi|Mi|Ki)?)?\Z", description="such as `8Gi`")
    ] = ""


class Learner(_Section, frozen=True, kw_only=True):
    """A data owner."""

    name: Annotated[
        Name, Meta(description="lower-case letters, digits and `-`, at most 40; part of keys and step names")
    ]
    data: Annotated[
        str,
        Meta(description="the learner's own data (.npz, .parquet, or what `load` of model.py takes); empty: a shard"),
    ] = ""
    secret: Annotated[
        str, Meta(description="Kubernetes secret with the learner's store keys; empty: the federation's")
    ] = ""
    placement: Annotated[Placement, Meta(description="node pool and resources")] = field(default_factory=Placement)


class Training(_Section, frozen=True, kw_only=True):
    """What a learner does in a round."""

    rounds: Annotated[Positive, Meta(description="rounds of the run")]
    batch_size: Annotated[Positive, Meta(description="examples per step of the optimizer")]
    local_epochs: Annotated[
        int, Meta(ge=0, description="passes over the train part per round; 0 with `local_steps`")
    ] = 1
    local_steps: Annotated[int, Meta(ge=0, description="batches per round instead of epochs; 0: epochs count")] = 0
    learning_rate: Annotated[float, Meta(ge=0, description="of the local optimizer; 0: as compiled in model.py")] = 0.0
    optimizer: Annotated[
        Literal["reset", "keep"],
        Meta(description="`reset`: a fresh local optimizer each round; `keep`: its state goes on"),
    ] = "reset"
    precision: Annotated[
        Literal["float32", "mixed_float16", "mixed_bfloat16"], Meta(description="Keras dtype policy")
    ] = "float32"
    fit: Annotated[
        dict[str, Any], Meta(description="more arguments of Keras's `Model.fit`, such as `class_weight`")
    ] = field(default_factory=dict)
    evaluate: Annotated[dict[str, Any], Meta(description="more arguments of Keras's `Model.evaluate`")] = field(
        default_factory=dict
    )
    callbacks: Annotated[
        dict[str, dict[str, Any]], Meta(description="Keras callbacks by name, each with its arguments")
    ] = field(default_factory=dict)
    tensorboard: Annotated[bool, Meta(description="write TensorBoard event files to the store")] = True
    start: Annotated[
        Literal["head", "fresh"],
        Meta(description="a new run goes on from HEAD, or begins with fresh weights"),
    ] = "head"
    seed: Annotated[int, Meta(ge=0, description="seed of initial weights, shuffling and dropout")] = 0


class ServerOptimizer(_Section, frozen=True, kw_only=True):
    """What turns the aggregate into the next global weights."""

    name: Annotated[Literal["sgd"], Meta(description="`sgd`: w + learning_rate * v, v = momentum * v + (mean - w)")] = (
        "sgd"
    )
    learning_rate: Annotated[float, Meta(gt=0, description="1 takes the aggregate as it is")] = 1.0
    momentum: Annotated[float, Meta(ge=0, lt=1, description="0: none")] = 0.0


class Averaging(_Section, frozen=True, kw_only=True, tag_field="name", tag="averaging"):
    """Federated averaging (McMahan et al. 2017)."""

    rule: Annotated[Literal["mean"], Meta(description="how updates are combined")] = "mean"
    weighting: Annotated[
        Literal["examples", "uniform"], Meta(description="weight of an update: its train examples, or 1")
    ] = "examples"
    server_optimizer: Annotated[ServerOptimizer, Meta(description="the step of the global weights")] = field(
        default_factory=ServerOptimizer
    )


class Quorum(_Section, frozen=True, kw_only=True):
    """When a round counts."""

    min_learners: Annotated[int, Meta(ge=0, description="fewest learners of a valid round; 0: more than half")] = 0
    deadline: Annotated[float, Meta(gt=0, description="seconds after which a learner's training is too late")] = 3600.0


class Evaluation(_Section, frozen=True, kw_only=True):
    """How the shared model is measured."""

    holdout: Annotated[
        float,
        Meta(ge=0, lt=1, description="share of `data` kept away from all learners as the central test set"),
    ] = 0.1
    every_round: Annotated[bool, Meta(description="learners test each round's model before they train it")] = True


class Export(_Section, frozen=True, kw_only=True):
    """The ONNX model."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^([a-z0-9]([a-z0-9\-]{0,38}[a-z0-9])?)?\Z",
            description="model name; empty: the federation's",
        ),
    ] = ""
    opset: Annotated[int, Meta(ge=13, le=18, description="ONNX operator set")] = 17
    tolerance: Annotated[float, Meta(gt=0, description="largest allowed difference between ONNX and Keras outputs")] = (
        1e-4
    )


class Images(_Section, frozen=True, kw_only=True):
    """Container images of the steps."""

    registry: Annotated[str, Meta(description="what stands before `/core:TAG` and `/keras:TAG`")] = "fedpipe"
    tag: Annotated[str, Meta(description="tag; empty: this version of fedpipe")] = ""


class Federation(_Section, frozen=True, kw_only=True):
    """A federation file."""

    name: Annotated[Name, Meta(description="name of the federation; its folder in the store")]
    learners: Annotated[tuple[Learner, ...], Meta(min_length=1, description="the data owners")]
    training: Annotated[Training, Meta(description="what a learner does in a round")]
    store: Annotated[
        str | StorePlace, Meta(description="where objects live: a URI, a path, or uri, endpoint and region")
    ] = "store"
    model: Annotated[
        str,
        Meta(
            pattern=r"^[^:]+\.py(:[A-Za-z_]\w*)?\Z",
            description="`FILE.py:FUNCTION` that returns a compiled Keras model",
        ),
    ] = "model.py:build"
    data: Annotated[Data, Meta(description="the dataset to shard")] = field(default_factory=Data)
    algorithm: Annotated[Averaging, Meta(description="how learners learn together")] = field(default_factory=Averaging)
    quorum: Annotated[Quorum, Meta(description="when a round counts")] = field(default_factory=Quorum)
    evaluation: Annotated[Evaluation, Meta(description="how the shared model is measured")] = field(
        default_factory=Evaluation
    )
    export: Annotated[Export, Meta(description="the ONNX model")] = field(default_factory=Export)
    images: Annotated[Images, Meta(description="container images of the steps")] = field(default_factory=Images)
    secret: Annotated[str, Meta(description="Kubernetes secret with the store's keys (`accesskey`, `secretkey`)")] = (
        "mlpipeline-minio-artifact"  # noqa: S105  (the name of a secret)
    )

    @property
    def store_uri(self) -> str:
        """The store as one URI that says everything."""
        if isinstance(self.store, str):
            return self.store
        query = {"endpoint": self.store.endpoint, "region": self.store.region if self.store.endpoint else ""}
        text = "&".join(f"{k}={v}" for k, v in query.items() if v)
        return f"{self.store.uri}?{text}" if text and self.store.uri.startswith("s3://") else self.store.uri

    @property
    def sharded(self) -> tuple[str, ...]:
        """Names of the learners that get a shard of `data`, in their order."""
        return tuple(learner.name for learner in self.learners if not learner.data)

    @property
    def min_learners(self) -> int:
        """The quorum as a number."""
        return self.quorum.min_learners or len(self.learners) // 2 + 1

    @property
    def model_name(self) -> str:
        """The name under which the model is exported."""
        return self.export.name or self.name

    def learner(self, name: str) -> Learner:
        """The learner of that name. Raises KeyError."""
        return {learner.name: learner for learner in self.learners}[name]


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
        federation = msgspec.convert(content, Federation)
    except msgspec.ValidationError as error:
        raise _explained(str(error), where) from error
    for path, what, remedy in _mistakes(federation):
        raise FederationError(what, where=f"{where}: {path}", remedy=remedy)
    return federation


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
    file, _, function = federation.model.partition(":")
    model = f"{place(file)}:{function or 'build'}"
    return msgspec.structs.replace(federation, store=store, learners=learners, data=data, model=model)


def _explained(message: str, where: str) -> FederationError:
    """msgspec's message with the path in the user's words, and the remedy."""
    what, _, path = message.partition(" - at `")
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    remedy = None
    if match := re.match(r"Object contains unknown field `(.*)`", what):
        known = [name for kind in _structs_at(path) for name in _keys_of(kind)]
        what = f"unknown key {match[1]!r}"
        close = difflib.get_close_matches(match[1], known, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(sorted(known))}."
    elif match := re.match(r"Object missing required field `(.*)`", what):
        what, remedy = f"the key {match[1]!r} is missing", "Add it; docs/federation.md describes each key."
    elif what.startswith("Invalid"):
        remedy = f"Valid: {', '.join(_choices_at(path))}."
    elif "matching regex" in what and path.rsplit(".", 1)[-1] == "name":
        what = "not a safe name"
        remedy = "Use at most 40 lower-case letters, digits and '-', with a letter or digit at both ends."
    elif "matching regex" in what:
        remedy = "docs/federation.md shows the form."
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
    return sorted(tags or [str(v) for kind in _types_of(structs, name) for v in _literals_in(kind)])


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
    try:
        check_uri(f.store_uri)
    except FedpipeError as error:
        yield "store", error.what, error.remedy or "Use s3://bucket/prefix or file:///folder."
