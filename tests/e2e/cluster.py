"""What the tests ask of the cluster and its hosts."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from indigo_lab.lab import Lab

Answer = TypeVar("Answer")


def on_all(lab: Lab, ask: Callable[[str], Answer]) -> dict[str, Answer]:
    """Ask something of every host that has power, a few at the same time."""
    names = [name for name, power in lab.powered().items() if power]
    with ThreadPoolExecutor(3) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))


def until(question: Callable[[], Answer], seconds: float, interval: float = 0.5) -> Answer:
    """Ask until the answer is true; the last answer after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer or time.monotonic() > deadline:
            return answer
        time.sleep(interval)


# Deploys -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deployed:
    """How a run of ``indigo.deploy`` ended."""

    code: int
    #: Steps by their name; none when the orchestration did not even render.
    steps: dict[str, dict[str, Any]]
    stdout: str = field(repr=False)
    #: Live progress, and what Salt itself says.
    progress: str = field(repr=False)
    seconds: float

    @property
    def changes(self) -> dict[str, Any]:
        """What it changed, by step: nothing when it was a no-op."""
        return {name: step["changes"] for name, step in self.steps.items() if step.get("changes")}

    @property
    def told(self) -> str:
        """What it says of the steps and states that did not succeed."""
        bad = [
            f"{name}: {step.get('comment')}"
            for name, step in self.steps.items()
            if not step["result"]
        ]
        bad += [
            f"{host}: {state.get('name')}: {state.get('comment')}"
            for _, host, state in self.states()
            if state.get("result") is False
        ]
        return "\n".join(bad) if self.steps else self.stdout

    def states(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Step, host and result of each state on a host that changed, or would change, something.

        Salt puts what happened on the minions under a step's changes.
        """
        for name, step in self.steps.items():
            minions = (step.get("changes") or {}).get("ret")
            for host, states in (minions or {}).items():
                if isinstance(states, Mapping):
                    for state in states.values():
                        yield name, host, state


def parsed(code: int, stdout: str, stderr: str, seconds: float) -> Deployed:
    """A deploy from what its command, with ``--out json``, printed."""
    try:
        data = json.loads(stdout)
    except ValueError as err:
        raise AssertionError(f"no JSON from the deploy:\n{stdout}\n{stderr}") from err
    (found,) = data.get("data", data).values()
    steps = found if isinstance(found, dict) else {}
    return Deployed(
        code, {key.split("_|-")[1]: step for key, step in steps.items()}, stdout, stderr, seconds
    )


def deploy(lab: Lab, *arguments: str) -> Deployed:
    """Run ``salt-run state.orchestrate indigo.deploy`` to its end."""
    started = time.monotonic()
    done = lab.deploy(*arguments, "--out", "json", timeout=900)
    return parsed(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def put_back(lab: Lab, declared: str, left: Callable[[Lab], list[str]]) -> None:
    """End what a file brought into the cluster.

    Args:
        declared: cluster.yaml as it was before.
        left: what is still there of it.
    """
    lab.cluster_file.write_text(declared)
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")
    done = deploy(lab)
    assert done.code == 0, done.told
    assert left(lab) == []
    well(lab)


@contextlib.contextmanager
def disk(lab: Lab, host: str, folder: str, size: str = "1Gi") -> Iterator[None]:
    """A disk for claims of the class ``disks``, as long as the block lasts.

    Args:
        host: whose disk it is.
        folder: where it lies there, below what kubelet mounts into pods; it is made, and deleted.
        size: of the disk, as Kubernetes writes it.
    """
    name = folder.rpartition("/")[2]
    kind = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "disks"},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "disks",
            "local": {"path": folder},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
    lab.exec(host, ["mkdir", "-p", folder], check=True)
    both = {"apiVersion": "v1", "kind": "List", "items": [kind, volume]}
    made = lab.kubectl("apply", "-f", "-", stdin=json.dumps(both))
    assert made.returncode == 0, made.stderr
    try:
        yield
    finally:
        what = (f"pv/{name}", "storageclass/disks")
        lab.kubectl("delete", *what, "--ignore-not-found", timeout=60)
        lab.exec(host, ["rm", "-rf", folder], check=True)


def apply_addons(lab: Lab, host: str, names: Iterable[str]) -> tuple[int, dict[str, Any]]:
    """``state.apply addons`` on a master: exit code, and what its states changed, in one mapping.

    Args:
        host: the master that brings add-ons in.
        names: of the states that count, beside the one that takes others away; none may fail.
    """
    done = lab.salt(host, "state.apply", "addons", "--out=json", timeout=300)
    found: dict[str, Any] = {}
    for one in json.loads(done.stdout)[host].values():
        if one["name"] in names or one["name"].startswith("No other"):
            found |= one["changes"]
            assert one["result"] is not False, one["comment"]
    return done.returncode, found


def addon_works(lab: Lab, host: str, name: str) -> str:
    """What the check of an add-on says; empty when it works."""
    done = lab.salt(host, "indigo_addon.works", "--out=json", timeout=60)
    return str(json.loads(done.stdout)[host][name])


def orchestrate(lab: Lab, name: str, **pillar: Any) -> Deployed:
    """Another orchestration with pillar, to its end."""
    started = time.monotonic()
    given = [f"pillar={json.dumps(pillar)}"] if pillar else []
    done = lab.salt_run("state.orchestrate", name, *given, "--out", "json", timeout=900)
    return parsed(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def changes(result: Mapping[str, Any]) -> dict[str, Any]:
    """The states of one minion's run that changed something, or failed."""
    return {
        key: {"changes": state.get("changes"), "comment": state.get("comment")}
        for key, state in result.items()
        if state.get("changes") or state.get("result") is not True
    }


def apply_all(lab: Lab, *arguments: str) -> tuple[int, dict[str, Any]]:
    """``salt '*' state.apply``: exit code and each minion's states."""
    # Not --static: with it the exit code is 0 whatever the states said. So a document a minion.
    done = lab.salt("*", "state.apply", *arguments, "--out", "json", timeout=600)
    found: dict[str, Any] = {}
    text, decoder = done.stdout.strip(), json.JSONDecoder()
    while text:
        document, end = decoder.raw_decode(text)
        found |= document
        text = text[end:].lstrip()
    return done.returncode, found


# Health ------------------------------------------------------------------------------------------


def status(lab: Lab) -> dict[str, Any]:
    """``salt-run indigo.status`` as data, with its exit code as ``exit``."""
    done = lab.salt_run("indigo.status", "--out", "json", timeout=120)
    return {**json.loads(done.stdout), "exit": done.returncode}


def well(lab: Lab, seconds: float = 90) -> None:
    """Wait until the cluster's own status knows of no problem."""
    found = until(lambda: (now := status(lab)) and (not now["problems"] and now), seconds)
    assert found and found["exit"] == 0, status(lab)["problems"]


def answering(lab: Lab, host: str, seconds: float = 60) -> None:
    """Wait until a host's minion answers the Salt master."""
    asked = ("--timeout=3", "--out=json", "--static", "--hide-timeout", host, "test.ping")
    found = until(lambda: '"' + host + '": true' in lab.salt(*asked, timeout=60).stdout, seconds)
    assert found, f"{host}: its minion does not answer"


def kubectl(lab: Lab, *arguments: str, stdin: str | None = None) -> Any:
    """kubectl through the VIP, with its answer parsed from JSON.

    A read that a member of etcd began and did not end as it restarted is asked once more, which
    is what clients are promised: with TLS a member cannot let its requests end first
    (etcd-io/etcd#8987).
    """
    for last in (False, True):
        done = lab.kubectl(*arguments, "-o", "json", stdin=stdin, timeout=60)
        if last or arguments[0] != "get" or "missing content-type" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ready_nodes(lab: Lab) -> set[str]:
    """Names of the nodes that are Ready, through the VIP."""
    return {
        node["metadata"]["name"]
        for node in kubectl(lab, "get", "nodes")["items"]
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready" and condition["status"] == "True"
    }


def deployment(name: str, replicas: int) -> str:
    """A Deployment of the lab's little web server, which takes a second to end."""
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: indigo.lab/web:1
        imagePullPolicy: Never
        ports: [{{containerPort: 8080}}]
"""


WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: indigo.lab/web:1
        imagePullPolicy: Never
        ports: [{containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
"""
