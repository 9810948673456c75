"""The etcd members' part of the view."""

from __future__ import annotations

import pytest
from indigo_model import etcd
from indigo_model.cluster import Cluster, Host, Vip


def cluster(version: str = "3.6.14", members: int = 3, **more: object) -> Cluster:
    hosts = {
        f"E{i}": Host(f"E{i}", f"10.0.0.2{i}", ("etcd", "master")) for i in range(1, members + 1)
    }
    hosts["n1"] = Host("n1", "10.0.0.41", ("node",))
    return Cluster(
        "x",
        hosts,
        Vip("10.0.0.10", "eth0"),
        "10.96.0.0/16",
        "10.244.0.0/16",
        versions={"etcd": version},
        **more,
    )


def component(declared: Cluster, host: str = "E1") -> dict:
    return etcd.view(declared, declared.hosts[host])["components"]["etcd"]


def test_other_roles_get_nothing():
    declared = cluster()
    assert etcd.view(declared, declared.hosts["n1"]) == {}


def test_members_are_named_in_lower_case_with_their_minion():
    assert component(cluster())["members"]["e2"] == {
        "id": "E2",
        "peer": "https://10.0.0.22:2380",
        "client": "https://10.0.0.22:2379",
    }


def test_nothing_is_served_without_client_certificates():
    flags = component(cluster())["flags"]
    assert flags["client-cert-auth"] == flags["peer-client-cert-auth"] == "true"
    urls = [value for name, value in flags.items() if name.endswith("-urls")]
    assert urls
    assert all(url.startswith("https://") for value in urls for url in value.split(","))
    assert "listen-metrics-urls" not in flags


def test_the_first_start_is_not_part_of_the_flags():
    flags = component(cluster())["flags"]
    assert not {"initial-cluster", "initial-cluster-state", "initial-cluster-token"} & set(flags)


@pytest.mark.parametrize("version", ["3.4.23", "3.5.33", "3.6.14"])
def test_every_derived_flag_exists_in_the_version(version):
    minor = int(version.split(".")[1])
    for flag in component(cluster(version))["flags"]:
        since, until = etcd.FLAGS.get(flag, (None, None))
        assert flag in etcd.FLAGS or flag in etcd.FIXED, flag
        assert (since or 0) <= minor <= (until or 99), flag


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [
        ("3.4.23", "experimental-initial-corrupt-check", "feature-gates"),
        ("3.5.33", "experimental-compact-hash-check-enabled", "feature-gates"),
        ("3.6.14", "feature-gates", "experimental-initial-corrupt-check"),
    ],
)
def test_flags_follow_the_version(version, has, lacks):
    flags = component(cluster(version))["flags"]
    assert has in flags
    assert lacks not in flags


@pytest.mark.parametrize("version", ["3.3.27", "3.7.0", "2.3.8"])
def test_a_version_outside_the_table_is_refused(version):
    with pytest.raises(
        ValueError, match=rf"versions\.etcd: found {version}; expected 3\.4 to 3\.6"
    ):
        component(cluster(version))


def test_overrides_are_merged_last_and_null_removes():
    given = {"heartbeat-interval": 250, "pre-vote": False, "log-level": None}
    flags = component(cluster(overrides={"etcd": {"flags": given}}))["flags"]
    assert flags["heartbeat-interval"] == "250"
    assert flags["pre-vote"] == "false"
    assert "log-level" not in flags


@pytest.mark.parametrize(
    ("version", "overrides", "told"),
    [
        ("3.6.14", {"flags": {"hartbeat-interval": 1}}, "etcd 3.6 has no such flag"),
        ("3.6.14", {"flags": {"enable-v2": True}}, "etcd 3.6 has no such flag"),
        ("3.4.23", {"flags": {"max-learners": 2}}, "etcd 3.4 has no such flag"),
        ("3.6.14", {"flags": {"client-cert-auth": False}}, "remove it"),
        ("3.6.14", {"flags": {"initial-cluster-state": "new"}}, "remove it"),
        ("3.6.14", {"config": {"name": "x"}}, "overrides.etcd.flags"),
    ],
)
def test_an_override_that_does_not_fit_is_named(version, overrides, told):
    with pytest.raises(ValueError, match=told):
        component(cluster(version, overrides={"etcd": overrides}))
