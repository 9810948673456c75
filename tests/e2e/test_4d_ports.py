"""Each host listens on what its role needs and nothing else; a firewall keeps others from it.

What is expected is the model's own table, for the cluster as it is declared in the lab.
"""

from __future__ import annotations

import json
import time

import pytest
import yaml
from cluster import WEB, changes, deploy, on_all, status, until, well
from indigo_lab.topology import MASTER, VIP
from indigo_model import ports
from scan import (
    FILTERED,
    NODE_PORT,
    OPEN,
    counters,
    declared,
    differences,
    everyone_scans,
    expected,
    scan,
    scans,
    served,
    sockets,
)

PROFILE = "ha"
EVERY = (1, 65535)


@pytest.fixture(scope="module", autouse=True)
def _web(lab, first_deploy):
    """Three pods behind a service with a port on every node."""
    assert first_deploy.code == 0
    well(lab)
    assert lab.kubectl("apply", "-f", "-", stdin=WEB).returncode == 0
    assert until(lambda: served(lab) == [], 60), served(lab)


def wanted_sockets(cluster, host):
    """What ``ss`` must show on a host; the port is None where the kernel chose it."""
    found = set()
    for row in ports.of_host(cluster, host):
        if row.protocol == "vrrp":
            found |= {("raw", "0.0.0.0", ports.VRRP), ("raw", host.address, ports.VRRP)}
        elif "-" not in row.port and row.always:  # of the range kube-proxy holds what services have
            port = None if row.port == ports.ANY else int(row.port)
            found.add((row.protocol, ports.address(cluster, host, row), port))
    if host.address == MASTER:
        found |= {(row.protocol, "0.0.0.0", int(row.port)) for row in ports.SALT}
    return found


def test_nothing_listens_but_what_the_table_says(lab):
    cluster = declared(lab)
    seen = on_all(lab, lambda host: sockets(lab, host))
    wrong = []
    for id_, host in cluster.hosts.items():
        found = set()
        for protocol, address, port, program in seen[id_]:
            if program == "containerd" and address == "127.0.0.1":
                port = None
            # Until 1.23 or so kube-proxy holds a socket for each node port.
            if not (program == "kube-proxy" and port == NODE_PORT):
                found.add((protocol, address, port))
        wanted = wanted_sockets(cluster, host)
        wrong += [f"{id_}: {one} is not in the table" for one in sorted(found - wanted, key=str)]
        wrong += [f"{id_}: {one} does not listen" for one in sorted(wanted - found, key=str)]
    assert not wrong, "\n".join(wrong)


def test_every_host_finds_of_every_other_what_the_table_says(lab, figure):
    started = time.monotonic()
    assert everyone_scans(lab, declared(lab)) == ""
    figure(f"every host scanned by every other one: {time.monotonic() - started:.1f} s")


def test_of_all_ports_no_other_answers(lab, figure):
    started = time.monotonic()
    cluster = declared(lab)
    ids = list(cluster.hosts)
    wanted, asked = {}, {}
    full = expected(cluster)
    for scanner, other in zip(ids, [*ids[1:], ids[0]], strict=True):
        address = cluster.hosts[other].address
        asked[scanner] = {address: [EVERY]}
        wanted[scanner] = {address: full[scanner][address]}
    assert differences(scans(lab, asked), wanted) == ""
    figure(f"all ports of {len(ids)} hosts: {time.monotonic() - started:.1f} s")


def test_a_port_in_foreign_hands_stops_a_deploy_before_it_begins(lab):
    """On a host that is bare for the program: the kubelet of a node is stopped for a moment."""
    holder = (
        "import socket,time; s=socket.socket(); s.setsockopt(1,2,1); "
        "s.bind(('0.0.0.0',10250)); s.listen(); time.sleep(600)"
    )
    lab.exec("node3", ["systemctl", "stop", "kubelet"], check=True)
    try:
        unit = ["systemd-run", "--unit=foreign", "python3", "-c", holder]
        lab.exec("node3", unit, check=True)
        done = deploy(lab, "test=True")
    finally:
        lab.exec("node3", ["systemctl", "stop", "foreign"])
        lab.exec("node3", ["systemctl", "start", "kubelet"], check=True)
    assert done.code != 0
    told = done.steps["Every host passes preflight"]["comment"]
    assert "node3: port 10250/tcp is taken by /usr/bin/python3" in told
    assert "kubelet needs it" in told
    assert "node1" not in told
    well(lab)


# The firewall ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def firewall(lab):
    """The lab with the firewall on; what the cluster's file was before."""
    before = lab.cluster_file.read_bytes()
    document = yaml.safe_load(before)
    document["firewall"] = "nftables"
    document["networks"]["hosts"] = "10.77.0.0/24"
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    try:
        done = deploy(lab)
        assert done.code == 0, done.told
        yield before
    finally:
        lab.cluster_file.write_bytes(before)


