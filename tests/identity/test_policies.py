"""The policies grant what the table of keys says, and nothing else. A real MinIO enforces them in `tests/commands`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe.errors import InputError
from fedpipe.identity.policies import (
    Policy,
    check_prefix,
    coordinator_policy,
    dealer_policy,
    learner_policy,
    server_policy,
)
from fedpipe.steps.shard import run_name
from fedpipe.store import access, keys
from tests.spelled import DIGESTS, KEYS, NAMES, ROUNDS, row_of

READ, WRITE, DELETE = "s3:GetObject", "s3:PutObject", "s3:DeleteObject"


def s3_matches(pattern: str, text: str) -> bool:
    """Decides as S3 and MinIO do: `*` is any text, also with `/`, `?` is one character, all others are themselves."""
    reached = {0}
    for sign in pattern:
        if sign == "*":
            reached = set(range(min(reached), len(text) + 1)) if reached else set()
        else:
            reached = {at + 1 for at in reached if at < len(text) and sign in ("?", text[at])}
    return len(text) in reached


def allows(policy: Policy, action: str, key: str, prefix: str = "h/d") -> bool:
    """Decides as S3 does: a denial comes first."""
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if action in statement["Action"]
        and any(s3_matches(resource, f"arn:aws:s3:::b/{prefix}/{key}") for resource in statement["Resource"])
    }
    return effects == {"Allow"}


def may_list(policy: Policy, prefix: str) -> bool:
    """Whether a request for the keys with this beginning is allowed."""
    patterns = [
        pattern
        for statement in policy["Statement"]
        if "s3:ListBucket" in statement["Action"]
        for pattern in statement["Condition"]["StringLike"]["s3:prefix"]
    ]
    return any(s3_matches(pattern, prefix) for pattern in patterns)


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
    assert allows(learner, DELETE, key) == (own and "/parcels/" in key)

    assert allows(server, READ, key) == ("server" in readers)
    assert not allows(server, WRITE, key)
    assert not allows(server, DELETE, key)

    assert allows(coordinator, READ, key) == ("coordinator" in readers)
    assert allows(coordinator, WRITE, key) == ("coordinator" in writers or "dealer" in writers)
    assert allows(coordinator, DELETE, key) == ("coordinator" in writers)

    relieved, dealer = coordinator_policy("b", "h/d", deals=False), dealer_policy("b", "h/d")
    assert allows(relieved, WRITE, key) == ("coordinator" in writers)
    assert allows(relieved, READ, key) == ("coordinator" in readers)
    if key.startswith("learners/"):
        assert allows(dealer, WRITE, key) == allows(dealer, READ, key) == ("dealer" in writers)
        assert not allows(dealer, DELETE, key)


@settings(max_examples=300)
@given(st.data())
def test_no_name_lets_the_coordinator_write_for_a_learner(data: st.DataObject) -> None:
    """Nor read its ledger: any names, numbers and event files."""
    name, run, number = data.draw(NAMES), data.draw(NAMES), data.draw(ROUNDS)
    theirs = [
        keys.ledger(name, number), keys.sign(name, run), keys.score(name, run), keys.update(name, run, number),
        keys.ballot(name, run, number), keys.statistics(name, run), keys.timing(run, number, run, name),
        keys.answer(name, run, number, keys.note("dropped", number + 1)),
        keys.content(data.draw(DIGESTS), name, "proposals"),
    ]  # fmt: skip
    for deals in (True, False):
        policy = coordinator_policy("b", "h/d", deals=deals)
        for key in theirs:
            assert not allows(policy, WRITE, key), key
            assert not allows(policy, DELETE, key), key
        assert not allows(policy, READ, theirs[0])
    for key in theirs:
        assert not allows(dealer_policy("b", "h/d"), WRITE, key), key
    assert not allows(dealer_policy("b", "h/d"), READ, theirs[0])


@pytest.mark.parametrize("key", ["objects/x", "learners/b/shard", "HEAD"])
def test_no_policy_reaches_another_federation(key: str) -> None:
    for policy in policies("a"):
        for action in (READ, WRITE, DELETE):
            assert not allows(policy, action, key, "h/digits")
            assert not allows(policy, action, key, "h")


def test_the_matcher_of_these_tests_is_that_of_s3() -> None:
    for pattern, text, expected in (
        ("a/*/c", "a/b/b/c", True), ("a/*/c", "a//c", True), ("a/*/c", "a/c", False), ("a?c", "a/c", True),
        ("a?", "a", False), ("*", "", True), ("[ab]", "a", False), ("a*b*c", "axxbc", True), ("a*b", "abx", False),
    ):  # fmt: skip
        assert s3_matches(pattern, text) == expected, (pattern, text)


def test_a_run_cannot_have_a_name_that_opened_updates_to_other_learners() -> None:
    """Policies that were made before have the pattern `learners/*/proposals/*`, so the name stays reserved."""
    assert s3_matches("learners/*/proposals/*", keys.update("b", "proposals", 1))
    assert not allows(policies("a")[0], READ, keys.update("b", "proposals", 1))
    with pytest.raises(InputError, match="'proposals' is reserved"):
        run_name("proposals", "")


@settings(max_examples=300)
@given(st.data())
def test_no_name_opens_the_objects_of_another_learner(data: st.DataObject) -> None:
    """Even names that are reserved, numbers of any length, and any event file."""
    own, other, run = data.draw(NAMES), data.draw(NAMES), data.draw(NAMES)
    if own == other:
        other = f"x{other[:38]}"
    number = data.draw(ROUNDS)
    policy, theirs = learner_policy("b", "h/d", own), [
        keys.shard(other), keys.ledger(other, number), keys.sign(other, run), keys.score(other, run),
        keys.update(other, run, number), keys.ballot(other, run, number), keys.timing(run, number, run, other),
        keys.events(run, number, other), keys.content(data.draw(DIGESTS), other),
        keys.answer(other, run, number, keys.note(run, number + 1)),
    ]  # fmt: skip
    for key in theirs:
        for action in (READ, WRITE, DELETE):
            assert not allows(policy, action, key), key
    proposal = keys.content(data.draw(DIGESTS), other, "proposals")
    assert allows(policy, READ, proposal)
    assert not allows(policy, WRITE, proposal)


SEGMENTS = st.sampled_from(["h", "d", "runs", "learners", "models", "objects", "HEAD", "enrolled", "probe-d"]) | NAMES
PREFIXES = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)


def is_refused(prefix: str) -> bool:
    try:
        check_prefix("b", prefix)
    except InputError:
        return True
    return False


@settings(max_examples=300)
@given(data=st.data(), first=PREFIXES, second=PREFIXES)
def test_no_name_of_a_federation_opens_another_one(data: st.DataObject, first: str, second: str) -> None:
    if is_refused(first) or is_refused(second) or first == second:
        return
    name, key = data.draw(NAMES), data.draw(st.one_of(*KEYS.values()))
    for policy in (learner_policy("b", first, name), coordinator_policy("b", first), server_policy("b", first)):
        for action in (READ, WRITE, DELETE):
            assert not allows(policy, action, key, second), (first, second, key)
        assert not may_list(policy, f"{second}/{key}")


@pytest.mark.parametrize(
    "prefix",
    ["h/d/runs", "h/d/runs/x", "h/d/learners/a", "h/models", "h/coordinator/d", "h/probe-d", "h/HEAD", "h/enrolled/d",
     "h/*", "h/d?", "h/${aws:username}", "h//d", "h/d ", "../d", "h/", ""],
)  # fmt: skip
def test_a_prefix_that_would_open_a_federation(prefix: str) -> None:
    for policy in (lambda: learner_policy("b", prefix, "a"), lambda: coordinator_policy("b", prefix),
                   lambda: server_policy("b", prefix)):  # fmt: skip
        with pytest.raises(InputError, match=r"s3://b/.*(inside the folder|characters)"):
            policy()


@pytest.mark.parametrize("prefix", ["d", "runs", "models/d", "hospitals/digits", "a/b/c-1/d", "run/d", "probe/d"])
def test_a_prefix_of_its_own(prefix: str) -> None:
    assert not is_refused(prefix)


@pytest.mark.parametrize("name", ["*", "a*", "?", "", "a/b", "../a", "${aws:username}", "a" * 41])
def test_a_learner_whose_name_would_be_a_pattern(name: str) -> None:
    with pytest.raises(InputError, match="is not a safe name"):
        learner_policy("b", "h/d", name)


def test_a_row_for_which_no_pattern_is_safe() -> None:
    row = next(row for row in access.TABLE if row.pattern.endswith("/update"))
    with pytest.raises(ValueError, match="no pattern of a policy fits"):
        _ = row.wildcard


def test_the_patterns_as_they_are() -> None:
    def resources(policy: Policy) -> list[list[str]]:
        return [statement["Resource"] for statement in policy["Statement"]]

    learner, coordinator, server = policies("a")
    at = "arn:aws:s3:::b/h/d/"
    digest = "?" * 64
    readable = [at + key for key in ("objects/*", "runs/*", f"learners/*/proposals/{digest}",
                                       f"learners/*/parcels/{digest}", "enrolled", "roster", "learners/a/*")]  # fmt: skip
    sent = [f"{at}learners/a/parcels/{digest}"]
    assert resources(learner) == [readable, [f"{at}learners/a/*"], sent, ["arn:aws:s3:::b"]]
    own = ["HEAD", "probe-*", "pruning", "catalogue", "objects/*", "coordinator/*", "runs/*", "models/*"]
    dealt = ["learners/*/shard", f"learners/*/objects/{digest}"]
    seen = ["enrolled", "roster", *dealt, f"learners/*/proposals/{digest}", "learners/*/runs/*", "datasets/*"]
    assert resources(coordinator)[:4] == [
        [at + key for key in own], [at + key for key in seen], [f"{at}enrolled", f"{at}joining/*", f"{at}roster"],
        [at + key for key in dealt],
    ]  # fmt: skip
    assert [statement["Effect"] for statement in coordinator["Statement"]][:3] == ["Allow", "Allow", "Deny"]
    assert resources(server)[0] == [f"{at}models/*", f"{at}enrolled"]
    assert server["Statement"][1]["Condition"] == {"StringLike": {"s3:prefix": ["h/d/models/*", "h/d/enrolled"]}}
    assert may_list(coordinator, "h/d/")
    assert may_list(coordinator, "h/d/runs/x/")
    assert not may_list(coordinator, "h/")
    assert not may_list(learner, "h/d/learners/a/")
