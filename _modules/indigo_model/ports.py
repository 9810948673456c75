"""Who listens where, and who may come: the one table of ports.

It drives the firewall (``salt/firewall``), the check of preflight that nobody else has taken a
port, the page ``docs/operations/ports.md`` and the scan in the lab. What a site overrides is in it
as it is on the hosts.

Sources: kubernetes.io "Ports and Protocols", the references of each component's flags, etcd's
"Configuration options", RFC 5798 (VRRP), flannel's ``Documentation/backends.md``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from . import ingress, zabbix
from .addons import CACHE_HEALTH_PORT, CACHE_METRICS_PORT
from .cluster import API_PORT, DNS_CACHE, PATHS, ROLES, Cluster, Host
from .etcd import CLIENT_PORT, PEER_PORT
from .etcd import METRICS_PORT as ETCD_METRICS_PORT
from .lb import KEEPALIVED_METRICS_PORT
from .lb import METRICS_PORT as HAPROXY_METRICS_PORT
from .master import CONTROLLER_MANAGER_PORT, ETCD_PROXY_PORT, SCHEDULER_PORT
from .monitoring import KUBELET_PORT, NODE_EXPORTER_PORT

#: IP protocol number of VRRP.
VRRP = 112

#: Flannel's VXLAN, as ``node.network`` leaves the backend's default.
VXLAN_PORT = 8472
NODE_PORTS = "30000-32767"

#: Where a program listens.
OWN, VIRTUAL, LOOPBACK, EVERY = "its address", "the virtual address", "loopback", "every address"
#: Of the cache of names: no other address of the host is meant.
CACHE = "the cache's address"
_EVERY = "0.0.0.0"  # noqa: S104 - named, not bound

#: Who may come, beside the hosts of a role.
ANYONE, PODS, HOSTS = "anyone", "pods", "hosts"

#: Prometheus is a pod: it comes with its own address or that of the node it runs on.
_PROMETHEUS = ("node", PODS)

#: A port that the kernel chose.
ANY = "any"


@dataclass(frozen=True)
class Port:
    """One thing that a role's program listens on.

    ``port`` is a number, a range ``first-last``, :data:`ANY`, or empty where the protocol has
    none. ``sources`` are roles, :data:`PODS` (of that same host), :data:`HOSTS` or
    :data:`ANYONE`; none where only the host itself comes. ``setting`` is the key of the cluster
    file that moves it. ``always`` is false for what only listens while it has something to do.
    ``hosts`` are the minion ids of those that have it, where that is not all of the role.
    """

    role: str
    service: str
    protocol: str
    port: str
    at: str
    sources: tuple[str, ...]
    why: str
    setting: str = ""
    always: bool = True
    hosts: tuple[str, ...] | None = None

    @property
    def open(self) -> bool:
        """Whether it is for anyone who can reach the host."""
        return ANYONE in self.sources


#: Of the Salt master, which is no role of the cluster: the firewall leaves it alone.
SALT = (
    Port("salt", "salt-master", "tcp", "4505", EVERY, (HOSTS,), "what Salt sends to minions"),
    Port("salt", "salt-master", "tcp", "4506", EVERY, (HOSTS,), "what minions answer and fetch"),
)


def table(cluster: Cluster, role: str) -> list[Port]:
    """What hosts of a role listen on.

    Args:
        cluster: The declared cluster.
        role: One of the roles.

    Returns:
        Rows in a fixed order.

    Raises:
        ValueError: An override from which no port can be read.

    Example:
        >>> from .cluster import Vip
        >>> c = Cluster("x", {}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> [(row.service, row.port) for row in table(c, "etcd")]
        [('etcd', '2379'), ('etcd', '2379'), ('etcd', '2380'), ('salt-minion', '2382')]
    """
    return list(_ROWS[role](cluster))


def _lb(cluster: Cluster) -> Iterator[Port]:
    port = str(cluster.vip.port)
    why = "the API of Kubernetes for clients, kubelets and controllers"
    bind = cluster.override("haproxy", "config").get("bind")
    if bind is None:
        yield Port("lb", "haproxy", "tcp", port, VIRTUAL, (ANYONE,), why, "vip.port")
    else:
        yield _given("lb", "haproxy", "overrides.haproxy.config.bind", str(bind), why)
    if cluster.monitored:
        port = str(HAPROXY_METRICS_PORT)
        yield Port("lb", "haproxy", "tcp", port, OWN, _PROMETHEUS, "metrics, for Prometheus")
        port, service = str(KEEPALIVED_METRICS_PORT), "keepalived-metrics"
        yield Port("lb", service, "tcp", port, OWN, _PROMETHEUS, "keepalived's, for Prometheus")
    wanted = ingress.given(cluster)
    if wanted is not None:
        where = "addons.ingress"
        asked = [(wanted[key], "services, by their names", key) for key in ("http", "https")]
        asked += [(one["port"], "a service", "tcp") for one in wanted["tcp"]]
        for number, why, key in asked:
            yield Port(
                "lb", "haproxy", "tcp", str(number), VIRTUAL, (ANYONE,), why, f"{where}.{key}"
            )
    agents = zabbix.given(cluster)
    if agents is not None:
        port, why = str(agents["port"]), "what agents of Zabbix send"
        where = "services.zabbix.port"
        yield Port("lb", "haproxy", "tcp", port, VIRTUAL, (HOSTS,), why, where)
    yield Port("lb", "keepalived", "vrrp", "", OWN, ("lb",), "who holds the virtual address")


def _etcd(cluster: Cluster) -> Iterator[Port]:
    flags = cluster.override("etcd", "flags")
    why = "the store, for API servers; members of each other's health and lock"
    if flags.get("listen-client-urls"):
        yield from _urls(flags, "listen-client-urls", ("master", "etcd"), why)
    else:
        port = str(CLIENT_PORT)
        yield Port("etcd", "etcd", "tcp", port, OWN, ("master", "etcd"), why)
        yield Port("etcd", "etcd", "tcp", port, LOOPBACK, (), "the store, for etcdctl on the host")
    yield Port("etcd", "etcd", "tcp", str(PEER_PORT), OWN, ("etcd",), "members among themselves")
    port = str(cluster.backup["port"])
    why = "copies of a backup, while it is fetched"
    yield Port("etcd", "salt-minion", "tcp", port, OWN, ("etcd",), why, "backup.port", always=False)
    if cluster.monitored and "listen-metrics-urls" not in flags:
        port = str(ETCD_METRICS_PORT)
        yield Port("etcd", "etcd", "tcp", port, OWN, _PROMETHEUS, "metrics, for Prometheus")
    yield from _urls(flags, "listen-metrics-urls", (ANYONE,), "metrics, opened by the site")


def _urls(
    flags: Mapping[str, Any], flag: str, sources: tuple[str, ...], why: str
) -> Iterator[Port]:
    for url in str(flags.get(flag) or "").split(","):
        if url.startswith("http"):
            where = f"overrides.etcd.flags.{flag}"
            row = _given("etcd", "etcd", where, urlsplit(url).netloc, why)
            yield replace(row, sources=sources) if row.sources else row


def _master(cluster: Cluster) -> Iterator[Port]:
    yield Port(
        "master",
        "kube-apiserver",
        "tcp",
        str(API_PORT),
        OWN,
        ("lb", "master", "node", PODS),
        "the API: load balancers; nodes and pods through the service `kubernetes`",
    )
    for service, number, why in (
        ("kube-controller-manager", CONTROLLER_MANAGER_PORT, "health and metrics, for masters"),
        ("kube-scheduler", SCHEDULER_PORT, "health and metrics, for masters"),
    ):
        where = f"overrides.{service}.flags.bind-address"
        bind = cluster.override(service, "flags").get("bind-address")
        if bind is None:
            sources = ("master", *(_PROMETHEUS if cluster.monitored else ()))
            yield Port("master", service, "tcp", str(number), OWN, sources, why)
        else:
            yield _given("master", service, where, f"{bind}:{number}", why)
    for position, member in enumerate(cluster.with_role("etcd")):
        why = f"the API server's way to etcd on {member.name}"
        port = str(ETCD_PROXY_PORT + position)
        yield Port("master", "haproxy", "tcp", port, LOOPBACK, (), why)


def _node(cluster: Cluster) -> Iterator[Port]:
    kubelet = cluster.override("kubelet", "config")
    yield Port(
        "node",
        "kubelet",
        "tcp",
        _number(kubelet, "port", KUBELET_PORT),
        OWN,
        ("master", "node", PODS),
        "logs, exec and metrics of pods: API servers; pods that collect metrics",
        "overrides.kubelet.config.port",
    )
    health = _number(kubelet, "healthzPort", 10248)
    bind = kubelet.get("healthzBindAddress", "127.0.0.1")
    where = "overrides.kubelet.config.healthzBindAddress"
    yield _given("node", "kubelet", where, f"{bind}:{health}", "health, for the host itself")
    if kubelet.get("readOnlyPort"):
        port = _number(kubelet, "readOnlyPort", 0)
        where = "overrides.kubelet.config.readOnlyPort"
        why = "pods without authentication, opened by the site"
        yield Port("node", "kubelet", "tcp", port, OWN, (ANYONE,), why, where)
    if cluster.monitored:
        port, why = str(NODE_EXPORTER_PORT), "metrics of the host, for Prometheus"
        # A pod with the host's network: its program is not one of ours, and comes after deploys.
        yield Port(
            "node", "node-exporter", "tcp", port, OWN, _PROMETHEUS, why, "addons.prometheus",
            always=False,
        )  # fmt: skip
    if ingress.given(cluster) is not None:
        yield from _gate(cluster)
    if cluster.cached:
        yield from _cache(cluster)
    proxy = cluster.override("kube-proxy", "config")
    for key, default, why in (
        ("metricsBindAddress", "127.0.0.1:10249", "metrics, for the host itself"),
        ("healthzBindAddress", "127.0.0.1:10256", "health, for the host itself"),
    ):
        bind = proxy.get(key, default)
        if bind:
            where = f"overrides.kube-proxy.config.{key}"
            yield _given("node", "kube-proxy", where, str(bind), why)
    yield Port("node", "containerd", "tcp", ANY, LOOPBACK, (), "streams of exec and attach")
    where = "overrides.kube-apiserver.flags.service-node-port-range"
    flags = cluster.override("kube-apiserver", "flags")
    span = _span(where, flags.get("service-node-port-range") or NODE_PORTS)
    for protocol in ("tcp", "udp"):
        why = "services of type NodePort and LoadBalancer"
        yield Port("node", "kube-proxy", protocol, span, EVERY, (ANYONE,), why, where)
    if cluster.network == "flannel":
        why = "pods' traffic between nodes"
        yield Port("node", "flanneld", "udp", str(VXLAN_PORT), OWN, ("node",), why)
        yield Port("node", "flanneld", "tcp", "10253", LOOPBACK, (), "health, for the host itself")


def _gate(cluster: Cluster) -> Iterator[Port]:
    """The controller on the nodes that carry it: a pod with the host's network."""
    where, hosts = "addons.ingress", tuple(host.id for host in ingress.gates(cluster))
    # Its own health is also what it routes to when it is checked, from any of these nodes.
    health = ("lb", "node", *((PODS,) if cluster.monitored else ()))
    for port, at, sources, why in (
        (ingress.HTTP_PORT, OWN, ("lb",), "services, from load balancers"),
        (ingress.HTTPS_PORT, OWN, ("lb",), "services, from load balancers"),
        (ingress.HEALTH_PORT, OWN, health, "health and metrics"),
        (ingress.PAGE_PORT, LOOPBACK, (), "its page of routes, for the host itself"),
    ):
        yield Port(
            "node", "traefik", "tcp", str(port), at, sources, why, where, always=False, hosts=hosts
        )


def _cache(cluster: Cluster) -> Iterator[Port]:
    """The node's cache of names: a pod with the host's network."""
    where, why = "addons.coredns.node_cache", "names, for the pods of this host"
    for protocol in ("udp", "tcp"):
        yield Port(
            "node", "coredns", protocol, "53", CACHE, (PODS,), why, where, always=False
        )  # fmt: skip
    port, why = str(CACHE_HEALTH_PORT), "health, for the host itself"
    yield Port("node", "coredns", "tcp", port, CACHE, (), why, where, always=False)
    if cluster.monitored:
        port, why = str(CACHE_METRICS_PORT), "metrics, for Prometheus"
        yield Port("node", "coredns", "tcp", port, OWN, _PROMETHEUS, why, where, always=False)


_ROWS = {"ca": lambda _: iter(()), "lb": _lb, "etcd": _etcd, "master": _master, "node": _node}


def _number(config: Mapping[str, Any], key: str, default: int) -> str:
    value = config.get(key)
    return str(default if value is None else value)


def _span(where: str, value: Any) -> str:
    """A range as the API server reads it: ``first-last``, ``first+more`` or one port.

    >>> _span("x", "30000+99"), _span("x", "80")
    ('30000-30099', '80')
    """
    text = str(value).replace(" ", "")
    match = re.fullmatch(r"(\d{1,5})(?:([-+])(\d{1,5}))?", text)
    if match is None:
        raise ValueError(f"{where}: found {value!r}; expected ports such as {NODE_PORTS}")
    first, sign, second = match.groups()
    if sign is None:
        return first
    last = int(first) + int(second) if sign == "+" else int(second)
    return f"{first}-{last}"


def _given(role: str, service: str, where: str, bind: str, why: str) -> Port:
    """A row for ``address:port``: who binds it to more than loopback means others to come."""
    address, _, port = bind.rpartition(":")
    address = address.strip("[]") or _EVERY
    if not port.isdigit():
        raise ValueError(f"{where}: found {bind!r}; expected an address and a port")
    if address == "localhost" or _is(address, "is_loopback"):
        return Port(role, service, "tcp", port, LOOPBACK, (), why, where)
    at = EVERY if _is(address, "is_unspecified") or address == "*" else OWN
    return Port(role, service, "tcp", port, at, (ANYONE,), f"{why}; opened by the site", where)


def _is(address: str, what: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(address), what))
    except ValueError:
        return False


