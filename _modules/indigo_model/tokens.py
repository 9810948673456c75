"""Tokens: who speaks to the API with one, and where each host keeps its own.

Only names, paths and accounts are derived here. The tokens themselves are made on a master
and never enter the model, the pillar or the Salt master; see the execution module
``indigo_tokens``.
"""

from __future__ import annotations

from typing import Any

from .cluster import PATHS, Cluster, Host

#: What every master needs: identity, user, groups, account that reads the token, kubeconfig.
MASTER_IDENTITIES: tuple[tuple[str, str, tuple[str, ...], str, str], ...] = (
    ("admin", "admin", ("system:masters",), "root", "admin"),
    (
        "kube-controller-manager",
        "system:kube-controller-manager",
        (),
        "kube-controller-manager",
        "controller-manager",
    ),
    ("kube-scheduler", "system:kube-scheduler", (), "kube-scheduler", "scheduler"),
)

#: What every node needs: component, user (``{name}`` is the node's), groups.
NODE_IDENTITIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("kubelet", "system:node:{name}", ("system:nodes",)),
    ("kube-proxy", "system:kube-proxy", ()),
)

#: The one file that is the masters' shared secret; the files the services read follow from it.
SET = f"{PATHS['kubernetes']}/tokens.set"

#: What the services read of it: kind of content, path, account, mode.
SET_FILES: tuple[tuple[str, str, str, str], ...] = (
    ("tokens", f"{PATHS['kubernetes']}/tokens.csv", "kube-apiserver", "0600"),
    ("service-account-key", f"{PATHS['pki']}/sa.key", "kube-apiserver", "0600"),
    (
        "service-account-key",
        f"{PATHS['pki']}/controller-manager-sa.key",
        "kube-controller-manager",
        "0600",
    ),
    ("service-account-public", f"{PATHS['pki']}/sa.pub", "root", "0644"),
    ("encryption", f"{PATHS['kubernetes']}/encryption.yaml", "kube-apiserver", "0600"),
)


def identities(cluster: Cluster) -> list[dict[str, Any]]:
    """Everyone who needs a token: the masters' components, then each node's.

    Args:
        cluster: The declared cluster.

    Returns:
        One entry an identity: ``name`` (unique; the uid column of the token file), ``user``
        and ``groups`` as Kubernetes sees them, and ``host``, the minion id of the node that
        the token is for, or None where all masters share it.

    Example:
        ``{"name": "kubelet:node1", "user": "system:node:node1", "groups": ["system:nodes"],
        "host": "node1"}``

    Users and groups are those of the Node authoriser and of Kubernetes' built-in roles
    (https://kubernetes.io/docs/reference/access-authn-authz/rbac/#core-component-roles).
    """
    shared: list[dict[str, Any]] = [
        {"name": name, "user": user, "groups": list(groups), "host": None}
        for name, user, groups, _, _ in MASTER_IDENTITIES
    ]
    own: list[dict[str, Any]] = [
        {
            "name": f"{component}:{host.name}",
            "user": user.format(name=host.name),
            "groups": list(groups),
            "host": host.id,
        }
        for host in cluster.with_role("node")
        for component, user, groups in NODE_IDENTITIES
    ]
    return shared + own


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """Token files and kubeconfigs of a host; on a master the shared set's files too.

    Args:
        cluster: The declared cluster.
        host: The host whose view this is.

    Returns:
        ``tokens`` (identity, path, account), ``kubeconfigs`` (no secret in them: they name
        the token's file) and, on a master, ``token_set`` (the set's own path and the files
        that the services read of it). Empty for a host that is neither master nor node.

    Example:
        ``{"tokens": [{"identity": "kubelet:node1", "path": "/etc/kubernetes/tokens/kubelet",
        "user": "root"}, ...], "kubeconfigs": [{"name": "kubelet", ...}, ...]}``
    """
    wanted: list[tuple[str, str, str, str]] = []
    if "master" in host.roles:
        wanted += [(name, name, user, config) for name, _, _, user, config in MASTER_IDENTITIES]
    if "node" in host.roles:
        wanted += [
            (f"{component}:{host.name}", component, "root", component)
            for component, _, _ in NODE_IDENTITIES
        ]
    if not wanted:
        return {}
    result: dict[str, Any] = {
        "tokens": [
            {"identity": identity, "path": f"{PATHS['tokens']}/{file}", "user": user}
            for identity, file, user, _ in wanted
        ],
        "kubeconfigs": [
            {
                "name": config,
                "path": f"{PATHS['kubernetes']}/{config}.kubeconfig",
                "server": cluster.vip.url,
                "authority": f"{PATHS['pki']}/ca.crt",
                "token": f"{PATHS['tokens']}/{file}",
                "user": user,
            }
            for _, file, user, config in wanted
        ],
    }
    if "master" in host.roles:
        result["token_set"] = {
            "path": SET,
            "user": "root",
            "files": [
                {"kind": kind, "path": path, "user": user, "mode": mode}
                for kind, path, user, mode in SET_FILES
            ],
        }
    return result
