"""From the declared cluster to what one host needs to know: the view.

Every layer contributes its part; this module holds what all hosts share and the merge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from . import addons, artifacts, backup, etcd, lb, master, node, pki, ports, rolling, tokens, zabbix
from .cluster import PATHS, Cluster, Host

#: Layers in the order in which they build on each other.
LAYERS = (artifacts, pki, tokens, lb, etcd, backup, master, node, rolling, addons, zabbix, ports)


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """Everything the states on one host read, and nothing more.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        The value of the pillar key ``indigo``: JSON types only. Its size depends on the
        host's roles, not on the number of nodes.

    Example:
        >>> view(cluster, cluster.hosts["node1"])["vip"]["url"]  # doctest: +SKIP
        'https://10.77.0.10:8443'
    """
    result: dict[str, Any] = {
        "id": host.id,
        "name": host.name,
        "address": host.address,
        "roles": list(host.roles),
        "cluster": {"name": cluster.name, "domain": cluster.domain},
        "vip": {
            "address": cluster.vip.address,
            "interface": cluster.vip.interface,
            "port": cluster.vip.port,
            "router_id": cluster.vip.router_id,
            "url": cluster.vip.url,
        },
        "networks": {
            "services": cluster.services,
            "pods": cluster.pods,
            "api": cluster.api_service,
            "dns": cluster.dns_service,
            "kind": cluster.network,
        },
        "paths": dict(PATHS),
        "versions": dict(cluster.versions),
    }
    for layer in LAYERS:
        result = merge(result, layer.view(cluster, host))
    return result


def pillar(cluster: Cluster, host: Host) -> dict[str, Any]:
    """The whole pillar of a host: its view, the CA host's signing policies, its jobs.

    Salt's scheduler keeps notes in the pillar's own ``schedule``, so that its fingerprint is that
    of the view, which holds the same jobs.
    """
    result: dict[str, Any] = {"indigo": view(cluster, host)}
    if "ca" in host.roles:
        result["x509_signing_policies"] = pki.signing_policies(cluster)
    jobs = pki.schedule(cluster)
    if "etcd" in host.roles:
        jobs |= backup.schedule(cluster.backup)
    if jobs:
        result["schedule"] = jobs
    return result


def fingerprint(pillar_: Mapping[str, Any]) -> str:
    """Digest by which a host is seen to have its current pillar; see :func:`pillar`."""
    return digest({key: value for key, value in pillar_.items() if key != "schedule"})


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two views: mappings merge, lists concatenate without repeats, else ``extra`` wins.

    Example:
        >>> merge({"a": [1], "b": {"c": 1}}, {"a": [1, 2], "b": {"d": 2}})
        {'a': [1, 2], 'b': {'c': 1, 'd': 2}}
    """
    merged = dict(base)
    for key, value in extra.items():
        present = merged.get(key)
        if isinstance(present, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(present, value)
        elif isinstance(present, list) and isinstance(value, list):
            merged[key] = present + [item for item in value if item not in present]
        else:
            merged[key] = value
    return merged


def digest(data: Any) -> str:
    """SHA-256 (hex) of JSON data, independent of the order of keys.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
