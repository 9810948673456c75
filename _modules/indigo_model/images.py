"""Images of add-ons: the one table of what they are, and where a cluster gets them from.

The table drives the manifests, the docs, what nodes load from archives, and ``salt-run
indigo.images``. Digests are those of upstream's multi-architecture manifests, licences those that
the project itself names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import versions
from .cluster import Cluster


@dataclass(frozen=True)
class Image:
    """One image, pinned; ``since`` is the first Kubernetes minor that it is for.

    Where ``digest`` is empty we could not learn upstream's: then it is for the site to name one.
    ``when`` is the setting of the add-on without which it is not run.
    """

    name: str
    addon: str
    repository: str
    tag: str
    digest: str
    licence: str
    since: int = versions.FIRST_MINOR
    when: str = ""

    @property
    def reference(self) -> str:
        """How a manifest names it: repository, tag and digest."""
        return f"{self.repository}:{self.tag}" + (f"@sha256:{self.digest}" if self.digest else "")


#: Of cloud-provider-openstack's controller: release to digest. These and the driver's below are
#: those that upstream promoted: kubernetes/k8s.io, under ``registry.k8s.io/images`` the files of
#: ``k8s-staging-provider-os`` and ``k8s-staging-sig-storage``.
_CONTROLLERS = {
    "v1.24.6": "6ec59e33cffedeaad24b1db21205c673319e8ed44e10f13f31bf0a3da2766650",
    "v1.25.6": "dc29cf330128851cb37fcfc6d577b43121176bf4fa25b1338181dfe89fab8c6f",
    "v1.26.4": "60e515b61e768d33f76a4c67a4c592ec896c78e468927b1e9fd05dc4ad27f95d",
    "v1.27.3": "201e054189150e35c4233dbf7d27aa38f8e5c22c189c570babbe70df9c65d264",
    "v1.28.3": "115383f809474b66ed209af9056934b6d725108bc42dc82d9c9e75c743e551d8",
    "v1.29.1": "b815e308ce5c6a9962d698ae7161053f96b4b2bb17d9adbed577b213295b114e",
    "v1.30.3": "25ee4743a8df7240891c1031785b7d25832058e2d31020181320b9ddf231bebe",
    "v1.31.4": "85b51501b4042922620fa01b687439e0081b598566d3f78b69f444d75f944a84",
    "v1.32.1": "d292e0fe3222b116b6351d21c4499ebfb678d9d99278bece72fce175529097ea",
    "v1.33.1": "de8a6da8c31c7b967625451a7169309d6f77aee1ff64b3f8e6ba8d8810ce2a22",
}

#: The driver and what upstream ships beside it, by release: the first runs with what Kubernetes
#: 1.20 has, the second needs 1.25 (its snapshotter says so).
_CINDER = {
    20: {
        "cinder-csi-plugin": (
            "v1.24.6",
            "4eabd63cb7972e77978f4b17a7072f922eec7811f843d9c85991ee02d46a2375",
        ),
        "csi-attacher": (
            "v3.4.0",
            "8b9c313c05f54fb04f8d430896f5f5904b6cb157df261501b29adc04d2b2dc7b",
        ),
        "csi-provisioner": (
            "v3.1.0",
            "122bfb8c1edabb3c0edd63f06523e6940d958d19b3957dc7b1d6f81e9f1f6119",
        ),
        "csi-resizer": (
            "v1.4.0",
            "9ebbf9f023e7b41ccee3d52afe39a89e3ddacdbb69269d583abfc25847cfd9e4",
        ),
        "csi-snapshotter": (
            "v5.0.1",
            "89e900a160a986a1a7a4eba7f5259e510398fa87ca9b8a729e7dec59e04c7709",
        ),
        "csi-node-driver-registrar": (
            "v2.5.0",
            "4fd21f36075b44d1a423dfb262ad79202ce54e95f5cbc4622a6c1c38ab287ad6",
        ),
        "livenessprobe": (
            "v2.6.0",
            "406f59599991916d2942d8d02f076d957ed71b541ee19f09fc01723a6e6f5932",
        ),
    },
    25: {
        "cinder-csi-plugin": (
            "v1.33.1",
            "aedbd86f1292179d64cf9894c8eb05a79c36c7f8cdfd538e65ad5248058472a7",
        ),
        "csi-attacher": (
            "v4.7.0",
            "6e54dae32284f60a2de1645c527715e4c934e5ce7899560c0d845bac957118dc",
        ),
        "csi-provisioner": (
            "v5.1.0",
            "672e45d6a55678abc1d102de665b5cbd63848e75dc7896f238c8eaaf3c7d322f",
        ),
        "csi-resizer": (
            "v1.12.0",
            "ab774734705a906561e15b67f6a96538f3ad520335d636f793aaafe87a3b5200",
        ),
        "csi-snapshotter": (
            "v8.1.0",
            "b3e90b33781670ac050c22c9e88b9e876493dca248966b9da6f7a90cc412ab86",
        ),
        "csi-node-driver-registrar": (
            "v2.12.0",
            "0d23a6fd60c421054deec5e6d0405dc3498095a5a597e175236c0692f4adee0f",
        ),
        "livenessprobe": (
            "v2.14.0",
            "33692aed26aaf105b4d6e66280cceca9e0463f500c81b5d8c955428a75438f32",
        ),
    },
}


def _of_openstack() -> Iterator[Image]:
    """Rows of the add-on ``openstack``."""
    for since, parts in _CINDER.items():
        for name, (tag, digest) in parts.items():
            group = "provider-os" if name == "cinder-csi-plugin" else "sig-storage"
            yield Image(
                name,
                "openstack",
                f"registry.k8s.io/{group}/{name}",
                tag,
                digest,
                "Apache-2.0",
                since=since,
            )
    name = "openstack-cloud-controller-manager"
    for tag, digest in _CONTROLLERS.items():
        # Before the first of them validation lets nobody have one.
        since = int(tag.split(".")[1]) if tag != next(iter(_CONTROLLERS)) else versions.FIRST_MINOR
        yield Image(
            name,
            "openstack",
            f"registry.k8s.io/provider-os/{name}",
            tag,
            digest,
            "Apache-2.0",
            since=since,
        )


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
    *_of_openstack(),
    Image(
        "zabbix-server-pgsql",
        "zabbix",
        "docker.io/zabbix/zabbix-server-pgsql",
        "alpine-7.0.28",
        "7b8628474136fae6e1d643278e46ab6d3cd66146fe0a4dbc64a1d22a61ae0c85",
        "AGPL-3.0",
    ),
    Image(
        "zabbix-web-nginx-pgsql",
        "zabbix",
        "docker.io/zabbix/zabbix-web-nginx-pgsql",
        "alpine-7.0.28",
        "4d109f30358363e4483d4aac43eeec80eb4ec605c9d300f4c235475056c5b06e",
        "AGPL-3.0",
    ),
    Image(
        "postgres",
        "zabbix",
        "docker.io/library/postgres",
        "16.6",
        "557fea37a744d5f4c8faab304b0a90858b53ab119735a88c131fd19dab802f36",
        "PostgreSQL",
    ),
    Image("im", "im", "ghcr.io/grycap/im", "2.0.0", "", "GPL-3.0"),
    # Of what Kubernetes has it lists pods alone, which are the same in every release. The digest is
    # that of public lock files: the promotion file that could be read ends at 2.8.1.
    Image(
        "kube-state-metrics",
        "accounting",
        "registry.k8s.io/kube-state-metrics/kube-state-metrics",
        "v2.15.0",
        "db384bf43222b066c378e77027a675d4cd9911107adba46c2922b3a55e10d6fb",
        "Apache-2.0",
    ),
    Image(
        "kapel",
        "accounting",
        "hub.opensciencegrid.org/iris-hep/kuantifier-processor",
        "1.0.0",
        "",
        "GPL-3.0",
    ),
    Image("ssm", "accounting", "ghcr.io/apel/ssm", "4.0.0-1", "", "Apache-2.0", when="publish"),
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


def run(image: Image, wanted: Mapping[str, Any]) -> bool:
    """Whether an image is run.

    Args:
        image: A row of the table.
        wanted: Add-ons, and what the site set of each.
    """
    settings = wanted.get(image.addon) or {}
    return image.addon in wanted and (not image.when or bool(settings.get(image.when)))


def unpinned(wanted: Mapping[str, Any]) -> list[Image]:
    """Of some add-ons the images that only the site can pin, with ``images.use``.

    Args:
        wanted: Their names, and what the site set of each.

    Example:
        >>> [one.name for one in unpinned({"coredns": {}, "accounting": {"site": "X"}})]
        ['kapel']
    """
    return [image for image in TABLE if run(image, wanted) and not image.digest]


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
        if not run(row, cluster.addons):
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
