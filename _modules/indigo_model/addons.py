"""Add-ons: which are wanted, and their settings.

The manifests are in ``salt/addons/<name>``; this is what they are filled with. One master, the
first of the declaration, brings them into the cluster, so only its view has them. Their images
are in :mod:`images`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from . import (
    accounting,
    alerting,
    dashboards,
    images,
    infrastructures,
    ingress,
    logs,
    monitoring,
    openstack,
    versions,
    zabbix,
)
from .cluster import DNS_CACHE, SERVICES, Cluster, Host

#: Every add-on and its settings' defaults. They are installed in this order.
ADDONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "coredns": MappingProxyType(
            {"replicas": None, "upstream": ["/etc/resolv.conf"], "node_cache": False}
        ),
        "metrics-server": MappingProxyType({"replicas": None}),
        "prometheus": monitoring.DEFAULTS,
        "influxdb": monitoring.INFLUXDB,
        ingress.NAME: ingress.DEFAULTS,
        "alertmanager": alerting.DEFAULTS,
        "grafana": dashboards.DEFAULTS,
        "headlamp": MappingProxyType({"replicas": None, "host": None}),
        "logging": logs.DEFAULTS,
        openstack.NAME: openstack.DEFAULTS,
        zabbix.NAME: zabbix.DEFAULTS,
        infrastructures.NAME: infrastructures.DEFAULTS,
        accounting.NAME: accounting.DEFAULTS,
    }
)

#: Ports of a node's cache of names, beside 53: its health at its own address, its metrics at the
#: host's.
CACHE_HEALTH_PORT, CACHE_METRICS_PORT = 9254, 9253

#: A replica of CoreDNS for so many nodes, and at least two.
NODES_A_REPLICA = 16


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """The add-ons that this host brings into the cluster: part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"addons": {"cluster": name, "wanted": {name: settings}, "services": {name: settings}}}``
        on the first master, also when none is wanted, so that what was wanted before goes; ``{}``
        elsewhere.

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
    return {
        "addons": {
            "cluster": cluster.name,
            "wanted": wanted(cluster),
            "services": services(cluster),
        }
    }


#: What the names of a user's own services begin with where they stand beside add-ons.
SERVICE = "service-"


def services(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """The user's own services, defaults filled in, under the names that they have among add-ons.

    Example:
        >>> from .cluster import Vip
        >>> c = Cluster("x", {}, Vip("10.0.0.9", "eth0"), "", "",
        ...             workloads={"wiki": {"source": "salt://services/wiki"}})
        >>> services(c)["service-wiki"]["namespace"]
        'default'
    """
    return {
        f"{SERVICE}{name}": {
            "name": name,
            "source": given["source"].rstrip("/"),
            "namespace": given.get("namespace", "default"),
            "values": dict(given.get("values") or {}),
            "check": dict(given.get("check") or {}),
        }
        for name, given in cluster.workloads.items()
    }


def wanted(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Settings of the wanted add-ons, defaults filled in, in the order of :data:`ADDONS`."""
    return {
        name: _settings(cluster, name, cluster.addons[name] or {})
        for name in ADDONS
        if name in cluster.addons
    }


def _settings(cluster: Cluster, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    minor = versions.minor(cluster.versions["kubernetes"])
    settings = {
        **ADDONS[name],
        **given,
        "key": f"{'services' if name in SERVICES else 'addons'}.{name}",
        "images": images.of_addon(cluster, name),
        # PodDisruptionBudget left v1beta1 in 1.21.
        "policy": "policy/v1" if minor >= 21 else "policy/v1beta1",
        # Whence hosts come: checks, and what is sent to pods through a host.
        "lans": list(cluster.lans) or [f"{one.address}/32" for one in cluster.hosts.values()],
    }
    return {**settings, **_DERIVED[name](cluster, settings)}


def _coredns(cluster: Cluster, settings: Mapping[str, Any]) -> dict[str, Any]:
    nodes = len(cluster.with_role("node"))
    least = min(max(nodes, 1), max(2, -(-nodes // NODES_A_REPLICA)))
    cache = {
        "address": DNS_CACHE,
        "health": CACHE_HEALTH_PORT,
        "metrics": CACHE_METRICS_PORT if cluster.monitored else None,
    }
    return {
        "replicas": settings["replicas"] or least,
        "cache": cache if cluster.cached else None,
    }


def _metrics_server(cluster: Cluster, settings: Mapping[str, Any]) -> dict[str, Any]:
    nodes = [host.name for host in cluster.with_role("node")]
    return {"replicas": settings["replicas"] or min(2, max(1, len(nodes))), "nodes": nodes}


def _headlamp(cluster: Cluster, settings: Mapping[str, Any]) -> dict[str, Any]:
    nodes = len(cluster.with_role("node"))
    return {"replicas": settings["replicas"] or min(2, max(1, nodes))}


_DERIVED: Mapping[str, Callable[[Cluster, Mapping[str, Any]], dict[str, Any]]] = {
    "coredns": _coredns,
    "metrics-server": _metrics_server,
    "prometheus": monitoring.settings,
    "influxdb": monitoring.influxdb,
    ingress.NAME: ingress.settings,
    "alertmanager": alerting.settings,
    "grafana": dashboards.settings,
    "headlamp": _headlamp,
    "logging": logs.settings,
    openstack.NAME: openstack.settings,
    zabbix.NAME: zabbix.settings,
    infrastructures.NAME: infrastructures.settings,
    accounting.NAME: accounting.settings,
}
