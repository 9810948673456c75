"""The declared cluster: typed, immutable, parsed from the one file a user edits.

Parsing assumes a document that :mod:`validate` found without problems; it fills in the
defaults and nothing else. What follows from the declaration (flags, certificates, peers) is
derived layer by layer in the sibling modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import netaddr

#: Roles in the order in which the layers build on each other.
ROLES = ("ca", "lb", "etcd", "master", "node")

#: Networks that can carry the pods.
POD_NETWORKS = ("routes", "flannel")

#: What may guard a host's ports, see :mod:`ports`.
FIREWALLS = ("none", "nftables", "firewalld")

#: Parts whose settings a site may override, each with ``flags`` and ``config``.
COMPONENTS = (
    "haproxy",
    "keepalived",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
)

#: Defaults of ``timers``, in seconds. Together they bound how long a dead host goes unnoticed.
TIMERS = MappingProxyType(
    {
        "vip_advert": 0.2,  # VRRP advertisement; the VIP moves after about three missed ones
        "api_check": 0.5,  # haproxy's health check of each API server
        "node_status": 2,  # kubelet's look at its own node
        "node_grace": 20,  # silence after which a node counts as not ready
        "pod_eviction": 60,  # how long pods stay bound to a node that is not ready
    }
)

#: Defaults of ``certificates``, in days; ``look`` in seconds.
CERTIFICATES = MappingProxyType(
    {"days": 365, "renew_before": 60, "authority_days": 3650, "look": 21600}
)

#: Defaults of ``backup``. ``every`` is in hours, ``at`` in UTC, ``look`` and ``splay`` in seconds.
BACKUP: Mapping[str, Any] = MappingProxyType(
    {
        "every": 24,
        "at": "01:30",
        "look": 900,
        "splay": 300,
        "keep": MappingProxyType({"daily": 7, "weekly": 4, "monthly": 6}),
        "folder": "/var/lib/indigo-backup",
        "target": "",
        "copies": True,
        "port": 2382,
        "recipient": "",
        # A database is rewritten when this share of it, in percent, and this much, in MiB, is free.
        "defragment": MappingProxyType({"share": 50, "least": 100}),
    }
)

#: Defaults of ``upgrade``: nodes at a time, and seconds for a node to be emptied.
UPGRADE: Mapping[str, Any] = MappingProxyType({"batch": 1, "drain": 300})

#: Host paths that several layers agree on.
PATHS = MappingProxyType(
    {
        "artifacts": "/opt/indigo",
        "kubernetes": "/etc/kubernetes",
        "pki": "/etc/kubernetes/pki",
        "tokens": "/etc/kubernetes/tokens",
        "etcd": "/etc/etcd",
        "etcd_pki": "/etc/etcd/pki",
        "etcd_data": "/var/lib/etcd",
        "authorities": "/etc/indigo/ca",
    }
)

#: Services of ours under ``services``: they are kept as add-ons are, and need no ``source``.
SERVICES = ("zabbix", "im", "accounting")

#: Where each node's cache of names listens: link-local, so that it is every node's own.
DNS_CACHE = "169.254.20.10"

API_PORT = 6443
VIP_PORT = 8443


@dataclass(frozen=True)
class Host:
    """One host: its minion id, the address the cluster reaches it at, and its roles."""

    id: str
    address: str
    roles: tuple[str, ...]
    interface: str | None = None
    #: Labels of its Node object, beside Kubernetes' own.
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Name in Kubernetes and in etcd: the minion id in lower case, as DNS wants it."""
        return self.id.lower()


@dataclass(frozen=True)
class Vip:
    """The virtual address that clients use, held by one load balancer at a time."""

    address: str
    interface: str
    port: int = VIP_PORT
    router_id: int = 51

    @property
    def url(self) -> str:
        """Base URL of the API through the load balancers.

        >>> Vip("10.0.0.10", "eth0").url
        'https://10.0.0.10:8443'
        """
        return f"https://{self.address}:{self.port}"


