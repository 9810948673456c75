"""Certificates: who has which, signed by whom, saying what.

One table, :data:`CERTIFICATES`, drives the certificates of the hosts, the signing policies of
the CA host, the status report and the documentation. Every identity is fixed by a signing
policy of its own, so that a host that is taken over cannot obtain another host's certificate.

Sources: kubernetes.io "PKI certificates and requirements", etcd.io "Transport security model",
kubernetes.io "Configure the Aggregation Layer", Salt's ``x509_v2`` execution module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import ingress
from .cluster import PATHS, Cluster, Host

Names = Callable[[Cluster, Host], Iterable[str]]

#: The authorities of a cluster. The API server trusts each of them for something else, so none
#: may issue what another one vouches for.
AUTHORITIES = ("kubernetes", "etcd", "front-proxy")

#: Where a host with a role keeps the certificates of the authorities it must know.
TRUST: dict[str, dict[str, str]] = {
    "lb": {"kubernetes": f"{PATHS['pki']}/ca.crt"},
    "etcd": {"etcd": f"{PATHS['etcd_pki']}/ca.crt"},
    "master": {
        "kubernetes": f"{PATHS['pki']}/ca.crt",
        "etcd": f"{PATHS['pki']}/etcd-ca.crt",
        "front-proxy": f"{PATHS['pki']}/front-proxy-ca.crt",
    },
    "node": {"kubernetes": f"{PATHS['pki']}/ca.crt"},
}

#: keyUsage of every certificate. EC keys sign in the handshake; they never encipher keys.
KEY_USAGE = "critical, digitalSignature"

#: Name of the job in Salt's schedule.
JOB = "certificates"

SERVER = "serverAuth"
CLIENT = "clientAuth"


def _always(_cluster: Cluster, _host: Host) -> bool:
    return True


def _ingress(cluster: Cluster, _host: Host) -> tuple[str, ...]:
    return ingress.names(cluster)


def _nothing(_cluster: Cluster, _host: Host) -> tuple[str, ...]:
    return ()


def _own(_cluster: Cluster, host: Host) -> tuple[str, ...]:
    return (f"DNS:{host.name}", f"IP:{host.address}")


def _own_and_loopback(cluster: Cluster, host: Host) -> tuple[str, ...]:
    return (*_own(cluster, host), "DNS:localhost", "IP:127.0.0.1")


def _api(cluster: Cluster, host: Host) -> tuple[str, ...]:
    """Every name and address under which a client may reach an API server."""
    return (
        "DNS:kubernetes",
        "DNS:kubernetes.default",
        "DNS:kubernetes.default.svc",
        f"DNS:kubernetes.default.svc.{cluster.domain}",
        *_own_and_loopback(cluster, host),
        *(f"IP:{master.address}" for master in cluster.with_role("master")),
        f"IP:{cluster.vip.address}",
        f"IP:{cluster.api_service}",
    )


@dataclass(frozen=True)
class Certificate:
    """One row of the table: a certificate that every host with a role has, where it is wanted.

    ``common_name`` may hold ``{name}``, the host's name. ``key`` and certificate are files of
    ``user``; ``services`` are the units that read them.
    """

    name: str
    role: str
    authority: str
    base: str  # path without suffix; .crt and .key are added
    user: str
    common_name: str
    usages: tuple[str, ...]
    services: tuple[str, ...]
    sans: Names = _nothing
    organization: str | None = None
    wanted: Callable[[Cluster, Host], bool] = _always


CERTIFICATES = (
    Certificate(
        name="etcd-member",
        role="etcd",
        authority="etcd",
        base=f"{PATHS['etcd_pki']}/member",
        user="etcd",
        common_name="{name}",
        # Also a client: of its peers, and of itself through etcd's gateway.
        usages=(SERVER, CLIENT),
        services=("etcd",),
        sans=_own_and_loopback,
    ),
    Certificate(
        name="apiserver",
        role="master",
        authority="kubernetes",
        base=f"{PATHS['pki']}/apiserver",
        user="kube-apiserver",
        common_name="kube-apiserver",
        usages=(SERVER,),
        services=("kube-apiserver",),
        sans=_api,
    ),
    Certificate(
        name="apiserver-kubelet-client",
        role="master",
        authority="kubernetes",
        base=f"{PATHS['pki']}/apiserver-kubelet-client",
        user="kube-apiserver",
        common_name="kube-apiserver-kubelet-client",
        usages=(CLIENT,),
        services=("kube-apiserver",),
    ),
    Certificate(
        name="apiserver-etcd-client",
        role="master",
        authority="etcd",
        base=f"{PATHS['pki']}/apiserver-etcd-client",
        user="kube-apiserver",
        common_name="kube-apiserver-etcd-client",
        usages=(CLIENT,),
        services=("etcd-proxy", "kube-apiserver"),
    ),
    Certificate(
        name="front-proxy-client",
        role="master",
        authority="front-proxy",
        base=f"{PATHS['pki']}/front-proxy-client",
        user="kube-apiserver",
        common_name="front-proxy-client",
        usages=(CLIENT,),
        services=("kube-apiserver",),
    ),
    Certificate(
        name="kube-controller-manager",
        role="master",
        authority="kubernetes",
        base=f"{PATHS['pki']}/kube-controller-manager",
        user="kube-controller-manager",
        common_name="kube-controller-manager",
        usages=(SERVER,),
        services=("kube-controller-manager",),
        sans=_own_and_loopback,
    ),
    Certificate(
        name="kube-scheduler",
        role="master",
        authority="kubernetes",
        base=f"{PATHS['pki']}/kube-scheduler",
        user="kube-scheduler",
        common_name="kube-scheduler",
        usages=(SERVER,),
        services=("kube-scheduler",),
        sans=_own_and_loopback,
    ),
    Certificate(
        name="kubelet",
        role="node",
        authority="kubernetes",
        base=f"{PATHS['pki']}/kubelet",
        user="root",
        # A name only: without clientAuth and an organization it opens nothing at the API.
        common_name="system:node:{name}",
        usages=(SERVER,),
        services=("kubelet",),
        sans=_own,
    ),
    Certificate(
        name="ingress",
        role="master",
        authority="kubernetes",
        base=f"{PATHS['pki']}/{ingress.NAME}",
        user="root",
        common_name=ingress.NAME,
        usages=(SERVER,),
        # The controller is no unit: the add-on brings it there as a Secret.
        services=(),
        sans=_ingress,
        wanted=ingress.holder,
    ),
)


def of(cluster: Cluster, host: Host) -> tuple[Certificate, ...]:
    """Rows of the table that a host has, by its roles.

    Example:
        >>> from .cluster import Vip
        >>> c = Cluster("x", {}, Vip("10.0.0.9", "eth0"), "10.1.0.0/16", "10.2.0.0/16")
        >>> [row.name for row in of(c, Host("n", "10.0.0.1", ("node",)))]
        ['kubelet']
    """
    return tuple(
        row for row in CERTIFICATES if row.role in host.roles and row.wanted(cluster, host)
    )


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """What a host must know of certificates: its part of the view.

    Args:
        cluster: The declared cluster.
        host: One of its hosts.

    Returns:
        ``{"pki": {"ca", "authorities", "certificates", "gone", "schedule"}}``, on the CA host also
        ``held``. ``gone`` are files of the host's roles that are not wanted any more. Public facts
        only, JSON types only. ``authorities`` and ``certificates`` are empty on a host that needs
        none.

    Example:
        >>> from .cluster import Vip
        >>> node = Host("n1", "10.0.0.1", ("node",))
        >>> ca = Host("salt", "10.0.0.2", ("ca",))
        >>> c = Cluster("x", {"n1": node, "salt": ca}, Vip("10.0.0.9", "eth0"), "10.1.0.0/16",
        ...             "10.2.0.0/16")
        >>> view(c, node)["pki"]["certificates"][0]["policy"]
        'n1.kubelet'
    """
    pki: dict[str, Any] = {
        "ca": cluster.ca.id,
        "authorities": _authorities(host),
        "certificates": [_declared(cluster, host, row) for row in of(cluster, host)],
        "gone": [
            {"path": f"{row.base}.crt", "key": f"{row.base}.key"}
            for row in CERTIFICATES
            if row.role in host.roles and not row.wanted(cluster, host)
        ],
        "schedule": schedule(cluster),
    }
    if "ca" in host.roles:
        pki["held"] = held(cluster)
    return {"pki": pki}


def schedule(cluster: Cluster) -> dict[str, Any]:
    """The job of Salt's schedule by which every host renews what nears its end.

    Args:
        cluster: The declared cluster.

    Returns:
        Job names to jobs, as Salt's pillar key ``schedule`` takes them; none where
        ``certificates.look`` is 0.

    Example:
        >>> from .cluster import Vip
        >>> c = Cluster("lab", {}, Vip("10.0.0.9", "eth0"), "10.1.0.0/16", "10.2.0.0/16")
        >>> schedule(c)["certificates"]["function"]
        'indigo_pki.keep'
    """
    look = int(cluster.certificates["look"])
    if not look:
        return {}
    return {
        JOB: {
            "function": "indigo_pki.keep",
            "seconds": look,
            # Hosts that were deployed together need not all come to the CA host together.
            "splay": min(3600, look // 6),
            "maxrunning": 1,
            "run_on_start": False,
            "return_job": False,
        }
    }


def held(cluster: Cluster) -> list[dict[str, Any]]:
    """Authorities of the cluster, as the CA host keeps them.

    Args:
        cluster: The declared cluster.

    Returns:
        For each authority ``{"name", "key", "certificate", "common_name", "days",
        "renew_before"}``: two paths on the CA host, the subject, the days of validity of a new
        one, and the days before its end at which its key signs it anew. Hosts fetch the
        renewed one with their next certificate, so there is time for two of those.

    Example:
        >>> from .cluster import Vip
        >>> c = Cluster("lab", {}, Vip("10.0.0.9", "eth0"), "10.1.0.0/16", "10.2.0.0/16")
        >>> held(c)[0]["common_name"]
        'lab kubernetes CA'
    """
    lifetime = int(cluster.certificates["authority_days"])
    return [
        {
            "name": name,
            "key": _authority_file(name, "key"),
            "certificate": _authority_file(name, "crt"),
            "common_name": f"{cluster.name} {name} CA",
            "days": lifetime,
            "renew_before": min(2 * int(cluster.certificates["days"]), lifetime // 2),
        }
        for name in AUTHORITIES
    ]


def signing_policies(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Signing policies for the CA host's minion: one per host and certificate.

    Subject, alternative names, usages and lifetime are all fixed here, so a request
    contributes its public key and nothing else. ``minions`` names exactly one minion.

    Args:
        cluster: The declared cluster.

    Returns:
        The value of pillar ``x509_signing_policies``: policy name to parameters of Salt's
        ``x509.create_certificate``. It holds paths of keys, never keys.

    Raises:
        ValueError: A minion id holds a character that would make ``minions`` match others.

    Example:
        >>> from .cluster import Vip
        >>> hosts = {"n1": Host("n1", "10.0.0.1", ("node",))}
        >>> c = Cluster("x", hosts, Vip("10.0.0.9", "eth0"), "10.1.0.0/16", "10.2.0.0/16")
        >>> signing_policies(c)["n1.kubelet"]["CN"]
        'system:node:n1'
    """
    return {
        _policy_name(host, row): _policy(cluster, host, row)
        for host in cluster.hosts.values()
        for row in of(cluster, host)
    }


