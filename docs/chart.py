"""Writes helm/fedpipe/README.md from values.yaml and its comments; `--check` fails when it is out of date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from pages import generate

CHART = Path(__file__).parents[1] / "helm" / "fedpipe"
PAGE = CHART / "README.md"
HEAD = """# The chart `fedpipe`

The chart serves the models that a federation has accepted ([docs/serving.md](../../docs/serving.md)). It installs a
Deployment with probes, HorizontalPodAutoscaler, PodDisruptionBudget, NetworkPolicy and ServiceMonitor, or KServe's
ServingRuntime and InferenceService.

With `federation.name` it also installs the objects that runs of a federation need in their namespace
([docs/kubeflow.md](../../docs/kubeflow.md)). These are accounts and Secrets of learners, a Role for operators, a
NetworkPolicy for all steps, a quota and priority classes. Two more are off by default: a Job that makes bucket and
users, and a MinIO for a trial.

Pods fit Pod Security's level `restricted`. The chart is made for Kubernetes 1.29 and newer, and tested on 1.34. This
page is generated from `values.yaml` (`make docs`).

```sh
kubectl -n ml create secret generic store --from-literal=accesskey=... --from-literal=secretkey=...
helm -n ml install prod helm/fedpipe --set store.existingSecret=store \\
  --set 'store.uri=s3://bucket/prefix/NAME?endpoint=http://minio.minio.svc:9000'
helm -n ml test prod
```

Clients need a token, which the chart makes and an upgrade keeps: `helm status prod` shows how to read it. Where
templates are rendered without a cluster, make a Secret and name it in `serving.tokenSecret`.

NetworkPolicies open only what they name. The store is named by the endpoint in `store.uri`, if that is a service of the
cluster or an address. Name any other in `egress.store`: `--set 'egress.store[0].ipBlock.cidr=192.0.2.0/24'`.

The key in the Secret needs to read `NAME/models/*` and to list the bucket below it, nothing else. On MinIO, the chart
makes that user itself: `--set bucket.enabled=true,bucket.adminSecret=...,bucket.serverSecret=store`.

For the learners, in the namespace where Kubeflow runs their pods:

```sh
helm -n kubeflow install digits helm/fedpipe --set serving.enabled=false,federation.name=digits \\
  --set 'store.uri=s3://bucket/prefix/digits?endpoint=http://minio.minio.svc:9000' \\
  --set 'federation.learners[0].name=hospital-a,federation.learners[0].secret=fedpipe-digits-hospital-a'
```

| value | default | meaning |
| --- | --- | --- |
"""


def rows() -> Iterator[str]:
    """Yield a row for each value, in the order of the file."""
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    section = ""
    for line in text.splitlines():
        found = re.fullmatch(r"( *)([A-Za-z]+):([^#]*)(?:#\s*(.*))?", line)
        if not found:
            continue
        indent, key, _, comment = found.groups()
        section = key if not indent else section
        value = values[section]
        if indent:
            value = value[key]
        elif isinstance(value, dict) and value:
            continue
        name = f"{section}.{key}" if indent else key
        shown = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
        yield f"| `{name}` | `{shown}` | {comment or ''} |"


if __name__ == "__main__":
    generate(PAGE, HEAD + "\n".join(rows()) + "\n")
