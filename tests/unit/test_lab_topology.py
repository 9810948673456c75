"""The lab's hosts and its cluster.yaml, by profile; the model itself judges the result."""

from __future__ import annotations

import pytest
import yaml
from indigo_model import validate
from lab.indigo_lab import artifacts, site, topology
from lab.indigo_lab.artifacts import Published
from lab.indigo_lab.base import LabError
from lab.indigo_lab.kubernetes import BINARIES
from lab.indigo_lab.lab import Options, from_environment

SUM = "sha256:" + "0" * 64
VERSIONS = {
    "kubernetes": "1.20.2",
    "etcd": "3.4.23",
    "containerd": "1.6.20",
    "runc": "1.1.5",
    "cni-plugins": "1.1.1",
}


def published(kubernetes: str = "1.20.2") -> Published:
    versions = {**VERSIONS, "kubernetes": kubernetes}
    sums = {name: {version: {"amd64": SUM}} for name, version in versions.items()}
    sums["kubernetes"] = {kubernetes: {"amd64": dict.fromkeys(BINARIES, SUM)}}
    images = [
        {"name": "indigo.lab/pause:1", "source": "http://10.77.0.2/images/pause.tar", "hash": SUM}
    ]
    return Published(versions, sums, images)


CASES = [
    ("ha", None, {"ca": 1, "lb": 3, "etcd": 3, "master": 2, "node": 3}),
    ("ha", 12, {"ca": 1, "lb": 3, "etcd": 3, "master": 2, "node": 12}),
    ("ha", 100, {"ca": 1, "lb": 3, "etcd": 3, "master": 2, "node": 100}),
    ("compact", None, {"ca": 1, "lb": 3, "etcd": 3, "master": 2, "node": 3}),
    ("single", None, {"ca": 1, "lb": 1, "etcd": 1, "master": 1, "node": 1}),
]


@pytest.mark.parametrize(("profile", "nodes", "roles"), CASES)
def test_a_profile_is_a_valid_cluster(profile, nodes, roles):
    hosts = topology.hosts(profile, nodes)
    assert {r: sum(r in h.roles for h in hosts) for r in roles} == roles
    assert hosts[0].name == "salt" and "ca" in hosts[0].roles
    taken = [h.address for h in hosts] + [topology.GATEWAY, topology.MIRROR, topology.VIP]
    assert len(set(taken)) == len(taken)
    assert len({h.mac for h in hosts}) == len(hosts)
    document = yaml.safe_load(site.yaml(site.cluster(hosts, published(), cgroup_v1=True)))
    assert document == site.cluster(hosts, published(), cgroup_v1=True)
    assert validate.problems(document) == []


@pytest.mark.parametrize(
    ("profile", "nodes", "names"),
    [("big", None, "--profile"), ("single", 3, "--nodes"), ("ha", -1, "--nodes")],
)
def test_a_wrong_size_is_named(profile, nodes, names):
    with pytest.raises(LabError, match=names):
        topology.hosts(profile, nodes)


@pytest.mark.parametrize(
    ("kubernetes", "v1", "told"),
    [("1.20.2", True, False), ("1.31.0", True, True), ("1.36.2", False, False)],
)
def test_cgroup_v1_is_allowed_only_where_the_kubelet_asks(kubernetes, v1, told):
    kubelet = site.overrides(kubernetes, cgroup_v1=v1)["kubelet"]["config"]
    assert ("failCgroupV1" in kubelet) is told


def test_binaries_come_from_where_the_environment_says_unless_an_option_does(monkeypatch):
    monkeypatch.setenv("INDIGO_ETCD", "debian:trixie")
    monkeypatch.setenv("INDIGO_KUBERNETES", "")
    monkeypatch.delenv("INDIGO_CONTAINERD", raising=False)
    monkeypatch.setenv("INDIGO_IMAGES", "/images")
    assert from_environment() == Options(etcd="debian:trixie", images="/images")
    assert Options(etcd="/b").over(from_environment()).etcd == "/b"


def test_a_suite_stands_for_the_folder_of_its_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "of_suite", lambda name, suite: tmp_path / name / suite)
    assert artifacts.folder_of("etcd", "debian:trixie") == tmp_path / "etcd/trixie"
    assert artifacts.folder_of("etcd", str(tmp_path)) == tmp_path


@pytest.mark.parametrize("suite", ["", "Trixie", "../x"])
def test_a_suite_that_is_none_is_named(suite):
    with pytest.raises(LabError, match=f"--etcd debian:{suite}: expected a suite"):
        artifacts.of_suite("etcd", suite)


@pytest.mark.parametrize(
    "value",
    ["1.20", "1.20.2", "10.96.0.0/16", "yes", "Null", "", "a: b", "a #b", "10", "0x1f", "- a",
     "sha256:00", "http://h/p", "2026-01-01", "12:30:45", "1.2.3: x", True, None, 3, 1.5, "é"],
)  # fmt: skip
def test_a_scalar_comes_back_as_it_was(value):
    assert yaml.safe_load(site.scalar(value)) == value
    assert yaml.safe_load(site.yaml({"k": [value, {"n": value, "e": {}, "l": []}]})) == {
        "k": [value, {"n": value, "e": {}, "l": []}]
    }
