"""Add-ons: which are wanted, their settings, and their images pinned by version and digest.

The manifests are in ``salt/addons/<name>``; this is what they are filled with. One master, the
first of the declaration, brings them into the cluster, so only its view has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from . import versions
from .cluster import Cluster, Host

#: Images by add-on: the first Kubernetes minor that an image is for, and the image. CoreDNS from
#: 1.11 on needs EndpointSlices of discovery.k8s.io/v1, which came with 1.21.
IMAGES: Mapping[str, tuple[tuple[int, str], ...]] = MappingProxyType(
    {
        "coredns": (
            (
                20,
                "registry.k8s.io/coredns/coredns:v1.10.1"
                "@sha256:a0ead06651cf580044aeb0a0feba63591858fb2e43ade8c9dea45a6a89ae7e5e",
            ),
            (
                21,
                "registry.k8s.io/coredns/coredns:v1.12.1"
                "@sha256:e8c262566636e6bc340ece6473b0eed193cad045384401529721ddbe6463d31c",
            ),
        ),
    }
)

#: Every add-on and its settings' defaults. They are installed in this order.
ADDONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"coredns": MappingProxyType({"replicas": None, "upstream": ["/etc/resolv.conf"]})}
)

#: A replica of CoreDNS for so many nodes, and at least two.
NODES_A_REPLICA = 16


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """The add-ons that this host brings into the cluster: part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"addons": {"cluster": name, "wanted": {name: settings}}}`` on the first master, also
        when none is wanted, so that what was wanted before goes; ``{}`` elsewhere.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("m", "10.0.0.3", ("master", "node"))
        >>> c = Cluster("x", {"m": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16",
        ...             versions=versions.resolve({}), addons={"coredns": {"upstream": []}})
        >>> view(c, host)["addons"]["wanted"]["coredns"]["replicas"]
        1
    """
    masters = cluster.with_role("master")
    if not masters or host.id != masters[0].id:
        return {}
    return {"addons": {"cluster": cluster.name, "wanted": wanted(cluster)}}


def wanted(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Settings of the wanted add-ons, defaults filled in, in the order of :data:`ADDONS`."""
    return {
        name: _settings(cluster, name, cluster.addons[name] or {})
        for name in ADDONS
        if name in cluster.addons
    }


def image(name: str, kubernetes: str) -> str:
    """The pinned image of an add-on for a Kubernetes release.

    Example:
        >>> image("coredns", "1.20.2").split("@")[0]
        'registry.k8s.io/coredns/coredns:v1.10.1'
    """
    minor = versions.minor(kubernetes)
    return next(found for since, found in reversed(IMAGES[name]) if minor >= since)


def _settings(cluster: Cluster, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    kubernetes = cluster.versions["kubernetes"]
    settings = {**ADDONS[name], "image": image(name, kubernetes), **given}
    if name == "coredns":
        nodes = len(cluster.with_role("node"))
        if settings["replicas"] is None:
            settings["replicas"] = min(max(nodes, 1), max(2, -(-nodes // NODES_A_REPLICA)))
        # PodDisruptionBudget left v1beta1 in 1.21.
        settings["policy"] = "policy/v1" if versions.minor(kubernetes) >= 21 else "policy/v1beta1"
    return settings
