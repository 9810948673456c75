"""containerd, kubelet, kube-proxy and the network as derived, over releases and overrides."""

from __future__ import annotations

import json

import pytest
import tomllib
from indigo_model import node, versions
from indigo_model.cluster import TIMERS, Cluster, Host, Vip

RELEASES = ("1.20.2", "1.24.17", "1.30.14", "1.36.2")
HOSTS = {
    "salt": Host("salt", "10.77.0.5", ("ca",)),
    "Node1": Host("Node1", "10.77.0.41", ("node",)),
    "master1": Host("master1", "10.77.0.31", ("master",)),
    "all": Host("all", "10.77.0.50", ("lb", "etcd", "master", "node"), interface="bond0"),
}


def cluster(pinned: dict[str, str] | None = None, **settings) -> Cluster:
    return Cluster(
        name="lab",
        hosts=HOSTS,
        vip=Vip("10.77.0.10", "eth0"),
        services="10.96.0.0/16",
        pods="10.244.0.0/16",
        versions=versions.resolve(pinned or {}),
        **settings,
    )


def view(host: str = "Node1", pinned: dict[str, str] | None = None, **settings) -> dict:
    return node.view(cluster(pinned, **settings), HOSTS[host])


def kubelet(kubernetes: str = "1.36.2", **settings) -> dict:
    return view(pinned={"kubernetes": kubernetes}, **settings)["components"]["kubelet"]


def cri(version: str, **settings) -> dict:
    found = view(pinned={"containerd": version}, **settings)["components"]["containerd"]
    assert tomllib.loads(found["toml"]) == found["config"]
    return found["config"]


def test_what_each_role_gets():
    assert view("salt") == {}
    assert set(view("Node1")) == {"network", "components", "images", "labels"}
    assert view("master1") == {"network": {"kind": "routes", "node": False, "interface": None}}
    assert set(view("all")["components"]) == {"containerd", "kubelet", "kube-proxy"}
    assert view("all")["network"]["interface"] == "bond0"


@pytest.mark.parametrize("network", ["routes", "flannel"])
@pytest.mark.parametrize("kubernetes", RELEASES)
def test_the_view_is_json(kubernetes, network):
    found = view(pinned={"kubernetes": kubernetes}, network=network)
    assert json.loads(json.dumps(found)) == found


# --- containerd ---


def test_containerd_1_has_one_cri_plugin():
    config = cri("1.6.20", images={"pause": "indigo.lab/pause:1"})
    assert config["version"] == 2
    plugin = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert plugin["sandbox_image"] == "indigo.lab/pause:1"
    assert plugin["cni"]["bin_dir"].startswith("/opt/indigo/cni-plugins-")
    assert plugin["cni"]["conf_template"] == node.CNI_TEMPLATE


@pytest.mark.parametrize(
    ("version", "key"), [("2.0.4", "bin_dir"), ("2.1.9", "bin_dirs"), ("2.3.2", "bin_dirs")]
)
def test_containerd_2_has_two_and_takes_folders_from_2_1_on(version, key):
    config = cri(version)
    assert config["version"] == 3
    assert set(config["plugins"]) == {
        "io.containerd.cri.v1.images",
        "io.containerd.cri.v1.runtime",
    }
    pinned = config["plugins"]["io.containerd.cri.v1.images"]["pinned_images"]
    assert pinned["sandbox"].startswith("registry.k8s.io/pause:")
    cni = config["plugins"]["io.containerd.cri.v1.runtime"]["cni"]
    assert {"bin_dir", "bin_dirs"} & set(cni) == {key}
    assert isinstance(cni[key], list) == (key == "bin_dirs")


def test_an_old_containerd_is_refused():
    with pytest.raises(ValueError, match=r"versions\.containerd: 1\.5\.9"):
        view(pinned={"containerd": "1.5.9"})


@pytest.mark.parametrize(
    ("version", "plugin"),
    [("1.6.20", "io.containerd.grpc.v1.cri"), ("2.1.9", "io.containerd.cri.v1.runtime")],
)
def test_overrides_of_containerd_go_to_the_cri_plugin_or_to_the_top(version, plugin):
    settings = {
        "restrict_oom_score_adj": True,
        "root": "/srv/containerd",
        "cni": {"conf_dir": "/x"},
    }
    config = cri(version, overrides={"containerd": {"config": settings}})
    assert config["root"] == "/srv/containerd"
    assert config["plugins"][plugin]["restrict_oom_score_adj"] is True
    assert config["plugins"][plugin]["cni"]["conf_dir"] == "/x"
    assert config["plugins"][plugin]["cni"]["conf_template"] == node.CNI_TEMPLATE


@pytest.mark.parametrize("version", ["1.6.20", "2.1.9"])
@pytest.mark.parametrize("driver", [None, "systemd", "cgroupfs"])
def test_kubelet_and_containerd_share_one_cgroup_driver(version, driver):
    overrides = {"kubelet": {"config": {"cgroupDriver": driver}}} if driver else {}
    found = view(pinned={"containerd": version}, overrides=overrides)["components"]
    text = found["containerd"]["toml"]
    assert f"SystemdCgroup = {'false' if driver == 'cgroupfs' else 'true'}\n" in text
    assert found["kubelet"]["config"]["cgroupDriver"] == (driver or "systemd")


def test_a_wrong_cgroup_driver_is_named():
    with pytest.raises(ValueError, match=r"overrides\.kubelet\.config\.cgroupDriver: 'cgroup2'"):
        view(overrides={"kubelet": {"config": {"cgroupDriver": "cgroup2"}}})


