"""The service `accounting`: what a site may say of it, its job, its rules, and its check."""

from __future__ import annotations

import configparser
import json
import time
from urllib.parse import parse_qs, urlsplit

import jinja2
import pytest
import yaml
from indigo_model import accounting, addons, cluster, images, validate
from support import ROOT, load

module = load("_modules", "indigo_addon")

DIGEST = "@sha256:" + "0" * 64
USE = {name: f"registry.example.org/{name}:1{DIGEST}" for name in ("kapel", "ssm")}
SITE = {"site": "EXAMPLE", "benchmark": 10.5, "namespaces": {"batch": "vo.example.org"}}
PROMETHEUS = {"retention": "90d", "storage_class": "fast"}
DOCUMENT = validate.load(validate.EXAMPLE, "example")


def told(given, use=USE, prometheus=PROMETHEUS):
    """Problems of a file with this service, that it has beside the example's."""
    more = {"services": {"accounting": given}, "images": {"use": use}}
    if prometheus is not None:
        more["addons"] = {"prometheus": prometheus}
    return validate.problems(DOCUMENT | more)


def wanted(kubernetes="1.36.2", **given):
    """What the first master brings: settings of accounting and of Prometheus, and the manifests."""
    document = DOCUMENT | {
        "services": {"accounting": SITE | given},
        "addons": {"prometheus": {}},
        "images": {"use": USE},
        "versions": {"kubernetes": kubernetes},
    }
    found = cluster.parse(document)
    view = addons.view(found, found.hosts["master1"])["addons"]["wanted"]
    assert list(view) == ["prometheus", "accounting"]
    text = (ROOT / "salt/addons/accounting/manifests.yaml.jinja").read_text("utf-8")
    rendered = jinja2.Template(text, undefined=jinja2.StrictUndefined).render(
        addon=view["accounting"]
    )
    objects = {
        (one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(rendered) if one
    }
    return view["accounting"], view["prometheus"], objects


def pod(objects, namespace="batch"):
    """The pod of a run."""
    return objects["CronJob", namespace]["spec"]["jobTemplate"]["spec"]["template"]["spec"]


# --- the cluster file ----------------------------------------------------------------------------


def test_a_site_its_benchmark_and_namespaces_are_enough_once_an_image_is_named():
    assert told(SITE, {"kapel": USE["kapel"]}, {}) == []
    (problem,) = told(SITE, {}, {})
    assert problem.startswith("images.use.kapel: found no such key, and services.accounting; exp")


def test_without_prometheus_it_is_refused():
    (problem,) = told(SITE, prometheus=None)
    assert problem == (
        "services.accounting: found no addons.prometheus; expected Prometheus, which keeps what "
        "ran, and when; add `prometheus: {}` under addons, or take it out"
    )


def test_what_is_published_wants_the_sender_and_metrics_that_are_kept():
    given = SITE | {"publish": {"secret": "apel"}}
    assert told(given) == []
    assert told(given, {"kapel": USE["kapel"]})[0].startswith("images.use.ssm: found no such key")
    assert [one.split(": expected")[0] for one in told(given, prometheus={})] == [
        "addons.prometheus.retention: found 15d, and services.accounting.publish; expected at "
        "least 62d: each run counts this month and the last one anew; set it to 90d, and size "
        "with it",
        "addons.prometheus.storage_class: found no such key, and services.accounting.publish; "
        "expected disks on which data outlive a pod: what is lost is missing in the next record; "
        "name a StorageClass",
    ]
    for kept in ("62d", "9w", "1488h", "1y"):
        assert told(given, prometheus=PROMETHEUS | {"retention": kept}) == []
    for kept in ("61d", "8w", "1487h"):
        assert len(told(given, prometheus=PROMETHEUS | {"retention": kept})) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"site": "a b"}, "services.accounting.site: found 'a b'"),
        ({"site": "x\nVO: y"}, "services.accounting.site: found"),
        ({"benchmark": "10"}, "services.accounting.benchmark: found '10'"),
        ({"benchmark": 0}, "services.accounting.benchmark: found the number 0"),
        ({"benchmark": True}, "services.accounting.benchmark: found the boolean true"),
        ({"namespaces": {}}, "services.accounting.namespaces: found an empty mapping"),
        ({"namespaces": ["batch"]}, "services.accounting.namespaces: found a list"),
        ({"namespaces": {"Batch": "v"}}, "services.accounting.namespaces.Batch: found the key"),
        ({"namespaces": {"a" * 53: "v"}}, f"services.accounting.namespaces.{'a' * 53}: found"),
        ({"namespaces": {"batch": None}}, "services.accounting.namespaces.batch: found nothing"),
        ({"submit_host": "a/b"}, "services.accounting.submit_host: found 'a/b'"),
        ({"schedule": "60 3 * * *"}, "services.accounting.schedule: found '60 3 * * *'"),
        ({"schedule": "3 * * *"}, "services.accounting.schedule: found '3 * * *'"),
        ({"schedule": "0 0 * * 5-1"}, "services.accounting.schedule: found"),
        ({"month": "2026-13"}, "services.accounting.month: found '2026-13'"),
        ({"publish": {}}, "services.accounting.publish.secret: found no such key"),
        ({"publish": True}, "services.accounting.publish: found the boolean true"),
        ({"publish": {"secret": "x", "key": "y"}}, "services.accounting.publish.key: found"),
        ({"source": "salt://x"}, "services.accounting.source: found an unknown key"),
    ],
)
def test_mistakes_are_told(given, expected):
    (problem,) = told(SITE | given)
    assert problem.startswith(expected)


