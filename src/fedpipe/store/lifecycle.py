"""Sets the one lifecycle rule that is safe for a federation: the end of old versions, in a bucket with versions.

Current objects have no age at which they may go: `fedpipe prune` decides by what needs them.
"""

from __future__ import annotations

from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import LifecycleConfig, NoncurrentVersionExpiration, Rule

from fedpipe.errors import InputError
from fedpipe.store.s3 import MinioStore


def expire_old_versions(store: MinioStore, days: int) -> None:
    """Removes versions below the store's prefix so many days after they were replaced or deleted.

    Other rules of the bucket stay as they are.

    Args:
        store: the federation's part of a bucket.
        days: from 1.

    Raises:
        InputError: there are fewer days.
        StoreError: the store refuses, or has no lifecycle rules.
    """
    if days < 1:
        raise InputError(f"{days} is not a number of days", where="noncurrent-days", remedy="Use 1 or more.")
    prefix = f"{store._prefix}/"
    rule = Rule(
        ENABLED, rule_filter=Filter(prefix=prefix), rule_id=f"fedpipe {prefix}"[:255],
        noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=days),
    )  # fmt: skip

    def call() -> None:
        known = store._client.get_bucket_lifecycle(store._bucket)
        others = [one for one in (known.rules if known else ()) if one.rule_id != rule.rule_id]
        store._client.set_bucket_lifecycle(store._bucket, LifecycleConfig([*others, rule]))

    store._retried(call, "")
