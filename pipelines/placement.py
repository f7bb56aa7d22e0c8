"""Sets names, credentials, node pools and retries of steps."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import msgspec
from kfp import dsl, kubernetes
from kfp.dsl import structures

from fedpipe.federation.federation import Federation, LearnerSettings
from fedpipe.federation.placement import Placement
from fedpipe.federation.tracking import TRACKING_KEYS
from fedpipe.identity.signing import ADMINISTRATOR_KEY, SIGNING_KEY
from fedpipe.steps import TRACKED

SECRET_KEYS = {"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}
"""Maps keys of the Secret (those of KFP's own `mlpipeline-minio-artifact`) to the variables that steps read."""

SIGNING_KEYS = {"signingkey": SIGNING_KEY}
ADMINISTRATOR_KEYS = {"administrator": ADMINISTRATOR_KEY}

RETRIES = 2
_LONGEST = "90d"
"""How old a step may be when Kubeflow still retries it: Argo counts from the start of the first try."""


def place_coordinator(
    task: dsl.PipelineTask, federation: Federation, name: str, *, signs: bool = False, secret: str = ""
) -> None:  # fmt: skip
    """Places a step of the coordinator: with the federation's Secret, on any node unless the file restricts it.

    Args:
        task: the step.
        federation: its federation.
        name: its display name.
        secret: of a user of its own, instead of the federation's.
        signs: give it the coordinator's signing key, of `fedpipe enroll --coordinator`, if the Secret has one.
    """
    _name_and_retry(task, name, federation)
    _give_secret(task, federation, secret or federation.secret)
    if signs and federation.secret:
        _give_key(task, federation.secret)
    if federation.tracking.secret and task.component_spec.name in TRACKED:
        _give_optional(task, federation.tracking.secret, TRACKING_KEYS)
    place_on(task, federation.placement_of(task.component_spec.name))


def place_learner(task: dsl.PipelineTask, federation: Federation, learner: LearnerSettings, name: str) -> None:
    """Places a step of a learner: with its own Secret, node pool and resources."""
    _name_and_retry(task, name, federation)
    kubernetes.add_pod_label(task, "fedpipe/learner", learner.name)
    secret = learner.secret or federation.secret
    _give_secret(task, federation, secret)
    if learner.secret:  # `fedpipe enroll` adds the key that signs its updates
        _give_key(task, secret)
    if secret and federation.secure and task.component_spec.name == "learn":
        _give_optional(task, secret, ADMINISTRATOR_KEYS)
    placement = federation.placement_of(task.component_spec.name, learner.name)
    if learner.placement.in_form:
        placement = _place_by_form(task, learner, placement)
    place_on(task, placement)


_FORM: ContextVar[dict[str, Any]] = ContextVar("form")
"""Holds the pipeline's parameters while it is wired; steps look theirs up by the learner's name."""


def form_of_placements(federation: Federation) -> dict[str, Any]:
    """Returns the run-time parameters of the learners with `placement.in_form`, with their defaults."""
    form: dict[str, Any] = {}
    for learner in federation.learners:
        placement, prefix = learner.placement, _prefix(learner.name)
        if not placement.in_form:
            continue
        form[f"{prefix}_node_selector"] = dict(placement.node_selector)
        form[f"{prefix}_tolerations"] = [
            {k: v for k, v in msgspec.to_builtins(toleration).items() if v} for toleration in placement.tolerations
        ]
        if placement.accelerator:
            form[f"{prefix}_accelerator"] = placement.accelerator.type
            form[f"{prefix}_accelerators"] = placement.accelerator.count
    return form


@contextlib.contextmanager
def placed_by(form: dict[str, Any]) -> Iterator[None]:
    """Sets the parameters of `form_of_placements` while a pipeline is wired."""
    token = _FORM.set(form)
    try:
        yield
    finally:
        _FORM.reset(token)


def _prefix(learner: str) -> str:
    name = learner.replace("-", "_")
    return f"learner_{name}" if name[0].isdigit() else name  # a parameter is a Python name


def _place_by_form(task: dsl.PipelineTask, learner: LearnerSettings, placement: Placement) -> Placement:
    """Sets the parts of a learner's placement that are in the form, and returns the rest of it."""
    form, prefix = _FORM.get(), _prefix(learner.name)
    kubernetes.add_node_selector_json(task, form[f"{prefix}_node_selector"])
    kubernetes.add_toleration_json(task, form[f"{prefix}_tolerations"])
    accelerator = placement.accelerator
    if learner.placement.accelerator:  # the accelerator of a kind of step is not a parameter
        task.set_accelerator_type(form[f"{prefix}_accelerator"])
        task.set_accelerator_limit(form[f"{prefix}_accelerators"])
        accelerator = None
    return msgspec.structs.replace(placement, node_selector={}, tolerations=(), accelerator=accelerator)


def place_on(task: dsl.PipelineTask, placement: Placement) -> None:
    """Sets the node pool and resources of a step."""
    for key, value in placement.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in placement.tolerations:
        kubernetes.add_toleration(
            task,
            key=toleration.key or None,
            operator=toleration.operator,
            value=toleration.value or None,
            effect=toleration.effect or None,
        )
    _set_resources(task, placement)
    for affinity in placement.affinity:
        expressions = [msgspec.to_builtins(expression) for expression in affinity.expressions]
        kubernetes.add_node_affinity(task, match_expressions=expressions, weight=affinity.weight or None)
    if placement.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            "shared-memory",
            "/dev/shm",  # noqa: S108  (where shared memory is)
            medium="Memory",
            size_limit=placement.shared_memory,
        )
    if placement.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(placement.pull_secrets))
    for key, value in placement.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in placement.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    if placement.timeout:
        kubernetes.set_timeout(task, placement.timeout)


def _set_resources(task: dsl.PipelineTask, placement: Placement) -> None:
    """Sets limits and requests.

    The methods of a task, such as `set_cpu_limit`, read the source of all callers for an error message: 3 ms a call.
    """
    if placement.accelerator:
        task.set_accelerator_type(placement.accelerator.type).set_accelerator_limit(placement.accelerator.count)
    given = {
        "cpu_limit": placement.cpu, "cpu_request": placement.cpu_request or placement.cpu,
        "memory_limit": placement.memory, "memory_request": placement.memory_request or placement.memory,
    }  # fmt: skip
    if any(given.values()):
        task.container_spec.resources = task.container_spec.resources or structures.ResourceSpec()
    for name, value in given.items():
        if value:
            setattr(task.container_spec.resources, name, value)


def _name_and_retry(task: dsl.PipelineTask, name: str, federation: Federation) -> None:
    task.set_display_name(name)
    kubernetes.add_pod_label(task, "fedpipe/federation", federation.name)
    kubernetes.add_pod_label(task, "fedpipe/step", name.replace(" ", "-"))
    task.set_caching_options(False)  # every step writes to the store
    task.set_retry(num_retries=RETRIES, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration=_LONGEST)


def _give_secret(task: dsl.PipelineTask, federation: Federation, secret: str) -> None:
    """Gives a step its Secret, also for a folder, because `store` is a parameter; then the Secret may be missing."""
    if secret:
        folder = not federation.store_uri.startswith("s3://")
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=SECRET_KEYS, optional=folder)


def _give_key(task: dsl.PipelineTask, secret: str) -> None:
    _give_optional(task, secret, SIGNING_KEYS)


def _give_optional(task: dsl.PipelineTask, secret: str, keys: dict[str, str]) -> None:
    kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=keys, optional=True)
