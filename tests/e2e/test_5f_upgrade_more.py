"""Upgrades of twelve hosts with a role each: haproxy and keepalived, batches, a budget that holds.

The lab's own haproxy and keepalived are the newest of its Debian release. Beside them the guests'
repository gets an older release of each: haproxy of the release before its last security update;
of keepalived there is one only, so that the same package with another version written into it
stands for it. The hosts are deployed with the older ones. For the rest see test_5e_upgrade.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster import (
    deploy,
    deployment,
    kubectl,
    on_all,
    orchestrate,
    ready_nodes,
    status,
    until,
    well,
)
from faults import LB
from indigo_lab import artifacts, debian
from moments import Run
from traffic import Traffic, noticed_nothing
from upgrades import UPGRADE, cordoned, declare, declare_newer, facts, preview, running

PROFILE = "compact"
BALANCERS, MASTERS = ("lb1", "lb2", "lb3"), ("master1", "master2")
NODES = ("node1", "node2", "node3")
LBS = "Load balancers are upgraded one by one"
STAGE = "Nodes are upgraded in batches"

#: A pod on each node, of which the budget lets none go.
SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: till, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: till}}
  template:
    metadata: {labels: {app: till}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: till}}}
      containers:
      - name: web
        image: indigo.lab/web:1
        imagePullPolicy: Never
---
apiVersion: policy/v1beta1
kind: PodDisruptionBudget
metadata: {name: tills, namespace: shop}
spec: {minAvailable: 3, selector: {matchLabels: {app: till}}}
"""


@pytest.fixture(scope="module")
def versions() -> dict[str, tuple[str, str]]:
    """The older and the usual version of the load balancers' packages, in the repository."""
    return artifacts.publish_older(("haproxy", "keepalived"))


@pytest.fixture(scope="module")
def ha(stage, request) -> Iterator[Any]:
    """Twelve hosts, deployed with the older packages."""
    lab = stage.take("ha")
    # The repository comes with the lab.
    versions = request.getfixturevalue("versions")
    declare(lab, packages={name: older for name, (older, _) in versions.items()})
    done = deploy(lab)
    assert done.code == 0, done.told
    made = lab.kubectl("apply", "-f", "-", stdin=deployment("work", 3), timeout=60)
    assert made.returncode == 0, made.stderr
    yield lab


def balancers(lab, host: str) -> dict[str, str]:
    """Unit to what its running process says of itself; ``package`` is keepalived's."""
    script = """
for unit in haproxy keepalived etcd-proxy; do
    pid=$(systemctl show -p MainPID --value $unit)
    [ "$pid" = 0 ] && continue
    said=$(/proc/$pid/exe -v 2>&1 | head -n 1)
    echo "$unit $(readlink /proc/$pid/exe | grep -c deleted) $said"
done
dpkg-query -W -f 'package 0 ${Version}\\n' keepalived 2>/dev/null
"""
    found = {}
    for line in lab.exec(host, ["sh", "-c", script]).stdout.splitlines():
        unit, gone, said = line.split(" ", 2)
        found[unit] = "a program that is gone" if gone != "0" else said
    return found


def holder(lab) -> str:
    (found,) = status(lab)["vip"]["holders"]
    return str(found)


def order(step: dict[str, Any]) -> list[str]:
    """The hosts of a stage in the order in which it says they came."""
    return step["comment"].removeprefix("One after the other: ").replace("+", ", ").split(", ")


