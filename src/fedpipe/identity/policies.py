"""What each identity may do in an S3 store, as policies of S3.

    learner       reads the global objects, the runs and proposals; writes below `learners/<name>/`; lists nothing
    coordinator   does everything below the federation's prefix, but says not who is enrolled
    server        reads and lists the exported models, and reads who is enrolled

The coordinator's own objects (`coordinator/`) and other learners' shards and updates are out of a learner's reach.
"""

from __future__ import annotations

from typing import Any

READ = ("s3:GetObject",)
WRITE = ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")

Policy = dict[str, Any]


def learner_policy(bucket: str, prefix: str, learner: str) -> Policy:
    """What a learner needs.

    Args:
        bucket: of the store.
        prefix: of the federation in the bucket, such as `hospitals/digits`.
        learner: its name.
    """
    return _policy(
        _allow(READ, bucket, prefix, "objects/*", "runs/*", "learners/*/proposals/*", f"learners/{learner}/*"),
        _allow(WRITE, bucket, prefix, f"learners/{learner}/*"),
        _located(bucket),
    )


def coordinator_policy(bucket: str, prefix: str) -> Policy:
    """What the coordinator's steps need."""
    return _policy(
        _allow((*READ, *WRITE, "s3:DeleteObject"), bucket, prefix, "*"),
        _allow(("s3:PutObject", "s3:DeleteObject"), bucket, prefix, "enrolled") | {"Effect": "Deny"},
        _listed(bucket, f"{prefix}/*"),
        _located(bucket),
    )


def server_policy(bucket: str, prefix: str) -> Policy:
    """What `fedpipe serve` needs: it looks for models of any name, and checks who signed them."""
    return _policy(
        _allow(READ, bucket, prefix, "models/*", "enrolled"),
        _listed(bucket, f"{prefix}/models/*", f"{prefix}/enrolled"),
        _located(bucket),
    )


def _policy(*statements: Policy) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(actions: tuple[str, ...], bucket: str, prefix: str, *keys: str) -> Policy:
    resources = [f"arn:aws:s3:::{bucket}/{prefix}/{key}" for key in keys]
    return {"Effect": "Allow", "Action": list(actions), "Resource": resources}


def _listed(bucket: str, *prefixes: str) -> Policy:
    return {
        "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{bucket}"],
        "Condition": {"StringLike": {"s3:prefix": list(prefixes)}},
    }  # fmt: skip


def _located(bucket: str) -> Policy:
    return {"Effect": "Allow", "Action": ["s3:GetBucketLocation"], "Resource": [f"arn:aws:s3:::{bucket}"]}
