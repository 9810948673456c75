"""Which binaries a host gets, from where, and the checksum that each download must have.

Upstream's release sites are the default. ``artifacts`` of the user's file changes that::

    artifacts:
      mirror: https://mirror.example.org     # or salt://…, file:///…, /srv/mirror
      urls: {runc: "https://example.org/runc-{version}-{arch}"}
      checksums: {runc: {"1.4.2": {amd64: "sha256:…"}}}

A mirror has the layout that ``wget -x`` makes: the host name is the first folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .checksums import CHECKSUMS
from .cluster import PATHS, Cluster, Host
from .versions import parse

#: Machine architectures, by their names upstream and in Salt's ``osarch`` of Debian.
ARCHITECTURES = ("amd64", "arm64")

_HASH = re.compile(r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")

_RELEASES = "https://github.com"

#: Where upstream publishes each part. ``{binary}`` is only used with ``kubernetes``.
URLS: Mapping[str, str] = {
    "kubernetes": "https://dl.k8s.io/v{version}/bin/linux/{arch}/{binary}",
    "kubernetes-server": "https://dl.k8s.io/v{version}/kubernetes-server-linux-{arch}.tar.gz",
    "kubernetes-node": "https://dl.k8s.io/v{version}/kubernetes-node-linux-{arch}.tar.gz",
    "etcd": _RELEASES
    + "/etcd-io/etcd/releases/download/v{version}/etcd-v{version}-linux-{arch}.tar.gz",
    "containerd": _RELEASES
    + "/containerd/containerd/releases/download/v{version}"
    + "/containerd-{version}-linux-{arch}.tar.gz",
    "runc": _RELEASES + "/opencontainers/runc/releases/download/v{version}/runc.{arch}",
    "cni-plugins": _RELEASES
    + "/containernetworking/plugins/releases/download/v{version}"
    + "/cni-plugins-linux-{arch}-v{version}.tgz",
    "flannel": _RELEASES + "/flannel-io/flannel/releases/download/v{version}/flanneld-{arch}",
    "cni-flannel": _RELEASES + "/flannel-io/cni-plugin/releases/download/v{version}/flannel-{arch}",
}

#: Where a person finds the checksum of a part.
PUBLISHED: Mapping[str, str] = {
    "kubernetes": "https://dl.k8s.io/v{version}/bin/linux/{arch}/{binary}.sha256",
    "kubernetes-server": "the release's CHANGELOG file in github.com/kubernetes/kubernetes",
    "kubernetes-node": "the release's CHANGELOG file in github.com/kubernetes/kubernetes",
    "etcd": "SHA256SUMS of the release at github.com/etcd-io/etcd",
    "containerd": "the .sha256sum file of the release at github.com/containerd/containerd",
    "runc": "runc.sha256sum of the release at github.com/opencontainers/runc",
    "cni-plugins": "the .sha256 file of the release at github.com/containernetworking/plugins",
    "flannel": "the asset's digest on the release page of github.com/flannel-io/flannel",
    "cni-flannel": "the asset's digest on the release page of github.com/flannel-io/cni-plugin",
}

#: Kubernetes binaries of each role, and the archive that holds them all.
KUBERNETES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "master": (
        "kubernetes-server",
        "kubernetes/server/bin",
        ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
    ),
    "node": ("kubernetes-node", "kubernetes/node/bin", ("kubelet", "kube-proxy")),
}


@dataclass(frozen=True)
class Artifact:
    """One folder on a host, filled from one download.

    ``members`` maps each installed file to its path inside the archive. An empty path means that
    the download is the file; no members at all mean everything in a flat archive. ``{arch}``
    in a path stands for the host's architecture, which the host fills in.
    """

    name: str
    version: str
    sources: Mapping[str, Mapping[str, str]]
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Folder of the artifact: one per name and version, so versions never mix."""
        return f"{PATHS['artifacts']}/{self.name}-{self.version}"

    def as_view(self) -> dict[str, Any]:
        """The artifact in JSON types, as the state ``indigo_artifact.installed`` takes it."""
        return {
            "name": self.name,
            "path": self.path,
            "sources": {arch: dict(source) for arch, source in self.sources.items()},
            "members": dict(self.members),
        }


