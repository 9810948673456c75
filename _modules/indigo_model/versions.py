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

#: Release set of a cluster that pins nothing: the newest of each for which every binary's
#: checksum is published for both architectures (but for cni-flannel, see docs/versions.md).
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

#: Window of what 1.36 has and 1.20 has not, where no source says which release brought it. It
#: errs on the safe side: nothing is passed to a release that might refuse it.
LATER: Window = (LAST_MINOR, None)


def _table(always: str, changed: Mapping[Window, str]) -> Mapping[str, Window]:
    """Names to windows: those of every release, then those that came or went."""
    return MappingProxyType(
        {
            **dict.fromkeys(always.split(), ALWAYS),
            **{name: window for window, names in changed.items() for name in names.split()},
        }
    )


#: File and stderr flags of klog, removed from every component by KEP 2845.
_KLOG = """
    add-dir-header alsologtostderr log-backtrace-at log-dir log-file log-file-max-size
    logtostderr one-output skip-headers skip-log-headers stderrthreshold
"""

#: Flags of each component and the minors that accept them. The first block of each holds what
#: 1.20 and 1.36 both accept, hidden and deprecated flags included.
FLAGS: Mapping[str, Mapping[str, Window]] = MappingProxyType(
    {
        "kube-apiserver": _table(
            """
            admission-control admission-control-config-file advertise-address allow-privileged
            anonymous-auth api-audiences apiserver-count audit-log-batch-buffer-size
            audit-log-batch-max-size audit-log-batch-max-wait audit-log-batch-throttle-burst
            audit-log-batch-throttle-enable audit-log-batch-throttle-qps audit-log-compress
            audit-log-format audit-log-maxage audit-log-maxbackup audit-log-maxsize audit-log-mode
            audit-log-path audit-log-truncate-enabled audit-log-truncate-max-batch-size
            audit-log-truncate-max-event-size audit-log-version audit-policy-file
            audit-webhook-batch-buffer-size audit-webhook-batch-initial-backoff
            audit-webhook-batch-max-size audit-webhook-batch-max-wait
            audit-webhook-batch-throttle-burst audit-webhook-batch-throttle-enable
            audit-webhook-batch-throttle-qps audit-webhook-config-file
            audit-webhook-initial-backoff audit-webhook-mode audit-webhook-truncate-enabled
            audit-webhook-truncate-max-batch-size audit-webhook-truncate-max-event-size
            audit-webhook-version authentication-token-webhook-cache-ttl
            authentication-token-webhook-config-file authentication-token-webhook-version
            authorization-mode authorization-policy-file authorization-webhook-cache-authorized-ttl
            authorization-webhook-cache-unauthorized-ttl authorization-webhook-config-file
            authorization-webhook-version bind-address cert-dir client-ca-file contention-profiling
            cors-allowed-origins default-not-ready-toleration-seconds
            default-unreachable-toleration-seconds default-watch-cache-size
            delete-collection-workers disable-admission-plugins egress-selector-config-file
            enable-admission-plugins enable-aggregator-routing enable-bootstrap-token-auth
            enable-garbage-collector enable-logs-handler enable-priority-and-fairness
            encryption-provider-config endpoint-reconciler-type etcd-cafile etcd-certfile
            etcd-compaction-interval etcd-count-metric-poll-period etcd-db-metric-poll-interval
            etcd-healthcheck-timeout etcd-keyfile etcd-prefix etcd-servers etcd-servers-overrides
            event-ttl external-hostname feature-gates goaway-chance
            http2-max-streams-per-connection kubelet-certificate-authority
            kubelet-client-certificate kubelet-client-key kubelet-port
            kubelet-preferred-address-types kubelet-read-only-port kubelet-timeout
            kubernetes-service-node-port livez-grace-period log-flush-frequency logging-format
            max-connection-bytes-per-sec max-mutating-requests-inflight max-requests-inflight
            min-request-timeout oidc-ca-file oidc-client-id oidc-groups-claim oidc-groups-prefix
            oidc-issuer-url oidc-required-claim oidc-signing-algs oidc-username-claim
            oidc-username-prefix permit-port-sharing profiling proxy-client-cert-file
            proxy-client-key-file request-timeout requestheader-allowed-names
            requestheader-client-ca-file requestheader-extra-headers-prefix
            requestheader-group-headers requestheader-username-headers runtime-config secure-port
            service-account-extend-token-expiration service-account-issuer service-account-jwks-uri
            service-account-key-file service-account-lookup service-account-max-token-expiration
            service-account-signing-key-file service-cluster-ip-range service-node-port-range
            show-hidden-metrics-for-version shutdown-delay-duration storage-backend
            storage-media-type tls-cert-file tls-cipher-suites tls-min-version tls-private-key-file
            tls-sni-cert-key token-auth-file v vmodule watch-cache watch-cache-sizes
            """,
            {
                (None, 20): """
                    cloud-provider-gce-l7lb-src-cidrs enable-swagger-ui
                    experimental-logging-sanitization identity-lease-duration-seconds
                    identity-lease-renew-interval-seconds
                """,
                (None, 21): """
                    kubelet-https ssh-keyfile ssh-user
                """,
                (None, 23): """
                    address deserialization-cache-size experimental-encryption-provider-config
                    insecure-bind-address insecure-port port target-ram-mb
                """,
                (None, 24): """
                    service-account-api-audiences
                """,
                (None, 26): """
                    master-service-namespace
                """,
                (None, 32): """
                    cloud-config cloud-provider
                """,
                (21, None): """
                    allow-metric-labels disabled-metrics lease-reuse-duration-seconds
                    permit-address-sharing strict-transport-security-directives
                """,
                (23, None): """
                    shutdown-send-retry-after
                """,
                (26, None): """
                    aggregator-reject-forwarding-redirect
                    encryption-provider-config-automatic-reload
                """,
                (27, None): """
                    shutdown-watch-termination-grace-period
                """,
                (29, None): """
                    allow-metric-labels-manifest authentication-config authorization-config
                """,
                (31, None): """
                    disable-http2-serving
                """,
                (32, None): """
                    requestheader-uid-headers service-account-signing-endpoint
                """,
                (33, None): """
                    emulation-forward-compatible runtime-config-emulation-forward-compatible
                """,
                (35, None): """
                    min-compatibility-version
                """,
                LATER: """
                    coordinated-leadership-lease-duration coordinated-leadership-renew-deadline
                    coordinated-leadership-retry-period debug-socket-path emulated-version
                    etcd-readycheck-timeout log-json-info-buffer-size log-json-split-stream
                    log-text-info-buffer-size log-text-split-stream peer-advertise-ip
                    peer-advertise-port peer-ca-file send-retry-after-while-not-ready-once
                    storage-initialization-timeout
                    tls-curve-preferences tracing-config-file
                """,
                (None, 25): _KLOG,
            },
        ),
        "kube-controller-manager": _table(
            """
            allocate-node-cidrs allow-untagged-cloud attach-detach-reconcile-sync-period
            authentication-kubeconfig authentication-skip-lookup
            authentication-token-webhook-cache-ttl authentication-tolerate-lookup-failure
            authorization-always-allow-paths authorization-kubeconfig
            authorization-webhook-cache-authorized-ttl authorization-webhook-cache-unauthorized-ttl
            bind-address cert-dir cidr-allocator-type client-ca-file cloud-config cloud-provider
            cluster-cidr cluster-name cluster-signing-cert-file cluster-signing-duration
            cluster-signing-key-file cluster-signing-kube-apiserver-client-cert-file
            cluster-signing-kube-apiserver-client-key-file cluster-signing-kubelet-client-cert-file
            cluster-signing-kubelet-client-key-file cluster-signing-kubelet-serving-cert-file
            cluster-signing-kubelet-serving-key-file cluster-signing-legacy-unknown-cert-file
            cluster-signing-legacy-unknown-key-file concurrent-deployment-syncs
            concurrent-endpoint-syncs concurrent-gc-syncs concurrent-namespace-syncs
            concurrent-replicaset-syncs concurrent-resource-quota-syncs
            concurrent-service-endpoint-syncs concurrent-service-syncs
            concurrent-serviceaccount-token-syncs concurrent-statefulset-syncs
            concurrent-ttl-after-finished-syncs configure-cloud-routes contention-profiling
            controller-start-interval controllers disable-attach-detach-reconcile-sync
            enable-dynamic-provisioning enable-garbage-collector enable-hostpath-provisioner
            endpoint-updates-batch-period endpointslice-updates-batch-period
            external-cloud-volume-plugin feature-gates flex-volume-plugin-dir
            horizontal-pod-autoscaler-cpu-initialization-period
            horizontal-pod-autoscaler-downscale-stabilization
            horizontal-pod-autoscaler-initial-readiness-delay horizontal-pod-autoscaler-sync-period
            horizontal-pod-autoscaler-tolerance http2-max-streams-per-connection kube-api-burst
            kube-api-content-type kube-api-qps kubeconfig large-cluster-size-threshold leader-elect
            leader-elect-lease-duration leader-elect-renew-deadline leader-elect-resource-lock
            leader-elect-resource-name leader-elect-resource-namespace leader-elect-retry-period
            log-flush-frequency logging-format master max-endpoints-per-slice min-resync-period
            mirroring-concurrent-service-endpoint-syncs
            mirroring-endpointslice-updates-batch-period mirroring-max-endpoints-per-subset
            namespace-sync-period node-cidr-mask-size node-cidr-mask-size-ipv4
            node-cidr-mask-size-ipv6 node-eviction-rate node-monitor-grace-period
            node-monitor-period node-startup-grace-period node-sync-period permit-port-sharing
            profiling pv-recycler-increment-timeout-nfs pv-recycler-minimum-timeout-hostpath
            pv-recycler-minimum-timeout-nfs pv-recycler-pod-template-filepath-hostpath
            pv-recycler-pod-template-filepath-nfs pv-recycler-timeout-increment-hostpath
            pvclaimbinder-sync-period requestheader-allowed-names requestheader-client-ca-file
            requestheader-extra-headers-prefix requestheader-group-headers
            requestheader-username-headers resource-quota-sync-period root-ca-file
            route-reconciliation-period secondary-node-eviction-rate secure-port
            service-account-private-key-file service-cluster-ip-range
            show-hidden-metrics-for-version terminated-pod-gc-threshold tls-cert-file
            tls-cipher-suites tls-min-version tls-private-key-file tls-sni-cert-key
            unhealthy-zone-threshold use-service-account-credentials v vmodule
            """,
            {
                (None, 20): """
                    experimental-logging-sanitization horizontal-pod-autoscaler-downscale-delay
                    horizontal-pod-autoscaler-upscale-delay
                """,
                (None, 21): """
                    horizontal-pod-autoscaler-use-rest-clients
                """,
                (None, 23): """
                    address deployment-controller-sync-period port
                """,
                (None, 24): """
                    deleting-pods-burst deleting-pods-qps experimental-cluster-signing-duration
                    register-retry-count
                """,
                (None, 26): """
                    enable-taint-manager pod-eviction-timeout
                """,
                (None, 30): """
                    volume-host-allow-local-loopback volume-host-cidr-denylist
                """,
                (23, None): """
                    concurrent-ephemeralvolume-syncs
                """,
                (26, None): """
                    concurrent-horizontal-pod-autoscaler-syncs
                """,
                (28, None): """
                    concurrent-cron-job-syncs concurrent-job-syncs
                    legacy-service-account-token-clean-up-period
                """,
                (30, None): """
                    disable-force-detach-on-timeout
                """,
                (32, None): """
                    concurrent-daemonset-syncs
                """,
                (35, None): """
                    min-compatibility-version
                """,
                LATER: """
                    allow-metric-labels allow-metric-labels-manifest
                    concurrent-device-taint-eviction-syncs concurrent-resourceclaim-syncs
                    concurrent-rc-syncs concurrent-validating-admission-policy-status-syncs
                    controller-shutdown-timeout
                    disable-http2-serving disabled-metrics emulated-version enable-leader-migration
                    leader-migration-config log-json-info-buffer-size log-json-split-stream
                    log-text-info-buffer-size log-text-split-stream permit-address-sharing
                    requestheader-uid-headers tls-curve-preferences
                """,
                (None, 25): _KLOG,
            },
        ),
        "kube-scheduler": _table(
            """
            authentication-kubeconfig authentication-skip-lookup
            authentication-token-webhook-cache-ttl authentication-tolerate-lookup-failure
            authorization-always-allow-paths authorization-kubeconfig
            authorization-webhook-cache-authorized-ttl authorization-webhook-cache-unauthorized-ttl
            bind-address cert-dir client-ca-file config contention-profiling feature-gates
            http2-max-streams-per-connection kube-api-burst kube-api-content-type kube-api-qps
            kubeconfig leader-elect leader-elect-lease-duration leader-elect-renew-deadline
            leader-elect-resource-lock leader-elect-resource-name leader-elect-resource-namespace
            leader-elect-retry-period log-flush-frequency logging-format master permit-port-sharing
            profiling requestheader-allowed-names requestheader-client-ca-file
            requestheader-extra-headers-prefix requestheader-group-headers
            requestheader-username-headers secure-port show-hidden-metrics-for-version
            tls-cert-file tls-cipher-suites tls-min-version tls-private-key-file tls-sni-cert-key v
            vmodule write-config-to
            """,
            {
                (None, 20): """
                    experimental-logging-sanitization
                """,
                (None, 21): """
                    algorithm-provider hard-pod-affinity-symmetric-weight scheduler-name
                """,
                (None, 22): """
                    policy-config-file policy-configmap policy-configmap-namespace
                    use-legacy-policy-config
                """,
                (None, 23): """
                    address port
                """,
                (None, 27): """
                    lock-object-name lock-object-namespace
                """,
                (35, None): """
                    min-compatibility-version
                """,
                LATER: """
                    allow-metric-labels allow-metric-labels-manifest
                    disable-http2-serving disabled-metrics emulated-version
                    log-json-info-buffer-size log-json-split-stream log-text-info-buffer-size
                    log-text-split-stream permit-address-sharing
                    pod-max-in-unschedulable-pods-duration requestheader-uid-headers
                    tls-curve-preferences
                """,
                (None, 25): _KLOG,
            },
        ),
        "kubelet": _table(
            """
            address allowed-unsafe-sysctls anonymous-auth application-metrics-count-limit
            authentication-token-webhook authentication-token-webhook-cache-ttl authorization-mode
            authorization-webhook-cache-authorized-ttl authorization-webhook-cache-unauthorized-ttl
            boot-id-file bootstrap-kubeconfig cert-dir cgroup-driver cgroup-root cgroups-per-qos
            client-ca-file cloud-provider cluster-dns cluster-domain config container-hints
            container-log-max-files container-log-max-size container-runtime-endpoint containerd
            containerd-namespace contention-profiling cpu-cfs-quota cpu-cfs-quota-period
            cpu-manager-policy cpu-manager-reconcile-period enable-controller-attach-detach
            enable-debugging-handlers enable-load-reader enable-server enforce-node-allocatable
            event-burst event-qps event-storage-age-limit event-storage-event-limit eviction-hard
            eviction-max-pod-grace-period eviction-minimum-reclaim
            eviction-pressure-transition-period eviction-soft eviction-soft-grace-period
            exit-on-lock-contention experimental-allocatable-ignore-eviction
            experimental-mounter-path fail-swap-on feature-gates file-check-frequency
            global-housekeeping-interval hairpin-mode healthz-bind-address healthz-port
            hostname-override housekeeping-interval http-check-frequency
            image-credential-provider-bin-dir image-credential-provider-config
            image-gc-high-threshold image-gc-low-threshold image-service-endpoint
            kernel-memcg-notification kube-api-burst kube-api-content-type kube-api-qps
            kube-reserved kube-reserved-cgroup kubeconfig kubelet-cgroups lock-file
            log-cadvisor-usage log-flush-frequency logging-format machine-id-file
            make-iptables-util-chains manifest-url manifest-url-header max-open-files max-pods
            maximum-dead-containers maximum-dead-containers-per-container
            minimum-container-ttl-duration minimum-image-ttl-duration node-ip node-labels
            node-status-max-images node-status-update-frequency oom-score-adj pod-cidr
            pod-manifest-path pod-max-pids pods-per-core port protect-kernel-defaults provider-id
            qos-reserved read-only-port register-node register-with-taints registry-burst
            registry-qps reserved-cpus resolv-conf root-dir rotate-certificates
            rotate-server-certificates runonce runtime-cgroups runtime-request-timeout
            serialize-image-pulls storage-driver-buffer-duration storage-driver-db
            storage-driver-host storage-driver-password storage-driver-secure storage-driver-table
            storage-driver-user streaming-connection-idle-timeout sync-frequency system-cgroups
            system-reserved system-reserved-cgroup tls-cert-file tls-cipher-suites tls-min-version
            tls-private-key-file topology-manager-policy topology-manager-scope v vmodule
            volume-plugin-dir volume-stats-agg-period
            """,
            {
                (None, 20): """
                    azure-container-registry-config docker docker-env-metadata-whitelist docker-only
                    docker-root docker-tls docker-tls-ca docker-tls-cert docker-tls-key
                    dynamic-config-dir enable-cadvisor-json-endpoints
                    experimental-logging-sanitization redirect-container-streaming
                """,
                (None, 21): """
                    chaos-chance
                """,
                (None, 22): """
                    experimental-bootstrap-kubeconfig seccomp-profile-root
                """,
                (None, 23): """
                    cni-bin-dir cni-cache-dir cni-conf-dir docker-endpoint
                    experimental-check-node-capabilities-before-mount
                    experimental-dockershim-root-directory image-pull-progress-deadline
                    network-plugin network-plugin-mtu non-masquerade-cidr really-crash-for-testing
                """,
                (None, 24): """
                    experimental-kernel-memcg-notification
                """,
                (None, 26): """
                    container-runtime master-service-namespace
                """,
                (None, 30): """
                    iptables-drop-bit iptables-masquerade-bit keep-terminated-pod-volumes
                """,
                (None, 33): """
                    cloud-config register-schedulable
                """,
                (None, 34): """
                    pod-infra-container-image
                """,
                (22, None): """
                    seccomp-default
                """,
                (25, None): """
                    local-storage-capacity-isolation
                """,
                (26, None): """
                    topology-manager-policy-options
                """,
                (31, None): """
                    fail-cgroupv1
                """,
                LATER: """
                    config-dir cpu-manager-policy-options log-json-info-buffer-size
                    log-json-split-stream log-text-info-buffer-size log-text-split-stream
                    max-housekeeping-interval memory-manager-policy reserved-memory
                """,
                (None, 25): _KLOG,
            },
        ),
        "kube-proxy": _table(
            """
            bind-address bind-address-hard-fail cleanup cluster-cidr config config-sync-period
            conntrack-max-per-core conntrack-min conntrack-tcp-timeout-close-wait
            conntrack-tcp-timeout-established detect-local-mode feature-gates healthz-bind-address
            healthz-port hostname-override iptables-masquerade-bit iptables-min-sync-period
            iptables-sync-period ipvs-exclude-cidrs ipvs-min-sync-period ipvs-scheduler
            ipvs-strict-arp ipvs-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout
            kube-api-burst kube-api-content-type kube-api-qps kubeconfig log-flush-frequency
            masquerade-all master metrics-bind-address metrics-port nodeport-addresses
            oom-score-adj profiling proxy-mode show-hidden-metrics-for-version v vmodule
            write-config-to
            """,
            {
                (None, 20): """
                    cleanup-ipvs udp-timeout
                """,
                (None, 30): """
                    proxy-port-range
                """,
                (24, None): """
                    pod-bridge-interface pod-interface-name-prefix
                """,
                (26, None): """
                    iptables-localhost-nodeports
                """,
                (28, None): """
                    logging-format
                """,
                (29, None): """
                    init-only
                """,
                LATER: """
                    boot-id-file conntrack-tcp-be-liberal conntrack-udp-timeout
                    conntrack-udp-timeout-stream log-json-info-buffer-size log-json-split-stream
                    log-text-info-buffer-size log-text-split-stream machine-id-file
                """,
                (None, 25): _KLOG,
            },
        ),
    }
)

