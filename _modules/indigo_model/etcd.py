"""What a member of etcd runs with.

Flags are computed here as data; the unit only prints them. The part that matters once, how a
member without data comes into the cluster, is decided on the host when it is needed
(``_modules/indigo_etcd.py``).

Sources: etcd's ``CHANGELOG-3.4.md`` to ``CHANGELOG-3.6.md``, ``etcd --help`` of 3.4.23, 3.5.33 and
3.6.14, etcd's guides "Tuning", "Maintenance" and "Upgrade etcd from v3.5 to v3.6".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from . import versions
from .cluster import PATHS, Cluster, Host
from .lb import endpoint

CLIENT_PORT = 2379
PEER_PORT = 2380
#: Of the metrics alone, which only listens where Prometheus is an add-on.
METRICS_PORT = 2381

#: Minors of etcd 3 that the tables below cover.
FIRST_MINOR = 4
LAST_MINOR = 6

#: Where the choice of bootstrap or join is written for the unit, until the member has data.
INITIAL = f"{PATHS['etcd']}/initial.env"

#: Leave to form a new cluster, outside the data directory so that it cannot be restored with it.
GRANT = "/var/lib/etcd-bootstrap.grant"

Window = tuple["int | None", "int | None"]


def _names(names: str, window: Window = (None, None)) -> dict[str, Window]:
    return dict.fromkeys(names.split(), window)


#: Flags that a site may override, with the minors that have them, both inclusive.
FLAGS: Mapping[str, Window] = MappingProxyType(
    {
        **_names(
            """
            auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention
            backend-batch-interval backend-batch-limit bcrypt-cost cipher-suites
            client-cert-allowed-hostname client-crl-file cors election-timeout enable-grpc-gateway
            enable-pprof grpc-keepalive-interval grpc-keepalive-min-time grpc-keepalive-timeout
            heartbeat-interval host-whitelist initial-election-tick-advance listen-client-http-urls
            listen-client-urls listen-metrics-urls log-level log-outputs logger
            max-concurrent-streams max-request-bytes max-snapshots max-txn-ops max-wals metrics
            peer-cert-allowed-cn peer-cert-allowed-hostname peer-crl-file pre-vote
            quota-backend-bytes snapshot-count strict-reconfig-check tls-max-version
            tls-min-version unsafe-no-fsync wal-dir
            experimental-compaction-batch-limit experimental-corrupt-check-time
            experimental-enable-lease-checkpoint experimental-enable-lease-checkpoint-persist
            experimental-initial-corrupt-check experimental-peer-skip-client-san-verification
            experimental-warning-apply-duration experimental-watch-progress-notify-interval
            """,
            (None, None),
        ),
        **_names("debug experimental-backend-bbolt-freelist-type log-package-levels", (None, 4)),
        **_names("enable-v2 experimental-enable-v2v3", (None, 5)),
        **_names(
            """
            backend-bbolt-freelist-type client-cert-file client-key-file enable-log-rotation
            experimental-bootstrap-defrag-threshold-megabytes
            experimental-compact-hash-check-enabled experimental-compact-hash-check-time
            experimental-compaction-sleep-interval experimental-distributed-tracing-address
            experimental-distributed-tracing-instance-id
            experimental-distributed-tracing-sampling-rate
            experimental-distributed-tracing-service-name experimental-downgrade-check-time
            experimental-enable-distributed-tracing experimental-memory-mlock
            experimental-snapshot-catchup-entries experimental-stop-grpc-service-on-defrag
            experimental-txn-mode-write-with-shared-buffer
            experimental-warning-unary-request-duration log-rotation-config-json
            peer-client-cert-file peer-client-key-file raft-read-timeout raft-write-timeout
            self-signed-cert-validity socket-reuse-address socket-reuse-port v2-deprecation
            """,
            (5, None),
        ),
        **_names(
            """
            bootstrap-defrag-threshold-megabytes compact-hash-check-time compaction-batch-limit
            compaction-sleep-interval corrupt-check-time distributed-tracing-address
            distributed-tracing-instance-id distributed-tracing-sampling-rate
            distributed-tracing-service-name downgrade-check-time enable-distributed-tracing
            feature-gates log-format max-learners memory-mlock peer-skip-client-san-verification
            snapshot-catchup-entries warning-apply-duration warning-unary-request-duration
            watch-progress-notify-interval
            """,
            (6, None),
        ),
    }
)

#: Flags that say who a member is and whom it trusts: not for a site to change.
FIXED = frozenset(
    _names("""
    name data-dir listen-peer-urls advertise-client-urls initial-advertise-peer-urls cert-file
    key-file trusted-ca-file client-cert-auth peer-cert-file peer-key-file peer-trusted-ca-file
    peer-client-cert-auth initial-cluster initial-cluster-state initial-cluster-token
    force-new-cluster auto-tls peer-auto-tls config-file discovery discovery-srv
    """)
)


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """What an etcd host runs: its part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"components": {"etcd": …}}``; ``{}`` on hosts of other roles. Beside the ``flags`` it
        names the declared members, for the host to ask the others before it joins.

    Raises:
        ValueError: An override that does not fit, or a version the table does not cover.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("e", "10.0.0.3", ("etcd",))
        >>> c = Cluster("x", {"e": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16",
        ...             "10.244.0.0/16", versions={"etcd": "3.6.14"})
        >>> view(c, host)["components"]["etcd"]["members"]["e"]["client"]
        'https://10.0.0.3:2379'
    """
    if "etcd" not in host.roles:
        return {}
    members = {
        one.name: {
            "id": one.id,
            "peer": f"https://{endpoint(one.address, PEER_PORT)}",
            "client": f"https://{endpoint(one.address, CLIENT_PORT)}",
        }
        for one in cluster.with_role("etcd")
    }
    etcd = {
        "user": "etcd",
        "name": host.name,
        "data": PATHS["etcd_data"],
        "initial": INITIAL,
        "grant": GRANT,
        "members": members,
        "url": members[host.name]["client"],
        "ca": f"{PATHS['etcd_pki']}/ca.crt",
        "cert": f"{PATHS['etcd_pki']}/member.crt",
        "key": f"{PATHS['etcd_pki']}/member.key",
        "flags": flags(cluster, host),
    }
    if cluster.override("etcd", "config"):
        raise ValueError(
            "overrides.etcd.config: etcd is configured with flags here; "
            "write them under overrides.etcd.flags"
        )
    return {"components": {"etcd": etcd}}


def flags(cluster: Cluster, host: Host) -> dict[str, str]:
    """Command line of a member, without what only matters before it has data.

    Args:
        cluster: The declared cluster.
        host: One of its etcd hosts.

    Returns:
        Flag names, without dashes, to values.

    Raises:
        ValueError: An override that this etcd does not have or that a site must not change.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("e", "10.0.0.3", ("etcd",))
        >>> c = Cluster("x", {"e": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16",
        ...             "10.244.0.0/16", versions={"etcd": "3.4.23"})
        >>> flags(c, host)["experimental-initial-corrupt-check"]
        'true'
    """
    minor = _minor(cluster.versions["etcd"])
    pki = PATHS["etcd_pki"]
    client = endpoint(host.address, CLIENT_PORT)
    peer = endpoint(host.address, PEER_PORT)
    loopback = "127.0.0.1" if "." in host.address else "::1"
    derived = {
        "name": host.name,
        "data-dir": PATHS["etcd_data"],
        "listen-peer-urls": f"https://{peer}",
        "initial-advertise-peer-urls": f"https://{peer}",
        "listen-client-urls": f"https://{client},https://{endpoint(loopback, CLIENT_PORT)}",
        "advertise-client-urls": f"https://{client}",
        "cert-file": f"{pki}/member.crt",
        "key-file": f"{pki}/member.key",
        "trusted-ca-file": f"{pki}/ca.crt",
        "client-cert-auth": "true",
        "peer-cert-file": f"{pki}/member.crt",
        "peer-key-file": f"{pki}/member.key",
        "peer-trusted-ca-file": f"{pki}/ca.crt",
        "peer-client-cert-auth": "true",
        # Milliseconds: a beat about as long as a slow disk's fsync, ten missed ones for an
        # election. Hosts on one network answer within one millisecond.
        "heartbeat-interval": "100",
        "election-timeout": "1000",
        # A member that comes back must not unseat a leader that serves.
        "pre-vote": "true",
        "strict-reconfig-check": "true",
        # API servers compact every five minutes; this is for a cluster whose API servers are down.
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        # As large as upstream suggests it may grow, 8 GiB: a full quota stops every write.
        "quota-backend-bytes": str(8 * 1024**3),
        "logger": "zap",
        "log-level": "info",
        # Without TLS and apart from the data: who reads metrics needs no certificate of a client.
        **({"listen-metrics-urls": _metrics(host)} if cluster.monitored else {}),
        **_checks(minor),
    }
    return _overridden(cluster, minor, derived)


def _metrics(host: Host) -> str:
    return f"http://{endpoint(host.address, METRICS_PORT)}"


def metrics_url(cluster: Cluster, host: Host) -> str | None:
    """Where others read a member's metrics without a certificate; None where they cannot.

    Args:
        cluster: The declared cluster.
        host: One of its etcd hosts.

    Example:
        >>> from .cluster import Vip
        >>> host = Host("e", "10.0.0.3", ("etcd",))
        >>> c = Cluster("x", {"e": host}, Vip("10.0.0.9", "eth0"), "10.96.0.0/16",
        ...             "10.244.0.0/16", addons={"prometheus": {}})
        >>> metrics_url(c, host)
        'http://10.0.0.3:2381'
    """
    own = cluster.override("etcd", "flags")
    if "listen-metrics-urls" not in own:
        return _metrics(host) if cluster.monitored else None
    for url in str(own["listen-metrics-urls"] or "").split(","):
        parts = urlsplit(url.strip())
        if parts.scheme == "http" and parts.port and parts.hostname not in ("127.0.0.1", "::1"):
            return f"http://{endpoint(host.address, parts.port)}"
    return None


def _checks(minor: int) -> dict[str, str]:
    """Comparison of a member's data with the others' before it serves; progress for watches."""
    if minor >= 6:
        return {
            "feature-gates": "InitialCorruptCheck=true,CompactHashCheck=true",
            "watch-progress-notify-interval": "5s",
        }
    return {
        "experimental-initial-corrupt-check": "true",
        "experimental-watch-progress-notify-interval": "5s",
        **({"experimental-compact-hash-check-enabled": "true"} if minor == 5 else {}),
    }


def _minor(version: str) -> int:
    major, minor, _ = versions.parse(version)
    if major != 3 or not FIRST_MINOR <= minor <= LAST_MINOR:
        raise ValueError(
            f"versions.etcd: found {version}; "
            f"expected 3.{FIRST_MINOR} to 3.{LAST_MINOR}, which the table of flags covers"
        )
    return minor


def _overridden(cluster: Cluster, minor: int, derived: Mapping[str, str]) -> dict[str, str]:
    merged = dict(derived)
    for flag, value in cluster.override("etcd", "flags").items():
        where = f"overrides.etcd.flags.{flag}"
        if flag in FIXED:
            raise ValueError(f"{where}: this follows from the declared cluster; remove it")
        since, until = FLAGS.get(flag, (99, None))
        if minor < (since or 0) or minor > (until or 99):
            raise ValueError(
                f"{where}: etcd 3.{minor} has no such flag; see `etcd --help` of that version"
            )
        if value is None:
            merged.pop(flag, None)
        else:
            merged[flag] = str(value).lower() if isinstance(value, bool) else str(value)
    return merged
