"""What a load balancer runs: haproxy in front of the API servers, keepalived for the address.

Configuration is computed here as data; the templates only print it. Sources: haproxy's
Configuration Manual 2.4 to 3.0, ``keepalived.conf(5)`` 2.2, RFC 5798 (VRRP version 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import netaddr

from . import ingress, zabbix
from .cluster import API_PORT, PATHS, Cluster, Host

#: Name that every API server's certificate holds; haproxy checks host names, never addresses
#: (haproxy's ssl_sock.c compares dNSName entries and the common name alone).
API_NAME = "kubernetes"

#: VRRP priorities: the first declared host is preferred when all start together.
HIGHEST = 200
STEP = 10

#: Port of haproxy's metrics, which only listens where Prometheus is an add-on.
METRICS_PORT = 8405

#: The same of keepalived: where Prometheus' users expect it.
KEEPALIVED_METRICS_PORT = 9165

#: Units of haproxy's times, in seconds.
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

#: haproxy answers here whether it serves, to this host alone.
ALIVE = "/run/indigo-haproxy/alive.sock"

#: Where keepalived writes what it is asked for by a signal, for root alone.
TOLD = "/run/indigo-keepalived"


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """What a load balancer is configured with: its part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"components": {"haproxy": …, "keepalived": …}, "packages": …}``, the last with the
        versions that are declared; ``{}`` on hosts of other roles.
        Its size depends on the number of masters and load balancers alone.

    Raises:
        ValueError: An override that does not fit.

    Example:
        >>> from .cluster import Vip
        >>> hosts = {"l": Host("l", "10.0.0.1", ("lb",)), "m": Host("m", "10.0.0.2", ("master",))}
        >>> c = Cluster("x", hosts, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> view(c, hosts["l"])["components"]["haproxy"]["config"]["bind"]
        '10.0.0.9:8443'
    """
    if "lb" not in host.roles:
        return {}

    def metrics(port: int) -> list[str]:
        return [endpoint(host.address, port)] if cluster.monitored else []

    return {
        "components": {
            "haproxy": {**haproxy(cluster), "metrics": metrics(METRICS_PORT)},
            "keepalived": {
                **keepalived(cluster, host),
                "metrics": metrics(KEEPALIVED_METRICS_PORT),
            },
        },
        "packages": dict(cluster.packages),
    }


def haproxy(cluster: Cluster) -> dict[str, Any]:
    """Configuration of haproxy, the same on every load balancer.

    Example:
        >>> from .cluster import Vip
        >>> hosts = {"m": Host("m", "10.0.0.2", ("master",))}
        >>> c = Cluster("x", hosts, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> haproxy(c)["config"]["servers"]
        [{'name': 'm', 'endpoint': '10.0.0.2:6443'}]
    """
    check = _milliseconds(cluster.timers["api_check"])
    derived = {
        "bind": endpoint(cluster.vip.address, cluster.vip.port),
        "servers": [
            {"name": master.name, "endpoint": endpoint(master.address, API_PORT)}
            for master in cluster.with_role("master")
        ],
        # Each connection takes two of the process's files: 5,000 clients and room for more fit
        # under a hard limit of 20,000.
        "maxconn": 8000,
        "timeouts": {
            "connect": "1s",
            # An API server under load may take a moment for /readyz without being ill.
            "check": "2s",
            # Watches and kubectl exec stay silent for long; TCP keepalive finds dead clients.
            "client": "12h",
            "server": "12h",
            "tunnel": "12h",
            "client-fin": "30s",
            "server-fin": "30s",
            "queue": "5s",
        },
        "check": {
            "inter": f"{check}ms",
            # Once one check failed the next ones come sooner: down after about two intervals.
            "fastinter": f"{max(check // 2, 50)}ms",
            "downinter": f"{check}ms",
            "fall": 3,
            # Of no new connections; an error here costs nothing.
            "leave": 1,
            "rise": 2,
            "path": "/readyz",
            "name": API_NAME,
            "ca": f"{PATHS['pki']}/ca.crt",
        },
    }
    config = _overridden(cluster, "haproxy", derived)
    return {
        "binary": "/usr/sbin/haproxy",
        "user": "haproxy",
        "alive": ALIVE,
        "config": config,
        "ingress": [
            *ingress.proxies(cluster, int(config["maxconn"])),
            *zabbix.proxies(cluster, int(config["maxconn"])),
        ],
    }


def keepalived(cluster: Cluster, host: Host) -> dict[str, Any]:
    """Configuration of keepalived on one load balancer.

    All start as backups and none takes the address back from another (``nopreempt``), so a host
    that returns causes no second interruption.

    Example:
        >>> from .cluster import Vip
        >>> hosts = {n: Host(n, f"10.0.0.{i}", ("lb",)) for i, n in enumerate("ab", 1)}
        >>> c = Cluster("x", hosts, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> keepalived(c, hosts["b"])["config"]["peers"]
        ['10.0.0.1']
    """
    balancers = cluster.with_role("lb")
    position = [one.id for one in balancers].index(host.id)
    derived = {
        "interface": host.interface or cluster.vip.interface,
        "router_id": cluster.vip.router_id,
        "priority": max(HIGHEST - STEP * position, 1),
        # Hundredths of a second are what version 3 of the protocol can say.
        "advert_int": round(float(cluster.timers["vip_advert"]), 2),
        "source": host.address,
        "peers": [one.address for one in balancers if one.id != host.id],
        "address": f"{cluster.vip.address}/{_full_prefix(cluster.vip.address)}",
        "check": {"interval": 1, "timeout": 1, "fall": 2, "rise": 1},
    }
    return {
        "binary": "/usr/sbin/keepalived",
        "user": "root",
        "script_user": "haproxy",
        "told": TOLD,
        "config": _overridden(cluster, "keepalived", derived),
    }


def endpoint(address: str, port: int) -> str:
    """Address and port as haproxy and URLs write them.

    >>> endpoint("10.0.0.1", 6443), endpoint("fd00::1", 6443)
    ('10.0.0.1:6443', '[fd00::1]:6443')
    """
    return f"[{address}]:{port}" if netaddr.IPAddress(address).version == 6 else f"{address}:{port}"


def _full_prefix(address: str) -> int:
    return 32 if netaddr.IPAddress(address).version == 4 else 128


def seconds(time: str | int) -> float:
    """A time as haproxy's configuration has it; without a unit it is of milliseconds.

    Source: haproxy's Configuration Manual, "Time format".

    Raises:
        ValueError: It is none.

    Example:
        >>> seconds("2s"), seconds("500ms"), seconds(250), seconds("1m")
        (2.0, 0.5, 0.25, 60.0)
    """
    found = re.fullmatch(r"(\d+)(us|ms|s|m|h|d)?", str(time))
    if not found:
        raise ValueError(f"found {time!r}; expected a time of haproxy's, such as 2s or 500ms")
    return int(found[1]) * _UNITS[found[2] or "ms"]


def _milliseconds(seconds: float) -> int:
    return round(float(seconds) * 1000)


def _overridden(cluster: Cluster, component: str, derived: Mapping[str, Any]) -> dict[str, Any]:
    """What is derived with a site's overrides on top; a key that is not derived is refused."""
    if flags := cluster.override(component, "flags"):
        raise ValueError(
            f"overrides.{component}.flags: found {', '.join(sorted(flags))}; {component} takes no "
            "flags here: use overrides.{component}.config".format(component=component)
        )
    return _merge(f"overrides.{component}.config", derived, cluster.override(component, "config"))


def _merge(where: str, base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        if key not in base:
            raise ValueError(
                f"{where}.{key}: there is no such setting; expected one of "
                f"{', '.join(sorted(base))}"
            )
        if isinstance(base[key], Mapping) != isinstance(value, Mapping):
            raise ValueError(
                f"{where}.{key}: found {value!r}; expected "
                + ("settings by name" if isinstance(base[key], Mapping) else "one value")
            )
        inner = isinstance(value, Mapping)
        merged[key] = _merge(f"{where}.{key}", base[key], value) if inner else value
    return merged