def test_a_package_that_nobody_has_stops_before_anything_restarts(lab, versions):
    """The cluster that the file before leaves; deployed here when this file runs alone."""
    if "host1" not in {node["metadata"]["name"] for node in _nodes(lab)}:
        done = deploy(lab)
        assert done.code == 0, done.told
    before, pids = lab.cluster_file.read_bytes(), _pids(lab)
    try:
        declare(lab, packages={"haproxy": versions["haproxy"][0]})
        would = preview(lab)
        assert would.code == 0, would.told
        # Whoever has the address comes last; masters run a haproxy of their own, on the same file.
        assert order(would.steps[LBS])[-1] == holder(lab)
        assert "host1, host2" in would.steps["API servers are upgraded one by one"]["comment"]

        declare(lab, packages={"haproxy": "9.9-1"})
        done = orchestrate(lab, UPGRADE)
    finally:
        lab.cluster_file.write_bytes(before)
        lab.salt("*", "saltutil.refresh_pillar", "wait=True", timeout=60)
    assert done.code != 0
    told = done.steps["Every host has the new binaries"]["comment"]
    assert "packages.haproxy: 9.9-1 cannot be had" in told, told
    assert "Nothing was restarted" in told
    assert _pids(lab) == pids


def _nodes(lab) -> list[dict[str, Any]]:
    done = lab.kubectl("get", "nodes", "-o", "json", timeout=60)
    return list(yaml.safe_load(done.stdout)["items"]) if done.returncode == 0 else []


def _pids(lab) -> dict[str, str]:
    units = ["haproxy", "keepalived", "etcd-proxy", "kube-apiserver", "etcd", "kubelet"]
    command = ["systemctl", "show", "-p", "Id,MainPID", *units]
    return on_all(lab, lambda host: lab.exec(host, command).stdout)


@pytest.mark.slow
def test_a_deploy_brings_the_declared_packages(ha, versions):
    older = versions["haproxy"][0]
    for host in BALANCERS:
        found = balancers(ha, host)
        assert older in found["haproxy"], found
        assert found["package"] == versions["keepalived"][0]
    for host in MASTERS:
        assert older in balancers(ha, host)["etcd-proxy"]
    again = deploy(ha)
    assert (again.code, again.changes) == (0, {}), again.told or again.changes


@pytest.mark.slow
def test_load_balancers_change_their_packages_without_losing_the_address(ha, versions, figure):
    first = holder(ha)
    declare(ha, packages={name: usual for name, (_, usual) in versions.items()})
    with Traffic(ha) as traffic:
        since = traffic.flows()
        done = orchestrate(ha, UPGRADE)
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(f"haproxy and keepalived of 3 lb, haproxy of 2 masters: {done.seconds:.0f} s; {report}")
    noticed_nothing(report)
    # The address moved, once, and was away for no longer than if its holder had been lost.
    assert report.without_writes < LB, report.details()
    assert order(done.steps[LBS])[-1] == first
    assert holder(ha) != first
    usual = versions["haproxy"][1]
    for host in BALANCERS:
        found = balancers(ha, host)
        assert usual in found["haproxy"], found
        assert found["package"] == versions["keepalived"][1]
        assert found["keepalived"].startswith("Keepalived v")
    for host in MASTERS:
        assert usual in balancers(ha, host)["etcd-proxy"]
    again = orchestrate(ha, UPGRADE)
    assert (again.code, again.changes) == (0, {}), again.told or again.changes
    well(ha)


@pytest.mark.slow
def test_twelve_hosts_are_upgraded_two_nodes_at_a_time(ha, figure):
    newer = artifacts.publish_newer(debian.architecture())
    declare_newer(ha, newer)
    declare(ha, upgrade={"batch": 2})
    with Traffic(ha) as traffic:
        since = traffic.flows()
        run = Run(ha, UPGRADE)
        # Both are cordoned before the first pod leaves one of them.
        assert run.wait_for(lambda _: len(cordoned(ha)) == 2, 600), run.end().told
        done = run.end()
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(f"12 hosts, etcd, Kubernetes, containerd, batch 2: {done.seconds:.0f} s; {report}")
    noticed_nothing(report)
    assert done.steps[STAGE]["comment"] == "One after the other: node1+node2, node3"
    found = facts(ha)
    for unit, part in (
        ("etcd", "etcd"), ("kube-apiserver", "kubernetes"), ("kubelet", "kubernetes"),
        ("kube-controller-manager", "kubernetes"), ("containerd", "containerd"),
    ):  # fmt: skip
        assert running(found, unit) == {newer.versions[part]}
    assert cordoned(ha) == set()
    assert ready_nodes(ha) == set(NODES)
    ready = until(lambda: _ready(ha, "default", "work") == 3, 60)
    assert ready, _ready(ha, "default", "work")
    again = orchestrate(ha, UPGRADE)
    assert (again.code, again.changes) == (0, {}), again.told or again.changes
    well(ha)


