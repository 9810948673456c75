"""The control plane's derived flags, over releases, roles and overrides."""

from __future__ import annotations

import dataclasses
import json

import pytest
from indigo_model import master, versions
from indigo_model.cluster import TIMERS, Cluster, Host, Vip

RELEASES = ("1.20.2", "1.24.17", "1.30.14", "1.36.2")
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")


def cluster(kubernetes: str = "1.36.2", masters: int = 2, **settings) -> Cluster:
    hosts = {f"etcd{n}": Host(f"etcd{n}", f"10.77.0.2{n}", ("etcd",)) for n in (1, 2, 3)} | {
        f"Master{n}": Host(f"Master{n}", f"10.77.0.3{n}", ("master",))
        for n in range(1, masters + 1)
    }
    return Cluster(
        name="lab",
        hosts=hosts,
        vip=Vip("10.77.0.10", "eth0"),
        services="10.96.0.0/16",
        pods="10.244.0.0/16",
        versions=versions.resolve({"kubernetes": kubernetes}),
        **settings,
    )


def flags(component: str, kubernetes: str = "1.36.2", **settings) -> dict[str, str]:
    declared = cluster(kubernetes, **settings)
    view = master.view(declared, declared.hosts["Master1"])
    return view["components"][component]["flags"]


def test_only_masters_have_a_control_plane():
    declared = cluster()
    assert master.view(declared, declared.hosts["etcd1"]) == {}


@pytest.mark.parametrize("kubernetes", RELEASES)
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_flag_is_text_and_of_the_release(component, kubernetes):
    found = flags(component, kubernetes)
    assert found
    for flag, value in found.items():
        assert isinstance(value, str) and value, flag
        assert versions.has_flag(component, kubernetes, flag), flag


@pytest.mark.parametrize("kubernetes", RELEASES)
def test_the_view_is_json_and_holds_no_secret(kubernetes):
    declared = cluster(kubernetes)
    text = json.dumps(master.view(declared, declared.hosts["Master1"]))
    assert json.loads(text) == master.view(declared, declared.hosts["Master1"])
    assert "BEGIN" not in text


@pytest.mark.parametrize("kubernetes", RELEASES)
def test_no_port_serves_without_tls(kubernetes):
    apiserver = flags("kube-apiserver", kubernetes)
    assert apiserver.get("insecure-port", "0") == "0"
    assert ("insecure-port" in apiserver) == (kubernetes == "1.20.2")
    for component in COMPONENTS[1:]:
        found = flags(component, kubernetes)
        assert found.get("port", "0") == "0"
        assert found["tls-cert-file"] == f"/etc/kubernetes/pki/{component}.crt"
        assert found["bind-address"] == "10.77.0.31"


def test_the_apiserver_knows_all_of_etcd_over_tls():
    found = flags("kube-apiserver")
    declared = cluster("1.20.2")
    ways = master.etcd_proxy(declared)["ways"]
    assert [way["endpoint"] for way in ways] == [
        "10.77.0.21:2379",
        "10.77.0.22:2379",
        "10.77.0.23:2379",
    ]
    assert found["etcd-servers"].split(",") == [f"https://{way['bind']}" for way in ways]
    # Nobody else on the network may use them, and members' certificates hold this address.
    assert all(way["bind"].startswith("127.0.0.1:") for way in ways)
    assert found["etcd-certfile"] == "/etc/kubernetes/pki/apiserver-etcd-client.crt"
    assert found["etcd-cafile"] == "/etc/kubernetes/pki/etcd-ca.crt"


@pytest.mark.parametrize(
    ("kubernetes", "api"),
    [
        ("1.20.2", None),
        ("1.31.0", None),  # the feature is not on by itself there
        ("1.32.0", "apiserver.config.k8s.io/v1beta1"),
        ("1.36.2", "apiserver.config.k8s.io/v1"),
    ],
)
def test_anonymous_callers_get_the_health_checks(kubernetes, api):
    declared = cluster(kubernetes)
    component = master.apiserver(declared, declared.hosts["Master1"])
    if api is None:
        assert component["flags"]["anonymous-auth"] == "true"
        assert component["authentication"] is None
        assert "authentication-config" not in component["flags"]
        return
    # Both at once are refused by the API server.
    assert "anonymous-auth" not in component["flags"]
    assert component["flags"]["authentication-config"] == "/etc/kubernetes/authentication.yaml"
    assert component["authentication"]["apiVersion"] == api
    paths = [one["path"] for one in component["authentication"]["anonymous"]["conditions"]]
    assert paths == ["/livez", "/readyz", "/healthz"]