#: Top-level fields of configuration files, whose readers refuse a field that they do not know.
FIELDS: Mapping[str, Mapping[str, Window]] = MappingProxyType(
    {
        "KubeletConfiguration": _table(
            """
            address allowedUnsafeSysctls authentication authorization cgroupDriver cgroupRoot
            cgroupsPerQOS clusterDNS clusterDomain configMapAndSecretChangeDetectionStrategy
            containerLogMaxFiles containerLogMaxSize contentType cpuCFSQuota cpuCFSQuotaPeriod
            cpuManagerPolicy cpuManagerReconcilePeriod enableContentionProfiling
            enableControllerAttachDetach enableDebuggingHandlers enableServer
            enableSystemLogHandler enforceNodeAllocatable eventBurst eventRecordQPS evictionHard
            evictionMaxPodGracePeriod evictionMinimumReclaim evictionPressureTransitionPeriod
            evictionSoft evictionSoftGracePeriod failSwapOn featureGates fileCheckFrequency
            hairpinMode healthzBindAddress healthzPort httpCheckFrequency
            imageGCHighThresholdPercent imageGCLowThresholdPercent imageMinimumGCAge
            iptablesDropBit iptablesMasqueradeBit kernelMemcgNotification kubeAPIBurst kubeAPIQPS
            kubeReserved kubeReservedCgroup kubeletCgroups logging makeIPTablesUtilChains
            maxOpenFiles maxPods nodeLeaseDurationSeconds nodeStatusMaxImages
            nodeStatusReportFrequency nodeStatusUpdateFrequency oomScoreAdj podCIDR podPidsLimit
            podsPerCore port protectKernelDefaults providerID qosReserved readOnlyPort
            registryBurst registryPullQPS reservedSystemCPUs resolvConf rotateCertificates runOnce
            runtimeRequestTimeout serializeImagePulls serverTLSBootstrap
            showHiddenMetricsForVersion shutdownGracePeriod shutdownGracePeriodCriticalPods
            staticPodPath staticPodURL staticPodURLHeader streamingConnectionIdleTimeout
            syncFrequency systemCgroups systemReserved systemReservedCgroup tlsCertFile
            tlsCipherSuites tlsMinVersion tlsPrivateKeyFile topologyManagerPolicy
            topologyManagerScope volumePluginDir volumeStatsAggPeriod
            """,
            {
                (21, None): "enableDebugFlagsHandler enableProfilingHandler",
                (22, None): "seccompDefault",
                (23, None): "registerWithTaints",
                (25, None): "localStorageCapacityIsolation",
                (26, None): "topologyManagerPolicyOptions",
                (27, None): "containerRuntimeEndpoint imageServiceEndpoint maxParallelImagePulls",
                (30, None): "containerLogMaxWorkers containerLogMonitorInterval podLogsDir",
                (31, None): "failCgroupV1",
                (32, None): "singleProcessOOMKill",
                LATER: """
                    cpuManagerPolicyOptions crashLoopBackOff
                    enableSystemLogQuery imageMaximumGCAge
                    imagePullCredentialsVerificationPolicy memoryManagerPolicy
                    memoryReservationPolicy memorySwap memoryThrottlingFactor
                    mergeDefaultEvictionSettings
                    preloadedImagesVerificationAllowlist registerNode
                    reservedMemory shutdownGracePeriodByPodPriority
                    tlsCurvePreferences tracing userNamespaces
                """,
            },
        ),
        "KubeProxyConfiguration": _table(
            """
            bindAddress bindAddressHardFail clientConnection clusterCIDR configSyncPeriod conntrack
            detectLocalMode enableProfiling featureGates healthzBindAddress hostnameOverride
            iptables ipvs metricsBindAddress mode nodePortAddresses oomScoreAdj portRange
            showHiddenMetricsForVersion winkernel
            """,
            {
                (None, 20): "udpIdleTimeout",
                LATER: "detectLocal logging nftables windowsRunAsService",
            },
        ),
    }
)