# --- one host ---------------------------------------------------------------------------------


def of_host(cluster: Cluster, host: Host) -> list[Port]:
    """Rows of all roles of a host."""
    return [
        row
        for role in ROLES
        if role in host.roles
        for row in table(cluster, role)
        if row.hosts is None or host.id in row.hosts
    ]


def address(cluster: Cluster, host: Host, row: Port) -> str:
    """The address of a host that a row means.

    >>> from .cluster import Vip
    >>> c = Cluster("x", {}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
    >>> address(c, Host("l", "10.0.0.1", ("lb",)), table(c, "lb")[0])
    '10.0.0.9'
    """
    fixed = {
        LOOPBACK: "127.0.0.1",
        EVERY: _EVERY,
        VIRTUAL: cluster.vip.address,
        CACHE: DNS_CACHE,
    }
    return fixed.get(row.at, host.address)


def sources(cluster: Cluster, host: Host, row: Port) -> list[str] | None:
    """Addresses and networks from which others may come to one host.

    Nodes come and go, and none of that may change another host: they are in the hosts' networks.
    Pods show their own addresses only to the node they run on; elsewhere they have the node's.

    Returns:
        Sorted addresses and networks; none where only the host itself comes; None for anyone.
    """
    if row.open:
        return None
    found: list[str] = []
    for source in row.sources:
        if source == PODS:
            found += [cluster.pods] if "node" in host.roles else []
        elif source in ("node", HOSTS):
            found += cluster.lans
        else:
            found += [one.address for one in cluster.with_role(source)]
    return _apart(found)


