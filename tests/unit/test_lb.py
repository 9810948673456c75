"""The load balancers' part of the view."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import pytest
import salt.utils.templates
from indigo_model import lb, master, versions
from indigo_model.cluster import Cluster, Host, Vip
from support import ROOT


def cluster(
    balancers: int = 3,
    masters: int = 2,
    nodes: int = 0,
    vip: str = "10.0.0.10",
    **more: object,
) -> Cluster:
    hosts = {
        **{f"lb{i}": Host(f"lb{i}", f"10.0.0.1{i}", ("lb",)) for i in range(1, balancers + 1)},
        **{f"m{i}": Host(f"m{i}", f"10.0.0.3{i}", ("master",)) for i in range(1, masters + 1)},
        **{f"n{i}": Host(f"n{i}", f"10.0.1.{i}", ("node",)) for i in range(1, nodes + 1)},
    }
    return Cluster("x", hosts, Vip(vip, "eth0"), "10.96.0.0/16", "10.244.0.0/16", **more)


def components(declared: Cluster, host: str = "lb1") -> dict:
    return lb.view(declared, declared.hosts[host])["components"]


def test_other_roles_get_nothing():
    declared = cluster()
    assert lb.view(declared, declared.hosts["m1"]) == {}


def test_declared_packages_reach_whoever_has_them():
    both = {"haproxy": "2", "keepalived": "3"}
    declared = cluster(packages=both, nodes=1, versions=versions.DEFAULTS)
    assert lb.view(declared, declared.hosts["lb1"])["packages"] == both
    assert master.view(declared, declared.hosts["m1"])["packages"] == {"haproxy": "2"}
    assert lb.view(declared, declared.hosts["n1"]) == master.view(declared, declared.hosts["n1"])


def test_every_master_is_a_server_and_nothing_else():
    servers = components(cluster(masters=3, nodes=2))["haproxy"]["config"]["servers"]
    assert [server["endpoint"] for server in servers] == [
        "10.0.0.31:6443",
        "10.0.0.32:6443",
        "10.0.0.33:6443",
    ]


def test_the_view_does_not_grow_with_the_nodes():
    few, many = (json.dumps(components(cluster(nodes=count))) for count in (1, 200))
    assert few == many


def test_haproxy_is_the_same_on_all_and_priorities_differ():
    declared = cluster()
    views = [components(declared, f"lb{i}") for i in (1, 2, 3)]
    assert views[0]["haproxy"] == views[1]["haproxy"] == views[2]["haproxy"]
    assert [view["keepalived"]["config"]["priority"] for view in views] == [200, 190, 180]


def test_peers_are_the_others():
    config = components(cluster(), "lb2")["keepalived"]["config"]
    assert config["source"] == "10.0.0.12"
    assert config["peers"] == ["10.0.0.11", "10.0.0.13"]


def test_a_single_balancer_has_no_peers():
    assert components(cluster(balancers=1))["keepalived"]["config"]["peers"] == []


def test_timers_reach_both():
    timers = {"vip_advert": 0.25, "api_check": 1.5}
    view = components(cluster(timers=timers))
    assert view["keepalived"]["config"]["advert_int"] == 0.25
    check = view["haproxy"]["config"]["check"]
    assert (check["inter"], check["fastinter"]) == ("1500ms", "750ms")


def test_addresses_of_version_6_are_written_in_brackets():
    view = components(cluster(vip="fd00::10"))
    assert view["haproxy"]["config"]["bind"] == "[fd00::10]:8443"
    assert view["keepalived"]["config"]["address"] == "fd00::10/128"


def test_the_interface_of_a_host_goes_before_the_vips():
    declared = cluster()
    host = Host("lb9", "10.0.0.19", ("lb",), interface="bond0")
    declared = cluster()
    hosts = {**declared.hosts, "lb9": host}
    declared = Cluster("x", hosts, declared.vip, "10.96.0.0/16", "10.244.0.0/16")
    assert components(declared, "lb9")["keepalived"]["config"]["interface"] == "bond0"


def test_overrides_are_merged_last():
    overrides = {"haproxy": {"config": {"maxconn": 20000, "timeouts": {"connect": "2s"}}}}
    config = components(cluster(overrides=overrides))["haproxy"]["config"]
    assert config["maxconn"] == 20000
    assert config["timeouts"]["connect"] == "2s"
    assert config["timeouts"]["client"] == "12h"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"haproxy": {"config": {"maxcon": 1}}}, r"overrides\.haproxy\.config\.maxcon: .*maxconn"),
        (
            {"haproxy": {"config": {"timeouts": {"tunel": "1h"}}}},
            r"overrides\.haproxy\.config\.timeouts\.tunel",
        ),
        ({"haproxy": {"config": {"timeouts": "1h"}}}, r"found '1h'; expected settings by name"),
        ({"keepalived": {"config": {"priority": {"a": 1}}}}, r"expected one value"),
        ({"keepalived": {"flags": {"vrrp": True}}}, r"overrides\.keepalived\.flags: found vrrp"),
    ],
)
def test_an_override_that_does_not_fit_is_named(overrides, told):
    with pytest.raises(ValueError, match=told):
        components(cluster(overrides=overrides))


def test_every_client_fits_into_the_connections():
    # Two files a connection, under the hard limit of the smallest supported host, 20,000.
    assert 5000 <= components(cluster())["haproxy"]["config"]["maxconn"] <= 9900


@pytest.mark.parametrize("masters", [1, 2, 3, 5])
def test_new_connections_go_to_masters_that_are_not_stopping_each_with_the_same_chance(masters):
    text = configuration(cluster(masters=masters))
    rules = re.findall(
        r"use-server (\S+) if \{ srv_is_up\(ready/(\S+)\) \}(?: \{ rand\((\d+)\))?", text
    )
    names = [f"m{i}" for i in range(1, masters + 1)]
    assert all(server == looked_at for server, looked_at, _ in rules)
    by_chance = [(server, int(of)) for server, _, of in rules if of]
    assert [server for server, _ in by_chance] == names
    left, chances = Fraction(1), []
    for _, of in by_chance:
        chances.append(left / of)
        left -= left / of
    assert (set(chances), left) == ({Fraction(1, masters)}, 0)
    # With some of them stopping, the dice may name none: then the first that is not.
    assert [server for server, _, of in rules if not of] == names[:-1]


def test_a_master_that_stops_keeps_what_it_has_and_gets_nothing_new():
    traffic, _, ready = (
        configuration(cluster()).partition("backend masters")[2].partition("backend ready")
    )
    assert "uri /readyz?exclude=shutdown " in traffic
    assert "shutdown-sessions" in traffic
    assert "uri /readyz " in ready
    assert "shutdown-sessions" not in ready
    assert (" fall 3 " in traffic, " fall 1\n" in ready) == (True, True)


def configuration(declared: Cluster) -> str:
    result = salt.utils.templates.JINJA(
        str(ROOT / "salt/lb/files/haproxy.cfg.jinja"),
        to_str=True,
        opts={"cachedir": "/nonexistent", "file_roots": {"base": [str(ROOT / "salt")]}},
        saltenv="base",
        grains={},
        pillar={"indigo": {"components": components(declared)}},
        salt={},
        context={},
        tmplpath="lb/files/haproxy.cfg.jinja",
    )
    assert result["result"], result["data"]
    return result["data"]
