"""A compiled pipeline as Jobs of a real Kubernetes: what Kubeflow's backend would make of it, without Kubeflow.

Each task becomes a Job with exactly the compiled container: image, command and arguments with the executor input, and
the pod settings of kfp-kubernetes. As KFP does, pods run without capabilities and under RuntimeDefault; the root is
read-only besides. Not covered without a KFP backend: its driver and launcher, the metadata store, artifacts, the UI.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from fedpipe.compiled.graph import Graph, Task, fill_command, parse_graph, resolve

OUTPUT = "/tmp/outputs/executor_output.json"
MARK = "== executor output =="
# As KFP's launcher does it: run the command, then hand over what it wrote.
LAUNCHER = f'"$@"; code=$?; [ ! -f {OUTPUT} ] || {{ echo; echo "{MARK}"; cat {OUTPUT}; }}; exit $code'
RESTRICTED = {
    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
}  # fmt: skip


class FailedError(Exception):
    """A step's Job failed; the message has its log."""


class Pipeline:
    """A compiled pipeline, run as Jobs in a namespace.

    Args:
        api: of the cluster.
        namespace: where the Jobs are made.
        path: the compiled pipeline.
        run: what stands in the label `pipeline/runid`.
        before: what is done to each Job's manifest before it is made.
    """

    def __init__(
        self, api: client.ApiClient, namespace: str, path: Path, run: str, *,
        before: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._core, self._batch = client.CoreV1Api(api), client.BatchV1Api(api)
        spec, platform = [*yaml.safe_load_all(path.read_text()), {}][:2]
        self.graph: Graph = parse_graph(spec)
        self._executors = spec["deploymentSpec"]["executors"]
        self._components = spec["components"]
        self._settings = (
            platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
        )
        self._tasks = spec["root"]["dag"]["tasks"]
        self._namespace, self._run, self._before = namespace, run, before

    def run(self, parameters: Mapping[str, Any], *, until: str = "", seconds: float = 600) -> dict[str, dict[str, Any]]:
        """Runs all tasks, each when those before it are done; returns their outputs by task.

        Args:
            parameters: of the pipeline, over its defaults.
            until: the step after which nothing new begins.
            seconds: how long a task may take.
        """
        given = {**self.graph.parameters, **parameters}
        results: dict[str, dict[str, Any]] = {}
        left = {task.key: task for task in self.graph.tasks}
        with ThreadPoolExecutor(16) as pool:
            going: dict[Future[dict[str, Any]], Task] = {}
            while left or going:
                for task in [t for t in left.values() if t.after <= results.keys()]:
                    del left[task.key]
                    inputs = resolve(task, given, results, self._run)
                    going[pool.submit(self._one, task, inputs, seconds)] = task
                for future in wait(going, return_when=FIRST_COMPLETED).done:
                    task = going.pop(future)
                    results[task.key] = future.result()
                    if until and task.step == until:
                        left.clear()
        return results

    def _one(self, task: Task, inputs: dict[str, Any], seconds: float) -> dict[str, Any]:
        name = self.create(task, inputs)
        return self.result(name, seconds)

    def create(self, task: Task, inputs: dict[str, Any]) -> str:
        """Makes the Job of a task, and returns its name."""
        body = self.manifest(task, inputs)
        self._before(body)
        self._batch.create_namespaced_job(self._namespace, body)
        return str(body["metadata"]["name"])

    def manifest(self, task: Task, inputs: dict[str, Any]) -> dict[str, Any]:
        """The Job of a task."""
        executor_input = {"inputs": inputs, "outputs": self._outputs(task)}
        label = self._components[self._tasks[task.key]["componentRef"]["name"]]["executorLabel"]
        compiled, settings = self._executors[label]["container"], self._settings.get(label, {})
        command = [fill_command(part, executor_input) for part in (*task.command, *task.arguments)]
        volumes = [{"name": "tmp", "emptyDir": {}}]
        mounts = [{"name": "tmp", "mountPath": "/tmp"}]
        for mount in settings.get("emptyDirMounts", ()):
            volume = {"medium": mount.get("medium", ""), "sizeLimit": mount.get("sizeLimit")}
            volumes.append({"name": mount["volumeName"], "emptyDir": volume})
            mounts.append({"name": mount["volumeName"], "mountPath": mount["mountPath"]})
        metadata = settings.get("podMetadata", {})
        name = re.sub(r"[^a-z0-9-]", "-", f"{self._run}-{task.key}")[:60].strip("-")
        pod = {
            "restartPolicy": "Never", "automountServiceAccountToken": False,
            "nodeSelector": settings.get("nodeSelector", {}).get("labels", {}),
            "affinity": _affinity(settings.get("nodeAffinity", ())),
            "tolerations": settings.get("tolerations", []),
            "imagePullSecrets": [{"name": s["secretName"]} for s in settings.get("imagePullSecret", ())],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": volumes,
            "containers": [{
                "name": "main", "image": compiled["image"], "command": ["sh", "-c", LAUNCHER, "sh"], "args": command,
                "imagePullPolicy": "IfNotPresent",
                "env": list(_environment(settings)), "resources": _resources(compiled.get("resources", {})),
                "securityContext": RESTRICTED, "volumeMounts": mounts,
            }],
        }  # fmt: skip
        retries = self._tasks[task.key].get("retryPolicy", {}).get("maxRetryCount", 0)
        template = {
            "metadata": {
                "labels": {"pipeline/runid": self._run, **metadata.get("labels", {})},
                "annotations": metadata.get("annotations", {}),
            },
            "spec": pod,
        }
        return {
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"backoffLimit": retries, "template": template},
        }  # fmt: skip

    @staticmethod
    def _outputs(task: Task) -> dict[str, Any]:
        folder = Path(OUTPUT).parent
        artifacts = {
            name: {
                "artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": str(folder / name), "metadata": {}}]
            }
            for name, kind in task.artifacts.items()
        }
        parameters = {name: {"outputFile": str(folder / name)} for name in task.outputs}
        return {"outputFile": OUTPUT, "parameters": parameters, "artifacts": artifacts}

    def result(self, job: str, seconds: float) -> dict[str, Any]:
        """The executor output of a Job, once it has ended."""
        for _ in range(int(seconds)):
            status = self._batch.read_namespaced_job_status(job, self._namespace).status
            if status.succeeded:
                return self._output(job)
            if any(c.type == "Failed" and c.status == "True" for c in status.conditions or ()):
                raise FailedError(f"{job}: {self.log(job)[-3000:]}")
            time.sleep(1)
        raise FailedError(f"{job} did not end in {seconds:.0f} s: {self.log(job)[-3000:]}")

    def _output(self, job: str) -> dict[str, Any]:
        text = self.log(job).rpartition(MARK)[2]
        output: dict[str, Any] = json.loads(text)
        return {"artifacts": {}, **output}

    def log(self, job: str) -> str:
        """Return the log of the Job's last pod."""
        pods = self.pods(job)
        if not pods:
            return "(no pod)"
        try:
            log = self._core.read_namespaced_pod_log(pods[-1].metadata.name, self._namespace, _preload_content=False)
            return str(log.data.decode())
        except client.ApiException:
            return f"({pods[-1].status})"

    def pods(self, job: str) -> list[Any]:
        """The Job's pods, the oldest first."""
        found = self._core.list_namespaced_pod(self._namespace, label_selector=f"job-name={job}").items
        return sorted(found, key=lambda pod: pod.metadata.creation_timestamp)


