"""A host's interfaces and kernel settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from support import load

LINKS = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
    {
        "ifname": "eth0",
        "addr_info": [
            {"local": "10.0.0.1", "prefixlen": 24},
            {"local": "10.0.0.10", "prefixlen": 32},
        ],
    },
    {"ifname": "eth1", "addr_info": []},
    {},
]


@pytest.fixture
def host():
    module = load("_modules", "indigo_host")
    module._links = lambda: LINKS
    return module


def test_addresses(host):
    assert host.addresses()["eth0"] == ["10.0.0.1/24", "10.0.0.10/32"]
    assert host.addresses()["eth1"] == []


def test_interface(host):
    assert host.interface("10.0.0.1") == "eth0"
    with pytest.raises(CommandExecutionError, match=r"carries 10\.0\.0\.2; found: .*eth0 10\.0\.0"):
        host.interface("10.0.0.2")


def test_a_prefix_of_an_address_is_another_address(host):
    assert host.holds("10.0.0.10")
    assert not host.holds("10.0.0.100")


@pytest.fixture
def kernel(tmp_path):
    state = load("_states", "indigo_host")
    state.PROC = tmp_path / "proc"
    for key, value in {"net/ipv4/ip_forward": "0", "net/ipv4/conf/eth0.5/proxy_arp": "0"}.items():
        path = state.PROC / key
        path.parent.mkdir(parents=True)
        path.write_text(f"{value}\n")
    name = tmp_path / "etc" / "sysctl.d" / "90-x.conf"

    def sysctl(settings, *, test=False):
        state.__opts__ = {"test": test}
        return state.sysctl(str(name), settings)

    return SimpleNamespace(state=state, name=name, sysctl=sysctl, proc=state.PROC)


def live(kernel, key: str) -> str:
    return Path(kernel.proc, key).read_text().strip()


def test_settings_are_written_and_applied_once(kernel):
    settings = {"net.ipv4.ip_forward": 1}
    before = kernel.sysctl(settings, test=True)
    assert before["result"] is None
    assert not kernel.name.exists()
    ret = kernel.sysctl(settings)
    assert ret["result"] is True
    assert ret["changes"]["net.ipv4.ip_forward"] == {"old": "0", "new": "1"}
    assert "net.ipv4.ip_forward = 1\n" in kernel.name.read_text()
    assert live(kernel, "net/ipv4/ip_forward") == "1"
    for test in (True, False):
        again = kernel.sysctl(settings, test=test)
        assert (again["result"], again["changes"]) == (True, {})


def test_a_setting_lost_at_power_off_is_applied_again(kernel):
    kernel.sysctl({"net.ipv4.ip_forward": "1"})
    Path(kernel.proc, "net/ipv4/ip_forward").write_text("0\n")
    assert set(kernel.sysctl({"net.ipv4.ip_forward": "1"})["changes"]) == {"net.ipv4.ip_forward"}


def test_a_dot_inside_an_interfaces_name_is_a_slash(kernel):
    kernel.sysctl({"net.ipv4.conf.eth0/5.proxy_arp": "1"})
    assert live(kernel, "net/ipv4/conf/eth0.5/proxy_arp") == "1"


def test_a_setting_that_the_kernel_lacks_fails_by_name(kernel):
    ret = kernel.sysctl({"net.bridge.x": "1", "net.ipv4.ip_forward": "1"})
    assert ret["result"] is False
    assert "net.bridge.x cannot be set to 1" in ret["comment"]
    assert "net.bridge.x" not in ret["changes"]
    assert live(kernel, "net/ipv4/ip_forward") == "1"


def test_absent_sets_back_once(kernel):
    kernel.sysctl({"net.ipv4.ip_forward": "1"})
    back = {"net.ipv4.ip_forward": "0"}
    kernel.state.__opts__ = {"test": True}
    assert kernel.state.sysctl_absent(str(kernel.name), back)["result"] is None
    kernel.state.__opts__ = {"test": False}
    assert kernel.state.sysctl_absent(str(kernel.name), back)["changes"]
    assert live(kernel, "net/ipv4/ip_forward") == "0"
    assert kernel.state.sysctl_absent(str(kernel.name), back)["changes"] == {}
