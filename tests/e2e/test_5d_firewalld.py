"""A cluster behind firewalld: its zone refuses what is not named, Indigo's policies let it in.

firewalld is the site's own: each host has it from its distribution, running, with a zone that lets
ssh in, and Salt on the Salt master.
"""

from __future__ import annotations

import pytest
import yaml
from cluster import WEB, deploy, on_all, status, until, well
from indigo_lab.topology import VIP
from scan import FILTERED, OPEN, declared, everyone_scans, expected, scan, served

# `make test` has the firewall of Indigo's own: test_4d_ports.py.
pytestmark = pytest.mark.slow

PROFILE = "compact"

_INSTALL = """
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q install -y --no-install-recommends firewalld
systemctl enable --now firewalld
"""
_REMOVE = "DEBIAN_FRONTEND=noninteractive apt-get -q purge -y firewalld"
_SALT = "firewall-cmd -q --permanent --add-port=4505-4506/tcp && firewall-cmd -q --reload"


def everywhere(lab, script):
    """Run a script on every host."""
    on_all(lab, lambda host: lab.exec(host, ["sh", "-c", script], check=True, timeout=300))


@pytest.fixture(scope="module")
def behind(lab):
    """The lab with firewalld on every host, and with the cluster's policies in it."""
    done = deploy(lab)
    assert done.code == 0, done.told
    well(lab)
    assert lab.kubectl("apply", "-f", "-", stdin=WEB).returncode == 0
    assert until(lambda: served(lab) == [], 60), served(lab)
    before = lab.cluster_file.read_bytes()
    document = yaml.safe_load(before)
    document["firewall"] = "firewalld"
    document["networks"]["hosts"] = "10.77.0.0/24"
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    try:
        refused = deploy(lab)
        assert refused.code != 0
        assert "firewalld does not run on this host" in refused.told
        # In one go: a host behind a zone without the policies is a host without its ports.
        everywhere(lab, _INSTALL)
        lab.exec("salt", ["sh", "-c", _SALT], check=True)
        done = deploy(lab)
        assert done.code == 0, done.told
        yield before
    finally:
        lab.cluster_file.write_bytes(before)
        everywhere(lab, _REMOVE)


def test_behind_firewalld_the_cluster_is_whole(lab, behind):
    assert until(lambda: status(lab)["problems"] == [], 60), status(lab)["problems"]
    assert until(lambda: served(lab) == [], 60), served(lab)
    assert len(status(lab)["vip"]["holders"]) == 1
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {})


def test_behind_firewalld_each_host_finds_what_its_role_may(lab, behind):
    cluster = declared(lab)
    wanted = expected(cluster)
    member = cluster.with_role("etcd")[0].address
    assert wanted["salt"][member][2379] == FILTERED
    # The zone refuses, and says so only so many times a second.
    assert everyone_scans(lab, cluster, shut=("EHOSTUNREACH", FILTERED)) == ""


def test_behind_firewalld_the_address_moves(lab, behind):
    (holder,) = status(lab)["vip"]["holders"]
    lab.exec(holder, ["systemctl", "stop", "keepalived"], check=True)
    try:
        moved = until(lambda: [h for h in status(lab)["vip"]["holders"] if h != holder], 10)
        assert len(moved) == 1
        assert scan(lab, "salt", {VIP: [(8443, 8443)]}) == {VIP: {8443: OPEN}}
    finally:
        lab.exec(holder, ["systemctl", "start", "keepalived"], check=True)
    assert until(lambda: status(lab)["problems"] == [], 60), status(lab)["problems"]


def test_the_policies_are_there_again_after_a_boot(lab, behind):
    host = declared(lab).with_role("etcd")[0]
    lab.kill(host.id)
    lab.start(host.id)
    found = scan(lab, "salt", {host.address: [(2379, 2380)]})
    assert found == {host.address: {2379: FILTERED, 2380: FILTERED}}
    assert until(lambda: status(lab)["problems"] == [], 60), status(lab)["problems"]


def test_without_the_policies_nothing_of_them_is_left(lab, behind):
    lab.cluster_file.write_bytes(behind)
    # The zone is the site's and refuses again, so the hosts must not need each other for this.
    done = lab.salt("*", "state.apply", "firewall", "--out=json", "--static", timeout=300)
    assert done.returncode == 0, done.stdout
    left = on_all(
        lab,
        lambda host: (
            lab.exec(
                host, ["sh", "-c", "firewall-cmd --get-policies; ls /etc/firewalld/policies"]
            ).stdout
        ),
    )
    assert {host for host, text in left.items() if "indigo" in text} == set()
    everywhere(lab, _REMOVE)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert lab.kubectl("delete", "deployment,service", "web", timeout=60).returncode == 0
    well(lab)
