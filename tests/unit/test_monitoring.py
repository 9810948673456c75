"""Prometheus: what it scrapes and alerts on, what listens for it, and its check."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from indigo_model import addons, etcd, lb, monitoring, ports, versions
from indigo_model.cluster import Cluster, Host, Vip
from support import load

module = load("_modules", "indigo_addon")


def cluster(monitored: bool = True, nodes: int = 2, **more: Any) -> Cluster:
    settings = more.pop("settings", {})
    hosts = {
        "lb1": Host("lb1", "10.0.0.1", ("lb",)),
        "etcd1": Host("etcd1", "10.0.0.2", ("etcd",)),
        "M1": Host("M1", "10.0.0.3", ("master",)),
        **{f"n{i}": Host(f"n{i}", f"10.0.1.{i}", ("node",)) for i in range(1, nodes + 1)},
    }
    return Cluster(
        "x",
        hosts,
        Vip("10.0.0.9", "eth0"),
        "10.96.0.0/16",
        "10.244.0.0/16",
        versions=versions.resolve({}),
        addons={"prometheus": settings} if monitored else {},
        lans=("10.0.0.0/16",),
        **more,
    )


def wanted(**more: Any) -> dict[str, Any]:
    return addons.wanted(cluster(**more))["prometheus"]


def test_every_host_is_scraped_at_what_its_roles_run():
    found = wanted()
    assert found["expect"] == {
        "kube-apiserver": ["m1"],
        "kube-controller-manager": ["m1"],
        "kube-scheduler": ["m1"],
        "etcd": ["etcd1"],
        "haproxy": ["lb1"],
        "keepalived": ["lb1"],
        "kubelet": ["n1", "n2"],
        "cadvisor": ["n1", "n2"],
        "node-exporter": ["n1", "n2"],
    }
    files = {name: json.loads(text) for name, text in found["targets"].items()}
    assert files["etcd.json"] == [{"targets": ["10.0.0.2:2381"], "labels": {"host": "etcd1"}}]
    assert files["haproxy.json"][0]["targets"] == ["10.0.0.1:8405"]
    assert files["keepalived.json"] == [{"targets": ["10.0.0.1:9165"], "labels": {"host": "lb1"}}]
    assert [one["targets"] for one in files["kubelet.json"]] == [
        ["10.0.1.1:10250"],
        ["10.0.1.2:10250"],
    ]


def test_every_job_reads_a_file_that_is_there_and_no_token_goes_over_plain_http():
    found = wanted()
    jobs = json.loads(found["config"])["scrape_configs"]
    for job in jobs:
        if job["job_name"] == "pods":
            continue
        (file,) = job["file_sd_configs"][0]["files"]
        assert file.removeprefix("/etc/prometheus-targets/") in found["targets"]
    for job in jobs:
        assert ("authorization" in job) == (job.get("scheme") == "https")
    assert {job["job_name"] for job in jobs} == {*found["expect"], "pods"}
    without = json.loads(wanted(settings={"pods": False})["config"])["scrape_configs"]
    assert [job for job in jobs if job not in without] == [monitoring._pods()]


def test_a_host_more_starts_no_prometheus_anew():
    few, many = wanted(nodes=2), wanted(nodes=9)
    assert few["digest"] == many["digest"] and few["targets"] != many["targets"]
    assert few["digest"] != wanted(settings={"interval": 5})["digest"]


def test_data_lies_with_the_pod_or_on_a_disk_of_the_site():
    assert wanted()["claims"] == []
    assert wanted()["volumes"] == [{"name": "data", "emptyDir": {"sizeLimit": "4Gi"}}]
    found = wanted(settings={"storage_class": "fast", "size": "2Ti"})
    assert found["volumes"] == []
    assert found["claims"][0]["spec"]["storageClassName"] == "fast"
    assert found["keep"] == f"{2 * 1024**2 * 8 // 10}MB"


@pytest.mark.parametrize(
    ("nodes", "given", "replicas"), [(0, {}, 1), (1, {}, 1), (5, {}, 2), (5, {"replicas": 3}, 3)]
)
def test_two_of_them_where_there_are_two_nodes(nodes, given, replicas):
    assert wanted(nodes=nodes, settings=given)["replicas"] == replicas


# --- what listens for it -------------------------------------------------------------------------


def test_metrics_are_only_served_where_somebody_asks_for_them():
    for monitored in (True, False):
        found = cluster(monitored)
        flags = etcd.flags(found, found.hosts["etcd1"])
        assert ("listen-metrics-urls" in flags) is monitored
        components = lb.view(found, found.hosts["lb1"])["components"]
        for name, port in (("haproxy", 8405), ("keepalived", 9165)):
            assert components[name]["metrics"] == ([f"10.0.0.1:{port}"] if monitored else [])


@pytest.mark.parametrize(
    ("urls", "target"),
    [
        ("http://0.0.0.0:9999", "http://10.0.0.2:9999"),
        ("http://127.0.0.1:9999", None),
        ("https://0.0.0.0:9999", None),
        (None, None),
        ("http://127.0.0.1:1,http://0.0.0.0:2", "http://10.0.0.2:2"),
    ],
)
def test_a_site_that_moved_etcds_metrics_is_followed(urls, target):
    found = cluster(overrides={"etcd": {"flags": {"listen-metrics-urls": urls}}})
    assert etcd.metrics_url(found, found.hosts["etcd1"]) == target
    expected = addons.wanted(found)["prometheus"]["expect"]
    assert expected.get("etcd") == (["etcd1"] if target else None)


def test_the_firewall_lets_prometheus_reach_what_it_must():
    found = cluster(firewall="nftables")
    targets = json.dumps(addons.wanted(found)["prometheus"]["targets"])
    checked = 0
    for host in found.hosts.values():
        guards = ports.view(found, host)["firewall"]["guards"]
        for port in re.findall(rf"{re.escape(host.address)}:(\d+)", targets):
            (guard,) = [one for one in guards if one["port"] == port]
            # Nodes are in there: a pod elsewhere comes with its node's address.
            assert "10.0.0.0/16" in guard["sources"], (host, guard)
            checked += 1
    assert checked == 10


def test_a_port_of_keepalived_is_in_the_hands_of_systemd_or_taken():
    found = cluster()
    (row,) = [one for one in ports.view(found, found.hosts["lb1"])["ports"] if one["port"] == 9165]
    assert (row["program"], row["address"]) == ("/usr/lib/systemd/systemd", "10.0.0.1")


def test_without_it_the_ports_are_as_they_were():
    rows = [
        row
        for role in ("lb", "etcd", "master", "node")
        for row in ports.table(cluster(False), role)
    ]
    assert not [row for row in rows if "rometheus" in row.why]


# --- the check -----------------------------------------------------------------------------------


def target(job: str, host: str, health: str = "up", error: str = "") -> dict[str, Any]:
    return {"labels": {"job": job, "host": host}, "health": health, "lastError": error}


@pytest.fixture
def prometheus(monkeypatch):
    """Answers as Prometheus' API does; the test fills in what."""
    answers: dict[str, Any] = {"targets": [], "up": "1"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if "/targets" in self.path:
                data = {"activeTargets": answers["targets"]}
            else:
                data = {
                    "result": [
                        {"metric": {"job": job}, "value": [0, answers["up"]]}
                        for job in ("etcd", "kubelet")
                        if answers["up"]
                    ]
                }
            body = json.dumps({"status": "success", "data": data}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    real = module._asked
    port = server.server_address[1]
    monkeypatch.setattr(module, "_addresses", lambda *_: ["127.0.0.1"])
    monkeypatch.setattr(
        module, "_asked", lambda url, *key, **more: real(url.replace(":9090", f":{port}"), *key)
    )
    yield answers
    server.shutdown()
    server.server_close()
    thread.join(5)


EXPECT = {"replicas": 1, "expect": {"etcd": ["a"], "kubelet": ["n"]}}


@pytest.mark.parametrize(
    ("targets", "up", "told"),
    [
        ([target("etcd", "a"), target("kubelet", "n")], "1", ""),
        ([target("etcd", "a")], "1", "does not reach kubelet on n: not scraped yet"),
        (
            [target("etcd", "a", "down", "refused"), target("kubelet", "n")],
            "1",
            "etcd on a: refused",
        ),
        (
            [target("etcd", "a"), target("kubelet", "n")],
            "0",
            "says that 0 of 1 targets of etcd are up",
        ),
        ([target("etcd", "a"), target("kubelet", "n")], None, "says that 0 of 1 targets of etcd"),
    ],
)
def test_prometheus_works_when_it_reaches_all_that_is_declared(prometheus, targets, up, told):
    prometheus.update(targets=targets, up=up)
    found = module._metrics(EXPECT)
    assert told in found and bool(found) == bool(told)


def test_a_replica_that_no_service_leads_to_is_missed(prometheus):
    prometheus.update(targets=[target("etcd", "a"), target("kubelet", "n")])
    assert module._metrics(EXPECT | {"replicas": 2}).endswith("leads to 1 of 2 replicas")


def test_one_that_does_not_answer_is_a_problem(monkeypatch):
    with pytest.raises(module.CommandExecutionError, match="does not answer"):
        module._asked("http://127.0.0.1:1/api/v1/query", timeout=1)


# --- the long term -------------------------------------------------------------------------------


def both(**settings: Any) -> dict[str, Any]:
    found = cluster()
    return addons.wanted(replace(found, addons={"prometheus": {}, "influxdb": settings}))


def test_prometheus_writes_to_where_influxdb_is_and_reads_from_there():
    found = both()
    config = json.loads(found["prometheus"]["config"])
    assert found["influxdb"]["address"] == "10.96.0.11"
    for key in ("remote_write", "remote_read"):
        (remote,) = config[key]
        assert remote["url"].startswith("http://10.96.0.11:8086/api/v1/prom/")
        assert remote["url"].endswith(f"db={found['influxdb']['database']}")
    assert not {"remote_write", "remote_read"} & set(json.loads(wanted()["config"]))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2y", "104w"),
        ("30d", "30d"),
        ("52w", "52w"),
        ("1w", "1w"),
        ("7d", "7d"),
        ("6d", "6d SHARD DURATION 0s"),
        ("167h", "167h SHARD DURATION 0s"),
    ],
)
def test_the_database_is_kept_as_long_as_declared(given, kept):
    query = parse_qs(urlsplit(both(retention=given)["influxdb"]["prepare"]).query)["q"][0]
    assert query.startswith("CREATE DATABASE prometheus;")
    assert query.endswith(f"DURATION {kept}")


