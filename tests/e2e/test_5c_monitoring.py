"""Prometheus, InfluxDB and Alertmanager by a key each: all is scraped, kept, and told.

They change, break and go by themselves.

Their images are made of Debian's packages. Debian's build of Prometheus cannot ask Kubernetes for
pods (``pods: false``); all other jobs are as upstream's image would run them.
"""

from __future__ import annotations

import base64
import json
import shutil
import time
from urllib.parse import urlencode

import pytest
import yaml
from cluster import changes, deploy, kubectl, put_back, ready_nodes, status, until
from indigo_lab.base import state
from indigo_model import dashboards, openstack

PROFILE = "compact"
SITE = "10.77.0.5:9111"  # the Salt master: shows metrics and is told of alerts
SETTINGS = {
    "interval": 5,
    "pods": False,
    "size": "256Mi",
    "memory": "512Mi",
    "targets": [SITE],
}
CHANGED = SETTINGS | {"retention": "3d"}
#: Less than a week: InfluxDB's own unit, which it has to be told to change.
ARCHIVE = {"size": "256Mi", "memory": "512Mi", "retention": "3d"}
ALARM = {"webhooks": [f"http://{SITE}/alerts"], "watchdog": f"http://{SITE}/alive", "wait": 1}

#: What a site has of its own: a file that is shown, and a receiver that notes what it is told.
SERVER = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(open("/run/shown/indigo.prom", "rb").read())
    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("/run/shown/told", "a") as file:
            for alert in told["alerts"]:
                file.write(json.dumps([self.path, alert["status"], alert["labels"]]) + "\\n")
        self.answer(b"")
    def answer(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("10.77.0.5", 9111), Handler).serve_forever()
"""

#: What is on each host: every role has its job.
JOBS = {
    "kube-apiserver": 2,
    "kube-controller-manager": 2,
    "kube-scheduler": 2,
    "etcd": 3,
    "haproxy": 3,
    "keepalived": 3,
    "kubelet": 3,
    "cadvisor": 3,
    "node-exporter": 3,
    "others": 1,
}

#: All that is wanted here, each of which has an image.
ADDONS = ("prometheus", "influxdb", "alertmanager")

#: Those and what is applied only.
NAMES = (*ADDONS, "grafana", "headlamp", "logging", "grafana-admin", "openstack", "openstack/cloud")

#: A cloud that is not here, and an image of its controller, since none is pinned for each release.
CLOUD = {
    "auth_url": "https://10.77.0.254:5000/v3",
    "region": "RegionOne",
    "user": "indigo",
    "project": "5a1b",
    "cloud_controller": True,
    "subnet": "1a-2b",
}
CONTROLLER = {openstack.CONTROLLER: "indigo.lab/cloud-controller:1"}
SECRET_FILE = openstack.SECRET_FILE


def declare(lab, settings, more=(), **images):
    """Want Prometheus with these settings, all else and more, or, with None, nothing."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document.pop("addons", None)
    if settings is not None:
        wanted = {"prometheus": settings, "influxdb": ARCHIVE, "alertmanager": ALARM}
        document["addons"] = wanted | {name: CLOUD if name == "openstack" else {} for name in more}
    document["images"].update(images)
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")


def applied(lab, *arguments):
    """``state.apply addons`` on the first master: exit code, what it changed."""
    done = lab.salt("host1", "state.apply", "addons", *arguments, "--out=json", timeout=300)
    found = {}
    for one in json.loads(done.stdout)["host1"].values():
        if one["name"] in NAMES or one["name"].startswith("No other"):
            found |= one["changes"]
            assert one["result"] is not False, one["comment"]
    return done.returncode, found


def changed(done):
    """What the states of a run changed, in one mapping, whatever became of it."""
    states = json.loads(done.stdout)["host1"].values()
    return {key: value for one in states for key, value in one["changes"].items()}


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


