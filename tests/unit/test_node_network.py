"""The pod network in the kernel and the CNI configuration, read and put right."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError
from support import load

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t014D0A0A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000F40A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
*\t0000600A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
SETTINGS = {
    "/proc/sys/net/ipv4/ip_forward": "1",
    "/proc/sys/net/ipv4/conf/eth0/proxy_arp": "1",
    "/proc/sys/net/ipv4/neigh/eth0/proxy_delay": "0",
    "/proc/sys/net/bridge/bridge-nf-call-iptables": "1",
}
NETWORKS = ("eth0", "10.244.0.0/16", "10.96.0.0/16")


def module(routes: str = ROUTES, masqueraded: bool = True, **settings):
    loaded = load("_modules", "indigo_network")
    kernel = {"/proc/net/route": routes, **SETTINGS}
    kernel.update(settings)
    loaded._kernel = kernel.get
    loaded._masqueraded = lambda pods: masqueraded
    return loaded


def test_a_default_route_and_refused_networks_are_told_apart():
    assert load("_modules", "indigo_network").parse_routes(ROUTES) == {
        "0.0.0.0/0": "eth0",
        "10.244.0.0/16": "eth0",
        "10.96.0.0/16": "!",
    }


def test_a_master_refuses_cluster_addresses_and_a_node_routes_them():
    assert module().differences(*NETWORKS, node=False) == []
    assert module().differences(*NETWORKS, node=True) == [
        "route to 10.96.0.0/16 is !, expected eth0"
    ]
    routed = ROUTES.replace("*\t", "eth0\t").replace("0201", "0001")
    assert module(routed).differences(*NETWORKS, node=True) == []


def test_everything_that_is_missing_is_named():
    found = module("Iface\n", masqueraded=False, **dict.fromkeys(SETTINGS, "7")).differences(
        *NETWORKS, node=True
    )
    assert len(found) == 7
    assert "route to 10.244.0.0/16 is absent, expected eth0" in found
    assert "net/ipv4/conf/eth0/proxy_arp is 7, expected 1" in found
    assert "no rule masquerades 10.244.0.0/16" in found


def test_a_kernel_without_bridge_netfilter_is_no_difference():
    routed = ROUTES.replace("*\t", "eth0\t").replace("0201", "0001")
    bare = module(routed, **{"/proc/sys/net/bridge/bridge-nf-call-iptables": None})
    assert bare.differences(*NETWORKS, node=True) == []


def routed(before: list[str], after: list[str], test: bool = False):
    state = load("_states", "indigo_network")
    answers, restarted = [before, after], []
    state.__opts__ = {"test": test}
    state.__salt__ = {
        "indigo_network.differences": lambda *a: answers.pop(0),
        "indigo_service.restart": restarted.append,
    }
    return state.routed("x", *NETWORKS, node=True), restarted


def test_routes_that_went_away_are_put_back():
    assert routed([], [])[0]["changes"] == {}
    result, restarted = routed(["a route"], [])
    assert result["result"] is True
    assert result["changes"] == {"restored": ["a route"]}
    assert restarted == ["indigo-routes"]
    result, restarted = routed(["a route"], [], test=True)
    assert (result["result"], restarted) == (None, [])
    result, _ = routed(["a route"], ["a route"])
    assert result["result"] is False
    assert "journalctl -u indigo-routes" in result["comment"]


def addressed(before: bool, after: bool, test: bool = False):
    state = load("_states", "indigo_network")
    answers, restarted = [before, after], []
    state.__opts__ = {"test": test}
    state.__salt__ = {
        "indigo_network.has_address": lambda address: answers.pop(0),
        "indigo_service.restart": restarted.append,
    }
    return state.addressed("x", "169.254.20.10"), restarted


def test_an_address_that_went_away_is_put_back():
    result, restarted = addressed(True, True)
    assert (result["result"], result["changes"], restarted) == (True, {}, [])
    result, restarted = addressed(False, True)
    assert (result["result"], restarted) == (True, ["indigo-dns-cache"])
    assert result["changes"] == {"restored": "169.254.20.10"}
    result, restarted = addressed(False, True, test=True)
    assert (result["result"], restarted) == (None, [])
    result, _ = addressed(False, False)
    assert (result["result"], result["changes"]) == (False, {})
    assert "journalctl -u indigo-dns-cache" in result["comment"]


def test_the_kernel_says_which_addresses_are_there():
    loaded = load("_modules", "indigo_network")
    assert loaded.has_address("127.0.0.1")
    assert not loaded.has_address("192.0.2.53")
    with pytest.raises(CommandExecutionError, match="ip -4"):
        loaded.has_address("nonsense")


@pytest.fixture
def unaddressed(tmp_path: Path):
    """The state over a unit's file, told which pods name the address; what it had done."""
    state = load("_states", "indigo_network")
    state.UNITS = str(tmp_path)
    done: list[str] = []

    def run(pods: list[str], test: bool = False):
        state.__opts__ = {"test": test}
        state.__salt__ = {
            "indigo_node.naming": lambda address: pods,
            "indigo_service.stop": lambda unit: done.append(f"stop {unit}"),
            "indigo_service.daemon_reload": lambda: done.append("reload"),
        }
        return state.unaddressed("x", "169.254.20.10")

    run.unit, run.done, run.state = tmp_path / "indigo-dns-cache.service", done, state
    return run


