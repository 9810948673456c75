"""What Prometheus alerts on, and Alertmanager, which tells people.

Alerts are on what ``salt-run indigo.status`` checks. What a metric of the cluster's own programs
shows is alerted on as soon as they are scraped. The rest is in the metrics that ``salt-run
indigo.metrics`` writes, and its alerts wait for somebody to have those scraped.

Sources: Prometheus' "Alerting rules", Alertmanager's "Configuration" and "High availability"; the
metrics' names are those of etcd 3.4 to 3.6, Kubernetes 1.20 and newer, haproxy's ``addons/promex``,
the community's exporters of keepalived and node_exporter 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import netaddr

from . import disks
from .cluster import Cluster

#: Settings of ``addons.alertmanager``. ``wait`` is in seconds.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "replicas": None,
        "webhooks": (),
        "watchdog": None,
        "wait": 30,
        "secret": None,
        "size": "256Mi",
        "storage_class": None,
    }
)

PORT = 9093
GOSSIP_PORT = 9094

#: An alert that always fires: that it arrives shows that alerts do.
WATCHDOG = "Watchdog"


@dataclass(frozen=True)
class Alert:
    """One alert: what is wrong while the expression has a result for so long.

    Which host it is about is in its labels. ``check`` is the line of ``indigo.status`` that would
    tell of it.
    """

    name: str
    check: str
    expression: str
    lasting: str
    severity: str
    summary: str


#: What ``indigo.status`` would call a problem, as metrics show it.
ALERTS: tuple[Alert, ...] = (
    Alert(
        "TargetDown",
        "hosts",
        "up == 0",
        "2m",
        "warning",
        "a target is not scraped",
    ),
    Alert(
        "HostSilent",
        "hosts",
        "indigo_host_answers == 0",
        "5m",
        "critical",
        "the host's minion does not answer",
    ),
    Alert(
        "UnitDown",
        "hosts",
        "indigo_unit_active == 0",
        "2m",
        "critical",
        "a unit of that host does not run",
    ),
    Alert(
        "DiskNearlyFull",
        "hosts",
        'node_filesystem_avail_bytes{mountpoint="/"} / node_filesystem_size_bytes < 0.1',
        "10m",
        "warning",
        "less than a tenth of the root file system is free",
    ),
    Alert(
        "LoadBalancerDown",
        "VIP",
        'up{job="haproxy"} == 0',
        "1m",
        "critical",
        "haproxy does not answer there",
    ),
    Alert(
        "KeepalivedDown",
        "VIP",
        "keepalived_up == 0",
        "1m",
        "critical",
        "keepalived does not run there, or does not answer",
    ),
    # Where none answers there are no states to count.
    Alert(
        "VirtualAddressNotHeld",
        "VIP",
        "(sum(keepalived_vrrp_state == bool 2) or 0 * sum(keepalived_up)) == 0",
        "30s",
        "critical",
        "no keepalived that answers is master of the virtual address",
    ),
    Alert(
        "VirtualAddressHeldTwice",
        "VIP",
        "sum(keepalived_vrrp_state == bool 2) > 1",
        "1m",
        "critical",
        "more than one keepalived is master of the virtual address",
    ),
    # A restart of each of three is two moves at most.
    Alert(
        "VirtualAddressMovesOften",
        "VIP",
        "sum(increase(keepalived_become_master_total[30m])) > 5",
        "0s",
        "warning",
        "the virtual address has moved more than five times in half an hour",
    ),
    Alert(
        "VirtualAddressNotHeldOnce",
        "VIP",
        "indigo_vip_holders != 1",
        "1m",
        "critical",
        "nobody holds the virtual address, or more than one host does",
    ),
    Alert(
        "EtcdMemberDown",
        "etcd",
        'up{job="etcd"} == 0',
        "1m",
        "critical",
        "etcd does not answer there",
    ),
    Alert(
        "EtcdMemberUnhealthy",
        "etcd",
        "indigo_etcd_member_healthy == 0",
        "5m",
        "critical",
        "that member of etcd does not serve with the quorum's consent",
    ),
    Alert(
        "EtcdNoLeader",
        "etcd",
        "etcd_server_has_leader == 0",
        "30s",
        "critical",
        "that member of etcd knows of no leader",
    ),
    Alert(
        "EtcdDatabaseNearQuota",
        "etcd",
        "etcd_mvcc_db_total_size_in_bytes / etcd_server_quota_backend_bytes > 0.8",
        "10m",
        "critical",
        "etcd's database takes more than four fifths of its quota",
    ),
    Alert(
        "APIServerDown",
        "API servers",
        'up{job="kube-apiserver"} == 0',
        "1m",
        "critical",
        "the API server does not answer there",
    ),
    Alert(
        "APIServerNotReady",
        "API servers",
        "indigo_api_ready == 0",
        "5m",
        "critical",
        "the API server says that it is not ready",
    ),
    Alert(
        "MasterNotServed",
        "API servers",
        'max by (server) (haproxy_server_status{proxy="masters",state="UP"}) == 0',
        "1m",
        "critical",
        "no load balancer sends requests to that master",
    ),
    Alert(
        "NobodyLeads",
        "leaders",
        'max by (name) (leader_election_master_status{job=~"kube-(controller-manager|scheduler)"})'
        " < 1",
        "1m",
        "critical",
        "none of that component leads",
    ),
    Alert(
        "NodeDown",
        "nodes",
        'up{job="kubelet"} == 0',
        "1m",
        "critical",
        "kubelet does not answer there",
    ),
    Alert(
        "NodesNotReady",
        "nodes",
        'sum(node_collector_unhealthy_nodes_in_zone{job="kube-controller-manager"}) > 0',
        "2m",
        "critical",
        "Kubernetes says that a node is not ready",
    ),
    Alert(
        "NodeNotReady",
        "nodes",
        "indigo_node_ready == 0",
        "5m",
        "critical",
        "Kubernetes says that this node is not ready",
    ),
    Alert(
        "CertificateExpires",
        "certificates",
        "indigo_certificate_first_expiry_days < 14",
        "10m",
        "warning",
        "a certificate expires in less than 14 days",
    ),
    Alert(
        "TokensOutOfStep",
        "tokens",
        "indigo_tokens_in_step == 0",
        "15m",
        "critical",
        "hosts have different tokens",
    ),
    Alert(
        "AddonFails",
        "add-ons",
        "indigo_addon_works == 0",
        "10m",
        "warning",
        "the add-on does not pass the check of its own use",
    ),
    Alert(
        "BackupOld",
        "backup",
        "indigo_backup_age_seconds > 26 * 3600",
        "10m",
        "critical",
        "the newest proven backup is older than 26 hours",
    ),
    Alert(
        "ClusterNotUsable",
        "all",
        "indigo_severity == 2",
        "1m",
        "critical",
        "the cluster cannot be used",
    ),
    Alert(
        "StatusNotAsked",
        "all",
        "time() - indigo_asked_timestamp_seconds > 1800",
        "1m",
        "warning",
        "nobody has asked for the cluster's status for half an hour",
    ),
)


def rules(cluster: Cluster) -> dict[str, Any]:
    """The file of alerting rules; with the watchdog where somebody listens."""
    found = [
        {
            "alert": one.name,
            "expr": one.expression,
            "for": one.lasting,
            "labels": {"severity": one.severity},
            "annotations": {"summary": one.summary},
        }
        for one in ALERTS
    ]
    if "alertmanager" in cluster.addons:
        found.append(
            {
                "alert": WATCHDOG,
                "expr": "vector(1)",
                "labels": {"severity": "none"},
                "annotations": {"summary": "always fires: when it stops, alerts do not arrive"},
            }
        )
    return {"groups": [{"name": "indigo", "rules": found}]}


def addresses(cluster: Cluster) -> list[str]:
    """Addresses of the services of Alertmanager's replicas: the twelfth of the network, and on.

    One for each replica, for Prometheus must tell all of them, and each must find the others;
    fixed ones, so that nobody has to resolve names for that.
    """
    network = netaddr.IPNetwork(cluster.services)
    replicas = _replicas(cluster, cluster.addons["alertmanager"] or {})
    return [str(network[12 + number]) for number in range(replicas)]


def _replicas(cluster: Cluster, given: Mapping[str, Any]) -> int:
    return int(given.get("replicas") or min(2, max(1, len(cluster.with_role("node")))))


def receivers(cluster: Cluster) -> dict[str, Any]:
    """Prometheus' way to Alertmanager: part of its configuration."""
    if "alertmanager" not in cluster.addons:
        return {}
    told = [f"{address}:{PORT}" for address in addresses(cluster)]
    return {"alerting": {"alertmanagers": [{"static_configs": [{"targets": told}]}]}}