@pytest.mark.parametrize("missing", ["site", "benchmark", "namespaces"])
def test_what_records_cannot_do_without_is_asked_for(missing):
    (problem,) = told({key: value for key, value in SITE.items() if key != missing})
    assert problem.startswith(f"services.accounting.{missing}: found no such key")


@pytest.mark.parametrize("schedule", ["15 3 * * *", "*/10 0-6 1,15 * 0", "0 */2 1-31/2 12 6"])
def test_times_of_cron(schedule):
    assert told(SITE | {"schedule": schedule}) == []


def test_no_value_makes_the_check_fail_itself():
    for given in (None, [], "x", 3, {"publish": None}, {"namespaces": None}):
        assert told(given)
        assert validate.problems({"services": {"accounting": given}, "addons": given})


# --- what the table of images says ----------------------------------------------------------------


def test_the_sender_is_loaded_only_where_something_is_sent():
    def needed(**given):
        document = DOCUMENT | {"services": {"accounting": SITE | given}}
        return [one["name"] for one in images.needed(cluster.parse(document))]

    assert needed() == ["kube-state-metrics", "kapel"]
    assert needed(publish={"secret": "x"}) == ["kube-state-metrics", "kapel", "ssm"]


# --- what is brought -----------------------------------------------------------------------------


def test_the_job_has_what_kapel_reads():
    _, _, objects = wanted()
    (container,) = pod(objects)["containers"]
    found = {one["name"]: one["value"] for one in container["env"]}
    assert {key: found[key] for key in found if key.isupper() and "PY" not in key} == {
        "PROMETHEUS_SERVER": "http://10.96.0.21:9090",
        "NAMESPACE": "batch",
        "SITE_NAME": "EXAMPLE",
        "SUBMIT_HOST": "10.77.0.10:8443/batch",
        "VO_NAME": "vo.example.org",
        "BENCHMARK_VALUE": "10.5",
        "OUTPUT_PATH": accounting.RECORDS,
        "HOME": "/tmp",
        "MPLCONFIGDIR": "/tmp",
    }
    service = objects["Service", "prometheus-of-accounting"]
    assert service["spec"]["clusterIP"] == "10.96.0.21"
    assert service["metadata"]["namespace"] == "monitoring"
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert {accounting.RECORDS, "/srv/manual", "/tmp"} == mounts


def test_a_month_is_counted_from_its_first_moment_to_that_of_the_next():
    found, _, _ = wanted(month="2025-12", submit_host="k8s.example.org")
    assert (
        found["runs"]["batch"].items()
        >= {
            "PUBLISHING_MODE": "gap",
            "QUERY_START": "2025-12-01T00:00:00+00:00",
            "QUERY_END": "2026-01-01T00:00:00+00:00",
            "SUBMIT_HOST": "k8s.example.org/batch",
        }.items()
    )


