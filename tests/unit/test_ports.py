"""The table of ports: what follows from it for hosts, the firewall, preflight and the docs."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from indigo_model import cluster as model
from indigo_model import derive, ports, validate
from support import ROOT, load

module = load("_modules", "indigo_preflight")
firewall = load("_modules", "indigo_firewall")
states = load("_states", "indigo_firewall")


def document(**more: Any) -> dict[str, Any]:
    return {**validate.load(validate.EXAMPLE, "example"), **more}


def cluster(**more: Any) -> model.Cluster:
    data = document(**more)
    assert validate.problems(data) == []
    return model.parse(data)


def guards(found: model.Cluster, id_: str) -> dict[str, list[str]]:
    view = ports.view(found, found.hosts[id_])["firewall"]
    return {f"{one['protocol']} {one['port']}".strip(): one["sources"] for one in view["guards"]}


def row(role: str, service: str, found: model.Cluster) -> list[tuple[str, str, tuple[str, ...]]]:
    rows = [one for one in ports.table(found, role) if one.service == service]
    return [(one.port, one.at, one.sources) for one in rows]


def test_the_page_has_the_table():
    page = (ROOT / "docs/operations/ports.md").read_text("utf-8")
    assert ports.reference(cluster()) in page, "write ports.reference() to the page"


def test_guards_name_hosts_one_by_one_and_nodes_by_their_networks():
    found = cluster(firewall="nftables")
    masters, etcd = ["10.77.0.31", "10.77.0.32"], ["10.77.0.21", "10.77.0.22", "10.77.0.23"]
    assert guards(found, "etcd1") == {
        "tcp 2379": [*etcd, *masters],
        "tcp 2380": etcd,
        "tcp 2382": etcd,
    }
    assert guards(found, "lb1") == {"vrrp": ["10.77.0.11", "10.77.0.12"]}
    assert guards(found, "master1") == {
        "tcp 6443": ["10.77.0.0/24"],
        "tcp 10257": masters,
        "tcp 10259": masters,
        # The way to each member of etcd is the host's own.
        "tcp 12379": [],
        "tcp 12380": [],
        "tcp 12381": [],
    }
    assert guards(found, "node1") == {
        "tcp 10250": ["10.77.0.0/24", "10.244.0.0/16"],
        "tcp 10248": [],
        "tcp 10249": [],
        "tcp 10256": [],
    }
    assert guards(found, "salt") == {}


def test_what_is_for_anyone_has_no_guard():
    found = cluster(firewall="nftables")
    opened = {
        id_: [one["port"] for one in ports.view(found, found.hosts[id_])["firewall"]["open"]]
        for id_ in ("lb1", "node1", "etcd1")
    }
    assert opened == {"lb1": ["8443"], "node1": ["30000-32767"] * 2, "etcd1": []}


def test_without_a_firewall_a_view_names_no_other_host():
    found = cluster()
    assert ports.view(found, found.hosts["etcd1"])["firewall"] == {"kind": "none"}


def test_a_node_more_changes_no_other_host():
    few = document(firewall="nftables")
    many = document(firewall="nftables")
    many["hosts"]["node9"] = {"address": "10.77.0.49", "roles": ["node"]}
    before, after = model.parse(few), model.parse(many)
    for id_, host in before.hosts.items():
        assert ports.view(before, host) == ports.view(after, after.hosts[id_]), id_


def test_sources_hold_no_network_within_another():
    both = {"address": "10.77.0.31", "roles": ["lb", "etcd", "master", "node"]}
    found = cluster(firewall="nftables", hosts={"a": {**both, "roles": ["ca", *both["roles"]]}})
    assert guards(found, "a")["tcp 2379"] == ["10.77.0.31"]
    assert guards(found, "a")["tcp 6443"] == ["10.77.0.0/24", "10.244.0.0/16"]
    assert "tcp 8443" not in guards(found, "a")


@pytest.mark.parametrize(
    ("component", "kind", "settings", "role", "expected"),
    [
        ("kubelet", "config", {"port": 10350}, "node", ("10350", ports.OWN)),
        ("kubelet", "config", {"readOnlyPort": 10255}, "node", ("10255", ports.OWN)),
        ("kubelet", "config", {"healthzBindAddress": "0.0.0.0"}, "node", ("10248", ports.EVERY)),
        (
            "kube-proxy",
            "config",
            {"metricsBindAddress": "0.0.0.0:10249"},
            "node",
            ("10249", ports.EVERY),
        ),
        (
            "kube-controller-manager",
            "flags",
            {"bind-address": "127.0.0.1"},
            "master",
            ("10257", ports.LOOPBACK),
        ),
        (
            "etcd",
            "flags",
            {"listen-metrics-urls": "http://10.77.0.21:2381"},
            "etcd",
            ("2381", ports.OWN),
        ),
        ("haproxy", "config", {"bind": "0.0.0.0:9443"}, "lb", ("9443", ports.EVERY)),
    ],
)
def test_what_a_site_overrides_is_in_the_table(component, kind, settings, role, expected):
    found = cluster(overrides={component: {kind: settings}})
    assert expected in [(port, at) for port, at, _ in row(role, component, found)]


def test_the_cache_of_names_has_its_own_address_and_no_other_is_judged():
    found = cluster(firewall="nftables", addons={"coredns": {"node_cache": True}})
    assert row("node", "coredns", found) == [
        ("53", ports.CACHE, (ports.PODS,)),
        ("53", ports.CACHE, (ports.PODS,)),
        ("9254", ports.CACHE, ()),
    ]
    view = ports.view(found, found.hosts["node1"])
    assert "coredns" not in [one["service"] for one in view["ports"]]
    own = [one for one in view["firewall"]["guards"] if one["service"] == "coredns"]
    assert [(one["protocol"], one["port"], one["sources"]) for one in own] == [
        ("udp", "53", ["10.244.0.0/16"]),
        ("tcp", "53", ["10.244.0.0/16"]),
        ("tcp", "9254", []),
    ]
    assert {one["address"] for one in own} == {"169.254.20.10"}
    others = [one for one in view["firewall"]["guards"] if one not in own]
    assert not [one for one in others if "address" in one]
    watched = cluster(addons={"coredns": {"node_cache": True}, "prometheus": {}})
    assert row("node", "coredns", watched)[-1] == ("9253", ports.OWN, ("node", ports.PODS))
    assert row("node", "coredns", cluster(addons={"coredns": {}})) == []


def test_what_a_site_opens_is_for_anyone():
    found = cluster(
        firewall="nftables",
        overrides={"kube-proxy": {"config": {"metricsBindAddress": "0.0.0.0:10249"}}},
    )
    assert "tcp 10249" not in guards(found, "node1")


def test_the_range_of_node_ports_follows_the_api_server():
    given = {"kube-apiserver": {"flags": {"service-node-port-range": "31000-31999"}}}
    assert row("node", "kube-proxy", cluster(overrides=given))[-1][0] == "31000-31999"
    wrong = {"kube-apiserver": {"flags": {"service-node-port-range": "many"}}}
    with pytest.raises(ValueError, match=r"service-node-port-range: found 'many'"):
        ports.table(cluster(overrides=wrong), "node")


def test_a_firewall_needs_to_know_where_the_hosts_are():
    data = document(firewall="nftables")
    del data["networks"]["hosts"]
    (found,) = validate.problems(data)
    assert found.startswith("networks.hosts: found no such key, and firewall: nftables; expected")
    data["firewall"] = "none"
    assert validate.problems(data) == []
    assert "firewall: found the boolean false" in validate.problems({**data, "firewall": False})[0]


# --- preflight --------------------------------------------------------------------------------


@pytest.fixture
def listening():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def wanted(port: int, **more: Any) -> dict[str, Any]:
    here = {"service": "etcd", "program": "/opt/indigo/", "protocol": "tcp", "port": port}
    return {**here, "address": "127.0.0.1", **more}


def test_a_foreign_program_on_a_port_is_found(listening):
    (found,) = module.taken([wanted(listening)])
    assert found["pid"] == os.getpid()
    assert os.path.realpath(found["program"]) == os.path.realpath("/proc/self/exe")
    assert (found["service"], found["port"], found["address"]) == ("etcd", listening, "127.0.0.1")


def test_our_own_program_may_have_its_port(listening):
    own = os.path.dirname(os.path.realpath("/proc/self/exe"))
    assert module.taken([wanted(listening, program=f"{own}/")]) == []


@pytest.mark.parametrize(("address", "taken"), [("0.0.0.0", True), ("127.0.0.2", False)])
def test_only_an_address_in_common_is_a_conflict(listening, address, taken):
    assert bool(module.taken([wanted(listening, address=address)])) is taken


def test_a_free_port_is_no_problem(listening):
    assert module.taken([wanted(listening, protocol="udp")]) == []
    assert module.taken([]) == []


def test_every_host_is_asked_for_its_own_ports():
    found = cluster()
    view = derive.view(found, found.hosts["etcd1"])
    assert [(one["port"], one["address"]) for one in view["ports"]] == [
        (2379, "10.77.0.21"),
        (2379, "127.0.0.1"),
        (2380, "10.77.0.21"),
    ]


# --- the rules in the kernel ------------------------------------------------------------------


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """What the kernel has, and what was done to it."""
    seen: dict[str, Any] = {"listing": ("rules", ""), "ran": []}
    monkeypatch.setattr(firewall, "LOADED", tmp_path / "loaded")
    monkeypatch.setattr(firewall, "_listing", lambda: seen["listing"])
    (tmp_path / "loaded").write_text("rules")

    def restart(unit, files):
        seen["ran"].append((unit, files))
        seen["listing"] = ("rules", "")
        (tmp_path / "loaded").write_text("rules")

    monkeypatch.setattr(
        states,
        "__salt__",
        {
            "indigo_firewall.differences": firewall.differences,
            "indigo_service.restart": restart,
        },
        raising=False,
    )
    monkeypatch.setattr(states, "__opts__", {"test": False}, raising=False)
    seen["loaded"] = tmp_path / "loaded"
    return seen


def test_rules_that_are_there_are_left_alone(kernel):
    found = states.loaded("x", "indigo-firewall", "/rules")
    assert (found["result"], found["changes"], kernel["ran"]) == (True, {}, [])


@pytest.mark.parametrize(
    ("listing", "told"),
    [
        (("", "Error: No such file or directory"), "the table inet indigo is not in the kernel"),
        (("other rules", ""), "changed by hand"),
    ],
)
def test_rules_that_are_not_as_loaded_are_loaded_again(kernel, listing, told):
    kernel["listing"] = listing
    states.__opts__["test"] = True
    found = states.loaded("x", "indigo-firewall", "/rules")
    assert found["result"] is None and told in found["comment"] and kernel["ran"] == []
    states.__opts__["test"] = False
    found = states.loaded("x", "indigo-firewall", "/rules")
    assert found["result"] is True and told in found["changes"]["restored"][0]
    assert kernel["ran"] == [("indigo-firewall", ["/rules"])]


def test_rules_that_do_not_come_are_a_failure(kernel, monkeypatch):
    kernel["loaded"].unlink()
    states.__salt__["indigo_service.restart"] = lambda unit, files: None
    found = states.loaded("x", "indigo-firewall", "/rules")
    assert found["result"] is False and "journalctl -u indigo-firewall" in found["comment"]


# --- firewalld --------------------------------------------------------------------------------


@pytest.fixture
def policies(monkeypatch, tmp_path):
    """Two policies of ours on a host whose firewalld runs; what was reloaded."""
    seen: dict[str, Any] = {"active": True, "reloaded": 0, "files": [], "fails": False}
    for name in ("indigo-ports.xml", "indigo-pods.xml"):
        (tmp_path / name).write_text("<policy/>")
        seen["files"].append(str(tmp_path / name))

    def reload(unit):
        assert unit == "firewalld"
        # By then it reads none of them.
        assert not list(tmp_path.glob("*.xml"))
        if seen["fails"]:
            raise states.CommandExecutionError("firewalld is ill")
        seen["reloaded"] += 1

    functions = {
        "indigo_service.active": lambda unit: seen["active"],
        "indigo_service.reload": reload,
        "indigo_firewall.policies": firewall.policies,
        "indigo_firewall.forget": firewall.forget,
    }
    for module_ in (firewall, states):
        monkeypatch.setattr(module_, "__salt__", functions, raising=False)
    monkeypatch.setattr(states, "__opts__", {"test": False}, raising=False)
    seen["folder"] = tmp_path
    return seen


def test_firewalld_forgets_and_a_second_run_changes_nothing(policies):
    states.__opts__["test"] = True
    found = states.firewalld_absent("x", policies["files"])
    assert (found["result"], policies["reloaded"]) == (None, 0)
    states.__opts__["test"] = False
    found = states.firewalld_absent("x", policies["files"])
    assert found["changes"] == {"removed": policies["files"]} and policies["reloaded"] == 1
    assert list(policies["folder"].iterdir()) == []
    found = states.firewalld_absent("x", policies["files"])
    assert (found["result"], found["changes"], policies["reloaded"]) == (True, {}, 1)


def test_forgetting_that_was_broken_off_is_completed(policies):
    policies["fails"] = True
    found = states.firewalld_absent("x", policies["files"])
    assert (found["result"], found["comment"]) == (False, "firewalld is ill")
    policies["fails"] = False
    found = states.firewalld_absent("x", policies["files"])
    assert found["result"] is True and policies["reloaded"] == 1
    assert list(policies["folder"].iterdir()) == []


def test_a_firewalld_that_does_not_run_is_not_started(policies, monkeypatch):
    policies["active"] = False
    found = states.firewalld("x", policies["files"])
    assert found["result"] is False and "does not run on this host" in found["comment"]
    policies["active"] = True
    asked = []

    def running(**arguments):
        asked.append(arguments)
        return {"name": "firewalld", "result": True, "changes": {}, "comment": ""}

    monkeypatch.setattr(states, "__states__", {"indigo_service.running": running}, raising=False)
    assert states.firewalld("x", policies["files"])["name"] == "x"
    assert asked == [
        {"name": "firewalld", "files": policies["files"], "reload": True, "enable": False}
    ]
