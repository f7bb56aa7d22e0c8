"""The policies grant what the table of keys says, and nothing else. A real MinIO enforces them in `tests/commands`."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe.errors import InputError
from fedpipe.identity.policies import Policy, coordinator_policy, learner_policy, server_policy
from fedpipe.steps.shard import run_name
from fedpipe.store import keys
from tests.spelled import KEYS, NAMES, row_of

READ, WRITE, DELETE = "s3:GetObject", "s3:PutObject", "s3:DeleteObject"


def allows(policy: Policy, action: str, key: str, prefix: str = "h/d") -> bool:
    """Decides as S3 does: `*` stands for any text, and a denial comes first."""
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if action in statement["Action"]
        and any(fnmatchcase(f"arn:aws:s3:::b/{prefix}/{key}", resource) for resource in statement["Resource"])
    }
    return effects == {"Allow"}


def policies(learner: str) -> tuple[Policy, Policy, Policy]:
    return learner_policy("b", "h/d", learner), coordinator_policy("b", "h/d"), server_policy("b", "h/d")


def owner_of(key: str) -> str:
    return key.split("/")[1] if key.startswith("learners/") else ""


@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=30)
@given(data=st.data())
def test_the_policies_grant_what_the_table_says(kind: str, data: st.DataObject) -> None:
    name, key = data.draw(NAMES), data.draw(KEYS[kind])
    writers, readers = row_of(key).access
    own = owner_of(key) == name
    learner, coordinator, server = policies(name)

    assert allows(learner, WRITE, key) == (own and "owner" in writers)
    assert allows(learner, READ, key) == ("learners" in readers or (own and "owner" in readers))
    assert not allows(learner, DELETE, key)

    assert allows(server, READ, key) == ("server" in readers)
    assert not allows(server, WRITE, key)
    assert not allows(server, DELETE, key)

    assert "coordinator" in readers
    assert allows(coordinator, READ, key)
    assert allows(coordinator, WRITE, key) == ("administrator" not in writers)
    assert allows(coordinator, DELETE, key) == ("administrator" not in writers)


@pytest.mark.parametrize("key", ["objects/x", "learners/b/shard", "HEAD"])
def test_no_policy_reaches_another_federation(key: str) -> None:
    for policy in policies("a"):
        for action in (READ, WRITE, DELETE):
            assert not allows(policy, action, key, "h/digits")
            assert not allows(policy, action, key, "h")


def test_a_run_cannot_have_a_name_that_would_open_updates_to_other_learners() -> None:
    assert allows(policies("a")[0], READ, keys.update("b", "proposals", 1))
    with pytest.raises(InputError, match="'proposals' is reserved"):
        run_name("proposals", "")


def test_identities_that_were_made_before_need_no_new_policy() -> None:
    def resources(policy: Policy) -> list[list[str]]:
        return [statement["Resource"] for statement in policy["Statement"]]

    learner, coordinator, server = policies("a")
    at = "arn:aws:s3:::b/h/d/"
    readable = [at + key for key in ("objects/*", "runs/*", "learners/*/proposals/*", "learners/a/*")]
    assert resources(learner) == [readable, [f"{at}learners/a/*"], ["arn:aws:s3:::b"]]
    assert resources(coordinator)[:2] == [[f"{at}*"], [f"{at}enrolled"]]
    assert resources(server)[0] == [f"{at}models/*", f"{at}enrolled"]
    assert server["Statement"][1]["Condition"] == {"StringLike": {"s3:prefix": ["h/d/models/*", "h/d/enrolled"]}}
