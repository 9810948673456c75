"""Who stands in for whom: the tiers whose units restart one host after the other.

What a restart does with it is ``_modules/indigo_rolling.py``; this is who the members are, how each
is asked for its health, and how a host comes to the tier's lock in etcd.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import lb
from .cluster import API_PORT, PATHS, Cluster, Host
from .etcd import CLIENT_PORT
from .lb import endpoint
from .master import CONTROLLER_MANAGER_PORT, SCHEDULER_PORT

#: Roles whose hosts form a tier.
ROLES = frozenset(["lb", "etcd", "master"])

#: The three units of a master: port and path of their health.
MASTER_UNITS = {
    "kube-apiserver": (API_PORT, "/readyz"),
    "kube-controller-manager": (CONTROLLER_MANAGER_PORT, "/healthz"),
    "kube-scheduler": (SCHEDULER_PORT, "/healthz"),
}


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """The tiers that a host's units belong to, and its way to their locks: part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"rolling": {unit: tier or None}, "lock": …}``; ``{}`` on nodes and the CA host. A tier is
        as ``indigo_rolling`` describes it, and None for a unit that no other host runs.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("m", "10.0.0.3", ("etcd", "master"))
        >>> c = Cluster("x", {"m": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> view(c, host)["rolling"]["etcd"] is None
        True
    """
    if not ROLES & set(host.roles):
        return {}
    tiers: dict[str, Any] = {}
    if "lb" in host.roles:
        tiers.update(_balancers(cluster, host))
    if "etcd" in host.roles:
        tiers["etcd"] = _etcd(cluster, host)
    if "master" in host.roles:
        tiers.update({unit: _master(cluster, host, unit) for unit in MASTER_UNITS})
    return {"rolling": tiers, "lock": _lock(cluster, host)}


def _tier(cluster: Cluster, host: Host, role: str, **more: Any) -> dict[str, Any] | None:
    hosts = cluster.with_role(role)
    if len(hosts) < 2:
        return None
    return {"own": host.name, "need": "any", **more}


def _etcd(cluster: Cluster, host: Host) -> dict[str, Any] | None:
    urls = {
        one.name: f"https://{endpoint(one.address, CLIENT_PORT)}/health"
        for one in cluster.with_role("etcd")
    }
    return _tier(
        cluster,
        host,
        "etcd",
        name="etcd",
        need="majority",
        members=urls,
        url=urls[host.name],
        check={**_member_files(), "expect": '"health":"true"'},
        settle=1,
        timeout=60,
    )


def _master(cluster: Cluster, host: Host, unit: str) -> dict[str, Any] | None:
    port, path = MASTER_UNITS[unit]
    urls = {
        one.name: f"https://{endpoint(one.address, port)}{path}"
        for one in cluster.with_role("master")
    }
    return _tier(
        cluster,
        host,
        "master",
        name=unit,
        members=urls,
        url=urls[host.name],
        check={"ca": f"{PATHS['pki']}/ca.crt", "expect": "ok"},
        # The next API server may only stop when all load balancers have taken this one in again.
        settle=_taken_in(cluster) if unit == "kube-apiserver" else 1,
        timeout=120,
    )


def _taken_in(cluster: Cluster) -> float:
    """Seconds after which every haproxy has seen an API server come back.

    A check that began before it served may wait for its answer until the end of its time.
    """
    config = lb.haproxy(cluster)["config"]
    rise = int(config["check"]["rise"]) * float(cluster.timers["api_check"])
    return round(rise + lb.seconds(config["timeouts"]["check"]), 2)


def _balancers(cluster: Cluster, host: Host) -> dict[str, Any]:
    """Tiers of both daemons, which are one member: the address needs both."""
    keepalived = lb.keepalived(cluster, host)["config"]
    address = {"address": cluster.vip.address, "port": cluster.vip.port}
    common: Mapping[str, Any] = {
        "name": "lb",
        "members": {one.name: one.id for one in cluster.with_role("lb")},
        # haproxy listens on the virtual address alone, so each host can only be asked itself.
        "ask": "salt",
        "url": f"unix:{lb.ALIVE}",
        "check": {"expect": "200 OK"},
        "units": ["haproxy", "keepalived"],
        "address": address,
        # keepalived takes the address when its script has found haproxy well.
        "settle": int(keepalived["check"]["interval"]) * int(keepalived["check"]["rise"]) + 1,
        "timeout": 20,
    }
    # A restart of keepalived gives the address up by itself.
    yields = {"yields": {"unit": "keepalived", **address}}
    return {
        "haproxy": _tier(cluster, host, "lb", **common, **yields),
        "keepalived": _tier(cluster, host, "lb", **common),
    }


def _member_files() -> dict[str, str]:
    pki = PATHS["etcd_pki"]
    return {"ca": f"{pki}/ca.crt", "cert": f"{pki}/member.crt", "key": f"{pki}/member.key"}


def _lock(cluster: Cluster, host: Host) -> dict[str, Any]:
    """How a host comes to the locks: with a certificate of etcd's, or through one that has it."""
    members = cluster.with_role("etcd")
    if "etcd" in host.roles:
        files = _member_files()
    elif "master" in host.roles:
        pki, name = PATHS["pki"], "apiserver-etcd-client"
        files = {
            "ca": f"{pki}/etcd-ca.crt",
            "cert": f"{pki}/{name}.crt",
            "key": f"{pki}/{name}.key",
        }
    else:
        return {"through": [one.id for one in members]}
    # Its own member last: that is the one that restarts.
    order = sorted(members, key=lambda one: one.id == host.id)
    urls = [f"https://{endpoint(one.address, CLIENT_PORT)}" for one in order]
    lock: dict[str, Any] = {"endpoints": urls, **files}
    if "etcd" in host.roles:
        lent = [one.id for one in cluster.with_role("lb") if not {"etcd", "master"} & {*one.roles}]
        lock["lends"] = {"lb": lent}
    return lock
