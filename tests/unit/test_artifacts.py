"""Artifacts: who gets what, from where, and never without a checksum."""

from __future__ import annotations

import doctest
import json
import re
from typing import Any

import pytest
from indigo_model import artifacts, cluster, versions
from indigo_model.checksums import CHECKSUMS

SHA256 = "sha256:" + "ab" * 32
SHA512 = "sha512:" + "cd" * 64
MASTER = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = ("kubelet", "kube-proxy")


def declared(**settings: Any) -> cluster.Cluster:
    """A cluster with one host per role, and one that has them all."""
    hosts = {
        name: {"address": f"10.0.0.{index}", "roles": roles}
        for index, (name, roles) in enumerate(
            {
                "salt": ["ca"],
                "lb1": ["lb"],
                "etcd1": ["etcd"],
                "master1": ["master"],
                "node1": ["node"],
                "all": ["lb", "etcd", "master", "node"],
            }.items(),
            start=1,
        )
    }
    return cluster.parse(
        {
            "name": "test",
            "vip": {"address": "10.0.0.100", "interface": "eth0"},
            "hosts": hosts,
            "networks": {"services": "10.96.0.0/16", "pods": "10.244.0.0/16"},
            **settings,
        }
    )


def view(host: str, **settings: Any) -> dict[str, Any]:
    described = declared(**settings)
    return artifacts.view(described, described.hosts[host])


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {artifact["name"]: artifact for artifact in found["artifacts"]}


def only(version: str, sums: dict[str, str], arch: str = "amd64") -> dict[str, Any]:
    """Settings that pin a Kubernetes and give the checksums of some of its files."""
    return {
        "versions": {"kubernetes": version},
        "artifacts": {"checksums": {"kubernetes": {version: {arch: sums}}}},
    }


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(artifacts)
    assert result.attempted
    assert result.failed == 0


# 1. Who gets what.


@pytest.mark.parametrize("host", ["salt", "lb1"])
def test_hosts_without_binaries_get_an_empty_view(host: str) -> None:
    assert view(host) == {}


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("etcd1", ["etcd"]),
        ("master1", list(MASTER)),
        ("node1", [*NODE, "containerd", "runc", "cni-plugins"]),
        ("all", ["etcd", *MASTER, *NODE, "containerd", "runc", "cni-plugins"]),
    ],
)
def test_roles_get_their_artifacts(host: str, names: list[str]) -> None:
    assert [artifact["name"] for artifact in view(host)["artifacts"]] == names


def test_every_executable_is_in_an_artifact_of_its_path() -> None:
    found = view("all")
    paths = {
        f"{artifact['path']}/{name}"
        for artifact in found["artifacts"]
        for name in artifact["members"]
    } | {artifact["path"] for artifact in found["artifacts"] if not artifact["members"]}
    assert set(found["binaries"].values()) == paths
    for name in ("etcd", "etcdctl", *MASTER, *NODE, "containerd", "ctr", "runc", "cni-plugins"):
        assert name in found["binaries"]


def test_the_view_is_json_and_names_are_unique() -> None:
    found = view("all")
    assert json.loads(json.dumps(found)) == found
    paths = [artifact["path"] for artifact in found["artifacts"]]
    assert len(set(paths)) == len(paths)


def test_etcdutl_comes_with_etcd_3_5() -> None:
    checksums = {"etcd": {"3.4.23": {"amd64": SHA256}}}
    old = view("etcd1", versions={"etcd": "3.4.23"}, artifacts={"checksums": checksums})
    assert set(by_name(old)["etcd"]["members"]) == {"etcd", "etcdctl"}
    assert set(by_name(view("etcd1"))["etcd"]["members"]) == {"etcd", "etcdctl", "etcdutl"}


def test_flannel_only_with_its_network() -> None:
    checksum = {"1.7.1-flannel1": {"amd64": SHA256}}
    found = view(
        "node1",
        network="flannel",
        versions={"cni-flannel": "1.7.1-flannel1"},
        artifacts={"checksums": {"cni-flannel": checksum}},
    )
    assert by_name(found)["flannel"]["members"] == {"flanneld": ""}
    assert by_name(found)["cni-flannel"]["members"] == {"flannel": ""}
    assert found["binaries"]["cni-flannel"].endswith("/flannel")
    assert "flannel" not in by_name(view("node1"))


# 2. From where.


