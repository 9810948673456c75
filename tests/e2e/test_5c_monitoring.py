"""Prometheus and InfluxDB by a key each: all of the cluster is scraped, and kept.

They change, break and go by themselves.

Their images are made of Debian's packages. Debian's build of Prometheus cannot ask Kubernetes for
pods (``pods: false``); all other jobs are as upstream's image would run them.
"""

from __future__ import annotations

import json
import shutil
from urllib.parse import urlencode

import pytest
import yaml
from cluster import changes, deploy, kubectl, ready_nodes, status, until, well
from indigo_lab.base import state

PROFILE = "compact"
SETTINGS = {"interval": 5, "pods": False, "size": "256Mi", "memory": "512Mi"}
CHANGED = SETTINGS | {"retention": "3d"}
ARCHIVE = {"size": "256Mi", "memory": "512Mi"}

#: What is on each host: every role has its job.
JOBS = {
    "kube-apiserver": 2,
    "kube-controller-manager": 2,
    "kube-scheduler": 2,
    "etcd": 3,
    "haproxy": 3,
    "kubelet": 3,
    "cadvisor": 3,
    "node-exporter": 3,
}


def declare(lab, settings, **images):
    """Want Prometheus with these settings and InfluxDB, or, with None, neither."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document.pop("addons", None)
    if settings is not None:
        document["addons"] = {"prometheus": settings, "influxdb": ARCHIVE}
    document["images"].update(images)
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")


def applied(lab, *arguments):
    """``state.apply addons`` on the first master: exit code, what it changed."""
    done = lab.salt("host1", "state.apply", "addons", *arguments, "--out=json", timeout=300)
    found = {}
    for one in json.loads(done.stdout)["host1"].values():
        if one["name"] in ("prometheus", "influxdb") or one["name"].startswith("No other"):
            found |= one["changes"]
            assert one["result"] is not False, one["comment"]
    return done.returncode, found


def works(lab):
    """What the add-ons' own checks say, of those that do not work."""
    done = lab.salt("host1", "indigo_addon.works", "--out=json", timeout=60)
    return {name: why for name, why in json.loads(done.stdout)["host1"].items() if why}


def replicas(lab):
    """Addresses of the pods of Prometheus, and the node of each."""
    pods = kubectl(lab, "get", "pods", "-n", "monitoring")["items"]
    return {pod["status"].get("podIP"): pod["spec"]["nodeName"] for pod in pods}


def query(lab, address, expression):
    """Results of a query of one Prometheus, asked from a host."""
    url = f"http://{address}:9090/api/v1/query?{urlencode({'query': expression})}"
    return fetched(lab, url)["data"]["result"]


def fetched(lab, url):
    """JSON under a URL, as a host gets it."""
    ask = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=5).read().decode())"
    return json.loads(lab.exec("host3", ["python3", "-c", ask], timeout=30, check=True).stdout)


def left(lab):
    """Whatever of the add-on is still in the cluster."""
    kinds = "namespace,clusterrole,clusterrolebinding,configmap,pod,persistentvolumeclaim"
    done = lab.kubectl("get", kinds, "-A", "-o", "name", timeout=60)
    assert done.returncode == 0, done.stderr
    words = (
        "monitoring",
        "prometheus",
        "node-exporter",
        "influxdb",
        "metrics-archive",
        "indigo-addon",
    )
    names = [name for name in done.stdout.split() if "/system:" not in name]  # Kubernetes' own
    return [name for name in names if any(word in name for word in words)]


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring add-ons to: {done.told}")
    before = lab.cluster_file.read_text()
    yield
    lab.cluster_file.write_text(before)
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")
    done = deploy(lab)
    assert done.code == 0, done.told
    assert left(lab) == []
    well(lab)


def test_one_key_and_a_deploy_bring_it(lab, figure):
    declare(lab, SETTINGS)
    done = deploy(lab)
    assert done.code == 0, done.told
    figure(f"Prometheus and node-exporter, from one key to all targets up: {done.seconds:.1f} s")
    assert works(lab) == {}
    found = status(lab)
    assert found["addons"] == {"prometheus": "ok", "influxdb": "ok"}
    assert found["exit"] == 0, found["problems"]


def test_each_replica_reaches_every_host_at_all_that_it_runs(lab):
    found = replicas(lab)
    assert len(set(found.values())) == 2, found  # two of them, on different nodes
    for address in found:
        up = query(lab, address, "sum by (job) (up)")
        assert {one["metric"]["job"]: int(one["value"][1]) for one in up} == JOBS
        pods = query(lab, address, 'count(container_memory_rss{namespace="monitoring"})')
        assert pods and int(pods[0]["value"][1]) >= 2
        firing = query(lab, address, 'ALERTS{alertstate="firing"}')
        assert firing == []
    exporters = kubectl(lab, "get", "pods", "-n", "monitoring-hosts")["items"]
    assert {pod["spec"]["nodeName"] for pod in exporters} == ready_nodes(lab)


def test_what_prometheus_finds_is_kept_in_influxdb(lab):
    (pod,) = kubectl(lab, "get", "pods", "-n", "metrics-archive")["items"]
    ask = urlencode({"db": "prometheus", "q": 'SELECT count("value") FROM "up" GROUP BY "job"'})
    url = f"http://{pod['status']['podIP']}:8086/query?{ask}"
    (result,) = fetched(lab, url)["results"]
    assert {one["tags"]["job"] for one in result["series"]} == set(JOBS)


def test_a_second_run_changes_nothing(lab):
    assert applied(lab) == (0, {})
    done = deploy(lab)
    assert (done.code, done.changes) == (0, {}), done.told


