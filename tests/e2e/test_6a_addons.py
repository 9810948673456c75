"""Add-ons come, change and go with one key, in a real API.

The lab has an image of CoreDNS only when somebody brought one (``lab up --images``). Then names
must resolve; without one the deploy must say that the add-on does not work.
"""

from __future__ import annotations

import json

import pytest
import yaml
from cluster import changes, deploy, kubectl, status, until, well

PROFILE = "single"
HOST = "salt"

#: What the add-on consists of.
OBJECTS = {
    "ServiceAccount kube-system/coredns",
    "ClusterRole indigo:coredns",
    "ClusterRoleBinding indigo:coredns",
    "ConfigMap kube-system/coredns",
    "Deployment kube-system/coredns",
    "PodDisruptionBudget kube-system/coredns",
    "Service kube-system/kube-dns",
}


def declare(lab, settings):
    """Want CoreDNS with these settings, or, with None, not want it."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    if settings is None:
        document.pop("addons", None)
    else:
        document["addons"] = {"coredns": settings}
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")


def brought(lab):
    """An image of CoreDNS among the lab's, or None."""
    return yaml.safe_load(lab.cluster_file.read_text())["images"]["use"].get("coredns")


def applied(lab, *arguments):
    """``state.apply addons``: exit code, and what its states changed, in one mapping."""
    done = lab.salt(HOST, "state.apply", "addons", *arguments, "--out=json", timeout=300)
    found = {}
    for state in json.loads(done.stdout)[HOST].values():
        if state["name"] == "coredns" or state["name"].startswith("No other"):
            found |= state["changes"]
            assert state["result"] is not False, state["comment"]
    return done.returncode, found


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring add-ons to: {done.told}")
    yield
    declare(lab, None)
    applied(lab)
    well(lab)


def wanted(lab):
    """Settings that this lab can have: nobody is upstream."""
    return {"upstream": []}


def test_it_comes_whole_and_then_nothing_changes(lab):
    declare(lab, wanted(lab))
    code, found = applied(lab, "test=True")
    assert code == 0
    assert kubectl(lab, "get", "deployments", "-A")["items"] == []
    code, found = applied(lab)
    assert (code, found) == (0, dict.fromkeys(OBJECTS, "created"))
    names = {item["metadata"]["name"] for item in kubectl(lab, "get", "deployments", "-A")["items"]}
    assert names == {"coredns"}
    assert (
        kubectl(lab, "get", "service", "-n", "kube-system", "kube-dns")["spec"]["clusterIP"]
        == "10.96.0.10"
    )
    assert applied(lab) == (0, {})


def test_its_own_check_decides_whether_it_works(lab):
    done = deploy(lab)
    found = status(lab)
    if not brought(lab):
        assert done.code != 0
        why = "Deployment kube-system/coredns: 0 of 1 replicas are ready: coredns-"
        assert f"coredns: {why}" in done.told
        assert "ImagePull" in done.told  # what Kubernetes itself says
        assert found["exit"] != 0
        assert [one for one in found["problems"] if one.startswith(f"add-on coredns: {why}")]
        return
    assert done.code == 0, done.told
    assert found["addons"] == {"coredns": "ok"}
    pod = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: asks}\nspec:\n  containers:\n"
        "    - {name: asks, image: 'indigo.lab/web:1', command: [/bin/sleep, '600']}\n"
    )
    assert lab.kubectl("apply", "-f", "-", stdin=pod).returncode == 0
    ask = ("exec", "asks", "--", "nslookup", "kubernetes.default.svc.cluster.local")
    answer = until(lambda: (a := lab.kubectl(*ask, timeout=30)).returncode == 0 and a.stdout, 60)
    assert answer and "10.96.0.1" in answer
    lab.kubectl("delete", "pod", "asks", "--now", timeout=60)