def _policy(cluster: Cluster, host: Host, row: Certificate) -> dict[str, Any]:
    # x509_v2 reads `minions` as a compound match if it holds "@", else as a glob.
    if bad := sorted(set(host.id) & set("@*?[]!, ")):
        raise ValueError(
            f"hosts.{host.id}: a minion id must not contain {' '.join(map(repr, bad))}: signing "
            "policies name minions with it and would match others; rename the minion"
        )
    declared = _declared(cluster, host, row)
    policy = {
        "minions": host.id,
        "signing_private_key": _authority_file(row.authority, "key"),
        "signing_cert": _authority_file(row.authority, "crt"),
        "CN": declared["common_name"],
        "basicConstraints": "critical, CA:FALSE",
        "keyUsage": KEY_USAGE,
        "extendedKeyUsage": ", ".join(declared["usages"]),
        "subjectKeyIdentifier": "hash",
        "authorityKeyIdentifier": "keyid:always",
        "days_valid": declared["days"],
        # An explicit null keeps a requested extension out where none is declared.
        "subjectAltName": declared["sans"] or None,
    }
    if declared["organization"]:
        policy["O"] = declared["organization"]
    return policy


def _declared(cluster: Cluster, host: Host, row: Certificate) -> dict[str, Any]:
    return {
        "name": row.name,
        "policy": _policy_name(host, row),
        "authority": row.authority,
        "path": f"{row.base}.crt",
        "key": f"{row.base}.key",
        "user": row.user,
        "group": row.user,
        "common_name": row.common_name.format(name=host.name),
        "organization": row.organization,
        "sans": list(dict.fromkeys(row.sans(cluster, host))),
        "usages": list(row.usages),
        "days": int(cluster.certificates["days"]),
        "renew_before": int(cluster.certificates["renew_before"]),
        "services": list(row.services),
    }


def _authorities(host: Host) -> list[dict[str, str]]:
    """Authority certificates a host keeps; a path that several roles share comes once."""
    paths = {path: name for role in host.roles for name, path in TRUST.get(role, {}).items()}
    return [{"name": name, "path": path} for path, name in paths.items()]


def _policy_name(host: Host, row: Certificate) -> str:
    return f"{host.id}.{row.name}"


def _authority_file(name: str, suffix: str) -> str:
    return f"{PATHS['authorities']}/{name}/ca.{suffix}"
