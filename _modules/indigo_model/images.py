"""Images of add-ons: the one table of what they are, and where a cluster gets them from.

The table drives the manifests, the docs, what nodes load from archives, and ``salt-run
indigo.images``. Digests are those of upstream's multi-architecture manifests, licences those that
the project itself names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import versions
from .cluster import Cluster


@dataclass(frozen=True)
class Image:
    """One image, pinned; ``since`` is the first Kubernetes minor that it is for.

    Where ``digest`` is empty we could not learn upstream's: then it is for the site to name one.
    """

    name: str
    addon: str
    repository: str
    tag: str
    digest: str
    licence: str
    since: int = versions.FIRST_MINOR

    @property
    def reference(self) -> str:
        """How a manifest names it: repository, tag and digest."""
        return f"{self.repository}:{self.tag}" + (f"@sha256:{self.digest}" if self.digest else "")


#: Of several rows with a name the last holds whose ``since`` is not above the cluster's minor.
TABLE: tuple[Image, ...] = (
    Image(
        "coredns",
        "coredns",
        "registry.k8s.io/coredns/coredns",
        "v1.10.1",
        "a0ead06651cf580044aeb0a0feba63591858fb2e43ade8c9dea45a6a89ae7e5e",
        "Apache-2.0",
    ),
    # From 1.11 on it needs EndpointSlices of discovery.k8s.io/v1, which came with 1.21.
    Image(
        "coredns",
        "coredns",
        "registry.k8s.io/coredns/coredns",
        "v1.12.1",
        "e8c262566636e6bc340ece6473b0eed193cad045384401529721ddbe6463d31c",
        "Apache-2.0",
        since=21,
    ),
    Image(
        "metrics-server",
        "metrics-server",
        "registry.k8s.io/metrics-server/metrics-server",
        "v0.7.2",
        "ffcb2bf004d6aa0a17d90e0247cf94f2865c8901dcab4427034c341951c239f9",
        "Apache-2.0",
    ),
    Image(
        "prometheus",
        "prometheus",
        "quay.io/prometheus/prometheus",
        "v2.55.1",
        "2659f4c2ebb718e7695cb9b25ffa7d6be64db013daba13e05c875451cf51b0d3",
        "Apache-2.0",
    ),
    Image(
        "node-exporter",
        "prometheus",
        "quay.io/prometheus/node-exporter",
        "v1.8.2",
        "4032c6d5bfd752342c3e631c2f1de93ba6b86c41db6b167b9a35372c139e7706",
        "Apache-2.0",
    ),
    # InfluxDB 2 and 3 have no endpoint that Prometheus could read from.
    Image(
        "influxdb",
        "influxdb",
        "docker.io/library/influxdb",
        "1.8.10",
        "299ebda2c7e308dbef42e26ac9b8fd1d9b3bcb8a0aee80c6509aa0219c1d0290",
        "MIT",
    ),
    Image(
        "traefik",
        "ingress",
        "docker.io/library/traefik",
        "v3.0.4",
        "a208c74fd80a566d4ea376053bff73d31616d7af3f1465a7747b8b89ee34d97e",
        "MIT",
    ),
    # From 3.1 on it needs EndpointSlices of discovery.k8s.io/v1, which came with 1.21.
    Image(
        "traefik",
        "ingress",
        "docker.io/library/traefik",
        "v3.7.9",
        "652929a140a32d7cafafb13c6cdfab5376cfeff800f51397b87b524501ed02a8",
        "MIT",
        since=21,
    ),
    Image(
        "alertmanager",
        "alertmanager",
        "docker.io/prom/alertmanager",
        "v0.27.0",
        "e13b6ed5cb929eeaee733479dce55e10eb3bc2e9c4586c705a4e8da41e5eacf5",
        "Apache-2.0",
    ),
    Image(
        "grafana",
        "grafana",
        "docker.io/grafana/grafana",
        "12.1.0",
        "6ac590e7cabc2fbe8d7b8fc1ce9c9f0582177b334e0df9c927ebd9670469440f",
        "AGPL-3.0",
    ),
    Image(
        "headlamp",
        "headlamp",
        "ghcr.io/headlamp-k8s/headlamp",
        "v0.45.0",
        "db3f0e0fc58d358d41daa3fe7fc852437552c7ee873c3645470f7b86a8e0db49",
        "Apache-2.0",
    ),
    Image(
        "fluent-bit",
        "logging",
        "docker.io/fluent/fluent-bit",
        "3.2.10",
        "d6dec000c4929a439562525728c708f6e99800d7ddc82efd6aa4f45f3a20b562",
        "Apache-2.0",
    ),
    Image(
        "elasticsearch",
        "logging",
        "docker.elastic.co/elasticsearch/elasticsearch",
        "8.17.3",
        "224c75e346bd745ce908f06a1cbad7bf10988961dcdcdfccb22556b3f856b3f0",
        "Elastic-2.0",
    ),
    Image(
        "kibana",
        "logging",
        "docker.elastic.co/kibana/kibana",
        "8.17.3",
        "7dfee7a14cf7de9f22285d9e9db3bf423c36f3f4a82c0dce7294b0fb1532c863",
        "Elastic-2.0",
    ),
    Image("im", "im", "ghcr.io/grycap/im", "2.0.0", "", "GPL-3.0"),
)

#: Names that ``images.use`` may have.
NAMES = tuple(dict.fromkeys(image.name for image in TABLE))


def pinned(name: str, kubernetes: str) -> Image:
    """The row of an image for a Kubernetes release.

    Raises:
        KeyError: The table has no such image.

    Example:
        >>> pinned("coredns", "1.20.2").tag
        'v1.10.1'
    """
    minor = versions.minor(kubernetes)
    found = [image for image in TABLE if image.name == name and minor >= image.since]
    if not found:
        raise KeyError(name)
    return found[-1]


def unpinned(wanted: Iterable[str]) -> list[Image]:
    """Of some add-ons the images that only the site can pin, with ``images.use``.

    >>> [one.name for one in unpinned(["coredns", "im"])]
    ['im']
    """
    addons = set(wanted)
    return [image for image in TABLE if image.addon in addons and not image.digest]


def reference(cluster: Cluster, name: str) -> str:
    """What manifests call an image: the site's own, else the pinned one."""
    own = cluster.images.get("use", {}).get(name)
    return str(own) if own else pinned(name, cluster.versions["kubernetes"]).reference


