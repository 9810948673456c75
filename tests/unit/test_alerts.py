"""Alerts: each fires for what it is about and for nothing else, as Prometheus itself judges.

The rules are tried with Prometheus' ``promtool``, which is taken from Debian's package.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from indigo_model import addons, alerting, versions
from indigo_model.cluster import Cluster, Host, Vip
from support import ROOT, load, program

module = load("_modules", "indigo_addon")

#: What each alert needs to be seen: series that are wrong, and what the alert says of where.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "TargetDown": ({'up{job="cadvisor",host="n1"}': "0"}, {"job": "cadvisor", "host": "n1"}),
    "HostSilent": ({'indigo_host_answers{host="n1"}': "0"}, {"host": "n1"}),
    "UnitDown": (
        {'indigo_unit_active{host="n1",unit="kubelet"}': "0"},
        {"host": "n1", "unit": "kubelet"},
    ),
    "DiskNearlyFull": (
        {
            'node_filesystem_avail_bytes{host="n1",mountpoint="/"}': "9",
            'node_filesystem_size_bytes{host="n1",mountpoint="/"}': "100",
        },
        {"host": "n1", "mountpoint": "/"},
    ),
    "LoadBalancerDown": ({'up{job="haproxy",host="l1"}': "0"}, {"job": "haproxy", "host": "l1"}),
    "KeepalivedDown": (
        {'keepalived_up{job="keepalived",host="l1"}': "0"},
        {"job": "keepalived", "host": "l1"},
    ),
    "VirtualAddressNotHeld": (
        {
            'keepalived_vrrp_state{host="l1",ip_address="10.0.0.9"}': "3",
            'keepalived_vrrp_state{host="l2",ip_address="10.0.0.9"}': "1",
        },
        {},
    ),
    "VirtualAddressHeldTwice": (
        {
            'keepalived_vrrp_state{host="l1",ip_address="10.0.0.9"}': "2",
            'keepalived_vrrp_state{host="l2",ip_address="10.0.0.9"}': "2",
        },
        {},
    ),
    "VirtualAddressMovesOften": (
        {
            'keepalived_become_master_total{host="l1"}': "0+0.1",
            'keepalived_become_master_total{host="l2"}': "0+0.1",
        },
        {},
    ),
    "VirtualAddressNotHeldOnce": ({"indigo_vip_holders": "2"}, {}),
    "EtcdMemberDown": ({'up{job="etcd",host="e1"}': "0"}, {"job": "etcd", "host": "e1"}),
    "EtcdMemberUnhealthy": ({'indigo_etcd_member_healthy{member="e1"}': "0"}, {"member": "e1"}),
    "EtcdNoLeader": ({'etcd_server_has_leader{host="e1"}': "0"}, {"host": "e1"}),
    "EtcdDatabaseNearQuota": (
        {
            'etcd_mvcc_db_total_size_in_bytes{host="e1"}': "81",
            'etcd_server_quota_backend_bytes{host="e1"}': "100",
        },
        {"host": "e1"},
    ),
    "APIServerDown": (
        {'up{job="kube-apiserver",host="m1"}': "0"},
        {"job": "kube-apiserver", "host": "m1"},
    ),
    "APIServerNotReady": ({'indigo_api_ready{host="m1"}': "0"}, {"host": "m1"}),
    "MasterNotServed": (
        {
            'haproxy_server_status{proxy="masters",state="UP",server="m1",host="l1"}': "0",
            'haproxy_server_status{proxy="masters",state="UP",server="m1",host="l2"}': "0",
            'haproxy_server_status{proxy="masters",state="UP",server="m2",host="l1"}': "1",
        },
        {"server": "m1"},
    ),
    "NobodyLeads": (
        {
            'leader_election_master_status{job="kube-scheduler",name="kube-scheduler",host="m1"}':
            "0",
            'leader_election_master_status{job="kube-scheduler",name="kube-scheduler",host="m2"}':
            "0",
        },
        {"name": "kube-scheduler"},
    ),
    "NodeDown": ({'up{job="kubelet",host="n1"}': "0"}, {"job": "kubelet", "host": "n1"}),
    "NodesNotReady": (
        {
            'node_collector_unhealthy_nodes_in_zone{job="kube-controller-manager",host="m1"}': "1",
            'node_collector_unhealthy_nodes_in_zone{job="kube-controller-manager",host="m2"}': "0",
        },
        {},
    ),
    "NodeNotReady": ({'indigo_node_ready{node="n1"}': "0"}, {"node": "n1"}),
    "CertificateExpires": (
        {'indigo_certificate_first_expiry_days{host="e1",path="/x"}': "13"},
        {"host": "e1", "path": "/x"},
    ),
    "TokensOutOfStep": ({"indigo_tokens_in_step": "0"}, {}),
    "AddonFails": ({'indigo_addon_works{addon="coredns"}': "0"}, {"addon": "coredns"}),
    "BackupOld": ({"indigo_backup_age_seconds": "93601"}, {}),
    "ClusterNotUsable": ({"indigo_severity": "2"}, {}),
    "StatusNotAsked": ({"indigo_asked_timestamp_seconds": "1"}, {}),
}  # fmt: skip

#: All of it, well.
WELL = {
    'up{job="etcd",host="e1"}': "1",
    'indigo_host_answers{host="n1"}': "1",
    'indigo_unit_active{host="n1",unit="kubelet"}': "1",
    'node_filesystem_avail_bytes{host="n1",mountpoint="/"}': "11",
    'node_filesystem_size_bytes{host="n1",mountpoint="/"}': "100",
    "indigo_vip_holders": "1",
    'keepalived_up{job="keepalived",host="l1"}': "1",
    'keepalived_up{job="keepalived",host="l2"}': "1",
    'keepalived_vrrp_state{host="l1",ip_address="10.0.0.9"}': "2",
    'keepalived_vrrp_state{host="l2",ip_address="10.0.0.9"}': "1",
    'keepalived_become_master_total{host="l1"}': "0+0.1",
    'keepalived_become_master_total{host="l2"}': "0+0.05",
    'indigo_etcd_member_healthy{member="e1"}': "1",
    'etcd_server_has_leader{host="e1"}': "1",
    'etcd_mvcc_db_total_size_in_bytes{host="e1"}': "79",
    'etcd_server_quota_backend_bytes{host="e1"}': "100",
    'indigo_api_ready{host="m1"}': "1",
    'haproxy_server_status{proxy="masters",state="UP",server="m1",host="l1"}': "0",
    'haproxy_server_status{proxy="masters",state="UP",server="m1",host="l2"}': "1",
    'leader_election_master_status{job="kube-scheduler",name="kube-scheduler",host="m1"}': "0",
    'leader_election_master_status{job="kube-scheduler",name="kube-scheduler",host="m2"}': "1",
    'node_collector_unhealthy_nodes_in_zone{job="kube-controller-manager",host="m1"}': "0",
    'indigo_node_ready{node="n1"}': "1",
    'indigo_certificate_first_expiry_days{host="e1",path="/x"}': "14",
    "indigo_tokens_in_step": "1",
    'indigo_addon_works{addon="coredns"}': "1",
    "indigo_backup_age_seconds": "93600",
    "indigo_severity": "1",
    "indigo_asked_timestamp_seconds": "0+60",
}

MINUTE = 45


def cluster(**wanted: Any) -> Cluster:
    hosts = {
        "M1": Host("M1", "10.0.0.3", ("lb", "etcd", "master")),
        **{f"n{i}": Host(f"n{i}", f"10.0.1.{i}", ("node",)) for i in (1, 2)},
    }
    vip = Vip("10.0.0.9", "eth0")
    return Cluster(
        "x",
        hosts,
        vip,
        "10.96.0.0/16",
        "10.244.0.0/16",
        versions=versions.resolve({}),
        addons={"prometheus": {}} | wanted,
    )


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' own judge of rules."""
    return program("prometheus", "usr/bin/promtool")


