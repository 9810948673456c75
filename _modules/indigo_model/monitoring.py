"""What Prometheus scrapes, and where it keeps what it found.

Its configuration is computed here as data; the manifests only print it. Every host of the cluster
is scraped at what its roles run, by its declared address; pods as the API lists them. What it
alerts on is in :mod:`alerting`.

Source: Prometheus' "Configuration" (``file_sd_config``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import netaddr

from . import accounting, alerting, disks
from .cluster import API_PORT, Cluster, Host
from .etcd import metrics_url
from .lb import KEEPALIVED_METRICS_PORT as KEEPALIVED_PORT
from .lb import METRICS_PORT as HAPROXY_PORT
from .master import CONTROLLER_MANAGER_PORT, SCHEDULER_PORT

KUBELET_PORT = 10250
NODE_EXPORTER_PORT = 9100

#: Where Kubernetes puts a pod's own token and the cluster's authority.
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

#: Settings of ``addons.prometheus``. ``interval`` is in seconds.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "replicas": None,
        "interval": 15,
        "retention": "15d",
        "size": "4Gi",
        "memory": "1Gi",
        "storage_class": None,
        "pods": True,
        "targets": (),
    }
)

#: Settings of ``addons.influxdb``.
INFLUXDB: Mapping[str, Any] = MappingProxyType(
    {"retention": "52w", "size": "8Gi", "memory": "1Gi", "storage_class": None}
)

INFLUXDB_PORT = 8086
DATABASE = "prometheus"


def settings(cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests are filled with, beside what the site set.

    Args:
        cluster: The declared cluster.
        given: Settings of ``addons.prometheus`` with defaults.

    Returns:
        ``replicas``, ``config`` and ``rules`` (text of two files), ``digest`` of both, ``targets``
        (text of a file each), ``keep`` (size at which the oldest data goes), ``volumes`` and
        ``claims`` of the pods, ``port`` of node-exporter, and ``expect``: by job the hosts that it
        must reach.
    """
    config = json.dumps(configuration(cluster, given), indent=1)
    groups = alerting.rules(cluster)["groups"] + accounting.rules(cluster)
    rules = json.dumps({"groups": groups}, indent=1)
    claims, volumes = disks.storage(given)
    listed = targets(cluster) | others(given)
    return {
        "replicas": given["replicas"] or min(2, max(1, len(cluster.with_role("node")))),
        "config": config,
        "rules": rules,
        "digest": hashlib.sha256((config + rules).encode()).hexdigest()[:16],
        "targets": {f"{name}.json": json.dumps(found, indent=1) for name, found in listed.items()},
        # Blocks, and the log of what is not one yet; the rest is for the block that is written.
        "keep": f"{disks.mebibytes(given['size']) * 8 // 10}MB",
        "claims": claims,
        "volumes": volumes,
        "port": NODE_EXPORTER_PORT,
        "expect": {
            job: [one["labels"]["host"] for one in listed[file]]
            for job, file in _FILES.items()
            if listed.get(file)
        },
    }