def of_addon(cluster: Cluster, addon: str) -> dict[str, str]:
    """References of all images of an add-on, by their names."""
    return {
        name: reference(cluster, name)
        for name in NAMES
        if pinned(name, cluster.versions["kubernetes"]).addon == addon
    }


def needed(cluster: Cluster) -> list[dict[str, Any]]:
    """Images of the wanted add-ons, and which archive brings each.

    Returns:
        In the order of the table ``name``, ``addon``, ``reference``, ``licence`` (of the pinned
        image; None where the site uses its own) and ``archive`` (source, or None: it is pulled).
    """
    archives = {
        bare(str(one["name"])): one["source"]
        for one in cluster.images.get("archives") or ()
        if one.get("name")
    }
    result = []
    for name in NAMES:
        row = pinned(name, cluster.versions["kubernetes"])
        if row.addon not in cluster.addons:
            continue
        found = reference(cluster, name)
        result.append(
            {
                "name": name,
                "addon": row.addon,
                "reference": found,
                "licence": row.licence if found == row.reference else None,
                "archive": archives.get(bare(found)),
            }
        )
    return result


def loaded(cluster: Cluster, archives: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of some archives those that nodes are to load: not those of add-ons that nobody wants.

    Example:
        >>> from .cluster import Vip
        >>> c = Cluster("x", {}, Vip("10.0.0.9", "eth0"), "", "", versions=versions.resolve({}),
        ...             images={"use": {"prometheus": "my/prometheus:1"}})
        >>> loaded(c, [{"name": "my/prometheus:1"}, {"name": "my/web:1"}])
        [{'name': 'my/web:1'}]
    """
    wanted = {bare(one["reference"]) for one in needed(cluster)}
    idle = {bare(reference(cluster, name)) for name in NAMES} - wanted
    return [one for one in archives if bare(str(one.get("name", ""))) not in idle]


def bare(name: str) -> str:
    """An image's name without its digest, which an archive may not tell.

    >>> bare("quay.io/x/y:v1@sha256:00")
    'quay.io/x/y:v1'
    """
    return name.partition("@")[0]


def table() -> str:
    """The table of ``docs/operations/addons.md``, as Markdown."""
    lines = ["| Image | Add-on | Kubernetes | Reference | Licence |", "|---|---|---|---|---|"]
    for image in TABLE:
        later = [one.since for one in TABLE if one.name == image.name and one.since > image.since]
        span = f"from 1.{image.since}"
        if later:
            last = min(later) - 1
            span = f"1.{image.since}" if last == image.since else f"1.{image.since} to 1.{last}"
        elif image.since == versions.FIRST_MINOR:
            span = "all"
        shown = f"`{image.reference}`" + ("" if image.digest else ", digest: the site's to name")
        lines.append(f"| `{image.name}` | `{image.addon}` | {span} | {shown} | {image.licence} |")
    return "\n".join(lines)
