"""OpenStack: disks of Cinder for claims, and, where wanted, load balancers of Octavia for services.

The add-on leaves kubelets as they are. With ``--cloud-provider=external`` a node that registers
waits, tainted, until a cloud controller knows it, and that controller deletes the Node of a host
that stopped answering and that the cloud does not know by its name. None of this is needed for
disks: the driver asks the metadata of the server that it runs on. So the cloud controller is off
by default, and where it is on it has its service controller alone.

Sources: cloud-provider-openstack's docs "CSI Cinder driver" and "Openstack Cloud Controller
Manager"; gopkg.in/gcfg.v1 for the file's syntax; kubernetes.io "Cloud Controller Manager
Administration" and "Version Skew Policy".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from . import versions
from .cluster import PATHS, Cluster

NAME = "openstack"

#: Settings of ``addons.openstack``; those without a value here that are required validation names.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "auth_url": None,
        "region": None,
        "project": None,
        "user": None,
        "domain": "Default",
        "application_credential": None,
        "ca": None,
        "ca_sha256": None,
        "storage_class": "cinder",
        "default_class": False,
        "type": None,
        "zone": None,
        "any_zone": False,
        "volumes_per_node": None,
        "keep": False,
        "snapshots": False,
        "cloud_controller": False,
        "subnet": None,
        "floating_network": None,
    }
)

#: Name of the driver, as CSINode and StorageClass have it.
DRIVER = "cinder.csi.openstack.org"

#: On the first master, 0600: the user's password, or the secret of the application credential.
SECRET_FILE = f"{PATHS['kubernetes']}/openstack.secret"

#: Namespace and name of the Secret with ``cloud.conf`` and the authority, and where pods see it.
SECRET = f"{NAME}/cloud"
FOLDER = "/etc/openstack"

#: First minor of the driver whose part on nodes knows no password.
NO_PASSWORD_ON_NODES = 25

#: Name of the image of the cloud controller.
CONTROLLER = "openstack-cloud-controller-manager"

#: First and last minor that a pinned image of the cloud controller is for: never newer than the
#: API server, at most one minor older.
CONTROLLER_MINORS = (24, 34)

METADATA = {"search-order": "configDrive,metadataService"}

#: Option of the driver by which a volume's zone binds no pod to servers of a zone of that name.
ANY_ZONE = "ignore-volume-az"


def settings(cluster: Cluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifests are filled with, beside what the site set.

    Returns:
        ``cluster`` (its name), ``driver``, ``folder`` and ``secret`` (name) of the way to the
        cloud, ``clouds`` (the Secrets that the state makes, see :func:`cloud`), ``digest`` of what
        programs read at their start, ``replicas``, ``nodes``, ``parameters`` of the class,
        ``node_password`` (whether nodes need the Secret), ``node_sections`` (of ``cloud.conf``,
        for those that do not).
    """
    minor = versions.minor(cluster.versions["kubernetes"])
    nodes = [host.name for host in cluster.with_role("node")]
    way = cloud(given)
    return {
        "cluster": cluster.name,
        "driver": DRIVER,
        "folder": FOLDER,
        "secret": SECRET.partition("/")[2],
        "clouds": [way],
        "digest": hashlib.sha256(json.dumps(way, sort_keys=True).encode()).hexdigest()[:16],
        "replicas": min(2, max(1, len(nodes))),
        "nodes": nodes,
        "parameters": {
            key: given[setting]
            for key, setting in (("type", "type"), ("availability", "zone"))
            if given[setting]
        },
        "node_password": minor < NO_PASSWORD_ON_NODES,
        "node_sections": {
            name: {option: word for option, word in options.items() if option != ANY_ZONE}
            for name, options in way["sections"].items()
            if name in ("Metadata", "BlockStorage")
        },
    }


def cloud(given: Mapping[str, Any]) -> dict[str, Any]:
    """How to reach the cloud, all but the secret.

    Returns:
        ``secret`` (namespace/name); ``sections`` of ``cloud.conf``; ``option`` of its section
        ``Global`` whose value is in ``file``, on the first master; ``authority``, where the site
        has its own: ``source``, ``sha256`` and ``name``, the key in the Secret.

    Example:
        >>> found = cloud({**DEFAULTS, "auth_url": "https://x/v3", "region": "r", "user": "u",
        ...                "project": "p"})
        >>> found["sections"]["Global"]["tenant-id"], found["option"]
        ('p', 'password')
    """
    by_credential = given["application_credential"] is not None
    who = (
        {"application-credential-id": given["application_credential"]}
        if by_credential
        else {
            "username": given["user"],
            "user-domain-name": given["domain"],
            "tenant-id": given["project"],
        }
    )
    authority = None
    if given["ca"]:
        authority = {"source": given["ca"], "sha256": given["ca_sha256"], "name": "ca.pem"}
        who["ca-file"] = f"{FOLDER}/ca.pem"
    sections = {
        "Global": {"auth-url": given["auth_url"], "region": given["region"], **who},
        "Metadata": METADATA,
    }
    disks = {
        ANY_ZONE: "true" if given["any_zone"] else None,
        "node-volume-attach-limit": given["volumes_per_node"],
    }
    if any(disks.values()):
        sections["BlockStorage"] = {key: value for key, value in disks.items() if value}
    if given["cloud_controller"]:
        balancers = {
            "subnet-id": given["subnet"],
            "floating-network-id": given["floating_network"],
            # Without it the first external network that it finds would give them an address.
            "internal-lb": None if given["floating_network"] else "true",
            # A node that does not answer stays a member, and would keep its share of connections.
            "create-monitor": "true",
        }
        sections["LoadBalancer"] = {key: value for key, value in balancers.items() if value}
    return {
        "secret": SECRET,
        "sections": sections,
        "option": "application-credential-secret" if by_credential else "password",
        "file": SECRET_FILE,
        "authority": authority,
    }