def influxdb(cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests of InfluxDB are filled with, beside what the site set.

    Returns:
        ``address`` (of the service), ``port``, ``claims`` and ``volumes`` of the pod, ``prepare``
        (path and query that make the database as declared, however often it is asked),
        ``database``, and ``fed``: whether Prometheus sends its metrics there.
    """
    claims, volumes = disks.storage(given)
    statements = (
        f"CREATE DATABASE {DATABASE}; "
        f"ALTER RETENTION POLICY autogen ON {DATABASE} DURATION {_duration(given['retention'])}"
    )
    return {
        "address": influxdb_address(cluster),
        "port": INFLUXDB_PORT,
        "claims": claims,
        "volumes": volumes,
        "prepare": f"/query?{urlencode({'q': statements})}",
        "database": DATABASE,
        "fed": cluster.monitored,
    }


def _duration(span: str) -> str:
    """A time of the cluster file in units that InfluxDB knows, too: it has no years.

    InfluxDB deletes by shards, which are a week long by themselves, and refuses to keep less than
    one. With 0 it chooses their length anew.

    >>> _duration("2y"), _duration("90d"), _duration("72h")
    ('104w', '90d', '72h SHARD DURATION 0s')
    """
    number, unit = int(span[:-1]), span[-1]
    if unit == "y":
        return f"{number * 52}w"
    hours = number * {"h": 1, "d": 24, "w": 168}[unit]
    return span if hours >= 168 else f"{span} SHARD DURATION 0s"


def influxdb_address(cluster: Cluster) -> str:
    """Address of InfluxDB's service: the eleventh of the service network.

    A fixed one, so that Prometheus finds it where no add-on resolves names.
    """
    return str(netaddr.IPNetwork(cluster.services)[11])


def _remote(cluster: Cluster) -> dict[str, Any]:
    """Prometheus' long term, in InfluxDB.

    Buckets of histograms are three quarters of what there is, and answer questions about now. The
    other one is infinite where no plugin is used, for which InfluxDB 1.6 refuses all that comes
    with it.
    """
    base = f"http://{influxdb_address(cluster)}:{INFLUXDB_PORT}/api/v1/prom"
    unwanted = ".*_bucket|rest_client_exec_plugin_ttl_seconds"
    drop = {"source_labels": ["__name__"], "regex": unwanted, "action": "drop"}
    return {
        "remote_write": [
            {"url": f"{base}/write?db={DATABASE}", "write_relabel_configs": [drop]},
        ],
        # An InfluxDB that is silent must not hold up what is asked about now.
        "remote_read": [{"url": f"{base}/read?db={DATABASE}", "remote_timeout": "2s"}],
    }


#: Jobs, and the file with the targets of each.
_FILES: Mapping[str, str] = MappingProxyType(
    {
        "kube-apiserver": "kube-apiserver",
        "kube-controller-manager": "kube-controller-manager",
        "kube-scheduler": "kube-scheduler",
        "etcd": "etcd",
        "haproxy": "haproxy",
        "keepalived": "keepalived",
        "kubelet": "kubelet",
        "cadvisor": "kubelet",
        "node-exporter": "node-exporter",
        "others": "others",
    }
)

#: Jobs whose targets want TLS and a token.
_SECURED = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "cadvisor")


def targets(cluster: Cluster) -> dict[str, list[dict[str, Any]]]:
    """What every declared host is scraped at, as files for Prometheus to watch.

    A file that changes is read again without a restart, so hosts may come and go.

    Returns:
        By name of a file its groups, one for each host, with the label ``host``: the host's name
        in Kubernetes.

    Example:
        >>> from .cluster import Host, Vip
        >>> hosts = {"M": Host("M", "10.0.0.3", ("master",))}
        >>> c = Cluster("x", hosts, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> targets(c)["kube-scheduler"]
        [{'targets': ['10.0.0.3:10259'], 'labels': {'host': 'm'}}]
    """
    kubelet = cluster.override("kubelet", "config").get("port") or KUBELET_PORT
    ports = {
        "kube-apiserver": ("master", API_PORT),
        "kube-controller-manager": ("master", CONTROLLER_MANAGER_PORT),
        "kube-scheduler": ("master", SCHEDULER_PORT),
        "haproxy": ("lb", HAPROXY_PORT),
        "keepalived": ("lb", KEEPALIVED_PORT),
        "kubelet": ("node", kubelet),
        "node-exporter": ("node", NODE_EXPORTER_PORT),
    }
    found = {
        name: [_group(host, f"{host.address}:{port}") for host in cluster.with_role(role)]
        for name, (role, port) in ports.items()
    }
    found["etcd"] = [
        _group(host, url.partition("//")[2])
        for host in cluster.with_role("etcd")
        if (url := metrics_url(cluster, host))
    ]
    return found


def others(given: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What the site wants scraped beside the cluster's own, as one more file, or none.

    >>> others({"targets": ["10.0.0.5:9100"]})
    {'others': [{'targets': ['10.0.0.5:9100'], 'labels': {'host': '10.0.0.5:9100'}}]}
    """
    groups = [{"targets": [one], "labels": {"host": one}} for one in given["targets"]]
    return {"others": groups} if groups else {}


def _group(host: Host, target: str) -> dict[str, Any]:
    return {"targets": [target], "labels": {"host": host.name}}


def configuration(cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """Prometheus' own file.

    Args:
        cluster: The declared cluster.
        given: Settings of ``addons.prometheus`` with defaults.

    Example:
        >>> from .cluster import Vip
        >>> c = Cluster("x", {}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> [job["job_name"] for job in configuration(c, DEFAULTS)["scrape_configs"]][:2]
        ['kube-apiserver', 'kube-controller-manager']
    """
    secured = {
        "scheme": "https",
        "authorization": {"credentials_file": f"{ACCOUNT}/token"},
        "tls_config": {"ca_file": f"{ACCOUNT}/ca.crt"},
    }
    jobs: list[dict[str, Any]] = [
        {
            "job_name": job,
            **(secured if job in _SECURED else {}),
            **({"metrics_path": "/metrics/cadvisor"} if job == "cadvisor" else {}),
            # Of the hosts that those metrics are about, and not of the one that tells them.
            **({"honor_labels": True} if job == "others" else {}),
            "file_sd_configs": [{"files": [f"/etc/prometheus-targets/{file}.json"]}],
        }
        for job, file in _FILES.items()
        if job != "others" or given["targets"]
    ]
    jobs += accounting.scraped(cluster)
    if given["pods"]:
        jobs.append(_pods())
    interval = f"{given['interval']}s"
    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": f"{min(10, given['interval'])}s",
            "evaluation_interval": interval,
            "external_labels": {"cluster": cluster.name},
        },
        "rule_files": ["/etc/prometheus/rules.yaml"],
        "scrape_configs": jobs,
        **alerting.receivers(cluster),
        **(_remote(cluster) if "influxdb" in cluster.addons else {}),
    }


def _pods() -> dict[str, Any]:
    """Pods that ask for it, by the annotations that most charts know."""
    annotation = "__meta_kubernetes_pod_annotation_prometheus_io"
    return {
        "job_name": "pods",
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": [
            {"source_labels": [f"{annotation}_scrape"], "action": "keep", "regex": "true"},
            # One that has ended has its address still, and would be down for ever.
            {
                "source_labels": ["__meta_kubernetes_pod_phase"],
                "regex": "Succeeded|Failed",
                "action": "drop",
            },
            # Each pod once, at the port that it names, and not at each of its ports.
            {
                "source_labels": ["__meta_kubernetes_pod_ip", f"{annotation}_port"],
                "separator": ":",
                "regex": r"([^:]+:\d+)",
                "action": "keep",
            },
            {
                "source_labels": ["__meta_kubernetes_pod_ip", f"{annotation}_port"],
                "separator": ":",
                "target_label": "__address__",
            },
            {
                "source_labels": [f"{annotation}_path"],
                "regex": "(.+)",
                "target_label": "__metrics_path__",
            },
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
            {"source_labels": ["__meta_kubernetes_pod_node_name"], "target_label": "host"},
        ],
    }