def _apart(networks: Iterable[str]) -> list[str]:
    """Sorted networks of which none lies in another: a set of a packet filter takes no others.

    >>> _apart(["10.0.0.7", "10.0.0.0/24", "10.1.0.1"])
    ['10.0.0.0/24', '10.1.0.1']
    """
    all_ = sorted({ipaddress.IPv4Network(one) for one in networks})
    kept: list[ipaddress.IPv4Network] = []
    for net in all_:  # a network sorts before those in it
        if not kept or not net.subnet_of(kept[-1]):
            kept.append(net)
    return [str(net.network_address) if net.prefixlen == 32 else str(net) for net in kept]


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """What a host must know of its ports: its part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"ports": [{"service", "program", "protocol", "port", "address"}], "firewall":
        {"kind", ...}}``. ``ports`` are those that preflight must find free or in the hands of
        ``program`` (a path, or a folder with a slash at its end). ``firewall`` has ``guards`` (rows
        with ``sources``; with an ``address`` where the same port of others is not meant) and
        ``open`` (rows for anyone) where there is one.

    Example:
        >>> from .cluster import Vip
        >>> hosts = {"e": Host("e", "10.0.0.3", ("etcd",))}
        >>> c = Cluster("x", hosts, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16",
        ...             firewall="nftables", lans=("10.0.0.0/24",))
        >>> view(c, hosts["e"])["firewall"]["guards"][1]
        {'service': 'etcd', 'protocol': 'tcp', 'port': '2380', 'sources': ['10.0.0.3']}
    """
    rows = of_host(cluster, host)
    result: dict[str, Any] = {
        "ports": [
            {
                "service": row.service,
                "program": _program(row.service),
                "protocol": row.protocol,
                "port": int(row.port),
                "address": address(cluster, host, row),
            }
            for row in rows
            if row.protocol in ("tcp", "udp") and row.port.isdigit() and row.always
        ],
        "firewall": {"kind": cluster.firewall},
    }
    if cluster.firewall != "none":
        result["firewall"].update(_firewall(cluster, host, rows))
    return result


