"""The permissions of each identity in an S3 store, as S3 policies made from `fedpipe.store.keys.TABLE`.

    learner       reads the global objects, the runs and all proposals; writes below `learners/<name>/`; lists nothing
    coordinator   does everything below the federation's prefix, but does not change who is enrolled
    server        reads and lists the published models, and reads who is enrolled

A policy names folders instead of single keys, so that it stays valid when a later version adds a key to one of them.
The tests check that no folder grants more than the table.
"""

from __future__ import annotations

import re
from typing import Any

from fedpipe.store import keys

READ = ("s3:GetObject",)
WRITE = ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")

Policy = dict[str, Any]


def learner_policy(bucket: str, prefix: str, learner: str) -> Policy:
    """Returns the policy of a learner.

    Args:
        bucket: of the store.
        prefix: of the federation in the bucket, such as `hospitals/digits`.
        learner: its name.
    """
    own = f"{keys.learner_folder(learner)}*"
    return _policy(
        _allow(READ, bucket, prefix, *_readable("learners"), own),
        _allow(WRITE, bucket, prefix, own),
        _located(bucket),
    )


def coordinator_policy(bucket: str, prefix: str) -> Policy:
    """Returns the policy of the coordinator's steps."""
    forbidden = [row.pattern for row in keys.TABLE if "administrator" in row.access.writers]
    return _policy(
        _allow((*READ, *WRITE, "s3:DeleteObject"), bucket, prefix, "*"),
        _allow(("s3:PutObject", "s3:DeleteObject"), bucket, prefix, *forbidden) | {"Effect": "Deny"},
        _listed(bucket, f"{prefix}/*"),
        _located(bucket),
    )


def server_policy(bucket: str, prefix: str) -> Policy:
    """Returns the policy of `fedpipe serve`, which looks for models of any name and checks who signed them."""
    folders = _readable("server")
    return _policy(
        _allow(READ, bucket, prefix, *folders),
        _listed(bucket, *(f"{prefix}/{folder}" for folder in folders)),
        _located(bucket),
    )


def _readable(party: keys.Party) -> list[str]:
    """Returns the folders that a party may read, each once: `runs/*` for `runs/<run>/board`."""
    patterns = (row.pattern.replace("<learner>", "*") for row in keys.TABLE if party in row.access.readers)
    return list(dict.fromkeys(re.sub("<.*", "*", pattern) for pattern in patterns))


def _policy(*statements: Policy) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(actions: tuple[str, ...], bucket: str, prefix: str, *resources: str) -> Policy:
    named = [f"arn:aws:s3:::{bucket}/{prefix}/{resource}" for resource in resources]
    return {"Effect": "Allow", "Action": list(actions), "Resource": named}


def _listed(bucket: str, *prefixes: str) -> Policy:
    return {
        "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{bucket}"],
        "Condition": {"StringLike": {"s3:prefix": list(prefixes)}},
    }  # fmt: skip


def _located(bucket: str) -> Policy:
    return {"Effect": "Allow", "Action": ["s3:GetBucketLocation"], "Resource": [f"arn:aws:s3:::{bucket}"]}
