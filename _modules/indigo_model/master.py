"""The control plane of one master: flags of its three components, derived from the cluster.

Sources: the reference pages of kube-apiserver, kube-controller-manager and kube-scheduler on
kubernetes.io; which flag exists in which release is :mod:`versions`' business.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from . import versions
from .cluster import API_PORT, PATHS, Cluster, Host

CONTROLLER_MANAGER_PORT = 10257
SCHEDULER_PORT = 10259

#: The API server reaches the first declared member of etcd at this port of its own host, the next
#: one at the next: see :func:`etcd_proxy`.
ETCD_PROXY_PORT = 12379

#: First minor in which anonymous access can be bound to paths and the feature is on by itself.
#: Source: KEP 4633, beta in 1.32.
ANONYMOUS_BY_PATH = 32

#: What an anonymous caller may ask: the health checks of the load balancers carry no credentials.
HEALTH_PATHS = ("/livez", "/readyz", "/healthz")

#: Seconds that a stopping API server has, once it takes no new connections: to end watches, for
#: releases that do so, and for all it has begun. Whoever came through a load balancer is gone by
#: then; pods that watch it directly would hold it for a minute, and find another when it ends.
WATCHES_END = 3
REQUESTS_END = 8

#: Ways into what runs: who took one is always noted.
ENTRANCES = (
    "pods/exec",
    "pods/attach",
    "pods/portforward",
    "pods/proxy",
    "pods/ephemeralcontainers",
    "services/proxy",
    "nodes/proxy",
)

#: Folder below /var/log that systemd makes for the API server's account.
LOGS = "kubernetes"

#: Controllers that have nothing to do here: certificates come from Salt's CA, and no authority's
#: key ever reaches a master. These names are aliases in releases that renamed the controllers.
WITHOUT_CONTROLLERS = ("csrsigning", "csrapproving", "csrcleaner")


_PLAIN = re.compile(r"[-A-Za-z0-9_@:./,=*+]+$")


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """What a master must know to run its control plane: its part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"components": {component: {"user", "url", "flags", "arguments", ...}}, "rbac":
        [objects]}``; ``{}`` on a host that is no master. ``flags`` maps flag names without
        dashes to text, ``arguments`` is the same as the unit has it.

    Raises:
        ValueError: An override names a flag that the component does not have.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("m", "10.0.0.3", ("ca", "etcd", "master"))
        >>> c = Cluster("x", {"m": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16",
        ...             "10.244.0.0/16", versions={"kubernetes": "1.36.2"})
        >>> view(c, host)["components"]["kube-apiserver"]["flags"]["etcd-servers"]
        'https://127.0.0.1:12379'
    """
    if "master" not in host.roles:
        return {}
    return {
        "components": {
            "etcd-proxy": etcd_proxy(cluster),
            "kube-apiserver": apiserver(cluster, host),
            "kube-controller-manager": controller_manager(cluster, host),
            "kube-scheduler": scheduler(cluster, host),
        },
        "rbac": rbac(cluster),
        # Its way to etcd is one.
        "packages": {name: v for name, v in cluster.packages.items() if name == "haproxy"},
    }


def _kubeconfig(name: str) -> str:
    """Path of the kubeconfig that :mod:`tokens` declares under a name."""
    return f"{PATHS['kubernetes']}/{name}.kubeconfig"


def arguments(flags: Mapping[str, str]) -> list[str]:
    """Flags as the words of a systemd unit's ``ExecStart``.

    systemd expands ``%`` and ``$``, splits at blanks and reads C escapes in double quotes; what
    is not plain is escaped and quoted. Source: ``systemd.service(5)``, command lines.

    >>> arguments({"v": "2", "x": '50% "a b"'})
    ['--v=2', '"--x=50%% \\\\"a b\\\\""']
    """
    words = (f"--{flag}={value}" for flag, value in flags.items())
    return [
        word if _PLAIN.match(word) else json.dumps(word.replace("%", "%%").replace("$", "$$"))
        for word in words
    ]


def _component(user: str, url: str, flags: Mapping[str, str], **more: Any) -> dict[str, Any]:
    return {
        "user": user,
        "url": url,
        "flags": flags,
        "arguments": arguments(flags),
        "environment": {},
        **more,
    }


def _flags(cluster: Cluster, component: str, derived: Mapping[str, str | None]) -> dict[str, str]:
    """Derived flags, then the site's, of which the release accepts."""
    wanted: dict[str, str | None] = dict(derived)
    for flag, value in cluster.override(component, "flags").items():
        wanted[flag] = _text(value)
    return versions.flags(component, cluster.versions["kubernetes"], wanted)


def _text(value: Any) -> str | None:
    """A flag's value as the command line has it.

    >>> _text(True), _text(["a", "b"]), _text(None)
    ('true', 'a,b', None)
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    return str(value)


def _shutdown_delay(cluster: Cluster) -> int:
    """Seconds for which a stopping API server still takes new connections."""
    return math.ceil(3 * cluster.timers["api_check"])


def _etcd_ways(cluster: Cluster) -> list[dict[str, str]]:
    """Where an API server reaches each member of etcd, and where that leads."""
    return [
        {
            "name": member.name,
            "bind": f"127.0.0.1:{ETCD_PROXY_PORT + position}",
            "endpoint": f"{member.address}:2379",
        }
        for position, member in enumerate(cluster.with_role("etcd"))
    ]


def etcd_proxy(cluster: Cluster) -> dict[str, Any]:
    """The haproxy between an API server and etcd, which ends connections to a dead member.

    An API server has connections to every member and sends each request over the next one. When a
    member falls silent (power, cable, switch), the requests sent its way hang until the kernel
    gives the connection up, and that takes ten seconds: gRPC sets TCP_USER_TIMEOUT to its keepalive
    timeout, which the API server has no flag for (``keepaliveTimeout`` in
    ``storage/storagebackend/factory/etcd3.go``). This one asks each member several times a second
    and closes what leads to one that does not answer, so that the API server uses the others.

    Returns:
        ``{"binary", "user", "ca", "cert", "ways", "check"}``; a way has ``name``, ``bind``,
        ``endpoint``. TLS is between API server and member, as without it.

    Example:
        >>> from .cluster import Vip
        >>> hosts = {"e": Host("e", "10.0.0.2", ("etcd",))}
        >>> c = Cluster("x", hosts, Vip("10.0.0.9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
        >>> etcd_proxy(c)["ways"]
        [{'name': 'e', 'bind': '127.0.0.1:12379', 'endpoint': '10.0.0.2:2379'}]
    """
    pki = PATHS["pki"]
    return {
        "binary": "/usr/sbin/haproxy",
        "user": "kube-apiserver",
        "ca": f"{pki}/etcd-ca.crt",
        # haproxy finds the key beside it, under the same name.
        "cert": f"{pki}/apiserver-etcd-client.crt",
        "ways": _etcd_ways(cluster),
        # /version: whether the member itself answers. /health would ask for a leader, and during an
        # election no member would be left.
        "check": {
            "path": "/version",
            "inter": "400ms",
            "fastinter": "200ms",
            "downinter": "400ms",
            "fall": 2,
            "rise": 2,
        },
    }


def apiserver(cluster: Cluster, host: Host) -> dict[str, Any]:
    """kube-apiserver of one master.

    Returns:
        ``{"user", "url", "flags", "arguments", "logs_directory", "audit", "authentication",
        "etcd_health", "stop"}``. ``etcd_health`` lists the URL of each member's health, ``stop`` is
        after how many seconds of stopping it is killed.
        ``audit`` and ``authentication`` are documents for files; the latter is None where the
        release cannot bind anonymous access to paths.
    """
    kubernetes = cluster.versions["kubernetes"]
    pki, base = PATHS["pki"], PATHS["kubernetes"]
    by_path = versions.minor(kubernetes) >= ANONYMOUS_BY_PATH
    eviction = f"{cluster.timers['pod_eviction']:g}"
    derived: dict[str, str | None] = {
        "advertise-address": host.address,
        "bind-address": host.address,
        "secure-port": str(API_PORT),
        "insecure-port": "0",
        "etcd-servers": ",".join(f"https://{way['bind']}" for way in _etcd_ways(cluster)),
        "etcd-cafile": f"{pki}/etcd-ca.crt",
        "etcd-certfile": f"{pki}/apiserver-etcd-client.crt",
        "etcd-keyfile": f"{pki}/apiserver-etcd-client.key",
        "tls-cert-file": f"{pki}/apiserver.crt",
        "tls-private-key-file": f"{pki}/apiserver.key",
        "tls-min-version": "VersionTLS12",
        "client-ca-file": f"{pki}/ca.crt",
        "token-auth-file": f"{base}/tokens.csv",
        # The load balancers' health checks are anonymous. Where the release can, an
        # AuthenticationConfiguration admits them to the health paths alone; before that an
        # anonymous caller is bound by RBAC to system:public-info-viewer: health and version.
        "authentication-config": f"{base}/authentication.yaml" if by_path else None,
        "anonymous-auth": None if by_path else "true",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "service-account-issuer": f"https://kubernetes.default.svc.{cluster.domain}",
        "service-account-key-file": f"{pki}/sa.pub",
        "service-account-signing-key-file": f"{pki}/sa.key",
        "encryption-provider-config": f"{base}/encryption.yaml",
        "kubelet-certificate-authority": f"{pki}/ca.crt",
        "kubelet-client-certificate": f"{pki}/apiserver-kubelet-client.crt",
        "kubelet-client-key": f"{pki}/apiserver-kubelet-client.key",
        "kubelet-preferred-address-types": "InternalIP",
        "requestheader-client-ca-file": f"{pki}/front-proxy-ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": f"{pki}/front-proxy-client.crt",
        "proxy-client-key-file": f"{pki}/front-proxy-client.key",
        # A master runs no kube-proxy: it reaches services at their pods, not at cluster IPs.
        "enable-aggregator-routing": "true",
        "service-cluster-ip-range": cluster.services,
        "allow-privileged": "true",
        "default-not-ready-toleration-seconds": eviction,
        "default-unreachable-toleration-seconds": eviction,
        "endpoint-reconciler-type": "lease",
        "audit-log-path": f"/var/log/{LOGS}/audit.log",
        "audit-log-maxage": "30",
        "audit-log-maxbackup": "10",
        "audit-log-maxsize": "100",
        "audit-policy-file": f"{base}/audit-policy.yaml",
        "profiling": "false",
        # After SIGTERM /readyz fails while requests are still served: time for the load
        # balancers to see it (three checks) and send new connections elsewhere.
        "shutdown-delay-duration": f"{_shutdown_delay(cluster)}s",
        # Watches hold a stopping API server until it is killed, unless it ends them.
        "shutdown-watch-termination-grace-period": f"{WATCHES_END}s",
        # Spreads long-lived HTTP/2 clients after a restart. Of no use without a second server, but
        # there, too: a flag that came with the second would restart the first.
        "goaway-chance": "0.001",
    }
    return _component(
        "kube-apiserver",
        f"https://{host.address}:{API_PORT}",
        _flags(cluster, "kube-apiserver", derived),
        logs_directory=LOGS,
        audit=audit_policy(cluster),
        authentication=authentication(cluster) if by_path else None,
        stop=_shutdown_delay(cluster) + REQUESTS_END,
        etcd_health=[
            f"https://{member.address}:2379/health" for member in cluster.with_role("etcd")
        ],
    )


def authentication(cluster: Cluster) -> dict[str, Any]:
    """Anonymous access to the health checks and to nothing else.

    Source: kubernetes.io "Authenticating", anonymous authenticator configuration.
    """
    return {
        "apiVersion": versions.api_version(
            "AuthenticationConfiguration", cluster.versions["kubernetes"]
        ),
        "kind": "AuthenticationConfiguration",
        "anonymous": {"enabled": True, "conditions": [{"path": path} for path in HEALTH_PATHS]},
    }


def audit_policy(cluster: Cluster) -> dict[str, Any]:
    """Who changed what, without bodies: small, and free of secrets.

    Leases, events and health checks are most of the traffic and say nothing about people.
    Source: kubernetes.io "Auditing".
    """
    return {
        "apiVersion": versions.api_version("Policy", cluster.versions["kubernetes"]),
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "nonResourceURLs": [f"{path}*" for path in HEALTH_PATHS]},
            {
                "level": "None",
                "resources": [
                    {"group": "", "resources": ["events"]},
                    {"group": "events.k8s.io", "resources": ["events"]},
                    {"group": "coordination.k8s.io", "resources": ["leases"]},
                ],
            },
            # Reads matter where they disclose something.
            {
                "level": "Metadata",
                "resources": [{"group": "", "resources": ["secrets", "serviceaccounts/token"]}],
            },
            # Over web sockets a command in a pod is begun with a GET, which counts as reading.
            {"level": "Metadata", "resources": [{"group": "", "resources": list(ENTRANCES)}]},
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {
                "level": "None",
                "userGroups": ["system:nodes"],
                "resources": [{"group": "", "resources": ["nodes/status", "pods/status"]}],
            },
            {"level": "Metadata"},
        ],
    }


def controller_manager(cluster: Cluster, host: Host) -> dict[str, Any]:
    """kube-controller-manager of one master: ``{"user", "url", "flags", "arguments", ...}``."""
    pki = PATHS["pki"]
    config = _kubeconfig("controller-manager")
    grace = cluster.timers["node_grace"]
    derived: dict[str, str | None] = {
        "bind-address": host.address,
        "secure-port": str(CONTROLLER_MANAGER_PORT),
        "port": "0",
        "tls-cert-file": f"{pki}/kube-controller-manager.crt",
        "tls-private-key-file": f"{pki}/kube-controller-manager.key",
        "tls-min-version": "VersionTLS12",
        "kubeconfig": config,
        "authentication-kubeconfig": config,
        "authorization-kubeconfig": config,
        "leader-elect": "true",
        "use-service-account-credentials": "true",
        "cluster-name": cluster.name,
        "controllers": ",".join(["*", *(f"-{name}" for name in WITHOUT_CONTROLLERS)]),
        "allocate-node-cidrs": "true",
        "cluster-cidr": cluster.pods,
        "node-cidr-mask-size": "24",
        "service-cluster-ip-range": cluster.services,
        "configure-cloud-routes": "false",
        "node-monitor-grace-period": f"{grace:g}s",
        # Looks ten times in the grace period, so that the period is kept to a tenth.
        "node-monitor-period": f"{max(1, min(5, grace // 10)):g}s",
        "root-ca-file": f"{pki}/ca.crt",
        "service-account-private-key-file": f"{pki}/controller-manager-sa.key",
        "profiling": "false",
    }
    return _component(
        "kube-controller-manager",
        f"https://{host.address}:{CONTROLLER_MANAGER_PORT}",
        _flags(cluster, "kube-controller-manager", derived),
        environment=cluster.patience,
    )


def scheduler(cluster: Cluster, host: Host) -> dict[str, Any]:
    """kube-scheduler of one master: ``{"user", "url", "flags", "arguments", ...}``."""
    pki = PATHS["pki"]
    config = _kubeconfig("scheduler")
    derived: dict[str, str | None] = {
        "bind-address": host.address,
        "secure-port": str(SCHEDULER_PORT),
        "port": "0",
        "tls-cert-file": f"{pki}/kube-scheduler.crt",
        "tls-private-key-file": f"{pki}/kube-scheduler.key",
        "tls-min-version": "VersionTLS12",
        "kubeconfig": config,
        "authentication-kubeconfig": config,
        "authorization-kubeconfig": config,
        "leader-elect": "true",
        "profiling": "false",
    }
    return _component(
        "kube-scheduler",
        f"https://{host.address}:{SCHEDULER_PORT}",
        _flags(cluster, "kube-scheduler", derived),
        environment=cluster.patience,
    )


def rbac(cluster: Cluster) -> list[dict[str, Any]]:
    """Objects that the cluster needs and no release brings along.

    The API server reaches kubelets as the user of its client certificate, which is in no
    group; the built-in role for it is bound to nobody.

    Flannel reads every node's subnet with the kubelet's own identity, which the Node authorizer
    keeps to its own node from 1.32 on; writing stays limited to the own node's status.
    """
    objects = [
        _binding(
            "indigo:kubelet-api-admin",
            "system:kubelet-api-admin",
            "User",
            "kube-apiserver-kubelet-client",
        ),
    ]
    if cluster.network == "flannel":
        objects += [
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "indigo:flannel"},
                "rules": [
                    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
                ],
            },
            _binding("indigo:flannel", "indigo:flannel", "Group", "system:nodes"),
        ]
    return objects


def _binding(name: str, role: str, kind: str, subject: str) -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": kind, "name": subject}],
    }