def shown(lab):
    """Have the status shown as metrics."""
    done = lab.salt_run("indigo.metrics", "path=/run/shown/indigo.prom", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def told(lab, path):
    """What the site's receiver was told under a path: status and labels of each alert."""
    text = lab.exec("salt", ["sh", "-c", "cat /run/shown/told 2>/dev/null || true"]).stdout
    rows = [json.loads(line) for line in text.splitlines()]
    return [(status, labels) for where, status, labels in rows if where == path]


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
        "alert",
        "grafana",
        "headlamp",
        "logging",
        "openstack",
        "cinder",
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
    lab.exec("salt", ["mkdir", "-p", "/run/shown"], check=True)
    command = ["systemd-run", "--unit=site-monitoring", "python3", "-c", SERVER]
    lab.exec("salt", command, check=True)
    shown(lab)
    yield
    lab.exec("salt", ["systemctl", "stop", "site-monitoring"], check=True)
    put_back(lab, before, left)


def test_one_key_and_a_deploy_bring_it(lab, figure):
    declare(lab, SETTINGS)
    done = deploy(lab)
    assert done.code == 0, done.told
    figure(f"Prometheus and node-exporter, from one key to all targets up: {done.seconds:.1f} s")
    assert works(lab) == {}
    found = status(lab)
    assert found["addons"] == dict.fromkeys(ADDONS, "ok")
    assert found["exit"] == 0, found["problems"]


def test_each_replica_reaches_every_host_at_all_that_it_runs(lab):
    found = replicas(lab)
    assert len(set(found.values())) == 2, found  # two of them, on different nodes
    for address in found:
        up = query(lab, address, "sum by (job) (up)")
        assert {one["metric"]["job"]: int(one["value"][1]) for one in up} == JOBS
        pods = query(lab, address, 'count(container_memory_rss{namespace="monitoring"})')
        assert pods and int(pods[0]["value"][1]) >= 2
        firing = query(lab, address, 'ALERTS{alertstate="firing",alertname!="Watchdog"}')
        assert firing == []
    exporters = kubectl(lab, "get", "pods", "-n", "monitoring-hosts")["items"]
    assert {pod["spec"]["nodeName"] for pod in exporters} == ready_nodes(lab)


def test_prometheus_sees_who_holds_the_address_and_that_it_moves(lab, figure):
    (holder,) = status(lab)["vip"]["holders"]
    address = next(iter(replicas(lab)))

    def masters():
        return [one["metric"]["host"] for one in query(lab, address, "keepalived_vrrp_state == 2")]

    assert masters() == [holder]
    moves = "sum(keepalived_become_master_total)"
    before = query(lab, address, "keepalived_advertisements_sent_total > 0")
    assert holder in [one["metric"]["host"] for one in before]
    lab.exec(holder, ["systemctl", "stop", "keepalived"], check=True)
    started = time.monotonic()
    try:
        assert until(lambda: (found := masters()) and found != [holder] and len(found) == 1, 20, 1)
        figure(f"the virtual address moved, as Prometheus: {time.monotonic() - started:.1f} s")
        down = query(lab, address, f'keepalived_up{{host="{holder}"}}')
        assert [one["value"][1] for one in down] == ["0"]
        assert masters() == status(lab)["vip"]["holders"]
        assert int(query(lab, address, moves)[0]["value"][1]) >= 1
    finally:
        lab.exec(holder, ["systemctl", "start", "keepalived"], check=True)
    assert until(lambda: len(query(lab, address, "keepalived_up == 1")) == 3, 20, 1)
    assert holder not in masters()


#: Asks twice at once, as two of Prometheus may, and prints the answers and the time they took.
_ASK = """
import concurrent.futures, json, sys, time, urllib.request
def ask(_):
    with urllib.request.urlopen(f"http://{sys.argv[1]}:9165/metrics", timeout=8) as answer:
        return [answer.status, answer.read().decode()]
started = time.monotonic()
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    answers = list(pool.map(ask, range(2)))
print(json.dumps([answers, time.monotonic() - started]))
"""


def test_a_keepalived_that_hangs_holds_up_nobody_who_asks(lab, figure):
    """On a host that is no holder: of one that hangs another would take the address."""
    other = next(name for name in ("host1", "host2") if name not in status(lab)["vip"]["holders"])
    address = next(one.address for one in lab.hosts() if one.name == other)

    def asked():
        done = lab.exec("host3", ["python3", "-c", _ASK, address], timeout=30, check=True)
        return json.loads(done.stdout)

    answers, _ = asked()
    assert answers[0] == answers[1]
    assert "\nkeepalived_up 1\n" in answers[0][1]
    kill = ["systemctl", "kill", "--kill-who=main", "keepalived"]
    try:
        lab.exec(other, [*kill, "--signal=STOP"], check=True)
        lab.exec(other, ["rm", "-f", "/run/indigo-keepalived/asked"], check=True)
        answers, seconds = asked()
    finally:
        lab.exec(other, [*kill, "--signal=CONT"], check=True)
    figure(f"two questions at once to a keepalived that hangs: answered after {seconds:.1f} s")
    assert seconds < 4  # it is given up after one; the second waits for the first
    assert {(code, "\nkeepalived_up 0\n" in text) for code, text in answers} == {(200, True)}
    assert "\nkeepalived_up 1\n" in asked()[0][0][1]
    # In its journal there is nothing of all that was asked.
    units = ["journalctl", "-q", "-o", "cat", "-u", "keepalived-metrics@*"]
    assert lab.exec(other, units, timeout=30).stdout == ""
    failed = ["systemctl", "list-units", "--failed", "--no-legend", "--plain"]
    assert "keepalived" not in lab.exec(other, failed, check=True).stdout


def test_every_question_of_the_dashboards_has_an_answer(lab, figure):
    shown(lab)
    address = next(iter(replicas(lab)))
    # Rates need two looks.
    assert until(lambda: query(lab, address, "rate(node_load1[5m])"), 60, 2)
    panels = [(name, panel) for name, (_, all_) in dashboards.TABLE.items() for panel in all_]
    empty = [
        f"{name}: {panel.title}: {panel.expression}"
        for name, panel in panels
        if not query(lab, address, panel.expression)
        # Nobody has made a backup on this lab, and the root of its hosts is an overlay, of which
        # node-exporter tells nothing.
        and not any(word in panel.expression for word in ("backup", 'mountpoint="/"'))
    ]
    assert not empty, "\n".join(empty)
    figure(f"dashboards: {len(panels)} questions to Prometheus answered")


def test_alerts_arrive_and_replicas_tell_each_other(lab):
    alive = until(lambda: told(lab, "/alive"), 120, 2)
    assert alive and alive[0][0] == "firing" and alive[0][1]["cluster"] == "lab"
    pods = kubectl(lab, "get", "pods", "-n", "alerting")["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    first, second = (f"http://{pod['status']['podIP']}:9093/api/v2" for pod in pods)
    silence = {
        "matchers": [{"name": "host", "value": "nobody", "isRegex": False}],
        "startsAt": "2020-01-01T00:00:00Z",
        "endsAt": "2100-01-01T00:00:00Z",
        "createdBy": "test",
        "comment": "test",
    }
    post = (
        "import urllib.request as r; r.urlopen(r.Request("
        f"{first + '/silences'!r}, {json.dumps(silence).encode()!r}, "
        "{'Content-Type': 'application/json'}), timeout=5)"
    )
    lab.exec("host3", ["python3", "-c", post], timeout=30, check=True)
    assert until(lambda: fetched(lab, f"{second}/silences"), 30, 1)


def test_what_prometheus_finds_is_kept_in_influxdb(lab):
    (pod,) = kubectl(lab, "get", "pods", "-n", "metrics-archive")["items"]
    ask = urlencode({"db": "prometheus", "q": 'SELECT count("value") FROM "up" GROUP BY "job"'})
    url = f"http://{pod['status']['podIP']}:8086/query?{ask}"
    (result,) = fetched(lab, url)["results"]
    assert {one["tags"]["job"] for one in result["series"]} == set(JOBS)
    policies = urlencode({"q": "SHOW RETENTION POLICIES ON prometheus"})
    url = f"http://{pod['status']['podIP']}:8086/query?{policies}"
    ((_, kept, shard, *_),) = fetched(lab, url)["results"][0]["series"][0]["values"]
    assert (kept, shard) == ("72h0m0s", "24h0m0s")


def test_a_second_run_changes_nothing(lab):
    assert applied(lab) == (0, {})
    done = deploy(lab)
    assert (done.code, done.changes) == (0, {}), done.told


def test_no_pod_has_more_rights_than_it_needs(lab):
    for namespace in ("monitoring", "monitoring-hosts", "metrics-archive", "alerting"):
        for pod in kubectl(lab, "get", "pods", "-n", namespace)["items"]:
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in pod["spec"]["containers"]:
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"]["memory"]
    budget = kubectl(lab, "get", "poddisruptionbudget", "-n", "monitoring", "prometheus")
    assert budget["status"]["disruptionsAllowed"] == 1


@pytest.mark.slow
def test_a_host_that_is_gone_is_told_by_name_and_raises_an_alert(lab):
    address = next(ip for ip, node in replicas(lab).items() if node != "host3")
    lab.exec("host3", ["systemctl", "stop", "haproxy"], check=True)
    missed = until(
        lambda: (found := works(lab).get("prometheus", "")) and "haproxy on host3" in found, 30, 2
    )
    assert missed, works(lab)
    pending = 'ALERTS{alertname="LoadBalancerDown",host="host3"}'
    assert until(lambda: query(lab, address, pending), 30, 2)
    # The receiver is told once, though two of Prometheus ask two of Alertmanager to.
    assert until(lambda: told(lab, "/alerts"), 120, 2)
    found = [labels for _, labels in told(lab, "/alerts") if labels.get("host") == "host3"]
    assert [one["alertname"] for one in found] == ["LoadBalancerDown"], found
    lab.exec("host3", ["systemctl", "start", "haproxy"], check=True)
    assert until(lambda: works(lab) == {}, 30, 2), works(lab)


@pytest.mark.slow
def test_what_has_no_image_here_is_accepted_and_says_so(lab):
    use = yaml.safe_load(lab.cluster_file.read_text())["images"]["use"]
    others = [name for name in ("grafana", "headlamp", "logging", "openstack") if name not in use]
    declare(lab, SETTINGS, more=others, use=use | CONTROLLER)
    refused = lab.salt("host1", "state.apply", "addons", "--out=json", timeout=300)
    assert refused.returncode != 0
    assert f"{SECRET_FILE}: found no such file" in refused.stdout
    word = 'lab"s \\ own #password'
    keep = ["install", "-m", "0600", "/dev/stdin", SECRET_FILE]
    lab.exec("host1", keep, stdin=f"{word}\n", check=True)
    code, found = applied(lab)
    assert (code, found) == (0, {"Secret openstack/cloud": "created"})
    objects = changed(refused)
    assert objects["Deployment grafana/grafana"] == "created"
    assert objects["Deployment headlamp/headlamp"] == "created"
    assert objects["Secret grafana/grafana-admin"] == "created"
    assert objects["DaemonSet logging/fluent-bit"] == "created"
    assert objects["DaemonSet openstack/cinder-node"] == "created"
    assert objects["Deployment openstack/cloud-controller"] == "created"
    assert objects["CSIDriver cinder.csi.openstack.org"] == "created"
    assert applied(lab) == (0, {})
    secret = kubectl(lab, "get", "secret", "-n", "grafana", "grafana-admin")["data"]["password"]
    password = base64.b64decode(secret).decode()
    assert len(password) == 32
    cloud = kubectl(lab, "get", "secret", "-n", "openstack", "cloud")["data"]["cloud.conf"]
    conf = base64.b64decode(cloud).decode()
    assert 'password="lab\\"s \\\\ own #password"' in conf and 'region="RegionOne"' in conf
    for hidden, where in ((password, []), ("own #password", [SECRET_FILE])):
        seen = lab.exec("salt", ["grep", "-rlF", hidden, "/var/cache/salt", "/var/log/salt"])
        assert seen.returncode == 1, seen.stdout
        folders = ["/etc", "/var/cache/salt", "/var/log/salt"]
        assert lab.exec("host1", ["grep", "-rlF", hidden, *folders]).stdout.split() == where
    assert until(lambda: str(works(lab)).count("ImagePull") == len(others), 120, 2), works(lab)

    def may(account, verb, what):
        who = f"--as=system:serviceaccount:{account}"
        return lab.kubectl("auth", "can-i", verb, what, "-A", who).stdout.strip()

    # A person who looks sees no Secret.
    assert may("headlamp:viewer", "list", "pods") == "yes"
    assert may("headlamp:viewer", "list", "nodes") == "yes"
    for verb, what in (("list", "secrets"), ("delete", "pods"), ("create", "deployments")):
        assert may("headlamp:viewer", verb, what) == "no", what
    assert may("headlamp:headlamp", "list", "pods") == "no"
    # What is at the cloud's changes no Node, and the part on nodes may nothing at all.
    assert may("openstack:cloud-controller", "patch", "services") == "yes"
    for verb in ("patch", "update", "delete"):
        assert may("openstack:cloud-controller", verb, "nodes") == "no", verb
    assert may("openstack:cinder-controller", "create", "persistentvolumes") == "yes"
    assert may("openstack:cinder-controller", "list", "secrets") == "no"
    assert may("openstack:cinder-node", "get", "nodes") == "no"

    # A class of a kind that the API does not have is told, and leaves no trace.
    document = yaml.safe_load(lab.cluster_file.read_text())
    document["addons"]["openstack"] = CLOUD | {"snapshots": True}
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")
    refused = lab.salt("host1", "state.apply", "addons", "--out=json", timeout=300)
    assert refused.returncode != 0
    assert 'no matches for kind \\"VolumeSnapshotClass\\"' in refused.stdout

    declare(lab, SETTINGS, use=use)
    code, found = applied(lab)
    assert (code, found) == (0, dict.fromkeys(others, "removed"))
    kinds = "namespace,clusterrole,clusterrolebinding,service,storageclass,csidriver"
    gone = lab.kubectl("get", kinds, "-A", "-o", "name")
    assert gone.returncode == 0
    names = [*others, "cinder", "cloud-controller"]
    left_over = [one for one in gone.stdout.split() if "/system:" not in one]
    assert not [one for one in left_over if any(name in one for name in names)]
    lab.exec("host1", ["rm", SECRET_FILE], check=True)


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
    why = until(lambda: (found := works(lab)) and "ImagePull" in str(found) and found, 120, 2)
    assert why, works(lab)
    assert set(why) == {"influxdb"} and why["influxdb"].startswith(where), why
    assert "indigo.lab/broken:1" in why["influxdb"]
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
    assert set(listed) == {names[one] for one in (*ADDONS, "node-exporter")}
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
        assert not [port for port in (":2381 ", ":8405 ", ":9165 ", ":9100 ") if port in listening]
        gone = "ls /etc/systemd/system /usr/local/lib/indigo | grep keepalived-metrics"
        assert lab.exec(host, ["sh", "-c", gone]).stdout == ""
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
