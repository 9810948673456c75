"""What runs pods on one node: containerd, kubelet, kube-proxy and the pod network.

Configuration is computed here as data; the templates only print it. Sources: containerd's
``docs/cri/config.md``, the references of KubeletConfiguration v1beta1 and
KubeProxyConfiguration v1alpha1 on kubernetes.io, flannel's ``Documentation/``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import images, versions
from .cluster import DNS_CACHE, PATHS, Cluster, Host
from .master import arguments

SOCKET = "unix:///run/containerd/containerd.sock"

#: Configuration that containerd writes from its template once kubelet tells it the node's subnet.
#: The name is containerd's own (``internal/cri/server/update_runtime_config.go``). The template was
#: deprecated in 1.7.0 and is not any more: https://github.com/containerd/containerd/pull/8606.
CNI_CONFIG = "/etc/cni/net.d/10-containerd-net.conflist"
CNI_TEMPLATE = "/etc/containerd/cni-template.conflist"

#: Keys that stand at the top of containerd's file; all others in an override mean the CRI plugin.
CONTAINERD_TOP = frozenset(
    [
        "cgroup",
        "debug",
        "disabled_plugins",
        "gid",
        "grpc",
        "imports",
        "metrics",
        "oom_score",
        "plugin_dir",
        "plugins",
        "proxy_plugins",
        "required_plugins",
        "root",
        "state",
        "stream_processors",
        "temp",
        "timeouts",
        "ttrpc",
        "uid",
        "version",
    ]
)


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """What a node runs pods with, and what a master needs to reach them: part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        On a node ``components`` (containerd, kubelet, kube-proxy), ``labels`` and ``images``; on
        nodes and masters ``network``. ``{}`` elsewhere.

    Raises:
        ValueError: An override that does not fit, or an image archive without a checksum.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("n1", "10.0.0.4", ("node",))
        >>> c = Cluster("x", {"n1": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16",
        ...             "10.244.0.0/16", versions=versions.resolve({}))
        >>> view(c, host)["components"]["kubelet"]["config"]["clusterDNS"]
        ['10.96.0.10']
    """
    if not {"master", "node"} & set(host.roles):
        return {}
    result: dict[str, Any] = {"network": network(cluster, host)}
    if "node" in host.roles:
        result["components"] = {
            "containerd": containerd(cluster),
            "kubelet": kubelet(cluster, host),
            "kube-proxy": kube_proxy(cluster, host),
        }
        result["labels"] = dict(host.labels)
        result["images"] = {"pause": pause(cluster), "archives": archives(cluster)}
    return result


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with a site's own on top: mappings merge, null removes a key, else ``extra`` wins.

    Example:
        >>> merge({"a": 1, "b": {"c": 1, "d": 2}}, {"a": None, "b": {"d": 3}})
        {'b': {'c': 1, 'd': 3}}
    """
    merged = dict(base)
    for key, value in extra.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            present = merged.get(key)
            merged[key] = merge(present if isinstance(present, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _flags(cluster: Cluster, component: str, derived: Mapping[str, str | None]) -> dict[str, str]:
    wanted: dict[str, str | None] = dict(derived)
    for flag, value in cluster.override(component, "flags").items():
        if isinstance(value, bool):
            value = str(value).lower()
        wanted[flag] = None if value is None else str(value)
    return versions.flags(component, cluster.versions["kubernetes"], wanted)


# --- containerd -------------------------------------------------------------------------------


def pause(cluster: Cluster) -> str:
    """Image of the sandbox that holds a pod's network: the site's, else upstream's."""
    return cluster.images.get("pause") or f"registry.k8s.io/pause:{cluster.versions['pause']}"


def archives(cluster: Cluster) -> list[dict[str, str]]:
    """Image archives that every node imports: all but those of add-ons that nobody wants.

    Returns:
        ``[{"name", "source", "hash"}]``.

    Raises:
        ValueError: An entry without source or checksum; the message names its key.
    """
    result = []
    for index, entry in enumerate(cluster.images.get("archives") or ()):
        for key in ("source", "hash"):
            if not entry.get(key):
                raise ValueError(
                    f"images.archives[{index}].{key}: missing; expected an archive's "
                    "source (URL or path) and hash (sha256:...)"
                )
        source = str(entry["source"])
        name = str(entry.get("name") or source.rsplit("/", 1)[-1])
        result.append({"name": name, "source": source, "hash": str(entry["hash"])})
    return [dict(one) for one in images.loaded(cluster, result)]


def cgroup_driver(cluster: Cluster) -> str:
    """The one cgroup driver of kubelet and containerd: ``systemd``, unless kubelet's override."""
    driver = cluster.override("kubelet", "config").get("cgroupDriver") or "systemd"
    if driver not in ("systemd", "cgroupfs"):
        raise ValueError(
            f"overrides.kubelet.config.cgroupDriver: {driver!r} is no cgroup driver; expected "
            "systemd or cgroupfs"
        )
    return str(driver)


def containerd(cluster: Cluster) -> dict[str, Any]:
    """Containerd of a node.

    Its configuration has version 2 for containerd 1.x and version 3 from 2.0 on, where the CRI
    plugin is split in two. Keys of ``overrides.containerd.config`` that do not stand at the top
    of the file go to the CRI plugin (from 2.0 on: its runtime part).

    Returns:
        ``{"config": nested tables, "toml": the same as text, "search_path", "cni_config",
        "cni_template"}``.

    Raises:
        ValueError: A containerd below 1.6.
    """
    version = versions.parse(cluster.versions["containerd"])
    if version < (1, 6, 0):
        raise ValueError(
            f"versions.containerd: {cluster.versions['containerd']} is not supported; 1.6 is "
            "the first whose CRI serves every Kubernetes of the table"
        )
    plugins = f"{PATHS['artifacts']}/cni-plugins-{cluster.versions['cni-plugins']}"
    if cluster.network == "flannel":
        plugins = FLANNEL_PLUGINS
    cni: dict[str, Any] = {"conf_dir": "/etc/cni/net.d"}
    if cluster.network == "routes":
        cni["conf_template"] = CNI_TEMPLATE
    # bin_dirs came in 2.1; bin_dir goes in 2.3.
    cni.update({"bin_dirs": [plugins]} if version >= (2, 1, 0) else {"bin_dir": plugins})
    runc = {
        "runtime_type": "io.containerd.runc.v2",
        "options": {"SystemdCgroup": cgroup_driver(cluster) == "systemd"},
    }
    tables: dict[str, Any] = {"default_runtime_name": "runc", "runtimes": {"runc": runc}}
    config: dict[str, Any]
    if version < (2, 0, 0):
        cri = "io.containerd.grpc.v1.cri"
        config = {
            "version": 2,
            "plugins": {cri: {"sandbox_image": pause(cluster), "cni": cni, "containerd": tables}},
        }
    else:
        cri = "io.containerd.cri.v1.runtime"
        config = {
            "version": 3,
            "plugins": {
                "io.containerd.cri.v1.images": {"pinned_images": {"sandbox": pause(cluster)}},
                cri: {"cni": cni, "containerd": tables},
            },
        }
    override = cluster.override("containerd", "config")
    config = merge(config, {k: v for k, v in override.items() if k in CONTAINERD_TOP})
    own = {k: v for k, v in override.items() if k not in CONTAINERD_TOP}
    config = merge(config, {"plugins": {cri: own}})
    return {
        "config": config,
        "toml": toml(config),
        # It finds its shim and runc here; a container keeps the paths it was started with.
        "search_path": ":".join(
            f"{PATHS['artifacts']}/{part}-{cluster.versions[part]}"
            for part in ("containerd", "runc")
        ),
        "cni_config": CNI_CONFIG,
        "cni_template": CNI_TEMPLATE,
    }


def toml(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Print nested tables as TOML 1.0: tables, strings, numbers, booleans and arrays of these.

    Example:
        >>> print(toml({"version": 2, "plugins": {"a.b": {"on": True}}}))
        version = 2
        <BLANKLINE>
        [plugins."a.b"]
        on = true
        <BLANKLINE>
    """
    plain = {key: value for key, value in data.items() if not isinstance(value, Mapping)}
    lines = [f"{_toml_key(key)} = {_toml_value(value)}\n" for key, value in plain.items()]
    if path and (lines or not data):
        lines.insert(0, f"\n[{'.'.join(_toml_key(part) for part in path)}]\n")
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines.append(toml(value, (*path, key)))
    return "".join(lines)


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else json.dumps(key)


def _toml_value(value: Any) -> str:
    # JSON's strings, numbers, booleans and arrays of them are TOML as well.
    return json.dumps(value, ensure_ascii=False)


# --- kubelet and kube-proxy -------------------------------------------------------------------


def kubelet(cluster: Cluster, host: Host) -> dict[str, Any]:
    """Kubelet of one node, with a KubeletConfiguration.

    Returns:
        ``{"flags", "arguments", "environment", "config", "url"}``.
    """
    kubernetes = cluster.versions["kubernetes"]
    minor = versions.minor(kubernetes)
    pki = PATHS["pki"]
    grace = cluster.timers["node_grace"]
    config: dict[str, Any] = {
        "apiVersion": versions.api_version("KubeletConfiguration", kubernetes),
        "kind": "KubeletConfiguration",
        "address": host.address,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet.key",
        "tlsMinVersion": "VersionTLS12",
        "rotateCertificates": False,
        # Where the cache is down its port refuses, and resolvers go on to the service at once.
        "clusterDNS": [*([DNS_CACHE] if cluster.cached else []), cluster.dns_service],
        "clusterDomain": cluster.domain,
        "cgroupDriver": "systemd",
        "nodeStatusUpdateFrequency": f"{cluster.timers['node_status']:g}s",
        "nodeStatusReportFrequency": "5m0s",
        # A node renews its lease four times in this period; it counts as lost after node_grace.
        "nodeLeaseDurationSeconds": max(4, int(grace)),
    }
    if minor >= 21:  # 1.20 refuses them without the feature gate GracefulNodeShutdown
        config["shutdownGracePeriod"] = "30s"
        config["shutdownGracePeriodCriticalPods"] = "10s"
    if minor >= 27:
        config["containerRuntimeEndpoint"] = SOCKET
    derived: dict[str, str | None] = {
        "config": f"{PATHS['kubernetes']}/kubelet.yaml",
        "kubeconfig": f"{PATHS['kubernetes']}/kubelet.kubeconfig",
        "hostname-override": host.name,
        "node-ip": host.address,
        "container-runtime": "remote",
        "container-runtime-endpoint": SOCKET if minor < 27 else None,
        # Keeps the garbage collection of images away from it, where containerd does not.
        "pod-infra-container-image": pause(cluster),
    }
    flags = _flags(cluster, "kubelet", derived)
    # Until 1.26 kubelet asks the metadata service of AWS for credentials before it starts, and on
    # hosts elsewhere waits six seconds for no answer (pkg/credentialprovider/aws).
    return {
        "flags": flags,
        "arguments": arguments(flags),
        "environment": {
            **cluster.patience,
            **({"AWS_EC2_METADATA_DISABLED": "true"} if minor < 27 else {}),
        },
        "config": merge(config, cluster.override("kubelet", "config")),
        "url": "http://127.0.0.1:10248/healthz",
    }


def kube_proxy(cluster: Cluster, host: Host) -> dict[str, Any]:
    """kube-proxy of one node, with a KubeProxyConfiguration.

    Returns:
        ``{"flags", "arguments", "environment", "config", "url"}``.
    """
    config: dict[str, Any] = {
        "apiVersion": versions.api_version(
            "KubeProxyConfiguration", cluster.versions["kubernetes"]
        ),
        "kind": "KubeProxyConfiguration",
        # Told its address, it need not wait for its Node object.
        "bindAddress": host.address,
        "hostnameOverride": host.name,
        "clientConnection": {"kubeconfig": f"{PATHS['kubernetes']}/kube-proxy.kubeconfig"},
        "clusterCIDR": cluster.pods,
        "mode": "iptables",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }
    derived: dict[str, str | None] = {"config": f"{PATHS['kubernetes']}/kube-proxy.yaml"}
    flags = _flags(cluster, "kube-proxy", derived)
    return {
        "flags": flags,
        "arguments": arguments(flags),
        "environment": cluster.patience,
        "config": merge(config, cluster.override("kube-proxy", "config")),
        "url": "http://127.0.0.1:10256/healthz",
    }


# --- network ----------------------------------------------------------------------------------

#: containerd before 2.1 looks into one folder, so that links bring both sets of plugins there.
FLANNEL_PLUGINS = f"{PATHS['artifacts']}/cni"


def network(cluster: Cluster, host: Host) -> dict[str, Any]:
    """How a host takes part in the pod network.

    Returns:
        ``{"kind", "node", "interface", ...}``; ``interface`` is None where the host is to look
        for the one that carries its address. On a node also ``cache`` (whether it has one of
        names, and the address of that); with ``routes``, ``cni``: the
        template of the CNI configuration that containerd fills in; with ``flannel``
        ``net_conf``, ``cni``, ``plugins`` (folder of ``links``), ``flags``, ``arguments``.
    """
    result: dict[str, Any] = {
        "kind": cluster.network,
        "node": "node" in host.roles,
        "interface": host.interface,
    }
    if "node" not in host.roles:
        return result
    result["cache"] = {"wanted": cluster.cached, "address": DNS_CACHE}
    if cluster.network == "routes":
        return {**result, "cni": _bridge()}
    base, pinned = PATHS["artifacts"], cluster.versions
    plugins = f"{base}/cni-plugins-{pinned['cni-plugins']}"
    links = {name: f"{plugins}/{name}" for name in ("bridge", "host-local", "loopback", "portmap")}
    links["flannel"] = f"{base}/cni-flannel-{pinned['cni-flannel']}/flannel"
    flags = {
        "kube-subnet-mgr": "true",
        # It may read all nodes (see master.rbac) and write the status of its own alone.
        "kubeconfig-file": f"{PATHS['kubernetes']}/kubelet.kubeconfig",
        "net-config-path": "/etc/kube-flannel/net-conf.json",
        "iface": host.address,
        "public-ip": host.address,
        "ip-masq": "true",
        "healthz-ip": "127.0.0.1",
        "healthz-port": "10253",
    }
    return {
        **result,
        "net_conf": {"Network": cluster.pods, "Backend": {"Type": "vxlan"}},
        "cni": _flannel(),
        "plugins": FLANNEL_PLUGINS,
        "links": links,
        "flags": flags,
        "arguments": arguments(flags),
        "environment": cluster.patience,
    }


def _bridge() -> dict[str, Any]:
    """Pods on a bridge of their node; ``{{.PodCIDR}}`` is for containerd to fill in."""
    return {
        "cniVersion": "0.3.1",
        "name": "indigo",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "{{.PodCIDR}}"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _flannel() -> dict[str, Any]:
    return {
        "cniVersion": "0.3.1",
        "name": "indigo",
        "plugins": [
            {
                "type": "flannel",
                "delegate": {"hairpinMode": True, "isDefaultGateway": True},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