def mirrored(url: str, mirror: str | None) -> str:
    """The address of an upstream URL on the user's mirror.

    Args:
        url: Upstream's URL, with ``https://``.
        mirror: Base of the mirror: ``http(s)://…``, ``salt://…``, ``file://…`` or an absolute
            folder; None for upstream itself.

    Example:
        >>> mirrored("https://dl.k8s.io/v1.36.2/x", "salt://artifacts")
        'salt://artifacts/dl.k8s.io/v1.36.2/x'
    """
    if not mirror:
        return url
    separator = "" if mirror.endswith("/") else "/"
    return mirror + separator + url.removeprefix("https://")


def url(cluster: Cluster, part: str, version: str, arch: str, binary: str = "") -> str:
    """Where a host downloads a part from: the user's own URL, the mirror, or upstream."""
    own = cluster.artifacts.get("urls") or {}
    pattern = own.get(binary) or own.get(part)
    values = {"version": version, "arch": arch, "binary": binary}
    if pattern:
        try:
            return str(pattern).format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"artifacts.urls.{binary or part}: {pattern!r} is not a pattern ({error}); it may "
                "hold {version}, {arch} and {binary}"
            ) from None
    return mirrored(URLS[part].format(**values), cluster.artifacts.get("mirror"))


def _key(part: str, version: str, arch: str, binary: str = "") -> str:
    tail = f".{binary}" if binary else ""
    return f'artifacts.checksums.{part}."{version}".{arch}{tail}'


def _user_checksum(
    cluster: Cluster, part: str, version: str, arch: str, binary: str = ""
) -> str | None:
    of_part = (cluster.artifacts.get("checksums") or {}).get(part) or {}
    of_version = of_part.get(version) or of_part.get(f"v{version}") or {}
    found = of_version.get(arch)
    if binary:
        found = (found or {}).get(binary)
    if found is None:
        return None
    text = str(found).lower()
    if not _HASH.match(text):
        raise ValueError(
            f"{_key(part, version, arch, binary)}: {found!r} is no checksum; expected sha256: "
            "with 64 or sha512: with 128 hexadecimal digits"
        )
    return text


def checksum(cluster: Cluster, part: str, version: str, arch: str, binary: str = "") -> str | None:
    """The checksum a download must have: the user's, else the table's, else None.

    Args:
        cluster: The declaration.
        part: ``kubernetes``, ``etcd`` and so on.
        version: Version of the part.
        arch: ``amd64`` or ``arm64``.
        binary: With ``kubernetes`` the file: ``kubelet``, ``kubernetes-server``…

    Raises:
        ValueError: The user's entry is no checksum.
    """
    own = _user_checksum(cluster, part, version, arch, binary)
    if own:
        return own
    known = CHECKSUMS.get(part, {}).get(version, {}).get(arch)
    if binary:
        known = (known or {}).get(binary)
    return known


def _missing(part: str, version: str, binary: str = "", arch: str = "amd64") -> ValueError:
    published = PUBLISHED[part].format(version=version, arch=arch, binary=binary)
    known = ", ".join(CHECKSUMS.get(part, {})) or "none"
    return ValueError(
        f"{_key(part, version, arch, binary)}: no checksum is known of {binary or part} "
        f"{version}, and nothing unverified is installed. Set that key to sha256:… as published "
        f"in {published}, for every architecture in use, or pin under versions.{part} one whose "
        f"checksums are known: {known}"
    )


def _single(cluster: Cluster, part: str, members: Mapping[str, str]) -> Artifact:
    version = cluster.versions[part]
    sources = {
        arch: {"source": url(cluster, part, version, arch), "hash": found}
        for arch in ARCHITECTURES
        if (found := checksum(cluster, part, version, arch))
    }
    if not sources:
        raise _missing(part, version)
    return Artifact(part, version, sources, members)


