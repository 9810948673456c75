"""An upgrade under load: held, killed, stopped by a sick host, and brought to its end.

On the profile compact, whose three hosts have all roles each, two of them the masters'. etcd goes
from 3.4 to 3.5 and containerd from 1.6 to 1.7, as newer Debian has them. Kubernetes goes from patch
to patch in name only: the same programs with another version stamped into them, for there is no
newer release that could be built here. That shows the way of an upgrade, and nothing of a release.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster import deploy, deployment, kubectl, orchestrate, ready_nodes, until, well
from indigo_lab import artifacts, debian
from moments import Run
from traffic import Traffic, noticed_nothing
from upgrades import UPGRADE, cordoned, declare, declare_newer, facts, nodes, preview, running

PROFILE = "compact"
HOSTS = ("host1", "host2", "host3")

INGRESS = """
apiVersion: networking.k8s.io/v1beta1
kind: Ingress
metadata: {name: old-style}
spec: {backend: {serviceName: nobody, servicePort: 80}}
"""


@pytest.fixture(scope="module", autouse=True)
def cluster(lab) -> Iterator[None]:
    """The cluster that the file before leaves; deployed here when this file runs alone."""
    done = deploy(lab)
    assert done.code == 0, done.told
    made = lab.kubectl("apply", "-f", "-", stdin=deployment("work", 3), timeout=60)
    assert made.returncode == 0, made.stderr
    yield
    lab.kubectl("delete", "deployment", "work", timeout=60)


@pytest.fixture(scope="module")
def newer() -> artifacts.Published:
    """What the mirror has beside what runs."""
    return artifacts.publish_newer(debian.architecture())


def work(lab) -> int:
    """Pods of the workload that are ready."""
    return int(kubectl(lab, "get", "deployment", "work")["status"].get("readyReplicas", 0))


def test_what_must_not_be_is_refused_before_anything_changes(lab):
    before = lab.cluster_file.read_bytes()
    runs = facts(lab)
    # Both have their checksums in the project's table.
    declare(lab, versions={"kubernetes": "1.32.13", "etcd": "3.6.14"})
    try:
        refused = orchestrate(lab, UPGRADE)
    finally:
        lab.cluster_file.write_bytes(before)
        lab.salt("*", "saltutil.refresh_pillar", "wait=True", timeout=60)
    assert refused.code != 0
    told = refused.told
    assert "kube-apiserver 1.20.2, declared is 1.32.13; one minor at a time" in told
    assert "etcd 3.4.23, declared is 3.6.14; one minor at a time" in told
    assert facts(lab) == runs
    assert lab.exec("host1", ["ls", "/opt/indigo/etcd-3.6.14"]).returncode != 0


def test_removed_apis_in_use_are_listed(lab):
    made = lab.kubectl("apply", "-f", "-", stdin=INGRESS, timeout=60)
    assert made.returncode == 0, made.stderr

    def listed() -> Any:
        done = lab.salt_run("indigo.removed_apis", "1.22.0", "--out", "json", timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    api = "networking.k8s.io/v1beta1 ingresses"
    found = listed()
    assert found["host1"]["objects"][api] == {"default/old-style": ["kubectl-client-side-apply"]}
    # Whichever API server took the request counts it.
    assert any(api in one["requested"] for one in found.values()), found
    lab.kubectl("delete", "ingress", "old-style", timeout=60)
    assert not listed()["host1"]["objects"]


def test_the_preview_names_the_order_and_changes_nothing(lab, newer):
    runs = facts(lab)
    declare_newer(lab, newer)
    done = preview(lab)
    assert done.code == 0, done.told
    step = done.steps["The declared versions may follow on those that run"]
    assert step["comment"].startswith("From containerd 1.6.20, etcd 3.4.23, kubernetes 1.20.2")
    leader = next(id_ for id_, fact in runs.items() if "etcd" in fact["leads"])
    assert f"{leader}; API servers: " in step["comment"], "etcd's leader comes last"
    assert facts(lab) == runs
    assert lab.exec("host1", ["ls", "/opt/indigo/etcd-3.5.16"]).returncode != 0


def test_an_upgrade_is_held_killed_and_run_to_its_end(lab, newer, figure):
    declare_newer(lab, newer)
    held = lab.salt_run("indigo.pause", timeout=60)
    assert held.returncode == 0, held.stderr
    with Traffic(lab) as traffic:
        since = traffic.flows()
        run = Run(lab, UPGRADE)
        assert run.wait_for(lambda it: "paused before etcd members" in it._err.read_text())
        # The backup is there, and nothing was restarted.
        assert running(facts(lab), "etcd") == {"3.4.23"}
        lab.salt_run("indigo.resume", timeout=60)
        # While pods of the first node move, at the worst moment for it.
        assert run.wait_for(lambda _: bool(cordoned(lab))), run.end().told
        run.kill()
        assert running(facts(lab), "etcd") == {newer.versions["etcd"]}
        assert cordoned(lab)

        done = orchestrate(lab, UPGRADE)
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(f"upgrade, held and killed once; the rest took {done.seconds:.0f} s; {report}")
    noticed_nothing(report)
    assert "timeline" in done.progress
    found = facts(lab)
    for unit, part in (
        ("etcd", "etcd"), ("kube-apiserver", "kubernetes"), ("kubelet", "kubernetes"),
        ("kube-controller-manager", "kubernetes"), ("containerd", "containerd"),
    ):  # fmt: skip
        assert running(found, unit) == {newer.versions[part]}
    assert {fact["agreed"] for fact in found.values() if fact["agreed"]} == {"3.5.0"}
    assert cordoned(lab) == set()
    told = {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes(lab).values()}
    assert told == {f"v{newer.versions['kubernetes']}"}
    assert ready_nodes(lab) == set(HOSTS)
    assert until(lambda: work(lab) == 3, 60), work(lab)
    backups = json.loads(lab.salt_run("indigo.backups", "--out", "json", timeout=60).stdout)
    assert backups["sets"]

    again = orchestrate(lab, UPGRADE)
    assert (again.code, again.changes) == (0, {}), again.told or again.changes
    well(lab)


def test_a_step_back_over_etcds_minor_is_refused(lab, newer):
    before = lab.cluster_file.read_bytes()
    declare(lab, versions={"etcd": "3.4.23"})
    try:
        refused = preview(lab)
    finally:
        lab.cluster_file.write_bytes(before)
        lab.salt("*", "saltutil.refresh_pillar", "wait=True", timeout=60)
    assert refused.code != 0
    assert "no way leads back once every member has the newer minor" in refused.told


@pytest.mark.slow
def test_a_setting_that_breaks_a_host_stops_there_and_is_taken_back(lab, figure):
    before = lab.cluster_file.read_bytes()
    # A value with which containerd does not start.
    document = yaml.safe_load(before)
    overrides = document["overrides"]
    overrides["containerd"]["config"]["oom_score"] = "never"
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    with Traffic(lab) as traffic:
        since = traffic.flows()
        stopped = orchestrate(lab, UPGRADE)
        assert stopped.code != 0
        told = stopped.steps["Nodes are upgraded in batches"]["comment"]
        (sick,) = cordoned(lab)
        assert told.startswith(f"Stopped at {sick}."), told
        assert "Through before it: none; not touched: " in told
        assert "run salt-run state.orchestrate indigo.upgrade again" in told
        left = stopped.steps["Nothing is left behind"]
        assert left["result"] is False
        assert f"{sick} stays cordoned" in left["comment"]
        others = set(HOSTS) - {sick}
        assert others <= ready_nodes(lab)

        lab.cluster_file.write_bytes(before)
        done = orchestrate(lab, UPGRADE)
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(
        f"a node's broken setting stopped an upgrade after {stopped.seconds:.0f} s; taken back in "
        f"{done.seconds:.0f} s; {report}"
    )
    noticed_nothing(report)
    assert cordoned(lab) == set()
    assert ready_nodes(lab) == set(HOSTS)
    well(lab)
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {}), again.told or again.changes