def test_behind_the_firewall_the_cluster_is_whole(lab, firewall):
    well(lab)
    assert served(lab) == []
    assert len(status(lab)["vip"]["holders"]) == 1
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {})


def test_behind_the_firewall_each_host_finds_what_its_role_may(lab, firewall):
    cluster = declared(lab)
    wrong = everyone_scans(lab, cluster)
    assert wrong == ""
    wanted = expected(cluster)
    shut = {2380: FILTERED, 2382: FILTERED}
    assert wanted["node1"]["10.77.0.21"] == {2379: FILTERED, **shut}
    assert wanted["master1"]["10.77.0.21"] == {2379: OPEN, **shut}
    ways = dict.fromkeys((12379, 12380, 12381), FILTERED)
    others = {10257: FILTERED, 10259: FILTERED, **ways}
    assert wanted["lb1"]["10.77.0.31"] == {6443: OPEN, **others}
    # What loopback alone is to see is no more than that.
    assert wanted["node1"]["10.77.0.42"][10249] == FILTERED
    assert counters(lab, "etcd1")["etcd"] > 0


_FORGED = """
import socket
one = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
for _ in range(3):
    one.sendto(bytes([0x31, 51, 255, 1, 0, 20, 0, 0, 10, 77, 0, 10]), ("10.77.0.11", 0))
    one.sendto(bytes([0x31, 52, 255, 1, 0, 20, 0, 0, 10, 77, 0, 10]), ("10.77.0.11", 0))
"""


def test_others_have_no_say_in_who_holds_the_address(lab, firewall):
    before = counters(lab, "lb1")["keepalived"]
    lab.exec("node1", ["python3", "-c", _FORGED], check=True)
    # Another group of VRRP, the site's own, is let through.
    assert counters(lab, "lb1")["keepalived"] == before + 3


def test_behind_the_firewall_the_address_moves(lab, firewall):
    (holder,) = status(lab)["vip"]["holders"]
    lab.exec(holder, ["systemctl", "stop", "keepalived"], check=True)
    try:
        moved = until(lambda: [h for h in status(lab)["vip"]["holders"] if h != holder], 10)
        assert len(moved) == 1
        found = scan(lab, "node1", {VIP: [(8443, 8443)]})
        assert found == {VIP: {8443: OPEN}}
    finally:
        lab.exec(holder, ["systemctl", "start", "keepalived"], check=True)
    well(lab)


def test_rules_that_were_taken_away_or_changed_are_put_back(lab, firewall):
    flush = ["nft", "flush", "ruleset"]
    lab.exec("etcd1", flush, check=True)
    first = ["nft", "insert", "rule", "inet", "indigo", "input", "tcp", "dport", "2380", "accept"]
    lab.exec("etcd2", first, check=True)
    target = ("-L", "etcd1,etcd2,etcd3")
    done = lab.salt(*target, "indigo_firewall.differences", "--out=txt", timeout=60)
    assert "etcd1: ['the table inet indigo is not in the kernel" in done.stdout
    assert "etcd2: ['the table inet indigo was changed by hand']" in done.stdout
    assert "etcd3: []" in done.stdout
    done = deploy(lab)
    assert done.code == 0, done.told
    put_back = {host for _, host, state in done.states() if "restored" in str(state["changes"])}
    assert put_back == {"etcd1", "etcd2"}
    found = scan(lab, "node1", {"10.77.0.21": [(2379, 2380)], "10.77.0.22": [(2379, 2380)]})
    assert found == {key: {2379: FILTERED, 2380: FILTERED} for key in found}


def test_the_firewall_is_there_again_after_a_boot(lab, firewall):
    lab.kill("etcd3")
    lab.start("etcd3")
    found = scan(lab, "node1", {"10.77.0.23": [(2379, 2380)]})
    assert found == {"10.77.0.23": {2379: FILTERED, 2380: FILTERED}}
    well(lab)


def test_without_the_firewall_nothing_of_it_is_left(lab, firewall):
    lab.cluster_file.write_bytes(firewall)
    done = deploy(lab)
    assert done.code == 0, done.told
    left = on_all(
        lab,
        lambda host: lab.exec(
            host,
            ["sh", "-c", "nft list tables | grep indigo; systemctl is-active indigo-firewall; "
             "ls -d /etc/indigo/firewall /etc/systemd/system/*/indigo-firewall* 2>/dev/null"],
        ).stdout.split(),
    )  # fmt: skip
    assert left == {key: ["inactive"] for key in left}
    assert everyone_scans(lab, declared(lab)) == ""
    done = lab.salt("etcd1", "state.apply", "firewall", "--out=json", timeout=120)
    assert (done.returncode, changes(json.loads(done.stdout)["etcd1"])) == (0, {})
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {})
    well(lab)
