"""What changes between releases: flags, API versions, defaults.

Data, and pure functions that read it. A window is ``(since, until)`` in Kubernetes minors, both
inclusive; ``None`` means "before the table begins" or "not gone when it ends". The sources of
every fact are listed in ``docs/versions.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

#: Kubernetes minors the table covers, all of major version 1.
FIRST_MINOR = 20
LAST_MINOR = 36

#: Release set of a cluster that pins nothing. They are released together upstream: etcd and
#: pause are those that this Kubernetes is built and tested with.
DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "kubernetes": "1.36.3",
        "etcd": "3.6.14",
        "containerd": "2.3.4",
        "runc": "1.4.3",
        "cni-plugins": "1.9.1",
        "flannel": "0.27.4",
        "cni-flannel": "1.7.1-flannel1",
        "pause": "3.10.2",
    }
)

_VERSION = re.compile(r"^v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-+][0-9A-Za-z.+-]+)?$")

Window = tuple["int | None", "int | None"]
ALWAYS: Window = (None, None)


def _windows(
    always: str, changed: Mapping[str, Window] = MappingProxyType({})
) -> Mapping[str, Window]:
    return MappingProxyType({**dict.fromkeys(always.split(), ALWAYS), **changed})


#: File and stderr flags of klog, removed from every component (KEP 2845).
_KLOG: Mapping[str, Window] = MappingProxyType(
    dict.fromkeys(
        (
            "add-dir-header",
            "alsologtostderr",
            "log-backtrace-at",
            "log-dir",
            "log-file",
            "log-file-max-size",
            "logtostderr",
            "one-output",
            "skip-headers",
            "skip-log-headers",
            "stderrthreshold",
        ),
        (None, 25),
    )
)

#: Flags of each component and the minors that accept them.
FLAGS: Mapping[str, Mapping[str, Window]] = MappingProxyType(
    {
        "kube-apiserver": _windows(
            """
            admission-control-config-file advertise-address allow-privileged anonymous-auth
            api-audiences audit-log-compress audit-log-format audit-log-maxage
            audit-log-maxbackup audit-log-maxsize audit-log-mode audit-log-path
            audit-policy-file audit-webhook-config-file authentication-token-webhook-config-file
            authorization-mode bind-address cert-dir client-ca-file contention-profiling
            cors-allowed-origins default-not-ready-toleration-seconds
            default-unreachable-toleration-seconds delete-collection-workers
            disable-admission-plugins egress-selector-config-file enable-admission-plugins
            enable-aggregator-routing enable-bootstrap-token-auth enable-garbage-collector
            enable-priority-and-fairness encryption-provider-config endpoint-reconciler-type
            etcd-cafile etcd-certfile etcd-compaction-interval etcd-count-metric-poll-period
            etcd-db-metric-poll-interval etcd-healthcheck-timeout etcd-keyfile etcd-prefix
            etcd-servers etcd-servers-overrides event-ttl external-hostname feature-gates
            goaway-chance http2-max-streams-per-connection kubelet-certificate-authority
            kubelet-client-certificate kubelet-client-key kubelet-preferred-address-types
            kubelet-timeout livez-grace-period max-mutating-requests-inflight
            max-requests-inflight min-request-timeout oidc-ca-file oidc-client-id
            oidc-groups-claim oidc-groups-prefix oidc-issuer-url oidc-username-claim
            oidc-username-prefix permit-port-sharing profiling proxy-client-cert-file
            proxy-client-key-file request-timeout requestheader-allowed-names
            requestheader-client-ca-file requestheader-extra-headers-prefix
            requestheader-group-headers requestheader-username-headers runtime-config
            secure-port service-account-issuer service-account-jwks-uri service-account-key-file
            service-account-lookup service-account-max-token-expiration
            service-account-signing-key-file service-cluster-ip-range service-node-port-range
            show-hidden-metrics-for-version shutdown-delay-duration storage-backend
            storage-media-type strict-transport-security-directives tls-cert-file
            tls-cipher-suites tls-min-version tls-private-key-file tls-sni-cert-key
            token-auth-file v vmodule watch-cache watch-cache-sizes
            """,
            {
                **_KLOG,
                "apiserver-count": (None, 35),
                "authentication-config": (29, None),
                "authorization-config": (29, None),
                "cloud-config": (None, 32),
                "cloud-provider": (None, 32),
                "encryption-provider-config-automatic-reload": (26, None),
                "insecure-bind-address": (None, 23),
                "insecure-port": (None, 23),
                "kubelet-https": (None, 21),
            },
        ),
        "kube-controller-manager": _windows(
            """
            allocate-node-cidrs attach-detach-reconcile-sync-period authentication-kubeconfig
            authentication-skip-lookup authorization-always-allow-paths authorization-kubeconfig
            bind-address cert-dir cidr-allocator-type client-ca-file cloud-config cloud-provider
            cluster-cidr cluster-name cluster-signing-cert-file cluster-signing-duration
            cluster-signing-key-file concurrent-deployment-syncs concurrent-endpoint-syncs
            concurrent-namespace-syncs concurrent-replicaset-syncs concurrent-service-syncs
            concurrent-serviceaccount-token-syncs configure-cloud-routes contention-profiling
            controllers endpoint-updates-batch-period feature-gates flex-volume-plugin-dir
            horizontal-pod-autoscaler-sync-period kube-api-burst kube-api-content-type
            kube-api-qps kubeconfig large-cluster-size-threshold leader-elect
            leader-elect-lease-duration leader-elect-renew-deadline leader-elect-resource-lock
            leader-elect-resource-name leader-elect-resource-namespace leader-elect-retry-period
            max-endpoints-per-slice min-resync-period mirroring-max-endpoints-per-subset
            namespace-sync-period node-cidr-mask-size node-cidr-mask-size-ipv4
            node-cidr-mask-size-ipv6 node-eviction-rate node-monitor-grace-period
            node-monitor-period node-startup-grace-period permit-port-sharing profiling
            requestheader-allowed-names requestheader-client-ca-file
            requestheader-extra-headers-prefix requestheader-group-headers
            requestheader-username-headers root-ca-file secondary-node-eviction-rate secure-port
            service-account-private-key-file service-cluster-ip-range
            show-hidden-metrics-for-version terminated-pod-gc-threshold tls-cert-file
            tls-cipher-suites tls-min-version tls-private-key-file unhealthy-zone-threshold
            use-service-account-credentials v vmodule
            """,
            {
                **_KLOG,
                "address": (None, 23),
                "enable-taint-manager": (None, 26),
                "pod-eviction-timeout": (None, 26),
                "port": (None, 23),
            },
        ),
        "kube-scheduler": _windows(
            """
            authentication-kubeconfig authentication-skip-lookup authorization-always-allow-paths
            authorization-kubeconfig bind-address cert-dir client-ca-file config
            contention-profiling feature-gates kube-api-burst kube-api-content-type kube-api-qps
            kubeconfig leader-elect leader-elect-lease-duration leader-elect-renew-deadline
            leader-elect-resource-lock leader-elect-resource-name
            leader-elect-resource-namespace leader-elect-retry-period master permit-port-sharing
            profiling requestheader-allowed-names requestheader-client-ca-file
            requestheader-extra-headers-prefix requestheader-group-headers
            requestheader-username-headers secure-port show-hidden-metrics-for-version
            tls-cert-file tls-cipher-suites tls-min-version tls-private-key-file v vmodule
            write-config-to
            """,
            {
                **_KLOG,
                "address": (None, 23),
                "algorithm-provider": (None, 22),
                "policy-config-file": (None, 22),
                "policy-configmap": (None, 22),
                "port": (None, 23),
            },
        ),
        "kubelet": _windows(
            """
            address anonymous-auth authentication-token-webhook authorization-mode
            bootstrap-kubeconfig cert-dir cgroup-driver client-ca-file cluster-dns cluster-domain
            config container-runtime-endpoint enforce-node-allocatable eviction-hard
            fail-swap-on feature-gates hostname-override image-credential-provider-bin-dir
            image-credential-provider-config kube-reserved kubeconfig max-pods node-ip
            node-labels node-status-update-frequency pod-cidr protect-kernel-defaults
            provider-id read-only-port register-node register-with-taints resolv-conf root-dir
            rotate-certificates runtime-cgroups seccomp-default system-reserved
            tls-cert-file tls-private-key-file v vmodule
            """,
            {
                **_KLOG,
                "cloud-provider": ALWAYS,
                "cni-bin-dir": (None, 23),
                "cni-cache-dir": (None, 23),
                "cni-conf-dir": (None, 23),
                "container-runtime": (None, 26),
                "network-plugin": (None, 23),
                "network-plugin-mtu": (None, 23),
                "pod-infra-container-image": (None, 34),
                "seccomp-default": (22, None),
            },
        ),
        "kube-proxy": _windows(
            """
            bind-address cluster-cidr config conntrack-max-per-core conntrack-min feature-gates
            healthz-bind-address hostname-override kubeconfig masquerade-all master
            metrics-bind-address nodeport-addresses oom-score-adj profiling proxy-mode v vmodule
            write-config-to
            """,
            dict(_KLOG),
        ),
    }
)

#: Flags that live on under another name once their window has closed:
#: component -> old flag -> (new flag, how the value changes; None keeps it).
SUCCESSORS: Mapping[str, Mapping[str, str]] = MappingProxyType({})

#: Configuration kinds and the API versions that the releases read, newest last.
#: kind -> [(first minor, apiVersion)]: the last entry not above the release's minor holds.
API_VERSIONS: Mapping[str, tuple[tuple[int, str], ...]] = MappingProxyType(
    {
        "KubeletConfiguration": ((20, "kubelet.config.k8s.io/v1beta1"),),
        "KubeProxyConfiguration": ((20, "kubeproxy.config.k8s.io/v1alpha1"),),
        "KubeSchedulerConfiguration": (
            (20, "kubescheduler.config.k8s.io/v1beta1"),
            (22, "kubescheduler.config.k8s.io/v1beta2"),
            (23, "kubescheduler.config.k8s.io/v1beta3"),
            (25, "kubescheduler.config.k8s.io/v1"),
        ),
        "EncryptionConfiguration": ((20, "apiserver.config.k8s.io/v1"),),
        "AdmissionConfiguration": ((20, "apiserver.config.k8s.io/v1"),),
        "Policy": ((20, "audit.k8s.io/v1"),),
        "AuthenticationConfiguration": (
            (29, "apiserver.config.k8s.io/v1alpha1"),
            (30, "apiserver.config.k8s.io/v1beta1"),
            (34, "apiserver.config.k8s.io/v1"),
        ),
        "AuthorizationConfiguration": (
            (29, "apiserver.config.k8s.io/v1alpha1"),
            (30, "apiserver.config.k8s.io/v1beta1"),
            (32, "apiserver.config.k8s.io/v1"),
        ),
    }
)


def parse(version: str) -> tuple[int, int, int]:
    """Split a release number.

    Args:
        version: ``1.36.2``, ``v1.36.2`` or ``1.36``; a suffix such as ``-rc.1`` or ``+deb1`` is
            ignored.

    Returns:
        Major, minor and patch (0 when absent).

    Raises:
        ValueError: The text is no release number.

    Example:
        >>> parse("v1.36.2")
        (1, 36, 2)
    """
    match = _VERSION.match(str(version))
    if match is None:
        raise ValueError(f"version {version!r} is not a release number such as 1.36.2")
    major, minor, patch = match.groups()
    return int(major), int(minor), int(patch or 0)


def minor(kubernetes: str) -> int:
    """Minor number of a Kubernetes release that the table covers.

    Raises:
        ValueError: The release is outside the table.

    Example:
        >>> minor("1.20.2")
        20
    """
    major, number, _ = parse(kubernetes)
    if major != 1 or not FIRST_MINOR <= number <= LAST_MINOR:
        raise ValueError(
            f"versions.kubernetes: {kubernetes!r} is not supported; the table covers "
            f"1.{FIRST_MINOR} to 1.{LAST_MINOR}. Pin a release in that range"
        )
    return number


def resolve(user: Mapping[str, str]) -> dict[str, str]:
    """Fill in the versions that the user did not pin.

    Args:
        user: Part name to version, as in ``versions`` of the user's file.

    Returns:
        Every part of :data:`DEFAULTS`, without a leading ``v``.

    Raises:
        ValueError: An unknown part, or a version that is no release number.

    Example:
        >>> resolve({"kubernetes": "v1.20.2"})["kubernetes"]
        '1.20.2'
    """
    unknown = sorted(set(user) - set(DEFAULTS))
    if unknown:
        raise ValueError(
            f"versions.{unknown[0]}: no such part; known are {', '.join(sorted(DEFAULTS))}"
        )
    result = dict(DEFAULTS)
    for part, version in user.items():
        text = str(version).removeprefix("v")
        try:
            parse(text)
        except ValueError as error:
            raise ValueError(f"versions.{part}: {error}") from None
        result[part] = text
    minor(result["kubernetes"])
    return result


def _within(window: Window, number: int) -> bool:
    since, until = window
    return (since is None or since <= number) and (until is None or number <= until)


def has_flag(component: str, kubernetes: str, flag: str) -> bool:
    """Whether a component of that release accepts a flag.

    Raises:
        ValueError: Unknown component or flag.

    Example:
        >>> has_flag("kube-apiserver", "1.36.2", "insecure-port")
        False
    """
    return _within(_window(component, flag), minor(kubernetes))


def _window(component: str, flag: str) -> Window:
    if component not in FLAGS:
        raise ValueError(f"no flags are known of {component!r}; known are {', '.join(FLAGS)}")
    try:
        return FLAGS[component][flag]
    except KeyError:
        raise ValueError(
            f"overrides.{component}.flags.{flag}: {component} has no such flag in Kubernetes "
            f"1.{FIRST_MINOR} to 1.{LAST_MINOR}; check its spelling (without leading dashes)"
        ) from None


def flags(component: str, kubernetes: str, wanted: Mapping[str, str | None]) -> dict[str, str]:
    """Keep of the wanted flags those that the release accepts.

    A flag outside its window is translated to its successor where the table names one, and
    dropped where it does not. A successor that is wanted too keeps its own value.

    Args:
        component: ``kube-apiserver``, ``kubelet`` and so on.
        kubernetes: Release, such as ``1.36.2``.
        wanted: Flag name without dashes to value; None removes the flag.

    Returns:
        Flag name to value, in the order of ``wanted``.

    Raises:
        ValueError: Unknown component, unknown flag or a release outside the table.

    Example:
        >>> flags("kube-apiserver", "1.36.2", {"insecure-port": "0", "secure-port": "6443"})
        {'secure-port': '6443'}
    """
    number = minor(kubernetes)
    result: dict[str, str] = {}
    for flag, value in wanted.items():
        window = _window(component, flag)
        if value is None:
            continue
        if _within(window, number):
            result[flag] = str(value)
            continue
        successor = SUCCESSORS.get(component, {}).get(flag)
        if successor and successor not in wanted and has_flag(component, kubernetes, successor):
            result[successor] = str(value)
    return result


def api_version(kind: str, kubernetes: str) -> str | None:
    """API version of a configuration kind in a release.

    Args:
        kind: Such as ``KubeletConfiguration``.
        kubernetes: Release, such as ``1.36.2``.

    Returns:
        The apiVersion, or None when the release does not have the kind yet.

    Raises:
        ValueError: Unknown kind, or a release outside the table.

    Example:
        >>> api_version("KubeSchedulerConfiguration", "1.24.1")
        'kubescheduler.config.k8s.io/v1beta3'
    """
    if kind not in API_VERSIONS:
        raise ValueError(f"no API version is known of {kind!r}; known: {', '.join(API_VERSIONS)}")
    number = minor(kubernetes)
    found = [version for since, version in API_VERSIONS[kind] if since <= number]
    return found[-1] if found else None
