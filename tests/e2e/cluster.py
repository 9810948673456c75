"""What the tests ask of the cluster and its hosts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from indigo_lab.lab import Lab

#: Files whose change is not a change of the host: Salt's own caches and logs, and what a running
#: system keeps of itself.
_NOT_THE_HOST = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/var/cache/salt", "/var/log", "/var/tmp"),
    *("/etc/salt", "/var/lib/systemd", "/var/lib/containerd", "/var/lib/kubelet", "/root/.cache"),
)

_SUMS = (
    "find / -xdev \\( "
    + " -o ".join(f"-path {path}" for path in _NOT_THE_HOST)
    + " \\) -prune -o \\( -type f -o -type l \\) -printf '%p %m %U %G %s %T@ %l\\n'"
    " | sort"
)


def files(lab: Lab, host: str) -> str:
    """Every file of a host: path, mode, owner, size, time of change and link target."""
    return lab.exec(host, ["sh", "-c", _SUMS], check=True, timeout=120).stdout


def fingerprints(lab: Lab) -> dict[str, str]:
    """By host, a hash over all its files and the state of its units."""
    found = {}
    for host in lab.hosts():
        units = lab.exec(
            host.name, ["systemctl", "list-unit-files", "--no-legend", "--no-pager"], check=True
        ).stdout
        found[host.name] = hashlib.sha256((files(lab, host.name) + units).encode()).hexdigest()
    return found


def changes(result: Mapping[str, Any]) -> dict[str, Any]:
    """The states of one minion's run that changed something, or failed."""
    return {
        key: {"changes": state.get("changes"), "comment": state.get("comment")}
        for key, state in result.items()
        if state.get("changes") or state.get("result") is not True
    }


def apply_all(lab: Lab, *arguments: str) -> tuple[int, dict[str, Any]]:
    """``salt '*' state.apply``: exit code and each minion's states."""
    done = lab.salt("*", "state.apply", *arguments, "--out", "json", "--static", timeout=600)
    return done.returncode, json.loads(done.stdout)


def deploy(lab: Lab, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """``salt-run state.orchestrate indigo.deploy``: exit code, steps by their name, stderr."""
    done = lab.deploy(*arguments, "--out", "json", timeout=900)
    try:
        data = json.loads(done.stdout)
    except ValueError as err:
        raise AssertionError(f"no JSON from the deploy:\n{done.stdout}\n{done.stderr}") from err
    data = data.get("data", data)
    (steps,) = [value for value in data.values() if isinstance(value, dict)]
    return done.returncode, {key.split("_|-")[1]: step for key, step in steps.items()}, done.stderr


def step_changes(steps: Mapping[str, Any]) -> dict[str, Any]:
    """What a deploy changed, by step: nothing when it was a no-op."""
    return {name: step["changes"] for name, step in steps.items() if step.get("changes")}


def told(steps: Mapping[str, Any]) -> str:
    """Comments of the steps that did not succeed."""
    return "\n".join(
        f"{name}: {step.get('comment')}" for name, step in steps.items() if not step["result"]
    )


def until(question: Callable[[], Any], seconds: float, interval: float = 0.5) -> Any:
    """Ask until the answer is true; the last answer after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer or time.monotonic() > deadline:
            return answer
        time.sleep(interval)


def kubectl(lab: Lab, *arguments: str, stdin: str | None = None) -> Any:
    """kubectl through the VIP, with its answer parsed from JSON."""
    done = lab.kubectl(*arguments, "-o", "json", stdin=stdin, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
