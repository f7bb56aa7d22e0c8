"""Writes the pages of the charts from values.yaml and its comments; `--check` fails when one is out of date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from pages import generate

CHARTS = Path(__file__).parents[1] / "helm"
SERVER = """# The chart `fedpipe`

The chart serves the models that a federation has accepted ([docs/serving.md](../../docs/serving.md)). It installs a
Deployment with probes, HorizontalPodAutoscaler, PodDisruptionBudget, NetworkPolicy and ServiceMonitor, or KServe's
ServingRuntime and InferenceService.

With `federation.name` it also installs the objects that runs of a federation need in their namespace
([docs/kubeflow.md](../../docs/kubeflow.md)). These are accounts and Secrets of learners, a Role for operators, a
NetworkPolicy for all steps, a quota and priority classes. Three more are off by default: a Job that makes bucket and
users, a registrar, and a MinIO for a trial. A registrar accepts [invited sites](../../docs/identities.md#sites).

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

A registrar has the key of the federation's administrator, and keys of the store's administrator:

```sh
kubectl -n kubeflow create secret generic administrator \\
  --from-file=keys/_administrator.key --from-file=keys/_administrator.pub
helm -n kubeflow upgrade digits helm/fedpipe --reuse-values --set registrar.enabled=true \\
  --set registrar.storeSecret=admin,registrar.administratorSecret=administrator \\
  --set-file registrar.federation=federation.yaml
```

| value | default | meaning |
| --- | --- | --- |
"""


SITE = """# The chart `fedpipe-site`

The chart runs the agent of a [site](../../docs/sites.md) on its owner's own Kubernetes. It has a Deployment of one pod
and a claim for its keys and journal. A NetworkPolicy lets out the store and DNS only. The pod fits Pod Security's level
`restricted`. It is made for Kubernetes 1.29 and newer. This page is generated from `values.yaml` (`make docs`).

```sh
helm -n site install hospital-b helm/fedpipe-site --set-file invitation=hospital-b.invitation.yaml \\
  --set data.claim=patients,site.policy.data=/data/patients.npz --set 'egress.store[0].ipBlock.cidr=192.0.2.7/32'
```

An init container joins the federation, with a key that is made in the pod and kept in the claim. It does nothing once
the site has joined. `site.yaml` consists of `site` and of the words of the invitation, which it may not contradict.

| value | default | meaning |
| --- | --- | --- |
"""
HEADS = {"fedpipe": SERVER, "fedpipe-site": SITE}


def rows(chart: Path) -> Iterator[str]:
    """Yield a row for each value, in the order of the file."""
    text = (chart / "values.yaml").read_text()
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
    for name, head in HEADS.items():
        generate(CHARTS / name / "README.md", head + "\n".join(rows(CHARTS / name)) + "\n")