@pytest.mark.parametrize("arch", artifacts.ARCHITECTURES)
def test_upstream_urls(arch: str) -> None:
    found = by_name(view("all"))
    release = versions.DEFAULTS
    base = "https://github.com"
    expected = {
        "kubelet": f"https://dl.k8s.io/v{release['kubernetes']}/bin/linux/{arch}/kubelet",
        "etcd": f"{base}/etcd-io/etcd/releases/download/v{release['etcd']}"
        f"/etcd-v{release['etcd']}-linux-{arch}.tar.gz",
        "containerd": f"{base}/containerd/containerd/releases/download/v{release['containerd']}"
        f"/containerd-{release['containerd']}-linux-{arch}.tar.gz",
        "runc": f"{base}/opencontainers/runc/releases/download/v{release['runc']}/runc.{arch}",
        "cni-plugins": f"{base}/containernetworking/plugins/releases/download"
        f"/v{release['cni-plugins']}/cni-plugins-linux-{arch}-v{release['cni-plugins']}.tgz",
    }
    assert {name: found[name]["sources"][arch]["source"] for name in expected} == expected


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        ("http://10.0.0.1:8080", "http://10.0.0.1:8080/dl.k8s.io/v1.36.3/x"),
        ("https://mirror.example.org/k8s/", "https://mirror.example.org/k8s/dl.k8s.io/v1.36.3/x"),
        ("salt://", "salt://dl.k8s.io/v1.36.3/x"),
        ("salt://artifacts", "salt://artifacts/dl.k8s.io/v1.36.3/x"),
        ("file:///srv/mirror", "file:///srv/mirror/dl.k8s.io/v1.36.3/x"),
        ("/srv/mirror", "/srv/mirror/dl.k8s.io/v1.36.3/x"),
        (None, "https://dl.k8s.io/v1.36.3/x"),
    ],
)
def test_mirror(mirror: str | None, expected: str) -> None:
    assert artifacts.mirrored("https://dl.k8s.io/v1.36.3/x", mirror) == expected


def test_every_source_of_a_mirrored_cluster_is_on_the_mirror() -> None:
    found = view("all", artifacts={"mirror": "http://10.0.0.1"})
    for artifact in found["artifacts"]:
        for source in artifact["sources"].values():
            assert source["source"].startswith(
                ("http://10.0.0.1/dl.k8s.io/", "http://10.0.0.1/github.com/")
            )


def test_own_urls_are_taken_as_they_are() -> None:
    urls = {
        "runc": "https://example.org/{arch}/runc-{version}",
        "kubernetes": "https://example.org/k/{binary}-{version}-{arch}",
        "kubectl": "https://example.org/kubectl",
    }
    found = by_name(view("all", artifacts={"urls": urls, "mirror": "http://10.0.0.1"}))
    release = versions.DEFAULTS
    runc = found["runc"]["sources"]["arm64"]["source"]
    assert runc == f"https://example.org/arm64/runc-{release['runc']}"
    kubelet = found["kubelet"]["sources"]["amd64"]["source"]
    assert kubelet == f"https://example.org/k/kubelet-{release['kubernetes']}-amd64"
    assert found["kubectl"]["sources"]["amd64"]["source"] == "https://example.org/kubectl"


def test_a_broken_pattern_is_named() -> None:
    with pytest.raises(ValueError, match=r"artifacts\.urls\.runc: .*\{version\}"):
        view("node1", artifacts={"urls": {"runc": "https://example.org/{release}"}})


def test_paths_in_archives_follow_the_architecture() -> None:
    version = versions.DEFAULTS["etcd"]
    found = by_name(view("etcd1"))["etcd"]
    assert set(found["sources"]) == {"amd64", "arm64"}
    assert found["members"]["etcd"] == f"etcd-v{version}-linux-{{arch}}/etcd"


# 3. Never without a checksum.


def test_the_default_release_needs_no_checksum_from_the_user() -> None:
    for artifact in view("all")["artifacts"]:
        assert set(artifact["sources"]) == set(artifacts.ARCHITECTURES), artifact["name"]


def test_pinned_checksums_are_checksums_of_both_architectures() -> None:
    seen = []
    for part, releases in CHECKSUMS.items():
        assert part in versions.DEFAULTS
        for version, of_arch in releases.items():
            versions.parse(version)
            assert set(of_arch) == set(artifacts.ARCHITECTURES), (part, version)
            for found in of_arch.values():
                values = found.values() if part == "kubernetes" else [found]
                if part == "kubernetes":
                    assert set(found) == {*MASTER, *NODE}, version
                for value in values:
                    assert re.fullmatch(r"sha256:[0-9a-f]{64}", value)
                    seen.append(value)
    assert len(seen) == len(set(seen)) > 90


