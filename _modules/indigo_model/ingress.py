"""The way in for services: from the virtual address to a controller on the nodes that carry it.

haproxy on the load balancers passes connections on as they are (:func:`proxies`), to Traefik on
every node with the label ``role: loadbalancer``, which routes by Kubernetes' own Ingress objects;
declared TCP ports go to services' node ports on the same nodes. Sources: Traefik's "EntryPoints",
"Kubernetes Ingress" and "Ping", haproxy's Configuration Manual (``send-proxy-v2``,
``http-check disable-on-404``, ``track``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .cluster import PATHS, Cluster, Host

#: Name of the add-on, of its namespace, and of what it is made of.
NAME = "ingress"

#: The label of nodes that carry it, as the cluster file has it under ``hosts.<id>.labels``.
LABEL = ("role", "loadbalancer")

#: Settings of ``addons.ingress``. ``certificate`` is the name of a Secret of the site's.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "http": 80,
        "https": 443,
        "names": (),
        "certificate": None,
        "tcp": (),
        "memory": "256Mi",
    }
)

#: Where Traefik listens on its node. Above 1024, so that it needs no capability; of its own, so
#: that it can be on a load balancer, too.
HTTP_PORT, HTTPS_PORT, HEALTH_PORT = 10080, 10443, 10081

#: Its page of routes, on loopback alone.
PAGE_PORT = 10082

#: The Secret with the certificate of the cluster's own authority.
OWN_SECRET = "indigo-ingress"  # noqa: S105 - a name

#: Name of the Ingress that the check of the add-on's own use asks for (RFC 6761, ``invalid``).
CHECK_NAME = "check.ingress.invalid"
CHECK_PATH = "/ping"


def given(cluster: Cluster) -> dict[str, Any] | None:
    """Settings with their defaults, or None where nobody wants it."""
    if NAME not in cluster.addons:
        return None
    return {**DEFAULTS, **(cluster.addons[NAME] or {})}


def gates(cluster: Cluster) -> tuple[Host, ...]:
    """Nodes that carry it, in the order of the declaration."""
    key, value = LABEL
    return tuple(host for host in cluster.with_role("node") if host.labels.get(key) == value)


def holder(cluster: Cluster, host: Host) -> bool:
    """Whether a host keeps the certificate of our own authority, and brings it into the cluster."""
    wanted, masters = given(cluster), cluster.with_role("master")
    return bool(wanted and not wanted["certificate"] and masters and masters[0].id == host.id)


def names(cluster: Cluster) -> tuple[str, ...]:
    """Alternative names of that certificate: the site's, and the address that all come through."""
    wanted = given(cluster) or DEFAULTS
    return (*(f"DNS:{name}" for name in wanted["names"]), f"IP:{cluster.vip.address}")


def proxies(cluster: Cluster, connections: int) -> list[dict[str, Any]]:
    """What haproxy listens on for it.

    Args:
        cluster: The declared cluster.
        connections: How many haproxy takes in all. Half of them are shared out here, so that no
            number of clients of services keeps others from the API.

    Returns:
        For each port ``name``, ``bind``, ``maxconn``, ``servers`` (``name`` and ``endpoint``) and
        ``proxy``: whether the PROXY protocol tells the client's address. ``health`` is the port
        that is asked over HTTP, or None where a connection is all that can be tried. Empty where
        nobody wants it.

    Example:
        >>> from .cluster import Vip
        >>> node = Host("n", "10.0.0.4", ("node",), labels={"role": "loadbalancer"})
        >>> c = Cluster("x", {"n": node}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16",
        ...             "10.244.0.0/16", addons={"ingress": {}})
        >>> proxies(c, 8000)[1]["servers"]
        [{'name': 'n', 'endpoint': '10.0.0.4:10443'}]
    """
    wanted = given(cluster)
    if wanted is None:
        return []
    ways = [
        ("ingress-http", wanted["http"], HTTP_PORT, True, HEALTH_PORT),
        ("ingress-https", wanted["https"], HTTPS_PORT, True, HEALTH_PORT),
        *(
            (
                f"ingress-tcp-{one['port']}",
                one["port"],
                one["node_port"],
                bool(one.get("proxy")),
                None,
            )
            for one in wanted["tcp"]
        ),
    ]
    return [
        {
            "name": name,
            "bind": f"{cluster.vip.address}:{port}",
            "maxconn": max(1, connections // 2 // len(ways)),
            "servers": [
                {"name": host.name, "endpoint": f"{host.address}:{behind}"}
                for host in gates(cluster)
            ],
            "proxy": proxy,
            "health": health,
        }
        for name, port, behind, proxy, health in ways
    ]


def settings(cluster: Cluster, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests and the check are filled with, beside what the site set.

    Args:
        cluster: The declared cluster.
        wanted: Settings of ``addons.ingress`` with defaults.

    Returns:
        ``label`` (of the nodes), ``gates`` (names of the nodes that must carry it), ``balancers``
        (whose word on a client's address is taken), ``vip``, ``ports``, ``secret`` (name of the
        Secret with the certificate), ``secrets`` (those to bring there, from files of this host),
        ``slices`` (whether the controller reads EndpointSlices), ``check`` and ``authority``: the
        file that the certificate is checked with, or None where that is the site's business.
    """
    from .versions import minor

    own, base = not wanted["certificate"], f"{PATHS['pki']}/{NAME}"
    files = {"certificate": f"{base}.crt", "key": f"{base}.key"}
    return {
        "names": list(wanted["names"]),
        "tcp": [dict(one) for one in wanted["tcp"]],
        "label": dict([LABEL]),
        "gates": [host.name for host in gates(cluster)],
        "balancers": [host.address for host in cluster.with_role("lb")],
        "vip": cluster.vip.address,
        "ports": {
            "http": HTTP_PORT,
            "https": HTTPS_PORT,
            "health": HEALTH_PORT,
            "page": PAGE_PORT,
        },
        "secret": OWN_SECRET if own else wanted["certificate"],
        "secrets": [{"namespace": NAME, "name": OWN_SECRET, **files}] if own else [],
        # Traefik does from 3.1 on, and Kubernetes has them since 1.21: see the table of images.
        "slices": minor(cluster.versions["kubernetes"]) >= 21,
        "check": {"name": CHECK_NAME, "path": CHECK_PATH},
        "authority": f"{PATHS['pki']}/ca.crt" if own else None,
    }