def judged(promtool: Path, folder: Path, cases: list[dict[str, Any]]) -> str:
    """What ``promtool test rules`` says; empty when all is as expected."""
    (folder / "rules.yaml").write_text(json.dumps(alerting.rules(cluster())))
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (folder / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def lasting(series: dict[str, str], steps: int = MINUTE) -> list[dict[str, str]]:
    return [
        {"series": name, "values": f"{value}x{steps}" if "+" in value else f"{value}+0x{steps}"}
        for name, value in series.items()
    ]


def fires(name: str, at: int = MINUTE, expected: bool = True) -> dict[str, Any]:
    """A case for promtool: these series, and the alert at that minute or not."""
    series, labels = CASES[name]
    (alert,) = [one for one in alerting.ALERTS if one.name == name]
    told = {
        "exp_labels": {**labels, "severity": alert.severity},
        "exp_annotations": {"summary": alert.summary},
    }
    return {
        "interval": "1m",
        "input_series": lasting(series),
        "alert_rule_test": [
            {"alertname": name, "eval_time": f"{at}m", "exp_alerts": [told] if expected else []}
        ],
    }


def test_every_alert_fires_for_what_it_is_about(promtool, tmp_path):
    assert set(CASES) == {one.name for one in alerting.ALERTS}
    assert judged(promtool, tmp_path, [fires(name) for name in CASES]) == ""


def test_none_fires_while_all_is_well(promtool, tmp_path):
    nothing = [{"alertname": name, "eval_time": f"{MINUTE}m", "exp_alerts": []} for name in CASES]
    case = {"interval": "1m", "input_series": lasting(WELL), "alert_rule_test": nothing}
    assert judged(promtool, tmp_path, [case]) == ""


def test_none_fires_before_its_time(promtool, tmp_path):
    # What lasts is counted from the first look.
    early = [fires(name, 0, False) for name in CASES if name != "StatusNotAsked"]
    assert judged(promtool, tmp_path, early) == ""


def test_where_no_keepalived_answers_nobody_holds_the_address(promtool, tmp_path):
    case = fires("VirtualAddressNotHeld")
    down = {f'keepalived_up{{job="keepalived",host="l{i}"}}': "0" for i in (1, 2)}
    case["input_series"] = lasting(down)
    assert judged(promtool, tmp_path, [case]) == ""
    # One of two that lost the address to the other.
    case = fires("VirtualAddressNotHeld", expected=False)
    case["input_series"] = lasting(
        {
            'keepalived_up{job="keepalived",host="l1"}': "0",
            'keepalived_up{job="keepalived",host="l2"}': "1",
            'keepalived_vrrp_state{host="l2"}': "2",
        }
    )
    assert judged(promtool, tmp_path, [case]) == ""


def test_the_judge_can_say_no(promtool, tmp_path):
    assert "exp:" in judged(promtool, tmp_path, [fires("EtcdNoLeader", expected=False)])


def test_prometheus_can_read_all_that_it_is_given(promtool, tmp_path):
    # Debian's build knows nothing of pods.
    settings = {"pods": False, "targets": ["10.0.0.5:9100"]}
    found = addons.wanted(cluster(prometheus=settings, alertmanager={}, influxdb={}))["prometheus"]
    (tmp_path / "rules.yaml").write_text(found["rules"])
    text = found["config"].replace("/etc/prometheus/rules.yaml", str(tmp_path / "rules.yaml"))
    # These files are in the pod.
    config = json.loads(
        re.sub(r'"(ca_file|credentials_file)": "[^"]*"', r'"\1": "/dev/null"', text)
    )
    (tmp_path / "prometheus.yaml").write_text(json.dumps(config))
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- what is alerted on --------------------------------------------------------------------------


def test_every_line_of_the_status_has_an_alert():
    page = (ROOT / "docs/operations/status.md").read_text(encoding="utf-8")
    table = page.partition("| line | wrong when")[2].partition("\n\n")[0]
    lines = {row.split("|")[1].strip() for row in table.splitlines()[2:]}
    lines = {"hosts" if line == "a host" else line for line in lines}
    assert lines == {one.check for one in alerting.ALERTS} - {"all"}


def test_alerts_have_different_names_and_say_what_is_wrong():
    rules = json.loads(addons.wanted(cluster())["prometheus"]["rules"])["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) == len(alerting.ALERTS)
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)


def test_alerts_name_only_jobs_that_are_scraped():
    jobs = set(addons.wanted(cluster())["prometheus"]["expect"])
    for alert in alerting.ALERTS:
        for job in re.findall(r'job="([^"]+)"', alert.expression):
            assert job in jobs, alert
        for pattern in re.findall(r'job=~"([^"]+)"', alert.expression):
            assert any(re.fullmatch(pattern, job) for job in jobs), alert


# --- Alertmanager --------------------------------------------------------------------------------


def told(**given: Any) -> dict[str, Any]:
    return addons.wanted(cluster(alertmanager=given))["alertmanager"]


def test_prometheus_tells_every_replica_at_an_address_that_stays():
    found = addons.wanted(cluster(alertmanager={}))
    config = json.loads(found["prometheus"]["config"])["alerting"]
    (static,) = config["alertmanagers"][0]["static_configs"]
    assert static["targets"] == ["10.96.0.12:9093", "10.96.0.13:9093"]
    assert found["alertmanager"]["addresses"] == ["10.96.0.12", "10.96.0.13"]
    assert "alerting" not in json.loads(addons.wanted(cluster())["prometheus"]["config"])


def test_the_watchdog_is_there_only_where_somebody_listens():
    for wanted, there in (({}, False), ({"alertmanager": {}}, True)):
        assert (
            alerting.WATCHDOG in addons.wanted(cluster(**wanted))["prometheus"]["rules"]
        ) == there


def test_who_is_told_is_declared_or_in_a_secret_of_the_site():
    config = json.loads(told(webhooks=["http://a/x"], watchdog="http://a/y", wait=1)["config"])
    urls = {
        one["name"]: [hook["url"] for hook in one.get("webhook_configs", [])]
        for one in config["receivers"]
    }
    assert urls == {"nobody": [], "site": ["http://a/x"], "watchdog": ["http://a/y"]}
    assert config["route"]["routes"][0]["receiver"] == "watchdog"
    assert config["route"]["group_wait"] == "1s"
    assert json.loads(told()["config"])["route"]["routes"][0]["receiver"] == "nobody"
    assert told(secret="mine")["config"] == ""


def test_amtool_can_read_it(tmp_path):
    path = tmp_path / "alertmanager.yaml"
    path.write_text(told(webhooks=["http://a/x"], watchdog="http://a/y")["config"])
    done = subprocess.run(
        [program("prometheus-alertmanager", "usr/bin/amtool"), "check-config", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("pods", "peers", "alerts", "why"),
    [
        (["10.0.0.1", "10.0.0.2"], 2, [{}], ""),
        (["10.0.0.1"], 2, [{}], "leads to 1 of 2 replicas"),
        (["10.0.0.1", "10.0.0.2"], 1, [{}], "10.0.0.1 knows of 1 of 2 replicas"),
        (["10.0.0.1", "10.0.0.2"], 2, [], "has got no alert from Prometheus"),
    ],
)
def test_alertmanager_works_when_alerts_arrive_at_all_of_it(monkeypatch, pods, peers, alerts, why):
    monkeypatch.setattr(module, "_addresses", lambda *_: pods)
    answers = {"cluster": {"peers": [{}] * peers}, None: alerts}
    monkeypatch.setattr(module, "_asked", lambda url, key="data", **_: answers[key])
    found = module._alarm({"replicas": 2, "port": 9093})
    assert why in found and bool(found) == bool(why)
