"""What is asked before a deploy, and what is handed on when something is wrong."""

from __future__ import annotations

import io
import json
import tarfile
import time

import pytest
from cluster import well
from traces import found_in, secrets, tokens

PROFILE = "ha"


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    well(lab)


def preflight(lab):
    """``salt-run indigo.preflight``: its exit code, and its checks by name."""
    done = lab.salt_run("indigo.preflight", "--out", "json", timeout=180)
    data = json.loads(done.stdout)
    return done.returncode, {one["check"]: one for one in data["checks"]}


def test_a_cluster_that_runs_passes_preflight(lab, figure):
    started = time.monotonic()
    code, checks = preflight(lab)
    figure(f"indigo.preflight: {time.monotonic() - started:.1f} s")
    assert code == 0, checks
    assert {one["result"] for one in checks.values()} == {"ok"}, checks
    # masters to etcd and nodes, balancers to masters, nodes to masters, everyone to balancers, ...
    assert int(checks["reach"]["found"].split()[0]) > 50
    assert "10.77.0.2:80" in checks["sources"]["found"]


def test_its_table_is_for_people(lab):
    done = lab.salt_run("indigo.preflight", timeout=180)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert any(line.split()[:2] == ["ok", "reach"] for line in lines), done.stdout
    assert "Ready for indigo.deploy" in lines[-1]


def test_a_way_that_is_closed_is_named(lab):
    """As a packet filter between two hosts would: what one sends to the other is lost."""
    route = "blackhole 10.77.0.31/32"
    lab.exec("node3", ["ip", "route", "add", *route.split()], check=True)
    try:
        code, checks = preflight(lab)
    finally:
        lab.exec("node3", ["ip", "route", "del", *route.split()], check=True)
    assert code == 1
    told = checks["reach"]["problems"]
    assert any(
        one.startswith(
            "master1 does not reach node3 (10.77.0.43) at port 10250/tcp (kubelet): filt"
        )
        for one in told
    ), told
    assert any(
        one.startswith("node3 does not reach master1 (10.77.0.31) at port 6443") for one in told
    )
    assert len(told) == 2
    well(lab)


def test_the_bundle_has_what_helps_and_no_secret(lab, figure):
    admin = tokens(lab, "master1")["admin"]
    # A person may have left one where it does not belong.
    lab.exec("master1", ["sh", "-c", "cat >> /etc/hosts"], stdin=f"# {admin}\n", check=True)
    started = time.monotonic()
    try:
        done = lab.salt_run("indigo.report", "--out", "json", timeout=240)
    finally:
        lab.exec("master1", ["sed", "-i", "$d", "/etc/hosts"], check=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    seconds = time.monotonic() - started
    figure(f"indigo.report: {seconds:.1f} s, {told['bytes'] / 1024:.0f} KiB for 12 hosts")
    assert told["silent"] == {} and len(told["hosts"]) == 12
    mode = lab.exec("salt", ["stat", "-c", "%a %U", told["archive"]], check=True).stdout
    assert mode.strip() == "600 root"
    encoded = lab.exec("salt", ["base64", "-w0", told["archive"]], check=True).stdout
    texts = unpacked(encoded)
    assert "[removed]" in texts["hosts/master1/files/etc/hosts"]
    for name in (
        "cluster.yaml",
        "hosts/lb1/files/etc/haproxy/haproxy.cfg",
        "hosts/etcd2/journal/etcd",
        "hosts/node3/units/kubelet",
        "hosts/master1/kubernetes/nodes",
        "hosts/salt/status.json",
    ):
        assert len(texts[name]) > 50, name
    assert "node3" in texts["hosts/master1/kubernetes/nodes"]
    everything = "\n".join(texts.values()).encode()
    assert found_in(everything, secrets(lab, "master1")) == []
    assert b"PRIVATE KEY" not in everything
    lab.exec("salt", ["rm", told["archive"]], check=True)


def unpacked(encoded):
    """The texts of a bundle, by their paths below its folder."""
    import base64

    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(encoded))) as tar:
        return {
            entry.name.split("/", 1)[1]: tar.extractfile(entry).read().decode()
            for entry in tar.getmembers()
        }
