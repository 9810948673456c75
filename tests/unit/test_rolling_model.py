"""Who the members of a tier are, and how a host comes to its lock."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest
from indigo_model import derive, lb, master, pki, rolling
from indigo_model.cluster import Cluster, Host, Vip
from support import load


def cluster(balancers=3, members=3, masters=2, nodes=1, shared=False, **more) -> Cluster:
    hosts = {
        **{f"lb{i}": Host(f"lb{i}", f"10.0.0.1{i}", ("lb",)) for i in range(balancers)},
        **{f"E{i}": Host(f"E{i}", f"10.0.0.2{i}", ("etcd",)) for i in range(members)},
        **{f"m{i}": Host(f"m{i}", f"10.0.0.3{i}", ("master",)) for i in range(masters)},
        **{f"n{i}": Host(f"n{i}", f"10.0.1.{i}", ("node",)) for i in range(nodes)},
        "salt": Host("salt", "10.0.0.5", ("ca",)),
    }
    if shared:
        hosts["lb0"] = Host("lb0", "10.0.0.10", ("lb", "etcd", "master", "node"))
    versions = {"kubernetes": "1.36.2", "etcd": "3.6.14"}
    return Cluster(
        "x",
        hosts,
        Vip("10.0.0.9", "eth0"),
        "10.96.0.0/16",
        "10.244.0.0/16",
        versions=versions,
        **more,
    )


def view(declared: Cluster, host: str) -> dict:
    return rolling.view(declared, declared.hosts[host])


def test_nodes_and_the_authority_have_none():
    declared = cluster()
    assert view(declared, "n0") == view(declared, "salt") == {}


def test_a_unit_that_no_other_host_runs_has_no_tier():
    declared = cluster(balancers=1, members=1, masters=1, shared=False)
    for host in ("lb0", "E0", "m0"):
        assert set(view(declared, host)["rolling"].values()) == {None}


def test_every_restarted_unit_of_a_shared_host_has_its_tier():
    found = view(cluster(shared=True), "lb0")["rolling"]
    units = {"haproxy", "keepalived", "etcd", *rolling.MASTER_UNITS}
    assert set(found) == units
    assert {unit: tier["name"] for unit, tier in found.items()} == {
        **{unit: unit for unit in units},
        "haproxy": "lb",
        "keepalived": "lb",
    }


def test_each_host_finds_itself_among_the_members():
    declared = cluster()
    for host in declared.hosts.values():
        for tier in view(declared, host.id).get("rolling", {}).values():
            assert tier["own"] == host.name
            assert host.name in tier["members"]
            if tier.get("ask") != "salt":
                assert tier["members"][host.name] == tier["url"]
                assert urlsplit(tier["url"]).hostname == host.address


def test_the_module_understands_every_tier():
    module = load("_modules", "indigo_rolling")
    declared = cluster(shared=True)
    for host in declared.hosts:
        for tier in view(declared, host).get("rolling", {}).values():
            assert tier["name"] in module.describe(tier)
            serving = dict.fromkeys(tier["members"], "")
            assert module.verdict(serving, tier["own"], tier["need"])[0] is True
            json.dumps(tier)


def test_what_is_asked_where():
    declared = cluster()
    etcd = view(declared, "E0")["rolling"]["etcd"]
    assert etcd["members"]["e1"] == "https://10.0.0.21:2379/health"
    assert etcd["need"] == "majority"
    found = view(declared, "m0")["rolling"]
    assert found["kube-apiserver"]["url"] == "https://10.0.0.30:6443/readyz"
    components = master.view(declared, declared.hosts["m1"])["components"]
    del components["etcd-proxy"]  # it restarts in the API server's tier
    for unit, component in components.items():
        assert found[unit]["members"]["m1"].startswith(component["url"] + "/")
    haproxy = view(declared, "lb0")["rolling"]["haproxy"]
    assert haproxy["members"] == {"lb0": "lb0", "lb1": "lb1", "lb2": "lb2"}
    assert haproxy["url"] == f"unix:{lb.ALIVE}"


def test_only_haproxy_has_keepalived_give_the_address_up():
    found = view(cluster(), "lb0")["rolling"]
    assert found["haproxy"]["yields"] == {
        "unit": "keepalived",
        "address": "10.0.0.9",
        "port": 8443,
    }
    assert "yields" not in found["keepalived"]


def test_files_are_those_that_the_host_has():
    declared = cluster(shared=True)
    for host in declared.hosts.values():
        has = {row["path"] for row in pki.view(declared, host)["pki"]["authorities"]}
        for row in pki.view(declared, host)["pki"]["certificates"]:
            has |= {row["path"], row["key"]}
        found = view(declared, host.id)
        uses = [found.get("lock", {}), *(t["check"] for t in found.get("rolling", {}).values())]
        assert {one[key] for one in uses for key in ("ca", "cert", "key") if key in one} <= has


def test_the_own_member_of_etcd_is_asked_last():
    urls = view(cluster(), "E1")["lock"]["endpoints"]
    assert urls == [f"https://10.0.0.2{i}:2379" for i in (0, 2, 1)]


def test_load_balancers_without_a_certificate_come_in_through_etcds_hosts():
    declared = cluster(shared=True)
    assert set(view(declared, "lb1")["lock"]) == {"through"}
    assert sorted(view(declared, "lb1")["lock"]["through"]) == ["E0", "E1", "E2", "lb0"]
    assert "endpoints" in view(declared, "lb0")["lock"]
    assert view(declared, "E0")["lock"]["lends"] == {"lb": ["lb1", "lb2"]}
    assert "lends" not in view(declared, "m0")["lock"]


@pytest.mark.parametrize(
    ("check", "rise", "timeout", "settle"), [(0.5, 2, "2s", 3.0), (2, 3, "500ms", 6.5)]
)
def test_an_api_server_settles_until_every_haproxy_has_taken_it_in(check, rise, timeout, settle):
    declared = cluster(
        timers={"api_check": check, "vip_advert": 0.2, "pod_eviction": 60, "node_grace": 20},
        overrides={
            "haproxy": {"config": {"check": {"rise": rise}, "timeouts": {"check": timeout}}}
        },
    )
    assert view(declared, "m0")["rolling"]["kube-apiserver"]["settle"] == settle


def test_ipv6_addresses_are_written_as_urls():
    hosts = {f"e{i}": Host(f"e{i}", f"fd00::{i}", ("etcd",)) for i in (1, 2, 3)}
    declared = Cluster("x", hosts, Vip("fd00::9", "eth0"), "10.96.0.0/16", "10.244.0.0/16")
    assert view(declared, "e1")["lock"]["endpoints"][0] == "https://[fd00::2]:2379"


def test_it_does_not_grow_with_the_nodes():
    few, many = cluster(nodes=1), cluster(nodes=50)
    for host in few.hosts:
        assert view(few, host) == view(many, host)


def test_it_is_part_of_the_view():
    assert rolling in derive.LAYERS