def settings(cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests of Alertmanager are filled with, beside what the site set.

    Returns:
        ``addresses`` (one for each replica), ``replicas``, ``port``, ``gossip``, ``config`` (text
        of its file; empty where the site has a Secret of its own), ``digest``, ``claims`` and
        ``volumes`` of the pods.
    """
    config = "" if given["secret"] else json.dumps(configuration(given), indent=1)
    claims, volumes = disks.storage(given)
    return {
        "addresses": addresses(cluster),
        "replicas": _replicas(cluster, given),
        "port": PORT,
        "gossip": GOSSIP_PORT,
        "config": config,
        "digest": hashlib.sha256(config.encode()).hexdigest()[:16],
        "claims": claims,
        "volumes": volumes,
    }


def configuration(given: Mapping[str, Any]) -> dict[str, Any]:
    """Alertmanager's own file.

    Args:
        given: Settings of ``addons.alertmanager`` with defaults.

    Example:
        >>> [one["name"] for one in configuration(DEFAULTS)["receivers"]]
        ['nobody', 'site']
    """
    watchdog = [{"url": given["watchdog"], "send_resolved": False}] if given["watchdog"] else []
    return {
        "route": {
            "receiver": "site",
            "group_by": ["cluster", "alertname"],
            "group_wait": f"{given['wait']}s",
            "group_interval": "5m",
            "repeat_interval": "4h",
            "routes": [
                {
                    "receiver": "watchdog" if watchdog else "nobody",
                    "matchers": [f'alertname="{WATCHDOG}"'],
                    "group_wait": "0s",
                    "group_interval": "1m",
                    "repeat_interval": "50s",
                }
            ],
        },
        # Of a program that is down it is told once, not also that its metrics are missing.
        "inhibit_rules": [
            {
                "source_matchers": ['severity="critical"'],
                "target_matchers": ['alertname="TargetDown"'],
                "equal": ["cluster", "job", "host"],
            }
        ],
        "receivers": [
            {"name": "nobody"},
            {"name": "site", "webhook_configs": [{"url": url} for url in given["webhooks"]]},
            *([{"name": "watchdog", "webhook_configs": watchdog}] if watchdog else []),
        ],
    }