def _affinity(compiled: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    terms = [{"matchExpressions": one["matchExpressions"]} for one in compiled if not one.get("weight")]
    preferred = [
        {"weight": one["weight"], "preference": {"matchExpressions": one["matchExpressions"]}}
        for one in compiled
        if one.get("weight")
    ]
    needed = {"nodeSelectorTerms": terms} if terms else None
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": needed,
            "preferredDuringSchedulingIgnoredDuringExecution": preferred or None,
        }
    }


def _environment(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for secret in settings.get("secretAsEnv", ()):
        name = secret.get("secretName") or secret["secretNameParameter"]["runtimeValue"]["constant"]
        for pair in secret["keyToEnv"]:
            reference = {"name": name, "key": pair["secretKey"], "optional": secret.get("optional", False)}
            yield {"name": pair["envVar"], "valueFrom": {"secretKeyRef": reference}}


def _resources(compiled: Mapping[str, Any]) -> dict[str, Any]:
    limits, requests = {}, {}
    for kind, name in (("Cpu", "cpu"), ("Memory", "memory")):
        if limit := compiled.get(f"resource{kind}Limit"):
            limits[name] = limit
        if request := compiled.get(f"resource{kind}Request"):
            requests[name] = request
    if accelerator := compiled.get("accelerator"):
        limits[accelerator["resourceType"]] = accelerator["resourceCount"]
    return {"limits": limits, "requests": requests}
