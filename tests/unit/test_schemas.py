"""Manifests of add-ons against the schema of each Kubernetes release that has one to install."""

from __future__ import annotations

import functools
from typing import Any

import jinja2
import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml
from indigo_model import addons, versions
from indigo_model.cluster import Cluster, Host, Vip
from support import ROOT

# It would read all definitions of a release anew for each object.
kubernetes_validate.utils.schema_contents = functools.cache(
    kubernetes_validate.utils.schema_contents
)

#: The package has these; what the lab runs on 1.20 the API server itself has seen.
FIRST = 25

DISKS = {
    name: {"storage_class": "fast"}
    for name in (
        "prometheus",
        "influxdb",
        "alertmanager",
        "grafana",
        "logging",
        "zabbix",
        "im",
        "accounting",
    )
}

#: What the add-on `openstack` cannot do without.
CLOUD = {"auth_url": "https://keystone.example.org:5000/v3", "region": "RegionOne"}
USER = CLOUD | {"user": "indigo", "project": "5a1b"}

#: Nor the service `accounting`.
SITE = {"site": "EXAMPLE", "benchmark": 15, "namespaces": {"batch": "vo.example.org"}}

#: All that a site may set and that makes other objects.
MORE = DISKS | {
    "coredns": {"node_cache": True},
    "alertmanager": DISKS["alertmanager"] | {"secret": "mine"},
    "grafana": DISKS["grafana"] | {"host": "grafana.example.org"},
    "headlamp": {"host": "headlamp.example.org"},
    "logging": DISKS["logging"] | {"host": "logs.example.org"},
    "openstack": CLOUD
    | {
        "application_credential": "77aa",
        "ca": "salt://openstack/ca.pem",
        "ca_sha256": "0" * 64,
        "default_class": True,
        "type": "ssd",
        "zone": "nova",
        "keep": True,
        "cloud_controller": True,
        "subnet": "11-22",
        "floating_network": "33-44",
    },
    "zabbix": DISKS["zabbix"] | {"host": "zabbix.example.org"},
    "im": DISKS["im"] | {"host": "im.example.org", "secret": "people", "config": {"BOOT_MODE": 1}},
    "accounting": DISKS["accounting"]
    | SITE
    | {
        "namespaces": {"batch": "vo.example.org", "1": "other.example.org"},
        "month": "2026-09",
        "publish": {"secret": "apel"},
    },
}

#: Pods that are root, and why.
ROOT_PODS = {
    "fluent-bit": "logs of pods are root's alone",
    "cinder-node": "sockets in kubelet's folders are root's",
    "coredns-cache": "port 53, which not every image's program may take by itself",
}

#: Containers whose need of memory is the size of a disk that is checked: DaemonSet and container.
UNLIMITED = {("cinder-node", "cinder-csi-plugin")}

#: Containers that are privileged, by pod, and why.
PRIVILEGED = {
    ("cinder-node", "cinder-csi-plugin"): "it mounts disks for kubelet and other pods",
}

#: Capabilities, by pod, and why. Without it the kernel does not run the program of coredns from
#: 1.11 on at all, for its file carries it.
CAPABLE = {"coredns": ["NET_BIND_SERVICE"], "coredns-cache": ["NET_BIND_SERVICE"]}


#: Of the node: with them it carries the add-on `ingress`, without them nobody does.
GATE = {"role": "loadbalancer"}


def manifests(minor: int, labels: Any = GATE, **wanted: Any) -> dict[str, list[dict[str, Any]]]:
    hosts = {
        "m": Host("m", "10.0.0.1", ("ca", "lb", "etcd", "master")),
        "n": Host("n", "10.0.0.2", ("node",), labels=labels),
    }
    networks = ("10.96.0.0/16", "10.244.0.0/16")
    resolved = versions.resolve({"kubernetes": f"1.{minor}.0"})
    vip = Vip("10.0.0.9", "eth0")
    every = {name: {} for name in addons.ADDONS} | {"openstack": USER, "accounting": SITE}
    found = Cluster("x", hosts, vip, *networks, versions=resolved, addons=every | wanted)
    folder = jinja2.FileSystemLoader(ROOT / "salt" / "addons")
    environment = jinja2.Environment(loader=folder, undefined=jinja2.StrictUndefined)
    rendered = {}
    for name, settings in addons.wanted(found).items():
        text = environment.get_template(f"{name}/manifests.yaml.jinja").render(
            addon=settings, networks={"dns": found.dns_service}, domain=found.domain
        )
        rendered[name] = list(yaml.safe_load_all(text))
    return rendered


@pytest.mark.parametrize("wanted", [{}, MORE, {"labels": {}}], ids=["plain", "more", "bare"])
@pytest.mark.parametrize("minor", range(FIRST, versions.LAST_MINOR + 1))
def test_every_manifest_is_as_the_release_wants_it(minor, wanted):
    for objects in manifests(minor, **wanted).values():
        for one in objects:
            kubernetes_validate.validate(one, f"1.{minor}", strict=True)


def test_the_schema_can_find_a_mistake():
    (workload,) = [one for one in manifests(36)["coredns"] if one["kind"] == "Deployment"]
    workload["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(workload, "1.36", strict=True)


@pytest.mark.parametrize("wanted", [{}, MORE], ids=["plain", "more"])
@pytest.mark.parametrize("minor", [versions.FIRST_MINOR, versions.LAST_MINOR])
def test_every_pod_keeps_to_what_all_addons_promise(minor, wanted):
    for name, objects in manifests(minor, **wanted).items():
        workloads = [
            one for one in objects if one["kind"] in ("Deployment", "StatefulSet", "DaemonSet")
        ]
        budgets = [one for one in objects if one["kind"] == "PodDisruptionBudget"]
        assert len(budgets) == sum(one["kind"] != "DaemonSet" for one in workloads), name
        # What ends by itself has no budget.
        jobs = [
            one | {"spec": one["spec"]["jobTemplate"]["spec"]}
            for one in objects
            if one["kind"] == "CronJob"
        ]
        for one in workloads + jobs:
            pod = one["spec"]["template"]["spec"]
            if one["spec"].get("replicas", 1) > 1:
                assert pod["topologySpreadConstraints"], name
            root = pod["securityContext"].get("runAsNonRoot") is not True
            assert root == (one["metadata"]["name"] in ROOT_PODS), name
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in pod["containers"] + pod.get("initContainers", []):
                context = container["securityContext"]
                if (one["metadata"]["name"], container["name"]) in PRIVILEGED:
                    assert context == {"privileged": True}
                else:
                    assert context["allowPrivilegeEscalation"] is False
                    assert context["readOnlyRootFilesystem"] is True
                    more = CAPABLE.get(one["metadata"]["name"])
                    added = {"add": more} if more else {}
                    assert context["capabilities"] == {"drop": ["ALL"], **added}
                assert set(container["resources"]["requests"]) == {"cpu", "memory"}
                limited = "memory" in container["resources"].get("limits", {})
                assert limited == ((one["metadata"]["name"], container["name"]) not in UNLIMITED)
                assert "latest" not in container["image"]
            host = [volume for volume in pod.get("volumes", []) if "hostPath" in volume]
            assert bool(host or pod.get("hostNetwork")) == (one["kind"] == "DaemonSet"), name
