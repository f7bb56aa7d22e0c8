"""The permissions of each identity in an S3 store, as S3 policies made from `fedpipe.store.access.TABLE`.

    learner       reads the global objects, the runs, all proposals and parcels, and who is enrolled; writes below
                  `learners/<name>/`, and removes its parcels there; lists nothing
    coordinator   does everything in the federation's folders, apart from `learners/` and `enrolled`: there it reads
                  what learners publish, but no ledger. Unless there is a dealer, it reads `datasets/` and deals shards
    dealer        reads `datasets/`, deals shards, and writes what the shard step notes about them
    server        reads and lists the published models, and reads who is enrolled

A policy names folders instead of single keys, so that it stays valid when a later version adds a key to one of them.
The tests check, for any allowed names, that no policy grants more than the table, or anything of another federation.
"""

from __future__ import annotations

import re
from typing import Any

from fedpipe.errors import InputError, StoreError
from fedpipe.federation.names import SAFE_NAME
from fedpipe.store import access, keys
from fedpipe.store.base import check_key

READ = ("s3:GetObject",)
WRITE = ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")

Policy = dict[str, Any]


def learner_policy(bucket: str, prefix: str, learner: str) -> Policy:
    """Returns the policy of a learner.

    Args:
        bucket: of the store.
        prefix: of the federation in the bucket, such as `hospitals/digits`.
        learner: its name.

    Raises:
        InputError: the prefix is not safe in a policy (`check_prefix`).
    """
    check_prefix(bucket, prefix)
    if not re.fullmatch(SAFE_NAME, learner):
        raise InputError(f"{learner!r} is not a safe name", where="learner", remedy="Use the name of a learner.")
    own = f"{keys.learner_folder(learner)}*"
    return _policy(
        _allow(READ, bucket, prefix, *_readable("learners"), own),
        _allow(WRITE, bucket, prefix, own),
        _allow(("s3:DeleteObject",), bucket, prefix, keys.parcel(learner, "?" * 64)),
        _located(bucket),
    )


def coordinator_policy(bucket: str, prefix: str, *, deals: bool = True) -> Policy:
    """Returns the policy of the coordinator's steps.

    Args:
        bucket: of the store.
        prefix: of the federation in the bucket.
        deals: whether it deals shards too; a dealer has a user of its own otherwise.

    Raises:
        InputError: as `learner_policy`.
    """
    check_prefix(bucket, prefix)
    forbidden = list(dict.fromkeys(row.folder for row in access.TABLE if "administrator" in row.access.writers))
    shown = [row.folder for row in access.TABLE if row.folder in forbidden and "coordinator" in row.access.readers]
    folders = [folder for folder in access.FOLDERS if folder not in forbidden]
    own = [folder for folder in folders if folder != _LEARNERS]
    return _policy(
        _allow((*READ, *WRITE, "s3:DeleteObject"), bucket, prefix, *own),
        _allow(READ, bucket, prefix, *shown, *_PUBLISHED, *([keys.DATASETS] if deals else [])),
        _allow(("s3:PutObject", "s3:DeleteObject"), bucket, prefix, *forbidden) | {"Effect": "Deny"},
        *([_allow(WRITE, bucket, prefix, *_DEALT)] if deals else []),
        _listed(bucket, f"{prefix}/", *(f"{prefix}/{folder}" for folder in folders)),
        _located(bucket),
    )


def dealer_policy(bucket: str, prefix: str) -> Policy:
    """Returns the policy of the step that deals shards, if it has a user of its own. Raises as `learner_policy`."""
    check_prefix(bucket, prefix)
    return _policy(
        _allow(READ, bucket, prefix, keys.DATASETS, *_DEALT, "objects/*", "runs/*", keys.PRUNING, keys.CATALOGUE),
        _allow(WRITE, bucket, prefix, *_DEALT, "objects/*", "runs/*/shards", *_NOTED, keys.CATALOGUE),
        _allow(("s3:DeleteObject",), bucket, prefix, "runs/*/shards"),
        _located(bucket),
    )


_LEARNERS = "learners/*"
_NOTED = ("runs/*/shard.time", "runs/*/shard.*.results", "runs/*/shard.pulse")
"""The keys by which the shard step shows what it does."""
_DEALT = ("learners/*/shard", f"learners/*/objects/{'?' * 64}")
"""The keys that the shard step writes for learners. Objects have the names of their content, which readers check."""
_PUBLISHED = (*_DEALT, f"learners/*/proposals/{'?' * 64}", "learners/*/runs/*")
"""The keys of learners that the coordinator reads: all but their ledgers."""


def server_policy(bucket: str, prefix: str) -> Policy:
    """Returns the policy of `fedpipe serve`, which looks for models of any name and checks who signed them.

    Raises:
        InputError: the prefix is not safe in a policy (`check_prefix`).
    """
    check_prefix(bucket, prefix)
    folders = _readable("server")
    return _policy(
        _allow(READ, bucket, prefix, *folders),
        _listed(bucket, *(f"{prefix}/{folder}" for folder in folders)),
        _located(bucket),
    )


def _readable(party: access.Party) -> list[str]:
    """Returns the patterns of the keys that a party may read, each once: `runs/*` for `runs/<run>/board`."""
    return list(dict.fromkeys(row.wildcard for row in access.TABLE if party in row.access.readers))


def check_prefix(bucket: str, prefix: str) -> None:
    """Checks that a federation's prefix cannot mean, in policies, keys of another federation.

    Args:
        bucket: of the store.
        prefix: of the federation in the bucket; its last segment is the federation's name.

    Raises:
        InputError: it contains wildcards, or it can be a part of another federation: of `h/d` for `h/d/runs/x`, because
            all learners of `h/d` read `h/d/runs/*`.
    """
    where = f"s3://{bucket}/{prefix}"
    try:
        check_key(prefix)
    except StoreError as error:
        raise InputError(
            "the prefix contains characters that a policy would not take as they are",
            where=where,
            remedy="Use only letters, digits, '_', '.', '-' and '/', without empty parts.",
        ) from error
    segments = prefix.split("/")
    for position, segment in enumerate(segments[1:], 1):
        if access.is_taken(segment):
            outer = "/".join(segments[:position])
            raise InputError(
                f"the federation would be inside the folder {segment!r} of a federation at s3://{bucket}/{outer}, "
                "whose members have rights there",
                where=where,
                remedy="Choose another prefix or another name of the federation.",
            )


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
