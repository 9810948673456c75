"""The service ``accounting``: what pods of some namespaces used, told to APEL by KAPEL.

KAPEL (its newer name is Kuantifier) is a job without data of its own: it asks Prometheus what
kube-state-metrics told of finished pods, and writes one record a month for APEL. SSM sends them.

Sources: KAPEL's ``KAPELConfig.py`` (its variables) and README, release 1.0.0; SSM's
``conf/sender.cfg`` and ``ssm/agents.py``, release 4.0.0; kube-state-metrics' "CLI arguments".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import netaddr

from . import disks, versions
from .cluster import Cluster

#: Key under ``services`` that enables it, and its namespace.
NAME = "accounting"

#: Settings of ``services.accounting``; ``namespaces`` has the VO of each.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "site": None,
        "benchmark": None,
        "namespaces": MappingProxyType({}),
        "submit_host": None,
        "schedule": "15 3 * * *",
        "month": None,
        "memory": "1Gi",
        "size": "256Mi",
        "storage_class": None,
        "publish": None,
    }
)

#: Settings of ``services.accounting.publish``: APEL's broker, by the names of SSM's own file.
PUBLISH: Mapping[str, Any] = MappingProxyType(
    {
        "host": "msg.argo.grnet.gr",
        "project": "accounting",
        "destination": "gLite-APEL",
        "secret": None,
    }
)

#: Longest name of a CronJob, which is that of the namespace (kubernetes.io "CronJob").
LONGEST = 52

#: Days that each run looks back at most: to the first of the month before.
REACH = 62

#: Job of Prometheus, and where kube-state-metrics is asked.
JOB = "kube-state-metrics"
PORT = 8080

#: All that KAPEL asks for.
METRICS = (
    "kube_pod_completion_time",
    "kube_pod_start_time",
    "kube_pod_container_resource_requests",
)

#: Where records lie until they are sent, and the files of SSM.
RECORDS = "/var/spool/apel/outgoing"
CERTIFICATE = "/etc/ssm-certificate"


def states_address(cluster: Cluster) -> str:
    """Address of kube-state-metrics: the twentieth of the service network.

    A fixed one, so that Prometheus finds it where no add-on resolves names.
    """
    return str(netaddr.IPNetwork(cluster.services)[20])


def prometheus_address(cluster: Cluster) -> str:
    """Address at which KAPEL asks Prometheus: the one after :func:`states_address`."""
    return str(netaddr.IPNetwork(cluster.services)[21])


def scraped(cluster: Cluster) -> list[dict[str, Any]]:
    """Jobs of Prometheus: kube-state-metrics where accounting is wanted.

    Its labels are of the pods that it tells of and not of itself. Without their ``uid`` a pod that
    comes anew under its name stays one series: KAPEL's question fails for all where there are two.

    Example:
        >>> from .cluster import Vip
        >>> scraped(Cluster("x", {}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16"))
        []
    """
    if NAME not in cluster.addons:
        return []
    target = f"{states_address(cluster)}:{PORT}"
    return [
        {
            "job_name": JOB,
            "honor_labels": True,
            "static_configs": [{"targets": [target], "labels": {"host": JOB}}],
            "metric_relabel_configs": [
                {"action": "labeldrop", "regex": "uid"},
                {
                    "source_labels": ["__name__"],
                    "regex": REQUESTS,
                    "target_label": "__name__",
                    "replacement": OF_CONTAINERS,
                },
            ],
        }
    ]


#: What kube-state-metrics' own name of requests becomes, and what of its labels is kept.
REQUESTS = METRICS[-1]
OF_CONTAINERS = "indigo_pod_container_resource_requests"
KEPT = ("host", "namespace", "node", "pod", "resource", "unit")


def rules(cluster: Cluster) -> list[dict[str, Any]]:
    """Groups of Prometheus' rules: requests of a pod's containers, added up.

    KAPEL wants one series a pod, and one pod with two containers that request something makes its
    question fail for the whole namespace.
    """
    if NAME not in cluster.addons:
        return []
    added = f"sum by ({', '.join(KEPT)}) ({OF_CONTAINERS})"
    return [{"name": NAME, "rules": [{"record": REQUESTS, "expr": added}]}]


def span(month: str) -> tuple[str, str]:
    """The first moment of a month and that of the next one, as KAPEL reads them.

    >>> span("2026-02")
    ('2026-02-01T00:00:00+00:00', '2026-03-01T00:00:00+00:00')
    """
    year, number = (int(part) for part in month.split("-"))
    after = (year + number // 12, number % 12 + 1)
    first, last = (f"{y:04}-{m:02}-01T00:00:00+00:00" for y, m in ((year, number), after))
    return first, last


def variables(cluster: Cluster, given: Mapping[str, Any], namespace: str) -> dict[str, str]:
    """KAPEL's settings for one namespace.

    Args:
        cluster: The declared cluster.
        given: Settings of ``services.accounting`` with defaults.
        namespace: One of those accounted.
    """
    host = given["submit_host"] or f"{cluster.vip.address}:{cluster.vip.port}"
    found = {
        "PROMETHEUS_SERVER": f"http://{prometheus_address(cluster)}:9090",
        "NAMESPACE": namespace,
        "SITE_NAME": given["site"],
        "SUBMIT_HOST": f"{host}/{namespace}",
        "VO_NAME": given["namespaces"][namespace],
        "BENCHMARK_VALUE": str(given["benchmark"]),
        "OUTPUT_PATH": RECORDS,
        # Where the image's own folders cannot be written to.
        "HOME": "/tmp",  # noqa: S108 - of its pod
        "MPLCONFIGDIR": "/tmp",  # noqa: S108 - of its pod
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if given["month"]:
        start, end = span(given["month"])
        found |= {"PUBLISHING_MODE": "gap", "QUERY_START": start, "QUERY_END": end}
    return found


def sender(publish: Mapping[str, Any]) -> str:
    """The text of SSM's file.

    Example:
        >>> sender({**PUBLISH, "secret": "x"}).splitlines()[4]
        'host = msg.argo.grnet.gr'
    """
    sections = {
        "sender": {"protocol": "AMS"},
        "broker": {"host": publish["host"], "use_ssl": "true"},
        "certificates": {
            "certificate": f"{CERTIFICATE}/tls.crt",
            "key": f"{CERTIFICATE}/tls.key",
            # Read only where messages are sealed for one receiver.
            "capath": "/etc/grid-security/certificates",
        },
        "messaging": {
            "ams_project": publish["project"],
            "destination": publish["destination"],
            "path": RECORDS,
            "path_type": "dirq",
        },
        "logging": {"logfile": "/dev/null", "level": "INFO", "console": "true"},
    }
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in options.items()), ""])
        for name, options in sections.items()
    )


def settings(cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests are filled with, beside what the site set.

    Args:
        cluster: The declared cluster.
        given: Settings of ``services.accounting`` with defaults.

    Returns:
        ``address``, ``port``, ``telemetry`` (port) and ``metrics`` of kube-state-metrics, ``up``
        (question whether it is scraped), ``prometheus`` (address), ``runs`` (by namespace the
        variables of its job), ``records`` (folder), ``claims`` and ``volumes`` of a job, ``sender``
        (text of SSM's file, or None), ``secret``, ``certificate`` (folder) and ``batch`` (version
        of CronJob's API).
    """
    claims, volumes = disks.storage(given)
    publish = {**PUBLISH, **given["publish"]} if given["publish"] else None
    minor = versions.minor(cluster.versions["kubernetes"])
    return {
        "address": states_address(cluster),
        "port": PORT,
        "telemetry": PORT + 1,
        "metrics": list(METRICS),
        "prometheus": prometheus_address(cluster),
        "up": f'up{{job="{JOB}"}}',
        "runs": {name: variables(cluster, given, name) for name in given["namespaces"]},
        "namespaces": dict(given["namespaces"]),
        "records": RECORDS,
        "claims": claims,
        "volumes": volumes,
        "sender": sender(publish) if publish else None,
        "secret": publish["secret"] if publish else None,
        "certificate": CERTIFICATE,
        # CronJob left v1beta1 in 1.21.
        "batch": "batch/v1" if minor >= 21 else "batch/v1beta1",
    }