@pytest.mark.parametrize(
    ("release", "version"), [("1.20.2", "batch/v1beta1"), ("1.21.0", "batch/v1")]
)
def test_each_namespace_has_a_job_of_the_release(release, version):
    two = {"batch": "a.example.org", "1": "b.example.org"}
    _, _, objects = wanted(release, namespaces=two, schedule="0 4 * * *")
    jobs = {name: one for (kind, name), one in objects.items() if kind == "CronJob"}
    assert set(jobs) == set(two)
    for name, job in jobs.items():
        assert job["apiVersion"] == version
        assert job["spec"]["schedule"] == "0 4 * * *"
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        for part in (job["spec"]["jobTemplate"], job["spec"]["jobTemplate"]["spec"]["template"]):
            assert part["metadata"]["labels"]["indigo/accounted"] == name
    args = objects["Deployment", "kube-state-metrics"]["spec"]["template"]["spec"]["containers"][0]
    assert "--namespaces=batch,1" in args["args"]


def test_records_lie_on_the_sites_disk_one_for_each_namespace():
    _, _, objects = wanted()
    assert not [kind for kind, _ in objects if kind == "PersistentVolumeClaim"]
    assert {"name": "data", "emptyDir": {"sizeLimit": "256Mi"}} in pod(objects)["volumes"]
    _, _, objects = wanted(storage_class="fast", size="1Gi", namespaces={"a": "v", "b": "v"})
    for name in ("a", "b"):
        claim = objects["PersistentVolumeClaim", name]["spec"]
        assert claim["storageClassName"] == "fast"
        assert claim["resources"]["requests"]["storage"] == "1Gi"
        disk = {"name": "data", "persistentVolumeClaim": {"claimName": name}}
        assert disk in pod(objects, name)["volumes"]


def test_only_what_is_published_has_a_sender_which_gets_the_sites_secret():
    _, _, objects = wanted()
    assert ("ConfigMap", "ssm") not in objects
    assert "initContainers" not in pod(objects)
    _, _, objects = wanted(publish={"secret": "apel", "host": "broker.example.org"})
    found = pod(objects)
    assert [one["name"] for one in found["initContainers"]] == ["kapel"]
    (sender,) = found["containers"]
    assert (sender["name"], sender["image"]) == ("ssm", USE["ssm"])
    (secret,) = [one for one in found["volumes"] if "secret" in one]
    assert secret["secret"]["secretName"] == "apel"
    places = {one["name"]: one["mountPath"] for one in sender["volumeMounts"]}
    kapel = {one["name"]: one["mountPath"] for one in found["initContainers"][0]["volumeMounts"]}
    assert kapel["data"] == places["data"]
    assert "certificate" not in kapel
    read = configparser.ConfigParser()
    read.read_string(objects["ConfigMap", "ssm"]["data"]["sender.cfg"])
    assert read["sender"]["protocol"] == "AMS"
    assert read["broker"]["host"] == "broker.example.org"
    assert read["messaging"]["destination"] == "gLite-APEL"
    assert read["messaging"]["ams_project"] == "accounting"
    assert read["messaging"]["path"] == places["data"]
    assert read["certificates"]["key"] == f"{places['certificate']}/tls.key"


def test_kube_state_metrics_may_list_pods_and_nothing_else():
    _, _, objects = wanted()
    assert objects["ClusterRole", "indigo:kube-state-metrics"]["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}
    ]
    assert objects["ServiceAccount", "kapel"]["automountServiceAccountToken"] is False
    bound = objects["ClusterRoleBinding", "indigo:kube-state-metrics"]["subjects"]
    assert [one["name"] for one in bound] == ["kube-state-metrics"]


def test_prometheus_scrapes_it_and_adds_up_what_containers_of_a_pod_ask_for():
    _, prometheus, objects = wanted()
    jobs = json.loads(prometheus["config"])["scrape_configs"]
    (job,) = [one for one in jobs if one["job_name"] == accounting.JOB]
    assert job["honor_labels"] is True
    address = objects["Service", "kube-state-metrics"]["spec"]["clusterIP"]
    assert job["static_configs"][0]["targets"] == [f"{address}:8080"]
    dropped, renamed = job["metric_relabel_configs"]
    assert dropped == {"action": "labeldrop", "regex": "uid"}
    (group,) = [
        one for one in json.loads(prometheus["rules"])["groups"] if one["name"] == accounting.NAME
    ]
    (rule,) = group["rules"]
    assert (renamed["regex"], rule["record"]) == (accounting.REQUESTS, accounting.REQUESTS)
    assert renamed["replacement"] in rule["expr"]
    assert "container)" not in rule["expr"]
    assert accounting.JOB not in prometheus["expect"]