#: Programs that are not Indigo's. A socket of systemd is systemd's own until somebody comes.
_PROGRAMS = {"haproxy": "/usr/sbin/haproxy", "keepalived-metrics": "/usr/lib/systemd/systemd"}


def _program(service: str) -> str:
    return _PROGRAMS.get(service, f"{PATHS['artifacts']}/")


def _firewall(cluster: Cluster, host: Host, rows: list[Port]) -> dict[str, Any]:
    """Rows of the firewall: one for each protocol and port, however many programs share it."""
    guards: dict[tuple[str, ...], dict[str, Any]] = {}
    opened: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        if row.port == ANY:
            continue
        key: tuple[str, ...] = (row.protocol, row.port)
        found = sources(cluster, host, row)
        entry = {"service": row.service, "protocol": row.protocol, "port": row.port}
        if row.at == CACHE:  # a name server of the site's may have the port of the host's own
            entry["address"] = DNS_CACHE
            key = (*key, DNS_CACHE)
        if found is None:
            opened.setdefault(key, entry)
        elif key in guards:
            guards[key]["sources"] = _apart([*guards[key]["sources"], *found])
        else:
            guards[key] = {**entry, "sources": found}
    return {
        "guards": [guard for key, guard in guards.items() if key not in opened],
        "open": list(opened.values()),
        "router_id": cluster.vip.router_id,
    }


