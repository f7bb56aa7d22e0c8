"""The federation file as frozen typed structs.

Field descriptions are part of the types: `docs/federation.md` is generated from them.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlencode

from msgspec import Meta, field
from msgspec.structs import replace

from fedpipe.federation.algorithms import Averaging, Collective, SecureSums, SimulationSettings, Vote, least_threshold
from fedpipe.federation.data import Data
from fedpipe.federation.environments import ENVIRONMENTS, FRAMEWORKS, WITH_FRAMEWORK, Environment, FrameworkName
from fedpipe.federation.methods import PERSONAL, Method, Sharing
from fedpipe.federation.names import CODE, KUBEFLOWS_SECRET, MOST_LEARNERS, Name, Section
from fedpipe.federation.placement import Images, Placement, StepKind, StorePlace, default_placement
from fedpipe.federation.split import Split
from fedpipe.federation.tracking import Tracking
from fedpipe.federation.training import EvaluationSettings, Export, Privacy, Quorum, Training
from fedpipe.store import with_endpoint


class LearnerSettings(Section, frozen=True, kw_only=True):
    """Describes a data owner."""

    name: Annotated[
        Name, Meta(description="lower-case letters, digits and `-`, at most 40; part of keys and step names")
    ]
    data: Annotated[
        str,
        Meta(description="the learner's own data (.npz, .parquet, or a URI for `load` of model.py); empty: a shard"),
    ] = ""
    secret: Annotated[
        str, Meta(description="Kubernetes secret with the learner's store keys; empty: the federation's")
    ] = ""
    privacy: Annotated[Privacy | None, Meta(description="replaces the federation's `privacy`")] = None
    placement: Annotated[Placement, Meta(description="node pool and resources")] = field(default_factory=Placement)
    at: Annotated[
        Literal["pod", "site"],
        Meta(
            description="`pod`: a step of the pipeline. `site`: an agent on the owner's machines, which brings data of "
            "its own ([sites](sites.md))"
        ),
    ] = "pod"

    @property
    def brings_data(self) -> bool:
        """Return whether the learner trains on data of its own, not on a shard."""
        return bool(self.data) or self.at == "site"


class Federation(Section, frozen=True, kw_only=True):
    """Describes a federation."""

    name: Annotated[Name, Meta(description="name of the federation; its folder in the store")]
    learners: Annotated[
        tuple[LearnerSettings, ...], Meta(min_length=1, max_length=MOST_LEARNERS, description="data owners")
    ]
    training: Annotated[Training, Meta(description="training of a learner in a round")]
    store: Annotated[
        str | StorePlace, Meta(description="place of the objects: a URI, a path, or uri, endpoint and region")
    ] = "store"
    model: Annotated[
        str,
        Meta(
            pattern=CODE,
            description="`FILE.py:FUNCTION` that returns a compiled Keras model, with `framework: numpy` a "
            "`fedpipe.learners.numpy.Linear`, with `framework: custom` a learner of your own",
        ),
    ] = "model.py:build"
    framework: Annotated[
        FrameworkName,
        Meta(
            description="framework that trains the model: `keras`, or `numpy` for a linear model without TensorFlow. "
            "`custom` calls your own functions in scikit-learn, PyTorch or any other package (docs/frameworks.md)"
        ),
    ] = "keras"
    data: Annotated[Data, Meta(description="dataset to shard")] = field(default_factory=Data)
    algorithm: Annotated[
        Averaging | Collective | Split,
        Meta(description="how learners learn together; a `name` alone takes all defaults"),
    ] = field(default_factory=Averaging)
    share: Annotated[
        Sharing | Literal["all", "trainable"],
        Meta(
            description="weights that learners share: `all`; `trainable` ones, without statistics and counters; or all "
            "but those of some names, which stay at each learner (docs/personal.md)"
        ),
    ] = "all"
    privacy: Annotated[Privacy | None, Meta(description="differential privacy of every learner's training")] = None
    quorum: Annotated[Quorum, Meta(description="when a round counts")] = field(default_factory=Quorum)
    evaluation: Annotated[EvaluationSettings, Meta(description="how the shared model is measured")] = field(
        default_factory=EvaluationSettings
    )
    export: Annotated[
        Export | Literal["none"],
        Meta(description="ONNX model; `none`: the model is trained and measured, but not exported"),
    ] = field(default_factory=Export)
    simulation: Annotated[SimulationSettings, Meta(description="rehearsal with TensorFlow Federated")] = field(
        default_factory=SimulationSettings
    )
    tracking: Annotated[Tracking, Meta(description="where MLflow shows the run ([tracking](tracking.md))")] = field(
        default_factory=Tracking
    )
    placement: Annotated[
        dict[StepKind, Placement],
        Meta(
            description="node pool and resources by kind of step, such as `train` or `evaluate`; a learner's own "
            "placement takes precedence"
        ),
    ] = field(default_factory=dict)
    images: Annotated[Images, Meta(description="container images of the steps")] = field(default_factory=Images)
    secret: Annotated[
        str,
        Meta(
            description="Kubernetes secret with the store's keys (`accesskey`, `secretkey`); empty: pods use the "
            "identity of their service account"
        ),
    ] = KUBEFLOWS_SECRET

    @property
    def store_uri(self) -> str:
        """Return the store as one URI, with endpoint and region."""
        if isinstance(self.store, str):
            return self.store
        query = {"endpoint": self.store.endpoint, "region": self.store.region if self.store.endpoint else ""}
        query["style"] = self.store.style
        text = urlencode({k: v for k, v in query.items() if v}, safe=":/")
        return f"{self.store.uri}?{text}" if text and self.store.uri.startswith("s3://") else self.store.uri

    def reaching(self, store: str) -> Federation:
        """Return the same federation, whose datasets in S3 are at the store's endpoint unless they name another.

        Args:
            store: URI of the store of a run, which its parameters may change.
        """
        learners = tuple(replace(one, data=with_endpoint(one.data, store)) for one in self.learners)
        return replace(self, learners=learners, data=replace(self.data, uri=with_endpoint(self.data.uri, store)))

    @property
    def sharded(self) -> tuple[str, ...]:
        """Return the names of the learners that get a shard of `data`, in their order."""
        return tuple(learner.name for learner in self.learners if not learner.brings_data)

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the names of the learners that are agents outside the pipeline, in their order."""
        return tuple(learner.name for learner in self.learners if learner.at == "site")

    @property
    def pods(self) -> tuple[LearnerSettings, ...]:
        """Return the learners that are steps of the pipeline, in their order."""
        return tuple(learner for learner in self.learners if learner.at == "pod")

    @property
    def secure(self) -> SecureSums | None:
        """Return the settings of secure sums; None where the coordinator reads single updates."""
        return self.algorithm.secure if isinstance(self.algorithm, Averaging) else None

    @property
    def threshold(self) -> int:
        """Return the fewest members of a secure sum; 0 without secure sums."""
        return (self.secure.threshold or least_threshold(len(self.learners))) if self.secure else 0

    @property
    def vote(self) -> Vote | None:
        """Return how learners vote on models; None when they do not."""
        return None if isinstance(self.algorithm, Split) else self.algorithm.vote

    @property
    def proposers(self) -> tuple[str, ...]:
        """Return the learners that propose, in order; none when updates are averaged."""
        if not isinstance(self.algorithm, Collective):
            return ()
        return self.algorithm.proposers or tuple(learner.name for learner in self.learners)

    @property
    def split(self) -> Split | None:
        """Return how the network is cut; None when every learner trains a whole one."""
        return self.algorithm if isinstance(self.algorithm, Split) else None

    @property
    def feature_parties(self) -> tuple[str, ...]:
        """Return the parties of a split network that hold features, in the order of the top's inputs."""
        cut = self.split
        names = tuple(learner.name for learner in self.learners)
        return tuple(n for n in names if cut and (n != cut.label_party or cut.label_party_features))

    def privacy_of(self, name: str) -> Privacy | None:
        """Return the differential privacy of a learner: its own, or the federation's. Raises KeyError."""
        return self.learner(name).privacy or self.privacy

    @property
    def method(self) -> Method | None:
        """Return how learners train when their data differ; None for plain training."""
        return self.training.method

    @property
    def personal(self) -> bool:
        """Return whether each learner keeps weights of its own."""
        return self.share != "all" or isinstance(self.method, PERSONAL)

    @property
    def learners_asked(self) -> int:
        """Return how many learners' updates form a round."""
        return self.quorum.learners_per_round or len(self.learners)

    @property
    def min_learners(self) -> int:
        """Return the quorum as a number."""
        if self.split:
            return len(self.learners)
        return self.quorum.min_learners or self.learners_asked // 2 + 1

    @property
    def min_updates(self) -> int:
        """Return the fewest updates of a round: the quorum, or more where the rule needs more."""
        needed = self.algorithm.fewest_updates if isinstance(self.algorithm, Averaging) else 1
        return max(self.min_learners, needed, self.threshold)

    @property
    def aggregated_by_tff(self) -> bool:
        """Return whether TensorFlow Federated combines the updates."""
        return isinstance(self.algorithm, Averaging) and self.algorithm.engine == "tff"

    def environment_of(self, step: str, learner: str = "") -> Environment:
        """Return the environment that a step runs in.

        Steps that train or measure need the image of the framework. Private training and TensorFlow Federated's
        aggregation need another one.

        Args:
            step: its name.
            learner: the learner of the step; empty for a step of the coordinator.
        """
        if step in ("train", "learn") and learner and self.privacy_of(learner):
            return "tff"
        if step in ("aggregate", "coordinate") and self.aggregated_by_tff:
            return "tff"
        if step == "coordinate" and self.described_in_session:
            return FRAMEWORKS[self.framework]  # it makes the first weights
        own = step == "export" and self.framework == "custom"
        return FRAMEWORKS[self.framework] if own or step in WITH_FRAMEWORK else ENVIRONMENTS[step]

    def placement_of(self, step: str, learner: str = "") -> Placement:
        """Return nodes and resources of a step: the learner's own, those of its kind, and default requests.

        Args:
            step: its name.
            learner: the learner of the step; empty for a step of the coordinator.
        """
        placement = {str(kind): placement for kind, placement in self.placement.items()}.get(step, Placement())
        if learner:
            placement = self.learner(learner).placement.over(placement)
        if step == "simulate":
            placement = self.simulation.placement.over(placement)
        return placement.with_requests(default_placement(step, self.environment_of(step, learner)))

    @property
    def beside_learners(self) -> tuple[str, ...]:
        """Return the coordinator's steps whose pods exist at the same time as the learners' of a session."""
        early = any(self.placement_of("learn", learner.name).early for learner in self.pods)
        return ("coordinate", "shard", "initialise") if early else ("coordinate",)

    @property
    def needs_tensorflow(self) -> bool:
        """Return whether learners train and measure with TensorFlow."""
        return FRAMEWORKS[self.framework] == "keras"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in order; empty if the file has none."""
        return self.exported.classes if self.exported else ()

    @property
    def described_in_session(self) -> bool:
        """Return whether learners describe their tables in the first phase of a session, not in steps of their own."""
        return self.data.is_table and self.in_sessions and not self.aggregated_by_tff

    def scores_in_session(self, learner: str) -> bool:
        """Return whether a learner tests the final model in the last phase of its session, not in a step of its own.

        The metrics of all learners are added up, so they are measured in one environment, which an agent has too.
        Parties of a split network test it one after the other, unless one of them is at a site.
        """
        if self.split:
            return bool(self.sites)
        alike = self.environment_of("learn", learner) == self.environment_of("score", learner)
        alike = alike or self.learner(learner).at == "site"
        return self.in_sessions and alike

    @property
    def in_sessions(self) -> bool:
        """Return whether a step works through several rounds."""
        return self.training.rounds_per_step != 1

    @property
    def model_name(self) -> str:
        """Return the name under which the model is exported."""
        return (self.exported or Export()).name or self.name

    @property
    def exported(self) -> Export | None:
        """Return how the shared model is exported; None when it is not."""
        return None if self.export == "none" else self.export

    def learner(self, name: str) -> LearnerSettings:
        """Return the learner of that name. Raises KeyError."""
        return {learner.name: learner for learner in self.learners}[name]