def test_prometheus_without_it_is_as_before():
    found = cluster.parse(DOCUMENT | {"addons": {"prometheus": {}}})
    settings = addons.wanted(found)["prometheus"]
    assert accounting.JOB not in settings["config"]
    assert [one["name"] for one in json.loads(settings["rules"])["groups"]] == ["indigo"]


# --- its check -----------------------------------------------------------------------------------


def job(name, made, kind=None, active=0, why="BackoffLimitExceeded"):
    """A job as the API gives it."""
    ended = [{"type": kind, "status": "True", "reason": why}] if kind else []
    return {
        "metadata": {"name": name, "creationTimestamp": made},
        "status": {"active": active, "conditions": ended},
    }


def ago(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds))


class World:
    """What Prometheus and the API answer; a test changes one thing."""

    def __init__(self):
        self.up, self.known = "1", ["batch"]
        self.pods = [{"metadata": {"name": "p"}, "status": {"startTime": ago(1000)}}]
        self.jobs = [job("a", "2026-01-01T00:00:00Z", "Complete")]
        self.runs = []

    def asked(self, url, key="data", **_):
        (query,) = parse_qs(urlsplit(url).query)["query"]
        if query == 'up{job="kube-state-metrics"}':
            found = [{"metric": {}, "value": [0, self.up]}] if self.up else []
        else:
            found = [{"metric": {"namespace": one}, "value": [0, "3"]} for one in self.known]
        return {"result": found}

    def get(self, path, server):
        parts = urlsplit(path)
        label = parse_qs(parts.query).get("labelSelector")
        return {
            ("/api/v1/namespaces/batch/pods", None): {"items": self.pods},
            ("/apis/batch/v1/namespaces/accounting/jobs", "indigo/accounted=batch"): {
                "items": self.jobs
            },
            ("/api/v1/namespaces/accounting/pods", "indigo/accounted=batch"): {"items": self.runs},
        }[parts.path, label[0] if label else None]


@pytest.fixture
def world(monkeypatch):
    found = World()
    view = {"components": {"kube-apiserver": {"url": ""}}}
    monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
    monkeypatch.setattr(module, "__salt__", {"indigo_kube.get": found.get}, raising=False)
    monkeypatch.setattr(module, "_addresses", lambda *_: ["10.244.0.5", "10.244.1.5"])
    monkeypatch.setattr(module, "_asked", found.asked)
    return found


def checked():
    return module._accounted(wanted()[0])


def test_it_works_when_prometheus_knows_pods_and_the_last_run_ended_well(world):
    assert checked() == ""
    world.jobs = []
    assert checked() == ""


def test_it_does_not_work_when_prometheus_does_not_reach_it(world, monkeypatch):
    world.up = "0"
    assert checked() == "10.244.0.5 does not reach kube-state-metrics at 10.96.0.20"
    world.up = None
    assert checked() == "10.244.0.5 does not reach kube-state-metrics at 10.96.0.20"
    monkeypatch.setattr(module, "_addresses", lambda *_: [])
    assert checked() == "the service prometheus leads to no pod"


def test_it_does_not_work_when_prometheus_hears_of_no_pod_that_is_there_for_long(world):
    world.known = []
    assert checked() == "10.244.0.5 has heard of no pod of batch, which has some"
    world.pods = [{"metadata": {"name": "p"}, "status": {"startTime": ago(10)}}]
    assert checked() == ""
    world.pods = [{"metadata": {"name": "p"}, "status": {}}]
    assert checked() == ""


def test_it_does_not_work_when_its_last_run_failed(world):
    world.jobs.append(job("b", "2026-01-02T00:00:00Z", "Failed"))
    assert checked() == "the last run for batch failed: job b: BackoffLimitExceeded"
    world.jobs.append(job("c", "2026-01-03T00:00:00Z", active=1))
    assert checked() == "the last run for batch failed: job b: BackoffLimitExceeded"
    world.jobs.append(job("d", "2026-01-04T00:00:00Z", "Complete"))
    assert checked() == ""


def test_it_does_not_work_when_a_run_waits_for_its_image(world):
    world.jobs.append(job("b", "2026-01-02T00:00:00Z", active=1))
    state = {"waiting": {"reason": "ContainerCreating"}}
    world.runs = [
        {
            "metadata": {"name": "b-x"},
            "status": {"containerStatuses": [{"name": "kapel", "state": state}]},
        }
    ]
    assert checked() == ""
    state["waiting"] = {"reason": "ImagePullBackOff"}
    assert checked() == "the run for batch waits: b-x: kapel: ImagePullBackOff"
