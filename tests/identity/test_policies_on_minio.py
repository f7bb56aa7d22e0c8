"""A real MinIO decides as the matcher of `test_policies` does, for names that complete or extend patterns."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable

import pytest

from fedpipe.errors import StoreError
from fedpipe.identity.policies import Policy, coordinator_policy, dealer_policy, learner_policy, server_policy
from fedpipe.store import keys
from fedpipe.store.s3 import MinioStore
from fedpipe.store.s3_client import Credentials
from fedpipe.store.users import Users
from tests import servers
from tests.identity.test_policies import DELETE, READ, WRITE, allows, may_list

DIGEST = f"sha256:{'ab' * 32}"
KEYS = [
    keys.HEAD,
    keys.ENROLLED,
    keys.content(DIGEST),
    keys.content(DIGEST, kind="coordinator"),
    keys.record("proposals", 1),
    keys.update("a", "first", 1),
    keys.update("b", "first", 1),
    keys.update("b", "proposals", 1),
    keys.update("proposals", "proposals", 1),
    keys.events("proposals", 999999999, "b"),
    keys.content(DIGEST, "b"),
    keys.content(DIGEST, "b", "proposals"),
    keys.ledger("a-b", 1),
    keys.shard("proposals"),
    f"{keys.MODELS}/{keys.model('enrolled', 1)}",
    "x/runs/first/board",
]


def is_allowed(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreError as error:
        if "AccessDenied" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("party", ["learner", "coordinator", "dealer", "server"])
def test_minio_decides_as_the_matcher(party: str, minio_server: servers.Server, s3_keys: None) -> None:
    prefix = f"policies-{uuid.uuid4().hex[:8]}/d"
    policy: Policy = {
        "learner": learner_policy("tests", prefix, "a"),
        "coordinator": coordinator_policy("tests", prefix),
        "dealer": dealer_policy("tests", prefix),
        "server": server_policy("tests", prefix),
    }[party]
    user = Credentials(f"user-{uuid.uuid4().hex[:8]}", "secret-of-the-user")
    everything = MinioStore("tests", prefix, endpoint=minio_server.endpoint)
    Users(minio_server.uri).put(user, policy)
    own = MinioStore("tests", prefix, endpoint=minio_server.endpoint, credentials=user)
    seen = {}
    for key in KEYS:
        everything.replace(key, b"1")
        seen[key] = (
            is_allowed(lambda key=key: own.read(key)),
            is_allowed(lambda key=key: own.replace(key, b"2")),
            is_allowed(lambda key=key: own.delete(key)),
        )
    known: Policy = {  # the matcher decides for a bucket `b`
        "Statement": [
            statement | {"Resource": [arn.replace("s3:::tests", "s3:::b") for arn in statement["Resource"]]}
            for statement in policy["Statement"]
        ]
    }
    expected = {key: tuple(allows(known, action, key, prefix) for action in (READ, WRITE, DELETE)) for key in KEYS}
    assert seen == expected
    assert len(set(itertools.chain(*seen.values()))) == 2

    for listed in ("", "runs/", "models/", "learners/b/"):
        assert is_allowed(lambda listed=listed: list(own.keys(listed))) == may_list(policy, f"{prefix}/{listed}"), (
            listed
        )
    Users(minio_server.uri).remove(user.access_key)