def _ready(lab, namespace: str, name: str) -> int:
    found = kubectl(lab, "-n", namespace, "get", "deployment", name)
    return int(found["status"].get("readyReplicas", 0))


@pytest.mark.slow
def test_a_budget_stops_the_upgrade_and_lifted_it_goes_on(ha, figure):
    made = ha.kubectl("apply", "-f", "-", stdin=SHOP, timeout=60)
    assert made.returncode == 0, made.stderr
    assert until(lambda: _ready(ha, "shop", "till") == 3, 60)
    document = yaml.safe_load(ha.cluster_file.read_text())
    document["overrides"]["containerd"]["config"]["oom_score"] = -998
    document["upgrade"] = {"batch": 1, "drain": 15}
    ha.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    pids = _containerd(ha)
    with Traffic(ha) as traffic:
        since = traffic.flows()
        stopped = orchestrate(ha, UPGRADE)
        assert stopped.code != 0
        step = stopped.steps[STAGE]
        told = step["comment"]
        assert told.startswith("Stopped at node1. "), told
        assert "node1 is not empty after 15 s" in told
        assert "The disruption budget tills needs 3 healthy pods and has 3 currently" in told
        assert "(namespace shop: kubectl -n shop get pdb)" in told
        assert "nothing was restarted on node1; see to what held the pods" in told
        assert "not touched: node2, node3" in told
        # One master waited for it, once.
        assert step["duration"] < 30_000, step["duration"]
        assert stopped.steps["Nothing is left behind"]["result"] is True
        assert cordoned(ha) == set()
        assert _containerd(ha) == pids
        assert _ready(ha, "shop", "till") == 3

        loose = '{"spec": {"minAvailable": 2}}'
        changed = ha.kubectl("-n", "shop", "patch", "pdb", "tills", "-p", loose, timeout=60)
        assert changed.returncode == 0, changed.stderr
        # Each pod is there again before the next one may go, which takes longer than 15 s at times.
        declare(ha, upgrade={"drain": 120})
        with _Least(ha) as least:
            done = orchestrate(ha, UPGRADE)
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(
        f"a budget stopped an upgrade after {stopped.seconds:.0f} s; lifted, the rest took "
        f"{done.seconds:.0f} s; {report}"
    )
    noticed_nothing(report)
    assert done.steps[STAGE]["comment"] == "One after the other: node1, node2, node3"
    assert least.looks > 10
    assert least.ready >= 2, "the budget was broken"
    assert not {*_containerd(ha).values()} & {*pids.values()}
    assert cordoned(ha) == set()
    assert ready_nodes(ha) == set(NODES)
    well(ha)
    again = deploy(ha)
    assert (again.code, again.changes) == (0, {}), again.told or again.changes


def _containerd(lab) -> dict[str, str]:
    command = ["systemctl", "show", "-p", "InvocationID", "--value", "containerd"]
    return {host: lab.exec(host, command).stdout.strip() for host in NODES}


class _Least:
    """The fewest ready pods of the shop, looked at all the while."""

    def __init__(self, lab) -> None:
        self.ready, self.looks = 3, 0
        self._lab, self._end = lab, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._end.wait(1):
            self.ready = min(self.ready, _ready(self._lab, "shop", "till"))
            self.looks += 1

    def __enter__(self) -> _Least:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)
