"""Accounting by its key: a pod runs, a job counts it, and the record is one that APEL would take.

Its images have to be brought (``INDIGO_IMAGES``, docs/operations/accounting.md says what they are):
nobody makes them here. Nothing is sent, for there is no broker.
"""

from __future__ import annotations

import json
from datetime import datetime

import pytest
import yaml
from cluster import (
    addon_works,
    apply_addons,
    changes,
    deploy,
    disk,
    kubectl,
    put_back,
    status,
    until,
)
from indigo_model import accounting

pytestmark = pytest.mark.slow

PROFILE = "single"
HOST = "salt"

#: Debian's build of Prometheus cannot ask Kubernetes for pods.
PROMETHEUS = {"interval": 5, "pods": False, "size": "256Mi", "memory": "512Mi"}
#: It is never due: the test says when.
SETTINGS = {
    "site": "EXAMPLE-SITE",
    "benchmark": 10.5,
    "namespaces": {"batch": "vo.example.org"},
    "schedule": "0 0 29 2 *",
    "memory": "512Mi",
}
OBJECTS = {
    "Namespace accounting",
    "ServiceAccount accounting/kube-state-metrics",
    "ServiceAccount accounting/kapel",
    "ClusterRole indigo:kube-state-metrics",
    "ClusterRoleBinding indigo:kube-state-metrics",
    "Deployment accounting/kube-state-metrics",
    "PodDisruptionBudget accounting/kube-state-metrics",
    "Service accounting/kube-state-metrics",
    "NetworkPolicy accounting/kube-state-metrics",
    "NetworkPolicy accounting/runs",
    "Service monitoring/prometheus-of-accounting",
    "CronJob accounting/batch",
}

#: Two containers, whose requests count together, and one that asks for nothing.
POD = """
apiVersion: v1
kind: Namespace
metadata: {name: batch}
---
apiVersion: v1
kind: Pod
metadata: {name: work, namespace: batch}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
    - name: one
      image: indigo.lab/web:1
      command: [/bin/sleep, '20']
      resources: {requests: {cpu: 200m}}
    - name: two
      image: indigo.lab/web:1
      command: [/bin/sleep, '5']
      resources: {requests: {cpu: 50m}}
    - name: free
      image: indigo.lab/web:1
      command: [/bin/sleep, '1']
"""

#: Where records lie on the host: kubelet mounts it into the pods of runs.
FOLDER = "/var/lib/kubelet/disk-of-accounting"

QUERY = """
import json, sys, urllib.parse, urllib.request
address, query = sys.argv[1:]
url = f"http://{address}:9090/api/v1/query?query={urllib.parse.quote(query)}"
print(json.dumps(json.load(urllib.request.urlopen(url, timeout=10))["data"]["result"]))
"""


