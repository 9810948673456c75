"""Every role has its inverse; on the way back, a file with a wrong checksum is not installed."""

from __future__ import annotations

import hashlib
import json
from urllib.parse import urlparse

import pytest
import yaml
from cluster import changes, deploy, ready_nodes, well
from indigo_lab.base import cache, sha256

PROFILE = "single"
HOST = "salt"

#: Units and, as shell patterns, files of each role.
OURS = {
    "node": (
        ("kubelet", "kube-proxy", "containerd"),
        "/etc/kubernetes/kube* /etc/kubernetes/tokens/kubelet /etc/kubernetes/tokens/kube-proxy "
        "/etc/kubernetes/pki/kubelet.* "
        "/etc/containerd /etc/cni/net.d/* /var/lib/containerd/* /var/lib/kubelet/* /var/lib/cni",
    ),
    "master": (
        ("etcd-proxy", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
        "/etc/kubernetes/*.* /etc/kubernetes/tokens/* /etc/kubernetes/pki/*api* "
        "/etc/kubernetes/pki/sa.* /etc/kubernetes/pki/*.key /usr/local/bin/kubectl",
    ),
    "etcd": (("etcd",), "/etc/etcd /var/lib/etcd /var/lib/etcd-bootstrap*"),
    "lb": (("haproxy", "keepalived"), "/etc/haproxy /etc/keepalived /usr/sbin/keepalived"),
}


def listed(lab, pattern):
    """The files of the host that match shell patterns."""
    script = f'for path in {pattern}; do [ ! -e "$path" ] || echo "$path"; done'
    return lab.exec(HOST, ["sh", "-c", script], check=True).stdout.split()


def units(lab, names):
    """Those of the units that are not plainly stopped, or whose file of ours is there."""
    found = set()
    for name in names:
        # A removed package may leave an init script, which systemd knows as a unit.
        show = ["systemctl", "show", "--property=ActiveState", f"{name}.service"]
        stopped = lab.exec(HOST, show, check=True).stdout.strip() == "ActiveState=inactive"
        if not stopped or listed(lab, f"/etc/systemd/system/{name}.service"):
            found.add(name)
    return found


def applied(lab, sls, *arguments):
    """``salt HOST state.apply``: whether it succeeded, and its states."""
    # Not --static: with it the exit code is 0 whatever the states said.
    done = lab.salt(HOST, "state.apply", sls, *arguments, "--out=json", timeout=300)
    return done.returncode, json.loads(done.stdout)[HOST]


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    if deploy(lab).code:
        pytest.fail("no cluster to take away")


@pytest.mark.parametrize("role", OURS)
def test_the_inverse_of_a_role_leaves_nothing_of_it(lab, role):
    names, pattern = OURS[role]
    assert units(lab, names) == set(names)
    assert listed(lab, pattern)
    # It says first what it would do, and does nothing.
    before = listed(lab, pattern)
    code, result = applied(lab, f"{role}.absent", "test=True")
    assert code == 0
    assert [state for state in result.values() if state["result"] is None]
    assert listed(lab, pattern) == before
    code, result = applied(lab, f"{role}.absent")
    assert code == 0, changes(result)
    assert units(lab, names) == set()
    assert listed(lab, pattern) == []
    code, result = applied(lab, f"{role}.absent")
    assert (code, changes(result)) == (0, {})


def test_the_inverse_of_the_host_leaves_only_the_authorities(lab):
    code, result = applied(lab, "common.absent")
    assert code == 0, changes(result)
    assert (
        listed(lab, "/etc/kubernetes /opt/indigo /usr/local/lib/indigo /etc/etcd /usr/sbin/haproxy")
        == []
    )
    accounts = lab.exec(HOST, ["cut", "-d:", "-f1", "/etc/passwd"], check=True).stdout.split()
    assert not [name for name in accounts if name == "etcd" or name.startswith("kube")]
    # Their keys cannot be made again: they go only when the cluster's name is given.
    assert len(listed(lab, "/etc/indigo/ca/*/ca.key")) == 3
    code, _ = applied(lab, "ca.absent")
    assert code != 0
    assert len(listed(lab, "/etc/indigo/ca/*/ca.key")) == 3


# The way back -------------------------------------------------------------------------------------


def _falsified(document):
    """Give kubelet a checksum that its file does not have; the real and the false one."""
    version = document["versions"]["kubernetes"]
    (sums,) = document["artifacts"]["checksums"]["kubernetes"][version].values()
    real = sums["kubelet"].removeprefix("sha256:")
    false = hashlib.sha256(b"another file").hexdigest()
    sums["kubelet"] = f"sha256:{false}"
    return real, false


def test_a_binary_with_a_wrong_checksum_is_never_installed(lab):
    text = lab.cluster_file.read_bytes()
    document = yaml.safe_load(text)
    real, false = _falsified(document)
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    try:
        done = deploy(lab)
    finally:
        lab.cluster_file.write_bytes(text)
    assert done.code != 0
    (told,) = [
        state["comment"]
        for _, _, state in done.states()
        if state["result"] is False and real in str(state["comment"])
    ]
    assert f"expected {false}" in told
    assert "Nothing was installed" in told
    url = next(word for word in told.split() if word.startswith("http"))
    assert urlparse(url).path.endswith("/kubelet")
    # Not under any name, in any folder, also not in a cache.
    served = [path for path in cache("www").rglob("kubelet") if sha256(path) == real]
    size = served[0].stat().st_size
    find = f"find / /run /tmp /var/lib/containerd /var/lib/kubelet -xdev -type f -size {size}c"
    for host in lab.hosts():
        assert lab.exec(host.name, find.split(), check=True).stdout == ""
    assert listed(lab, "/opt/indigo/*kubelet*") == []


def test_with_the_right_checksum_the_deploy_goes_on(lab, figure):
    done = deploy(lab)
    figure(f"deploy after everything was taken away: {done.seconds:.1f} s")
    assert done.code == 0, done.told
    assert ready_nodes(lab) == {HOST}
    well(lab)
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {})