# --- the page ---------------------------------------------------------------------------------


def reference(cluster: Cluster) -> str:
    """The tables of ``docs/operations/ports.md`` for a cluster, as Markdown."""
    lines = []
    for role, title in _TITLES.items():
        rows = SALT if role == "salt" else table(cluster, role)
        lines += [f"### {title}", ""]
        if not rows:
            lines += ["Nothing.", ""]
            continue
        lines += ["| Program | Port | Listens on | Who comes | What for |", "|---|---|---|---|---|"]
        lines += [_row(row) for row in rows]
        lines.append("")
    return "\n".join(lines)


_TITLES = {
    "lb": "Load balancers (`lb`)",
    "etcd": "etcd (`etcd`)",
    "master": "Masters (`master`)",
    "node": "Nodes (`node`)",
    "ca": "The certificate authority (`ca`)",
    "salt": "The Salt master",
}

_PEOPLE = {
    "lb": "load balancers",
    "etcd": "etcd hosts",
    "master": "masters",
    "node": "nodes",
    PODS: "pods of this host",
    HOSTS: "every host",
    ANYONE: "anyone",
}


def _row(row: Port) -> str:
    port = f"IP protocol {VRRP}" if row.protocol == "vrrp" else f"{row.port}/{row.protocol}"
    if row.port == ANY:
        port = f"one that the kernel gives/{row.protocol}"
    who = ", ".join(_PEOPLE[source] for source in row.sources) or "the host itself"
    setting = f" (`{row.setting}`)" if row.setting else ""
    return f"| {row.service} | {port}{setting} | {row.at} | {who} | {row.why} |"