def declare(lab, settings, **use):
    """Want Prometheus and this."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document["addons"] = {"prometheus": PROMETHEUS}
    document["services"] = {"accounting": settings}
    document["images"]["use"].update(use)
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")


def applied(lab):
    """``state.apply addons``: exit code, and what its states changed, in one mapping."""
    return apply_addons(lab, HOST, ("prometheus", "accounting"))


def works(lab):
    """What the check says; empty when it works."""
    return addon_works(lab, HOST, "accounting")


def asked(lab, query):
    """What Prometheus answers at the address that runs ask."""
    service = kubectl(lab, "get", "service", "-n", "monitoring", "prometheus-of-accounting")
    address = service["spec"]["clusterIP"]
    done = lab.exec(HOST, ["python3", "-c", QUERY, address, query], timeout=30)
    return json.loads(done.stdout) if done.returncode == 0 else []


def run(lab, name):
    """Run the job now, to its end: its log."""
    made = lab.kubectl("create", "job", "-n", "accounting", name, "--from=cronjob/batch")
    assert made.returncode == 0, made.stderr

    def ended():
        found = kubectl(lab, "get", "job", "-n", "accounting", name)["status"]
        return found.get("succeeded") or found.get("failed")

    assert until(ended, 120, 1), kubectl(lab, "get", "pods", "-n", "accounting")["items"]
    told = lab.kubectl("logs", "-n", "accounting", f"job/{name}", timeout=60)
    assert kubectl(lab, "get", "job", "-n", "accounting", name)["status"].get("succeeded"), (
        told.stdout + told.stderr
    )
    return told.stdout


def records(text):
    """Records in a log or a file, by the first line of each."""
    found = {}
    for part in text.split("APEL-")[1:]:
        kind, *lines = part.partition("%%")[0].strip().splitlines()
        found[kind] = dict(line.split(": ", 1) for line in lines)
    return found


def used(lab):
    """Processor seconds of the pod as it asked for them, and when it ended."""
    found = kubectl(lab, "get", "pod", "-n", "batch", "work")["status"]
    ends = [one["state"]["terminated"]["finishedAt"] for one in found["containerStatuses"]]
    start, end = (
        datetime.fromisoformat(one.replace("Z", "+00:00")).timestamp()
        for one in (found["startTime"], max(ends))
    )
    return 0.25 * (end - start), end


def left(lab):
    """Whatever of it is still in the cluster."""
    kinds = "namespace,configmap,pod,job,cronjob,persistentvolumeclaim,serviceaccount,service"
    columns = "custom-columns=IN:.metadata.namespace,NAME:.metadata.name"
    done = lab.kubectl("get", f"{kinds},clusterrole,clusterrolebinding", "-A", "-o", columns)
    assert done.returncode == 0, done.stderr
    own = {
        "accounting",
        "monitoring",
        "indigo-addon-accounting",
        "indigo-addon-prometheus",
        "indigo:kube-state-metrics",
    }
    return [line for line in done.stdout.splitlines() if own & set(line.split())]


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    document = yaml.safe_load(lab.cluster_file.read_text())
    missing = {"kapel", "kube-state-metrics"} - set(document["images"]["use"])
    if missing:
        pytest.fail(
            f"the lab has no image of {', '.join(sorted(missing))}: bring archives that are called "
            "so with INDIGO_IMAGES or `lab up --images`, see docs/operations/accounting.md"
        )
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring it to: {done.told}")
    before = lab.cluster_file.read_text()
    with disk(lab, HOST, FOLDER):
        yield
        lab.kubectl("delete", "namespace/batch", "--ignore-not-found", timeout=60)
        put_back(lab, before, left)


def test_its_key_and_a_deploy_bring_it(lab, figure):
    declare(lab, SETTINGS)
    done = deploy(lab)
    assert done.code == 0, done.told
    figure(f"accounting and Prometheus, from the keys to their checks: {done.seconds:.1f} s")
    found = status(lab)
    assert (found["addons"], found["exit"]) == ({"prometheus": "ok", "accounting": "ok"}, 0), found
    brought = kubectl(lab, "get", "configmap", "-n", "kube-system", "indigo-addon-accounting")
    names = {
        f"{kind} {place}/{name}" if place else f"{kind} {name}"
        for _, kind, place, name in json.loads(brought["data"]["objects"])
    }
    assert names == OBJECTS


def test_a_second_run_changes_nothing(lab):
    assert applied(lab) == (0, {})
    done = deploy(lab)
    assert (done.code, done.changes) == (0, {}), done.told


def test_it_may_list_pods_and_no_more(lab):
    who = "--as=system:serviceaccount:accounting:"

    def may(account, *what):
        return lab.kubectl("auth", "can-i", *what, "-A", who + account).stdout.strip()

    assert may("kube-state-metrics", "list", "pods") == "yes"
    for what in (("get", "secrets"), ("list", "nodes"), ("delete", "pods"), ("create", "pods")):
        assert may("kube-state-metrics", *what) == "no"
    assert may("kapel", "list", "pods") == "no"
    spaces = kubectl(lab, "get", "namespace", "accounting")["metadata"]["labels"]
    assert spaces["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_time_of_a_pod_that_ran_is_in_the_record(lab, figure):
    made = lab.kubectl("apply", "-f", "-", stdin=POD)
    assert made.returncode == 0, made.stderr
    ended = ("get", "pod", "-n", "batch", "work")
    assert until(lambda: kubectl(lab, *ended)["status"]["phase"] == "Succeeded", 120, 1)
    seconds, end = used(lab)
    # kube-state-metrics tells a time as soon as the first container has ended.
    known = f'kube_pod_completion_time{{namespace="batch",pod="work"}} == {end:.0f}'
    assert until(lambda: asked(lab, known), 120, 1), works(lab)
    requests = f'{accounting.REQUESTS}{{namespace="batch",resource="cpu"}}'
    (one,) = until(lambda: asked(lab, requests), 30, 1)
    assert one["value"][1] == "0.25"
    told = run(lab, "first")
    found = records(told)
    when = datetime.fromtimestamp(end)
    summary = found["summary-job-message: v0.2"]
    figure(f"record of a pod with 0.25 cores: CpuDuration {summary['CpuDuration']}, {seconds} s")
    assert summary == {
        "Site": "EXAMPLE-SITE",
        "Month": str(when.month),
        "Year": str(when.year),
        "VO": "vo.example.org",
        "SubmitHost": "10.77.0.10:8443/batch",
        "InfrastructureType": "grid",
        "ServiceLevelType": "si2k",
        "ServiceLevel": "2625.0",
        "WallDuration": str(round(seconds)),
        "CpuDuration": str(round(seconds)),
        "NumberOfJobs": "1",
        "Processors": "0",
        "NodeCount": "0",
        "EarliestEndTime": str(round(end)),
        "LatestEndTime": str(round(end)),
    }
    assert found["sync-message: v0.1"]["NumberOfJobs"] == "1"
    assert works(lab) == ""


def test_records_stay_on_a_disk_of_the_site(lab):
    declare(lab, SETTINGS | {"storage_class": "disks"})
    # What is new is told alone.
    assert applied(lab) == (0, {"PersistentVolumeClaim accounting/batch": "created"})
    assert applied(lab) == (0, {})
    logged = records(run(lab, "second"))
    kept = lab.exec(HOST, ["sh", "-c", f"cat {FOLDER}/*/*"], check=True).stdout
    assert records(kept) == logged
    assert len(logged) == 2


def test_settings_are_changed_in_place(lab):
    declare(lab, SETTINGS | {"storage_class": "disks", "site": "OTHER-SITE"})
    assert applied(lab) == (0, {"CronJob accounting/batch": "updated"})
    assert records(run(lab, "third"))["sync-message: v0.1"]["Site"] == "OTHER-SITE"


def test_a_run_without_an_image_says_why(lab):
    good = yaml.safe_load(lab.cluster_file.read_text())["images"]["use"]["kapel"]
    wanted = SETTINGS | {"storage_class": "disks"}
    declare(lab, wanted, kapel="indigo.lab/broken:1")
    assert applied(lab)[0] == 0
    made = lab.kubectl("create", "job", "-n", "accounting", "broken", "--from=cronjob/batch")
    assert made.returncode == 0, made.stderr
    why = until(lambda: "ImagePull" in (now := works(lab)) and now, 60, 2)
    assert why and why.startswith("the run for batch waits: broken-"), works(lab)
    gone = lab.kubectl("delete", "job", "-n", "accounting", "broken", timeout=60)
    assert gone.returncode == 0, gone.stderr
    declare(lab, wanted, kapel=good)
    assert applied(lab)[0] == 0
    assert until(lambda: works(lab) == "", 60, 2), works(lab)


def test_it_goes_whole(lab):
    document = yaml.safe_load(lab.cluster_file.read_text())
    del document["services"], document["addons"]
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")
    done = deploy(lab)
    assert done.code == 0, done.told
    assert left(lab) == []
    assert lab.kubectl("get", "pod", "-n", "batch", "work").returncode == 0
    result = lab.salt(HOST, "state.apply", "--out=json", timeout=300)
    assert result.returncode == 0
    assert changes(json.loads(result.stdout)[HOST]) == {}