def test_what_somebody_changed_is_mended_and_what_is_declared_is_changed_in_place(lab):
    before = kubectl(lab, "get", "deployment", "-n", "kube-system", "coredns")["metadata"]["uid"]
    lab.kubectl("scale", "deployment", "-n", "kube-system", "coredns", "--replicas=0")
    _, found = applied(lab, "test=True")
    assert found == {"Deployment kube-system/coredns": "updated"}
    assert applied(lab) == (0, {"Deployment kube-system/coredns": "updated"})
    declare(lab, wanted(lab) | {"upstream": ["10.77.0.2"]})
    assert applied(lab) == (0, {"ConfigMap kube-system/coredns": "updated"})
    after = kubectl(lab, "get", "deployment", "-n", "kube-system", "coredns")
    assert (after["metadata"]["uid"], after["spec"]["replicas"]) == (before, 1)


def test_it_goes_whole(lab):
    declare(lab, None)
    assert applied(lab) == (0, {"coredns": "removed"})
    for kind in ("deployments", "poddisruptionbudgets"):
        assert kubectl(lab, "get", kind, "-A")["items"] == []
    left = lab.kubectl(
        "get", "configmap,service,clusterrole,clusterrolebinding", "-A", "-o", "name"
    )
    assert left.returncode == 0, left.stderr
    found = [
        name for name in ("coredns", "service/kube-dns", "indigo-addon") if name in left.stdout
    ]
    assert not found, left.stdout
    assert not lab.exec(HOST, ["ls", "/etc/kubernetes/addons"], check=True).stdout
    assert applied(lab) == (0, {})
    done = deploy(lab)
    assert done.code == 0, done.told


#: A pod that takes all that it may, and a scale that follows.
BUSY = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: busy
          image: indigo.lab/web:1
          command: [/bin/sh, -c, "while :; do :; done"]
          resources: {requests: {cpu: 50m}, limits: {cpu: 100m}}
---
apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  minReplicas: 1
  maxReplicas: 2
  targetCPUUtilizationPercentage: 50
"""


def scales_with_its_load(lab):
    """What runs above its target gets another replica."""
    made = lab.kubectl("apply", "-f", "-", stdin=BUSY)
    assert made.returncode == 0, made.stderr
    ask = ("get", "deployment", "busy")
    try:
        replicas = until(lambda: kubectl(lab, *ask)["spec"]["replicas"] == 2, 180, 2)
        assert replicas, lab.kubectl("describe", "hpa", "busy", timeout=60).stdout
    finally:
        lab.kubectl("delete", "-f", "-", "--wait=true", stdin=BUSY, timeout=60)


def test_metrics_server_is_accepted_and_works_where_its_image_is(lab):
    document = yaml.safe_load(lab.cluster_file.read_text())
    image = document["images"]["use"].get("metrics-server")
    document["addons"] = {"metrics-server": {}}
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")
    done = lab.salt(HOST, "state.apply", "addons", "--out=json", timeout=300)
    assert done.returncode == 0, done.stdout
    again = lab.salt(HOST, "state.apply", "addons", "--out=json", timeout=300)
    assert changes(json.loads(again.stdout)[HOST]) == {}

    def told():
        found = lab.salt(HOST, "indigo_addon.works", "--out=json", timeout=60)
        return json.loads(found.stdout)[HOST]["metrics-server"]

    if image:
        assert until(lambda: told() == "", 120, 2), told()
        top = lab.kubectl("top", "nodes", timeout=60)
        assert top.returncode == 0 and "salt" in top.stdout
        scales_with_its_load(lab)
    else:
        assert until(lambda: "ImagePull" in told(), 30, 1), told()
    declare(lab, None)
    assert applied(lab) == (0, {"metrics-server": "removed"})
    left = lab.kubectl("get", "apiservices,clusterroles,deployments", "-A", "-o", "name")
    assert left.returncode == 0 and "metrics" not in left.stdout


def test_nothing_of_this_file_remains(lab):
    code, result = 0, lab.salt(HOST, "state.apply", "--out=json", timeout=300)
    assert code == result.returncode
    assert changes(json.loads(result.stdout)[HOST]) == {}
