"""Names, credentials, node pools and retries of steps."""

from kfp import dsl, kubernetes

from fedpipe.federation import Federation, Learner, Placement
from fedpipe.signing import SIGNING_KEY

SECRET_KEYS = {"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}
"""Keys of the secret (those of KFP's own `mlpipeline-minio-artifact`) and the variables that steps read."""

SIGNING_KEYS = {"signingkey": SIGNING_KEY}

RETRIES = 2


def place_coordinator(task: dsl.PipelineTask, federation: Federation, name: str) -> None:
    """A step of the coordinator: the federation's secret, any node."""
    _name_and_retry(task, name)
    _give_secret(task, federation, federation.secret)


def place_learner(task: dsl.PipelineTask, federation: Federation, learner: Learner, name: str) -> None:
    """A step of a learner: its own secret, its own node pool and resources."""
    _name_and_retry(task, name)
    secret = learner.secret or federation.secret
    _give_secret(task, federation, secret)
    if learner.secret:  # `fedpipe enroll` puts the key there that signs its updates
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=SIGNING_KEYS, optional=True)
    place_on(task, learner.placement)


def place_on(task: dsl.PipelineTask, placement: Placement) -> None:
    """The node pool and resources of a step."""
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
    if placement.accelerator:
        task.set_accelerator_type(placement.accelerator.type).set_accelerator_limit(placement.accelerator.count)
    if placement.cpu:
        task.set_cpu_limit(placement.cpu).set_cpu_request(placement.cpu)
    if placement.memory:
        task.set_memory_limit(placement.memory).set_memory_request(placement.memory)


def _name_and_retry(task: dsl.PipelineTask, name: str) -> None:
    task.set_display_name(name)
    task.set_caching_options(False)  # every step writes to the store
    task.set_retry(num_retries=RETRIES, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration="120s")


def _give_secret(task: dsl.PipelineTask, federation: Federation, secret: str) -> None:
    if federation.store_uri.startswith("s3://"):
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=SECRET_KEYS)