#: Flags that live on under another name once their window has closed, with the same values.
SUCCESSORS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "kube-apiserver": {
            "experimental-encryption-provider-config": "encryption-provider-config",
            "service-account-api-audiences": "api-audiences",
        },
        "kube-controller-manager": {
            "experimental-cluster-signing-duration": "cluster-signing-duration",
        },
        "kube-scheduler": {
            "lock-object-name": "leader-elect-resource-name",
            "lock-object-namespace": "leader-elect-resource-namespace",
        },
        "kubelet": {
            "experimental-bootstrap-kubeconfig": "bootstrap-kubeconfig",
            "experimental-kernel-memcg-notification": "kernel-memcg-notification",
        },
    }
)

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


def _flags_of(component: str) -> Mapping[str, Window]:
    if component not in FLAGS:
        raise ValueError(f"no flags are known of {component!r}; known are {', '.join(FLAGS)}")
    return FLAGS[component]


def _window(component: str, flag: str) -> Window:
    try:
        return _flags_of(component)[flag]
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
    _flags_of(component)
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


def has_field(kind: str, kubernetes: str, field: str) -> bool:
    """Whether a release reads a top-level field of a configuration file.

    Args:
        kind: ``KubeletConfiguration`` or ``KubeProxyConfiguration``.
        kubernetes: Release, such as ``1.36.3``.
        field: Such as ``containerRuntimeEndpoint``.

    Raises:
        ValueError: Unknown kind or field.

    Example:
        >>> has_field("KubeletConfiguration", "1.26.4", "containerRuntimeEndpoint")
        False
    """
    if kind not in FIELDS:
        raise ValueError(f"no fields are known of {kind!r}; known are {', '.join(FIELDS)}")
    if field not in FIELDS[kind]:
        raise ValueError(
            f"{kind} has no field {field!r} in Kubernetes 1.{FIRST_MINOR} to 1.{LAST_MINOR}; "
            "check its spelling"
        )
    return _within(FIELDS[kind][field], minor(kubernetes))


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