SETTINGS = {"port": 8086, "database": "prometheus", "fed": True}
NAMES = [{"name": "databases", "values": [["_internal"], ["prometheus"]]}]


@pytest.mark.parametrize(
    ("pods", "names", "metrics", "told"),
    [
        (["10.0.0.1"], NAMES, [{"name": "up"}], ""),
        ([], NAMES, [{"name": "up"}], "leads to no pod"),
        (["10.0.0.1"], [{"name": "databases"}], [], "has no database prometheus"),
        (["10.0.0.1"], NAMES, [], "got nothing from Prometheus"),
    ],
)
def test_influxdb_works_when_it_is_fed(monkeypatch, pods, names, metrics, told):
    monkeypatch.setattr(module, "_addresses", lambda *_: pods)
    answers = {"SHOW DATABASES": names}
    monkeypatch.setattr(module, "_answered", lambda _, q, **__: answers.get(q, metrics))
    found = module._long_term(SETTINGS)
    assert told in found and bool(found) == bool(told)
    if names is NAMES and pods:
        assert module._long_term(SETTINGS | {"fed": False}) == ""


def test_an_error_of_influxdb_is_told(monkeypatch):
    monkeypatch.setattr(module, "_asked", lambda *_: [{"error": "timeout"}])
    with pytest.raises(module.CommandExecutionError, match="SHOW DATABASES: timeout"):
        module._answered("http://x", "SHOW DATABASES")