def test_an_address_goes_with_its_unit_and_a_second_run_changes_nothing(unaddressed):
    unaddressed.unit.touch()
    result = unaddressed([], test=True)
    assert (result["result"], unaddressed.done, unaddressed.unit.exists()) == (None, [], True)
    result = unaddressed([])
    assert (result["result"], result["changes"]) == (True, {"removed": "169.254.20.10"})
    assert unaddressed.done == ["stop indigo-dns-cache", "reload"]
    assert not unaddressed.unit.exists()
    result = unaddressed([])
    assert (result["result"], result["changes"], len(unaddressed.done)) == (True, {}, 2)


@pytest.mark.parametrize("test", [True, False])
def test_an_address_stays_for_pods_that_were_told_of_it(unaddressed, test):
    unaddressed.unit.touch()
    result = unaddressed(["a", "b"], test=test)
    assert (result["result"], result["changes"]) == (True, {})
    assert "stays for 2 pods" in result["comment"]
    assert unaddressed.unit.exists() and unaddressed.done == []


def test_a_unit_that_does_not_stop_keeps_its_file(unaddressed):
    unaddressed.unit.touch()

    def refuse(unit: str) -> None:
        raise unaddressed.state.CommandExecutionError("it does not stop")

    unaddressed([], test=True)
    unaddressed.state.__opts__["test"] = False
    unaddressed.state.__salt__["indigo_service.stop"] = refuse
    result = unaddressed.state.unaddressed("x", "169.254.20.10")
    assert (result["result"], result["changes"]) == (False, {})
    assert unaddressed.unit.exists()


def test_an_unreadable_kernel_is_an_error():
    with pytest.raises(CommandExecutionError, match="/proc/net/route"):
        module(**{"/proc/net/route": None}).differences(*NETWORKS, node=True)


TEMPLATE = '{"plugins": [{"mtu": %d, "ipam": {"ranges": [[{"subnet": "{{.PodCIDR}}"}]]}}]}'


def cni(tmp_path: Path, written: str | None, mtu: int = 1500, test: bool = False, age: float = 0):
    """The state over a written configuration; its result, the file, and what was restarted."""
    config, template = tmp_path / "10.conflist", tmp_path / "template"
    template.write_text(TEMPLATE % mtu)
    config.unlink(missing_ok=True)
    if written is not None:
        config.write_text(written)
    state, functions = load("_states", "indigo_network"), load("_modules", "indigo_network")
    restarted: list[str] = []
    started = (time.monotonic() - age) * 1e6
    state.__opts__ = {"test": test}
    state.__salt__ = {
        "indigo_network.cni": functions.cni,
        "indigo_network.refill": functions.refill,
        "indigo_service.restart": restarted.append,
        "indigo_service.show": lambda unit: (
            {"MainPID": "7", "ExecMainStartTimestampMonotonic": str(int(started))} if age else {}
        ),
    }
    return state.cni_current(str(config), str(template)), config, restarted


WRITTEN = (TEMPLATE % 1500).replace("{{.PodCIDR}}", "10.244.3.0/24")


def test_a_configuration_of_todays_template_is_left_alone(tmp_path):
    layout = json.dumps(json.loads(WRITTEN), indent=4)
    result, config, restarted = cni(tmp_path, layout, age=999)
    assert (result["result"], result["changes"], restarted) == (True, {}, [])
    assert config.read_text() == layout


def test_an_older_one_is_written_anew_with_its_subnet(tmp_path):
    result, config, _ = cni(tmp_path, WRITTEN, mtu=1450, test=True)
    assert (result["result"], config.read_text()) == (None, WRITTEN)
    result, config, restarted = cni(tmp_path, WRITTEN, mtu=1450, age=999)
    assert result["changes"] == {"written": "10.244.3.0/24"}
    assert config.read_text() == WRITTEN.replace("1500", "1450")
    assert restarted == []
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []


def test_a_damaged_one_is_removed_and_kubelet_has_it_written(tmp_path):
    result, config, restarted = cni(tmp_path, "{", age=5)
    assert result["changes"] == {"removed": str(config), "restarted": "kubelet"}
    assert (config.exists(), restarted) == (False, ["kubelet"])
    result, config, restarted = cni(tmp_path, "{")
    assert (result["changes"], restarted) == ({"removed": str(config)}, [])


def test_one_that_is_gone_is_waited_for_and_then_asked_for(tmp_path):
    for age in (0, 5):
        result, _, restarted = cni(tmp_path, None, age=age)
        assert (result["result"], result["changes"], restarted) == (True, {}, [])
    result, _, restarted = cni(tmp_path, None, age=999, test=True)
    assert (result["result"], restarted) == (None, [])
    result, _, restarted = cni(tmp_path, None, age=999)
    assert (result["changes"], restarted) == ({"restarted": "kubelet"}, ["kubelet"])