@pytest.mark.parametrize(
    ("host", "settings", "key", "where"),
    [
        (
            "node1",
            {"versions": {"kubernetes": "1.33.1"}},
            'artifacts.checksums.kubernetes."1.33.1".amd64.kubelet',
            "https://dl.k8s.io/v1.33.1/bin/linux/amd64/kubelet.sha256",
        ),
        (
            "master1",
            {"versions": {"kubernetes": "1.20.2"}},
            'artifacts.checksums.kubernetes."1.20.2".amd64.kube-apiserver',
            "dl.k8s.io",
        ),
        (
            "etcd1",
            {"versions": {"etcd": "3.5.1"}},
            'artifacts.checksums.etcd."3.5.1".amd64',
            "SHA256SUMS",
        ),
        (
            "node1",
            {"versions": {"runc": "1.0.0"}},
            'artifacts.checksums.runc."1.0.0".amd64',
            "runc.sha256sum",
        ),
        (
            "node1",
            {"network": "flannel"},
            'artifacts.checksums.cni-flannel."1.7.1-flannel1".amd64',
            "cni-plugin",
        ),
    ],
)
def test_a_missing_checksum_names_the_key_and_where_to_find_it(
    host: str, settings: dict[str, Any], key: str, where: str
) -> None:
    with pytest.raises(ValueError) as caught:
        view(host, **settings)
    assert str(caught.value).startswith(f"{key}: ")
    assert where in str(caught.value)


def test_one_missing_of_a_role_is_named() -> None:
    settings = only("1.20.2", {"kubelet": SHA256}, arch="arm64")
    with pytest.raises(ValueError, match=r'kubernetes\."1\.20\.2"\.arm64\.kube-proxy: '):
        view("node1", **settings)


@pytest.mark.parametrize("wrong", ["abc", "md5:" + "0" * 32, "sha256:" + "0" * 63, 7])
def test_what_is_no_checksum_is_refused(wrong: object) -> None:
    checksums = {"runc": {"1.0.0": {"amd64": wrong}}}
    with pytest.raises(ValueError, match=r'artifacts\.checksums\.runc\."1\.0\.0"\.amd64: '):
        view("node1", versions={"runc": "1.0.0"}, artifacts={"checksums": checksums})


def test_an_architecture_without_a_checksum_is_left_out() -> None:
    found = by_name(view("node1", **only("1.20.2", dict.fromkeys(NODE, SHA256), arch="arm64")))
    assert found["kubelet"]["sources"] == {
        "arm64": {"source": "https://dl.k8s.io/v1.20.2/bin/linux/arm64/kubelet", "hash": SHA256}
    }
    assert found["kubelet"]["path"] == "/opt/indigo/kubelet-1.20.2"
    assert found["kubelet"]["members"] == {"kubelet": ""}


def test_the_users_checksum_wins_over_the_table() -> None:
    version = versions.DEFAULTS["runc"]
    checksums = {"runc": {version: {"amd64": SHA512.upper().replace("SHA512", "sha512")}}}
    sources = by_name(view("node1", artifacts={"checksums": checksums}))["runc"]["sources"]
    assert sources["amd64"]["hash"] == SHA512
    assert sources["arm64"]["hash"] == CHECKSUMS["runc"][version]["arm64"]


def test_an_archive_serves_where_only_its_checksum_is_known() -> None:
    sums = {"kubernetes-server": SHA512, "kubernetes-node": SHA256}
    master = view("master1", **only("1.30.1", sums))
    assert master["artifacts"] == [
        {
            "name": "kubernetes-master",
            "path": "/opt/indigo/kubernetes-master-1.30.1",
            "sources": {
                "amd64": {
                    "source": "https://dl.k8s.io/v1.30.1/kubernetes-server-linux-amd64.tar.gz",
                    "hash": SHA512,
                }
            },
            "members": {name: f"kubernetes/server/bin/{name}" for name in MASTER},
        }
    ]
    kubectl = master["binaries"]["kubectl"]
    assert kubectl == "/opt/indigo/kubernetes-master-1.30.1/kubectl"
    node = by_name(view("node1", **only("1.30.1", sums)))["kubernetes-node"]
    assert node["members"]["kubelet"] == "kubernetes/node/bin/kubelet"
    assert node["sources"]["amd64"]["source"].endswith("/kubernetes-node-linux-amd64.tar.gz")
