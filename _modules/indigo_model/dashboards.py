"""Grafana and its dashboards: one for each layer of the cluster.

Dashboards are rows of the table below; the manifests carry the JSON that Grafana reads. What is
not in the table nobody has to keep up.

Sources: Grafana's "Dashboard JSON model", "Provision Grafana" and "Configure Grafana"; for the
metrics' names see :mod:`alerting`.
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

#: Settings of ``addons.grafana``.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"size": "1Gi", "memory": "512Mi", "storage_class": None, "host": None}
)

PORT = 3000

#: By which dashboards name Prometheus.
SOURCE = "prometheus"

#: Of Grafana's 24 columns a panel takes so many, and so many rows.
WIDTH, HEIGHT = 12, 8


@dataclass(frozen=True)
class Panel:
    """One graph: a question to Prometheus, the unit of its answer, and the name of each line.

    Attributes:
        optional: It has an answer only where the site has done something for it.
    """

    title: str
    expression: str
    unit: str = "short"
    legend: str = "{{host}}"
    optional: bool = False


#: Dashboards by the name of their file: title, and panels in reading order.
TABLE: Mapping[str, tuple[str, tuple[Panel, ...]]] = MappingProxyType(
    {
        "overview": (
            "Cluster",
            (
                Panel("Targets that answer", "sum by (job) (up)", legend="{{job}}"),
                Panel(
                    "Alerts",
                    'count by (alertname) (ALERTS{alertstate="firing"}) or vector(0)',
                    legend="{{alertname}}",
                ),
                Panel(
                    "Requests to the API",
                    'sum by (code) (rate(apiserver_request_total{job="kube-apiserver"}[5m]))',
                    "reqps",
                    "{{code}}",
                ),
                Panel(
                    "Processors in use",
                    'sum by (host) (rate(node_cpu_seconds_total{mode!="idle"}[5m]))',
                ),
                Panel(
                    "Members of etcd that know of a leader",
                    "sum(etcd_server_has_leader)",
                    legend="",
                ),
                Panel(
                    "Containers that run",
                    'count by (host) (container_memory_rss{container!=""})',
                ),
            ),
        ),
        "status": (
            "What indigo.status says",
            (
                Panel("Problems", "indigo_problems", legend="problems", optional=True),
                Panel("Severity", "indigo_severity", legend="severity", optional=True),
                Panel("Hosts that answer", "indigo_host_answers", optional=True),
                Panel(
                    "Holders of the virtual address",
                    "indigo_vip_holders",
                    legend="holders",
                    optional=True,
                ),
                Panel(
                    "Days until a certificate expires",
                    "indigo_certificate_first_expiry_days",
                    "d",
                    "{{host}} {{path}}",
                    optional=True,
                ),
                Panel(
                    "Age of the newest proven backup",
                    "indigo_backup_age_seconds",
                    "s",
                    "age",
                    optional=True,
                ),
            ),
        ),
        "hosts": (
            "Hosts",
            (
                Panel(
                    "Processor in use",
                    '1 - avg by (host) (rate(node_cpu_seconds_total{mode="idle"}[5m]))',
                    "percentunit",
                ),
                Panel(
                    "Memory in use",
                    "1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes",
                    "percentunit",
                ),
                Panel(
                    "Root file system in use",
                    '1 - node_filesystem_avail_bytes{mountpoint="/"} / node_filesystem_size_bytes',
                    "percentunit",
                ),
                Panel("Load of one minute", "node_load1"),
                Panel(
                    "Received",
                    'sum by (host) (rate(node_network_receive_bytes_total{device!="lo"}[5m]))',
                    "Bps",
                ),
                Panel(
                    "Sent",
                    'sum by (host) (rate(node_network_transmit_bytes_total{device!="lo"}[5m]))',
                    "Bps",
                ),
            ),
        ),
        "load-balancers": (
            "Load balancers",
            (
                Panel("haproxy answers", 'up{job="haproxy"}'),
                Panel(
                    "keepalived: 1 is backup, 2 has the address, 3 cannot have it",
                    "keepalived_vrrp_state",
                ),
                Panel(
                    "Moves of the virtual address in an hour",
                    "sum(increase(keepalived_become_master_total[1h]))",
                    legend="moves",
                ),
                Panel(
                    "Masters that are served",
                    'min by (server) (haproxy_server_status{proxy="masters",state="UP"})',
                    legend="{{server}}",
                ),
                Panel(
                    "Connections",
                    'sum by (host) (haproxy_server_current_sessions{proxy="masters"})',
                ),
                Panel(
                    "New connections",
                    "sum by (host, proxy) (rate(haproxy_frontend_connections_total[5m]))",
                    "cps",
                    "{{host}} {{proxy}}",
                ),
                Panel(
                    "Bytes to clients",
                    "sum by (host, proxy) (rate(haproxy_frontend_bytes_out_total[5m]))",
                    "Bps",
                    "{{host}} {{proxy}}",
                ),
                Panel(
                    "Failed checks of masters",
                    "sum by (host, server) "
                    '(rate(haproxy_server_check_failures_total{proxy="masters"}[5m]))',
                    legend="{{host}} {{server}}",
                ),
            ),
        ),
        "etcd": (
            "etcd",
            (
                Panel("Knows of a leader", "etcd_server_has_leader"),
                Panel(
                    "Changes of leader in an hour",
                    "increase(etcd_server_leader_changes_seen_total[1h])",
                ),
                Panel("Size of the database", "etcd_mvcc_db_total_size_in_bytes", "bytes"),
                Panel(
                    "Of its quota",
                    "etcd_mvcc_db_total_size_in_bytes / etcd_server_quota_backend_bytes",
                    "percentunit",
                ),
                Panel(
                    "Writes to the log, 99th percentile",
                    "histogram_quantile(0.99, sum by (host, le) "
                    "(rate(etcd_disk_wal_fsync_duration_seconds_bucket[5m])))",
                    "s",
                ),
                Panel(
                    "Commits, 99th percentile",
                    "histogram_quantile(0.99, sum by (host, le) "
                    "(rate(etcd_disk_backend_commit_duration_seconds_bucket[5m])))",
                    "s",
                ),
                Panel("Proposals", "rate(etcd_server_proposals_committed_total[5m])", "ops"),
                Panel("Keys", "etcd_debugging_mvcc_keys_total"),
            ),
        ),
        "masters": (
            "Masters",
            (
                Panel(
                    "Requests",
                    'sum by (host) (rate(apiserver_request_total{job="kube-apiserver"}[5m]))',
                    "reqps",
                ),
                Panel(
                    "Errors of the server",
                    "sum by (host) "
                    '(rate(apiserver_request_total{job="kube-apiserver",code=~"5.."}[5m])) '
                    'or 0 * up{job="kube-apiserver"}',
                    "reqps",
                ),
                Panel(
                    "Reads and writes, 99th percentile",
                    "histogram_quantile(0.99, sum by (verb, le) (rate("
                    'apiserver_request_duration_seconds_bucket{verb!~"WATCH|CONNECT"}[5m])))',
                    "s",
                    "{{verb}}",
                ),
                Panel(
                    "Who leads",
                    'leader_election_master_status{job=~"kube-(controller-manager|scheduler)"}',
                    legend="{{name}} {{host}}",
                ),
                Panel(
                    "Work that waits",
                    'sum by (job, host) (workqueue_depth{job="kube-controller-manager"})',
                ),
                Panel(
                    "Pods that wait for a node",
                    "sum by (queue) (scheduler_pending_pods)",
                    legend="{{queue}}",
                ),
                Panel(
                    "Memory",
                    'process_resident_memory_bytes{job=~"kube-(apiserver|controller-manager|'
                    'scheduler)"}',
                    "bytes",
                    "{{job}} {{host}}",
                ),
                Panel(
                    "Nodes that are not ready",
                    'sum(node_collector_unhealthy_nodes_in_zone{job="kube-controller-manager"})',
                    legend="nodes",
                ),
            ),
        ),
        "nodes": (
            "Nodes",
            (
                Panel("kubelet answers", 'up{job="kubelet"}'),
                Panel(
                    "Pods",
                    "count by (host) (count by (host, namespace, pod) "
                    '(container_memory_rss{pod!=""}))',
                ),
                Panel(
                    "Starts of pods, 99th percentile",
                    "histogram_quantile(0.99, sum by (host, le) "
                    "(rate(kubelet_pod_start_duration_seconds_bucket[1h])))",
                    "s",
                ),
                Panel(
                    "Requests to containerd",
                    "sum by (host) (rate(kubelet_runtime_operations_total[5m]))",
                    "ops",
                ),
                Panel(
                    "Errors of containerd",
                    # Before the first error nothing tells of errors.
                    "sum by (host) (rate(kubelet_runtime_operations_errors_total[5m]))"
                    " or 0 * sum by (host) (rate(kubelet_runtime_operations_total[5m]))",
                    "ops",
                ),
                Panel("Memory of kubelet", 'process_resident_memory_bytes{job="kubelet"}', "bytes"),
            ),
        ),
        "pods": (
            "Pods",
            (
                Panel(
                    "Processor",
                    "topk(20, sum by (namespace, pod) "
                    '(rate(container_cpu_usage_seconds_total{container!=""}[5m])))',
                    legend="{{namespace}}/{{pod}}",
                ),
                Panel(
                    "Memory",
                    "topk(20, sum by (namespace, pod) "
                    '(container_memory_working_set_bytes{container!=""}))',
                    "bytes",
                    "{{namespace}}/{{pod}}",
                ),
                Panel(
                    "Received",
                    "topk(20, sum by (namespace, pod) "
                    '(rate(container_network_receive_bytes_total{pod!=""}[5m])))',
                    "Bps",
                    "{{namespace}}/{{pod}}",
                ),
                Panel(
                    "Sent",
                    "topk(20, sum by (namespace, pod) "
                    '(rate(container_network_transmit_bytes_total{pod!=""}[5m])))',
                    "Bps",
                    "{{namespace}}/{{pod}}",
                ),
            ),
        ),
        "monitoring": (
            "Monitoring itself",
            (
                Panel("Samples", "scrape_samples_scraped", legend="{{job}} {{host}}"),
                Panel("Time of a scrape", "scrape_duration_seconds", "s", "{{job}} {{host}}"),
            ),
        ),
    }
)


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard as Grafana's JSON model has it.

    Example:
        >>> dashboard("etcd")["panels"][1]["gridPos"]
        {'x': 12, 'y': 0, 'w': 12, 'h': 8}
    """
    title, panels = TABLE[name]
    source = {"type": "prometheus", "uid": SOURCE}
    return {
        "uid": f"indigo-{name}",
        "title": title,
        "tags": ["indigo"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [
            {"type": "dashboards", "tags": ["indigo"], "title": "Layers", "asDropdown": True}
        ],
        "panels": [
            {
                "id": number + 1,
                "type": "timeseries",
                "title": one.title,
                "datasource": source,
                "gridPos": {
                    "x": number % 2 * WIDTH,
                    "y": number // 2 * HEIGHT,
                    "w": WIDTH,
                    "h": HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": one.unit, "min": 0}, "overrides": []},
                "targets": [
                    {
                        "refId": "A",
                        "datasource": source,
                        "expr": one.expression,
                        "legendFormat": one.legend,
                    }
                ],
            }
            for number, one in enumerate(panels)
        ],
    }


def prometheus_address(cluster: Cluster) -> str:
    """Address at which Grafana asks Prometheus: the sixteenth of the service network.

    A fixed one, so that no name has to be resolved for it.
    """
    return str(netaddr.IPNetwork(cluster.services)[16])


#: Grafana's own file. The password is read from a Secret, which no file has.
CONFIGURATION = """\
[analytics]
reporting_enabled = false
check_for_updates = false
check_for_plugin_updates = false
[plugins]
preinstall_disabled = true
public_key_retrieval_disabled = true
[snapshots]
external_enabled = false
[news]
news_feed_enabled = false
[security]
admin_password = $__file{/etc/grafana-admin/password}
disable_gravatar = true
[users]
allow_sign_up = false
[log]
mode = console
[dashboards]
default_home_dashboard_path = /etc/grafana-dashboards/overview.json
"""

#: A folder of provisioning that Grafana looks for, with nothing in it.
NONE = json.dumps({"apiVersion": 1})


def settings(cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests of Grafana are filled with, beside what the site set.

    Returns:
        ``port``, ``files`` (name to text, of one ConfigMap), ``paths`` (where in ``/etc/grafana``
        to name), ``models`` (names of the dashboards' files), ``digest``, ``dashboards`` (their
        uids), ``prometheus`` (address), ``claims``, ``volumes``, and ``passwords`` that the add-on
        makes up once: name to namespace and keys.
    """
    sources = {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": SOURCE,
                "type": "prometheus",
                "access": "proxy",
                "url": f"http://{prometheus_address(cluster)}:9090",
                "isDefault": True,
                "editable": False,
            }
        ],
    }
    providers = {
        "apiVersion": 1,
        "providers": [
            {
                "name": "indigo",
                "type": "file",
                "allowUiUpdates": False,
                "options": {"path": "/etc/grafana-dashboards"},
            }
        ],
    }
    host = given.get("host")
    files = {
        # Links that people share begin with it.
        "grafana.ini": CONFIGURATION + (f"[server]\nroot_url = https://{host}/\n" if host else ""),
        "sources.yaml": json.dumps(sources, indent=1),
        "providers.yaml": json.dumps(providers, indent=1),
        "none.yaml": NONE,
        # Names of lines are in double braces, which must not look like a template's own.
        **{f"{name}.json": json.dumps(dashboard(name)).replace("{{", "\\u007b{") for name in TABLE},
    }
    paths = {
        "grafana.ini": "grafana.ini",
        "provisioning/datasources/indigo.yaml": "sources.yaml",
        "provisioning/dashboards/indigo.yaml": "providers.yaml",
        "provisioning/plugins/none.yaml": "none.yaml",
        "provisioning/alerting/none.yaml": "none.yaml",
    }
    claims, volumes = disks.storage(given)
    text = json.dumps(files, sort_keys=True)
    return {
        "port": PORT,
        "files": files,
        "paths": paths,
        "models": [f"{name}.json" for name in TABLE],
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "dashboards": [f"indigo-{name}" for name in TABLE],
        "prometheus": prometheus_address(cluster),
        "claims": claims,
        "volumes": volumes,
        "passwords": {"grafana-admin": {"namespace": "grafana", "keys": ["password"]}},
    }