def test_no_authority_is_asked_of_the_controller_manager():
    for kubernetes in RELEASES:
        found = flags("kube-controller-manager", kubernetes)
        assert not [flag for flag in found if flag.startswith("cluster-signing")]
        assert found["controllers"] == "*,-csrsigning,-csrapproving,-csrcleaner"
        assert found["service-account-private-key-file"].endswith("controller-manager-sa.key")


def test_timers_reach_every_flag_that_depends_on_them():
    timers = {**TIMERS, "node_grace": 30, "pod_eviction": 90, "api_check": 1}
    manager = flags("kube-controller-manager", timers=timers)
    assert manager["node-monitor-grace-period"] == "30s"
    assert manager["node-monitor-period"] == "3s"
    apiserver = flags("kube-apiserver", timers=timers)
    assert apiserver["default-not-ready-toleration-seconds"] == "90"
    assert apiserver["default-unreachable-toleration-seconds"] == "90"
    assert apiserver["shutdown-delay-duration"] == "3s"


def test_a_second_master_changes_no_flag_of_the_first():
    assert flags("kube-apiserver", masters=2) == flags("kube-apiserver", masters=1)
    assert flags("kube-apiserver")["goaway-chance"] == "0.001"


def test_overrides_come_last():
    overrides = {
        "kube-apiserver": {
            "flags": {
                "profiling": True,
                "audit-log-path": None,
                "event-ttl": "2h",
                "runtime-config": ["api/all=true", "batch/v1=false"],
            }
        }
    }
    found = flags("kube-apiserver", overrides=overrides)
    assert found["profiling"] == "true"
    assert "audit-log-path" not in found
    assert found["event-ttl"] == "2h"
    assert found["runtime-config"] == "api/all=true,batch/v1=false"


def test_an_override_that_no_release_knows_is_refused():
    with pytest.raises(ValueError, match=r"overrides\.kube-scheduler\.flags\.leader-electt"):
        flags("kube-scheduler", overrides={"kube-scheduler": {"flags": {"leader-electt": "x"}}})


def test_secrets_and_changes_are_audited_without_their_content():
    policy = master.audit_policy(cluster())
    levels = {rule["level"] for rule in policy["rules"]}
    assert levels == {"None", "Metadata"}
    assert policy["rules"][-1] == {"level": "Metadata"}
    reads = next(i for i, rule in enumerate(policy["rules"]) if rule.get("verbs"))
    secrets = next(i for i, rule in enumerate(policy["rules"]) if "secrets" in str(rule))
    assert secrets < reads, "the first rule that matches decides"


def test_the_apiserver_may_reach_kubelets_and_nobody_else_gets_more():
    objects = master.rbac(cluster())
    assert [(one["kind"], one["metadata"]["name"]) for one in objects] == [
        ("ClusterRoleBinding", "indigo:kubelet-api-admin")
    ]
    assert objects[0]["subjects"][0]["name"] == "kube-apiserver-kubelet-client"


def test_flannel_may_read_nodes_and_nothing_more():
    role = next(one for one in master.rbac(cluster(network="flannel")) if "rules" in one)
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
    ]


@pytest.mark.parametrize(("grace", "seconds"), [(20, 5), (40, 10), (2, 1)])
def test_clients_give_up_a_silent_connection_within_half_of_what_a_node_may_be_silent(
    grace, seconds
):
    declared = dataclasses.replace(cluster("1.20.2"), timers={**TIMERS, "node_grace": grace})
    assert declared.patience == {
        "HTTP2_READ_IDLE_TIMEOUT_SECONDS": str(seconds),
        "HTTP2_PING_TIMEOUT_SECONDS": str(seconds),
    }
    for component in (master.controller_manager, master.scheduler):
        assert component(declared, declared.hosts["Master1"])["environment"] == declared.patience
    assert master.apiserver(declared, declared.hosts["Master1"])["environment"] == {}