def test_toml_survives_awkward_text():
    data = {"a b": 'quote " and \\ and ü', "list": ["x", "y"], "n": {"deep er": {"on": False}}}
    assert tomllib.loads(node.toml(data)) == data


def test_image_archives_need_a_checksum():
    archives = [{"source": "https://x/y/pause.tar", "hash": "sha256:ab"}]
    assert view(images={"archives": archives})["images"]["archives"] == [
        {"name": "pause.tar", "source": "https://x/y/pause.tar", "hash": "sha256:ab"}
    ]
    with pytest.raises(ValueError, match=r"images\.archives\[0\]\.hash"):
        view(images={"archives": [{"source": "x"}]})


# --- kubelet and kube-proxy ---


def test_kubelet_lets_in_who_the_api_vouches_for():
    config = kubelet()["config"]
    assert config["authentication"]["anonymous"]["enabled"] is False
    assert config["authentication"]["webhook"]["enabled"] is True
    assert config["authorization"]["mode"] == "Webhook"
    assert config["readOnlyPort"] == 0
    assert config["healthzBindAddress"] == "127.0.0.1"


def test_kubelet_names_itself_as_the_cluster_does():
    found = kubelet()
    assert found["flags"]["hostname-override"] == "node1"
    assert found["flags"]["node-ip"] == "10.77.0.41"
    assert found["config"]["clusterDNS"] == ["10.96.0.10"]


@pytest.mark.parametrize(
    ("given", "servers"),
    [
        ({}, ["10.96.0.10"]),
        ({"coredns": None}, ["10.96.0.10"]),
        ({"coredns": {"node_cache": False}}, ["10.96.0.10"]),
        ({"coredns": {"node_cache": True}}, ["169.254.20.10", "10.96.0.10"]),
    ],
)
def test_pods_ask_their_nodes_cache_first_where_there_is_one(given, servers):
    found = cluster(addons=given)
    assert node.kubelet(found, found.hosts["Node1"])["config"]["clusterDNS"] == servers
    cache = node.network(found, found.hosts["Node1"])["cache"]
    assert cache == {"wanted": len(servers) == 2, "address": "169.254.20.10"}


@pytest.mark.parametrize(
    ("kubernetes", "by_flag", "remote", "pause", "graceful"),
    [
        ("1.20.2", True, True, True, False),
        ("1.21.0", True, True, True, True),
        ("1.24.17", True, True, True, True),
        ("1.26.15", True, True, True, True),
        ("1.27.0", False, False, True, True),
        ("1.34.0", False, False, True, True),
        ("1.36.2", False, False, False, True),
    ],
)
def test_kubelet_is_told_its_runtime_as_the_release_wants(
    kubernetes, by_flag, remote, pause, graceful
):
    found = kubelet(kubernetes)
    assert ("container-runtime-endpoint" in found["flags"]) == by_flag
    assert ("containerRuntimeEndpoint" in found["config"]) != by_flag
    assert ("container-runtime" in found["flags"]) == remote
    assert ("pod-infra-container-image" in found["flags"]) == pause
    assert ("shutdownGracePeriod" in found["config"]) == graceful


def test_timers_of_the_node():
    config = kubelet(timers={**TIMERS, "node_status": 0.5, "node_grace": 12})["config"]
    assert config["nodeStatusUpdateFrequency"] == "0.5s"
    assert config["nodeStatusReportFrequency"] == "5m0s"
    assert config["nodeLeaseDurationSeconds"] == 12


def test_overrides_merge_deep_and_null_removes():
    config = kubelet(
        overrides={
            "kubelet": {
                "config": {"failCgroupV1": False, "authentication": {"x509": None}},
                "flags": {"v": 2, "node-labels": "a=b"},
            }
        }
    )
    assert config["config"]["failCgroupV1"] is False
    assert config["config"]["authentication"]["webhook"] == {"enabled": True}
    assert "x509" not in config["config"]["authentication"]
    assert config["flags"]["v"] == "2"


@pytest.mark.parametrize("kubernetes", RELEASES)
def test_every_flag_is_of_the_release(kubernetes):
    found = view(pinned={"kubernetes": kubernetes})["components"]
    for component in ("kubelet", "kube-proxy"):
        for flag, value in found[component]["flags"].items():
            assert isinstance(value, str)
            assert versions.has_flag(component, kubernetes, flag)


def test_kube_proxy():
    overrides = {"kube-proxy": {"config": {"conntrack": {"maxPerCore": 0, "min": 0}}}}
    config = view(overrides=overrides)["components"]["kube-proxy"]["config"]
    assert config["bindAddress"] == "10.77.0.41"
    assert config["clusterCIDR"] == "10.244.0.0/16"
    assert config["hostnameOverride"] == "node1"
    assert config["conntrack"] == {"maxPerCore": 0, "min": 0}


# --- network ---


def test_routes_has_a_template_that_containerd_fills_in():
    cni = view()["network"]["cni"]
    bridge, portmap = cni["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "{{.PodCIDR}}"}]]
    assert bridge["hairpinMode"] and bridge["isGateway"] and not bridge["ipMasq"]
    assert portmap["type"] == "portmap"


def test_flannel_brings_its_own_configuration():
    found = view(network="flannel")
    assert "conf_template" not in found["components"]["containerd"]["toml"]
    network = found["network"]
    assert network["net_conf"] == {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
    assert network["plugins"] in found["components"]["containerd"]["toml"]
    assert set(network["links"]) == {"bridge", "flannel", "host-local", "loopback", "portmap"}
    assert view("master1", network="flannel")["network"] == {
        "kind": "flannel",
        "node": False,
        "interface": None,
    }
