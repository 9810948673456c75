"""The pure part of the tokens: who has one, and where each host keeps its own."""

from __future__ import annotations

import json

import pytest
from indigo_model import tokens
from indigo_model.cluster import Cluster, Host, Vip


def cluster(**hosts: tuple[str, ...]) -> Cluster:
    return Cluster(
        name="lab",
        hosts={
            id_: Host(id_, f"10.0.0.{number}", roles)
            for number, (id_, roles) in enumerate(hosts.items(), 1)
        },
        vip=Vip("10.0.0.100", "eth0"),
        services="10.96.0.0/16",
        pods="10.244.0.0/16",
    )


LAB = cluster(
    salt=("ca",), lb1=("lb",), Master1=("etcd", "master"), m2=("master",), Node1=("node",)
)


def test_identities_name_everyone_once_with_kubernetes_own_users_and_groups():
    found = {item["name"]: item for item in tokens.identities(LAB)}
    assert list(found) == [
        "admin",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet:node1",
        "kube-proxy:node1",
    ]
    assert found["admin"]["groups"] == ["system:masters"]
    assert [name for name, item in found.items() if "system:masters" in item["groups"]] == ["admin"]
    assert found["kubelet:node1"] == {
        "name": "kubelet:node1",
        "user": "system:node:node1",
        "groups": ["system:nodes"],
        "host": "Node1",
    }
    assert found["kube-proxy:node1"]["user"] == "system:kube-proxy"
    assert found["kube-scheduler"]["user"] == "system:kube-scheduler"
    assert found["kube-scheduler"]["host"] is None


@pytest.mark.parametrize("host", ["salt", "lb1"])
def test_a_host_that_is_neither_master_nor_node_gets_nothing(host):
    assert tokens.view(LAB, LAB.hosts[host]) == {}


def test_a_node_has_its_own_two_tokens_and_no_word_of_the_set():
    view = tokens.view(LAB, LAB.hosts["Node1"])
    assert view["tokens"] == [
        {"identity": "kubelet:node1", "path": "/etc/kubernetes/tokens/kubelet", "user": "root"},
        {
            "identity": "kube-proxy:node1",
            "path": "/etc/kubernetes/tokens/kube-proxy",
            "user": "root",
        },
    ]
    assert "token_set" not in view
    assert view["kubeconfigs"][0] == {
        "name": "kubelet",
        "path": "/etc/kubernetes/kubelet.kubeconfig",
        "server": "https://10.0.0.100:8443",
        "authority": "/etc/kubernetes/pki/ca.crt",
        "token": "/etc/kubernetes/tokens/kubelet",
        "user": "root",
    }


def test_a_master_has_each_component_s_token_with_that_component_as_owner():
    view = tokens.view(LAB, LAB.hosts["Master1"])
    assert {entry["identity"]: entry["user"] for entry in view["tokens"]} == {
        "admin": "root",
        "kube-controller-manager": "kube-controller-manager",
        "kube-scheduler": "kube-scheduler",
    }
    assert [entry["path"] for entry in view["kubeconfigs"]] == [
        "/etc/kubernetes/admin.kubeconfig",
        "/etc/kubernetes/controller-manager.kubeconfig",
        "/etc/kubernetes/scheduler.kubeconfig",
    ]
    files = {file["path"]: file for file in view["token_set"]["files"]}
    assert files["/etc/kubernetes/pki/sa.key"]["user"] == "kube-apiserver"
    assert (
        files["/etc/kubernetes/pki/controller-manager-sa.key"]["user"] == "kube-controller-manager"
    )
    secret = [path for path, file in files.items() if file["mode"] != "0600"]
    assert secret == ["/etc/kubernetes/pki/sa.pub"]


def test_every_kubeconfig_names_a_token_that_the_host_has_with_the_same_owner():
    both = cluster(one=("ca", "lb", "etcd", "master", "node"))
    for declared in (LAB, both):
        for host in declared.hosts.values():
            view = tokens.view(declared, host)
            owners = {entry["path"]: entry["user"] for entry in view.get("tokens", [])}
            assert len(owners) == len(view.get("tokens", []))
            for config in view.get("kubeconfigs", []):
                assert owners[config["token"]] == config["user"]


def test_a_host_with_both_roles_gets_both():
    one = cluster(one=("master", "node"))
    identities = [entry["identity"] for entry in tokens.view(one, one.hosts["one"])["tokens"]]
    assert identities == [item["name"] for item in tokens.identities(one)]


def test_every_identity_s_token_is_kept_by_some_host():
    kept = {
        entry["identity"]
        for host in LAB.hosts.values()
        for entry in tokens.view(LAB, host).get("tokens", [])
    }
    assert kept == {item["name"] for item in tokens.identities(LAB)}


def test_the_view_does_not_grow_with_the_nodes():
    many = cluster(m=("master",), **{f"n{i}": ("node",) for i in range(50)})
    few = cluster(m=("master",), n0=("node",))
    for id_ in ("m", "n0"):
        large = json.dumps(tokens.view(many, many.hosts[id_]))
        assert large == json.dumps(tokens.view(few, few.hosts[id_]))