def test_no_pod_has_more_rights_than_it_needs(lab):
    for namespace in ("monitoring", "monitoring-hosts", "metrics-archive"):
        for pod in kubectl(lab, "get", "pods", "-n", namespace)["items"]:
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in pod["spec"]["containers"]:
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"]["memory"]
    budget = kubectl(lab, "get", "poddisruptionbudget", "-n", "monitoring", "prometheus")
    assert budget["status"]["disruptionsAllowed"] == 1


def test_a_host_that_is_gone_is_told_by_name_and_raises_an_alert(lab):
    address = next(ip for ip, node in replicas(lab).items() if node != "host3")
    lab.exec("host3", ["systemctl", "stop", "haproxy"], check=True)
    told = until(
        lambda: (found := works(lab).get("prometheus", "")) and "haproxy on host3" in found, 30, 2
    )
    assert told, works(lab)
    pending = 'ALERTS{alertname="LoadBalancerDown",host="host3"}'
    assert until(lambda: query(lab, address, pending), 30, 2)
    lab.exec("host3", ["systemctl", "start", "haproxy"], check=True)
    assert until(lambda: works(lab) == {}, 30, 2), works(lab)


@pytest.mark.slow
def test_what_is_declared_is_changed_in_place(lab):
    before = kubectl(lab, "get", "statefulset", "-n", "monitoring", "prometheus")["metadata"]["uid"]
    declare(lab, CHANGED)
    assert applied(lab) == (0, {"StatefulSet monitoring/prometheus": "updated"})
    assert until(lambda: works(lab) == {}, 120, 2), works(lab)
    after = kubectl(lab, "get", "statefulset", "-n", "monitoring", "prometheus")
    assert after["metadata"]["uid"] == before
    assert "--storage.tsdb.retention.time=3d" in str(after["spec"])


@pytest.mark.slow
def test_a_broken_image_fails_that_addon_alone_with_the_reason_of_kubernetes(lab):
    good = yaml.safe_load(lab.cluster_file.read_text())["images"]["use"]
    declare(lab, CHANGED, use=good | {"influxdb": "indigo.lab/broken:1"})
    code, found = applied(lab)
    assert (code, found["StatefulSet metrics-archive/influxdb"]) == (0, "updated")
    where = (
        "StatefulSet metrics-archive/influxdb: 0 of 1 replicas are ready: influxdb-0: influxdb: "
    )
    told = until(lambda: (found := works(lab)) and "ImagePull" in str(found) and found, 120, 2)
    assert told, works(lab)
    assert set(told) == {"influxdb"} and told["influxdb"].startswith(where), told
    assert "indigo.lab/broken:1" in told["influxdb"]
    # Of the cluster itself nothing is wrong.
    assert until(lambda: len(status(lab)["problems"]) == 1, 60, 2), status(lab)["problems"]
    assert status(lab)["problems"][0].startswith(f"add-on influxdb: {where}")
    declare(lab, CHANGED, use=good)
    assert applied(lab)[0] == 0
    assert until(lambda: works(lab) == {}, 120, 2), works(lab)


@pytest.mark.slow
def test_images_are_listed_saved_and_served_from_a_folder(lab):
    done = lab.salt_run("indigo.images", "--out=json", timeout=60)
    listed = json.loads(done.stdout)
    names = yaml.safe_load(lab.cluster_file.read_text())["images"]["use"]
    assert set(listed) == {names["prometheus"], names["node-exporter"], names["influxdb"]}
    assert all(one["missing"] == [] for one in listed.values()), listed

    # On a folder of the host that is the machine's, so that it can be carried from there.
    done = lab.salt_run(
        "indigo.images", "save=/var/lib/containerd/saved", "node=host2", timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    saved, carried = state("hosts", "host2", "containerd", "saved"), state("site", "disk")
    shutil.move(saved, carried)
    done = lab.salt_run("indigo.images", "load=/srv/indigo-site/disk", "--out=json", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads(done.stdout)["archives"]
    assert {one["name"] for one in entries} == set(listed)

    document = yaml.safe_load(lab.cluster_file.read_text())
    others = [one for one in document["images"]["archives"] if one["name"] not in listed]
    declare(lab, CHANGED, archives=others + entries)
    lost = sorted(listed)[0]
    ctr = lab.exec("host3", ["sh", "-c", "ls /opt/indigo/*/ctr /opt/indigo/*/bin/ctr"]).stdout
    command = [ctr.split()[0], "-n", "k8s.io", "images"]
    lab.exec("host3", [*command, "rm", lost], check=True)
    missing = json.loads(lab.salt_run("indigo.images", "--out=json", timeout=60).stdout)[lost]
    assert missing["missing"] == ["host3"]
    done = lab.salt("host3", "state.apply", "node", "--out=json", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    again = json.loads(lab.salt_run("indigo.images", "--out=json", timeout=60).stdout)
    assert {ref: one["missing"] for ref, one in again.items()} == {key: [] for key in listed}
    assert all(one["from"].startswith("salt://images/") for one in again.values())
    shutil.rmtree(carried)


@pytest.mark.slow
def test_it_goes_whole_comes_again_and_goes(lab):
    declare(lab, None)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert left(lab) == []
    for host in ("host1", "host2", "host3"):
        listening = lab.exec(host, ["ss", "-Hlnt"], check=True).stdout
        assert not [port for port in (":2381 ", ":8405 ", ":9100 ") if port in listening]
    declare(lab, SETTINGS)
    done = deploy(lab)
    assert done.code == 0, done.told
    declare(lab, None)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert left(lab) == []


def test_a_last_run_changes_nothing(lab):
    done = deploy(lab)
    assert (done.code, done.changes) == (0, {}), done.told
    result = lab.salt("host1", "state.apply", "--out=json", timeout=300)
    assert result.returncode == 0
    assert changes(json.loads(result.stdout)["host1"]) == {}