def _kubernetes(cluster: Cluster, role: str) -> list[Artifact]:
    """A role's Kubernetes binaries: one by one where all checksums are known, else an archive."""
    archive, folder, binaries = KUBERNETES[role]
    version = cluster.versions["kubernetes"]
    known = {
        arch: {name: checksum(cluster, "kubernetes", version, arch, name) for name in binaries}
        for arch in ARCHITECTURES
    }
    complete = [arch for arch in ARCHITECTURES if all(known[arch].values())]
    if complete:
        return [
            Artifact(
                name,
                version,
                {
                    arch: {
                        "source": url(cluster, "kubernetes", version, arch, name),
                        "hash": str(known[arch][name]),
                    }
                    for arch in complete
                },
                {name: ""},
            )
            for name in binaries
        ]
    for arch in ARCHITECTURES:
        if any(known[arch].values()):
            lacking = next(name for name in binaries if not known[arch][name])
            raise _missing("kubernetes", version, lacking, arch)
    sources = {
        arch: {"source": url(cluster, archive, version, arch), "hash": found}
        for arch in ARCHITECTURES
        if (found := checksum(cluster, "kubernetes", version, arch, archive))
    }
    if not sources:
        raise _missing("kubernetes", version, binaries[0])
    members = {name: f"{folder}/{name}" for name in binaries}
    return [Artifact(f"kubernetes-{role}", version, sources, members)]


def _etcd(cluster: Cluster) -> Artifact:
    version = cluster.versions["etcd"]
    tools = ["etcd", "etcdctl"]
    if parse(version) >= (3, 5, 0):
        tools.append("etcdutl")
    folder = f"etcd-v{version}-linux-{{arch}}"
    return _single(cluster, "etcd", {name: f"{folder}/{name}" for name in tools})


def wanted(cluster: Cluster, host: Host) -> list[Artifact]:
    """Artifacts that the roles of a host need, in the order of its layers.

    Raises:
        ValueError: No checksum is known of one of them; the message names the key to set.
    """
    result: list[Artifact] = []
    if "etcd" in host.roles:
        result.append(_etcd(cluster))
    if "master" in host.roles:
        result += _kubernetes(cluster, "master")
    if "node" in host.roles:
        result += _kubernetes(cluster, "node")
        shims = ("containerd", "containerd-shim-runc-v2", "ctr")
        result.append(_single(cluster, "containerd", {name: f"bin/{name}" for name in shims}))
        result.append(_single(cluster, "runc", {"runc": ""}))
        result.append(_single(cluster, "cni-plugins", {}))
        if cluster.network == "flannel":
            result.append(_single(cluster, "flannel", {"flanneld": ""}))
            result.append(_single(cluster, "cni-flannel", {"flannel": ""}))
    return result


def view(cluster: Cluster, host: Host) -> dict[str, Any]:
    """The host's artifacts and the path of every executable in them.

    Args:
        cluster: The declaration.
        host: The host the view is for.

    Returns:
        ``{}`` for a host that needs no binaries, else ``artifacts`` (folder, sources by
        architecture, members) and ``binaries`` (name to path). The CNI plugins are not listed
        one by one; their folder is ``binaries['cni-plugins']``.

    Raises:
        ValueError: No checksum is known of something the host needs.
    """
    found = wanted(cluster, host)
    if not found:
        return {}
    binaries: dict[str, str] = {}
    for artifact in found:
        if artifact.members:
            for name in artifact.members:
                key = "cni-flannel" if artifact.name == "cni-flannel" else name
                binaries[key] = f"{artifact.path}/{name}"
        else:
            binaries[artifact.name] = artifact.path
    return {"artifacts": [artifact.as_view() for artifact in found], "binaries": binaries}