@dataclass(frozen=True)
class Cluster:
    """The whole declaration with its defaults filled in."""

    name: str
    hosts: Mapping[str, Host]
    vip: Vip
    services: str
    pods: str
    network: str = "routes"
    domain: str = "cluster.local"
    versions: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timers: Mapping[str, float] = field(default_factory=lambda: TIMERS)
    certificates: Mapping[str, int] = field(default_factory=lambda: CERTIFICATES)
    addons: Mapping[str, Any] = field(default_factory=dict)
    #: What the file has under ``services``, but for :data:`SERVICES`: the user's own.
    workloads: Mapping[str, Any] = field(default_factory=dict)
    firewall: str = "none"
    #: Networks that hold every host, where the file tells them.
    lans: tuple[str, ...] = ()
    backup: Mapping[str, Any] = field(default_factory=lambda: BACKUP)
    upgrade: Mapping[str, Any] = field(default_factory=lambda: UPGRADE)
    #: Package of the distribution to its version, where the file tells one.
    packages: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _by_role(self) -> Mapping[str, tuple[Host, ...]]:
        # Computed once: deriving every host's view asks for roles again and again.
        return {
            role: tuple(host for host in self.hosts.values() if role in host.roles)
            for role in ROLES
        }

    def with_role(self, role: str) -> tuple[Host, ...]:
        """Hosts that carry a role, in the order of the declaration."""
        return self._by_role[role]

    @property
    def ca(self) -> Host:
        """The host whose minion signs certificates."""
        return self.with_role("ca")[0]

    @property
    def api_service(self) -> str:
        """Address of the service ``kubernetes.default``: the first of the service network."""
        return str(netaddr.IPNetwork(self.services)[1])

    @property
    def dns_service(self) -> str:
        """Address of the cluster's DNS service: the tenth of the service network."""
        return str(netaddr.IPNetwork(self.services)[10])

    @property
    def cached(self) -> bool:
        """Whether each node has a cache of names, at :data:`DNS_CACHE`."""
        return bool((self.addons.get("coredns") or {}).get("node_cache"))

    @property
    def patience(self) -> dict[str, str]:
        """Environment of every client of the API: when it gives up a connection that is silent.

        Clients ask over one HTTP/2 connection. When what was at its other end is gone without a
        word, they learn it from a ping: by default after 30 and 15 seconds, longer than a node
        may be silent here. So both are a quarter of that. Source: apimachinery's
        ``pkg/util/net/http.go``, since 1.20.

        >>> Cluster("x", {}, Vip("10.0.0.9", "eth0"), "", "").patience
        {'HTTP2_READ_IDLE_TIMEOUT_SECONDS': '5', 'HTTP2_PING_TIMEOUT_SECONDS': '5'}
        """
        quarter = str(max(1, int(self.timers["node_grace"] // 4)))
        return {
            "HTTP2_READ_IDLE_TIMEOUT_SECONDS": quarter,
            "HTTP2_PING_TIMEOUT_SECONDS": quarter,
        }

    @property
    def monitored(self) -> bool:
        """Whether Prometheus scrapes the hosts: what it asks must listen where it reaches it."""
        return "prometheus" in self.addons

    def override(self, component: str, kind: str) -> dict[str, Any]:
        """Settings a site gives a component: ``kind`` is ``flags`` or ``config``."""
        return dict(self.overrides.get(component, {}).get(kind, {}))


def parse(document: Mapping[str, Any]) -> Cluster:
    """Turn a validated document into a :class:`Cluster`.

    Args:
        document: The parsed YAML of ``pillar/cluster.yaml``, without problems.

    Returns:
        The cluster with defaults filled in. ``versions`` holds every pinned part.

    Example:
        >>> doc = {"name": "x", "vip": {"address": "10.0.0.9", "interface": "eth0"},
        ...        "hosts": {"a": {"address": "10.0.0.1", "roles": ["ca"]}},
        ...        "networks": {"services": "10.96.0.0/16", "pods": "10.244.0.0/16"}}
        >>> parse(doc).ca.address
        '10.0.0.1'
    """
    from .versions import resolve  # here, so that reading a cached view stays cheap

    hosts = {
        str(id_): Host(
            id=str(id_),
            address=str(netaddr.IPAddress(spec["address"])),
            roles=tuple(role for role in ROLES if role in spec["roles"]),
            interface=spec.get("interface"),
            labels=dict(spec.get("labels", {})),
        )
        for id_, spec in document["hosts"].items()
    }
    networks = document["networks"]
    services = document.get("services", {})
    lans = networks.get("hosts", ())
    return Cluster(
        name=document["name"],
        hosts=hosts,
        vip=Vip(**document["vip"]),
        services=str(netaddr.IPNetwork(networks["services"]).cidr),
        pods=str(netaddr.IPNetwork(networks["pods"]).cidr),
        network=document.get("network", "routes"),
        domain=document.get("domain", "cluster.local"),
        versions=resolve(document.get("versions", {})),
        artifacts=document.get("artifacts", {}),
        images=document.get("images", {}),
        overrides=document.get("overrides", {}),
        timers={**TIMERS, **document.get("timers", {})},
        certificates={**CERTIFICATES, **document.get("certificates", {})},
        addons={
            **document.get("addons", {}),
            **{name: services[name] for name in SERVICES if name in services},
        },
        workloads={name: one for name, one in services.items() if name not in SERVICES},
        firewall=document.get("firewall", "none"),
        lans=(lans,) if isinstance(lans, str) else tuple(lans),
        backup=_backup(document.get("backup", {})),
        upgrade={**UPGRADE, **document.get("upgrade", {})},
        packages=document.get("packages", {}),
    )


def _backup(given: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``backup`` with its defaults, also those of the sections in it."""
    return {
        key: {**default, **given.get(key, {})}
        if isinstance(default, Mapping)
        else given.get(key, default)
        for key, default in BACKUP.items()
    }
