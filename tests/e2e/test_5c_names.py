"""Each node's own cache of names comes and goes with one key; no pod waits for one that is down.

The lab has an image of CoreDNS only when somebody brought one (``lab up --images``, or
INDIGO_IMAGES). Then names must resolve, through the cache and without it; without one the add-on
must say that it does not work. What hosts and pods are told is looked at in both.
"""

from __future__ import annotations

import json
import time

import pytest
import yaml
from cluster import (
    WEB,
    addon_works,
    answering,
    apply_all,
    changes,
    deploy,
    kubectl,
    put_back,
    until,
)

PROFILE = "compact"
pytestmark = pytest.mark.slow
MASTER, NODES = "host1", ("host1", "host2", "host3")
CACHE, SERVICE = "169.254.20.10", "10.96.0.10"
UNIT = "/etc/systemd/system/indigo-dns-cache.service"

#: A pod on host2 that stays where it is.
ASKS = """
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec:
  nodeName: host2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: asks, image: "indigo.lab/web:1", imagePullPolicy: Never, command: [/bin/sleep, "3600"]}
"""


def declare(lab, **settings):
    """Want CoreDNS, with nobody upstream, and these settings."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document["addons"] = {"coredns": {"upstream": [], **settings}}
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")


def brought(lab):
    """An image of CoreDNS among the lab's, or None."""
    return yaml.safe_load(lab.cluster_file.read_text())["images"]["use"].get("coredns")


def applied(lab):
    """``salt '*' state.apply`` on all hosts at once; what it changed, by host."""
    code, found = apply_all(lab)
    done = {host: changes(states) for host, states in found.items()}
    assert code == 0, done
    return {host: one for host, one in done.items() if one}


def works(lab):
    """What the check of CoreDNS says."""
    return addon_works(lab, MASTER, "coredns")


def well_or_told(lab):
    """With an image the add-on works; without one it says which of its pods do not run, and why."""
    if brought(lab):
        assert until(lambda: works(lab) == "", 120, 2), works(lab)
    else:
        assert until(lambda: "ImagePull" in works(lab), 60, 2), works(lab)


def addresses(lab):
    """Hosts that carry the cache's address."""
    show = ["ip", "-4", "-oneline", "address", "show", "to", f"{CACHE}/32"]
    return {host for host in NODES if lab.exec(host, show, check=True).stdout.strip()}


def units(lab):
    """Hosts that have the unit's file, or still know of the unit."""
    ask = f"test -e {UNIT} || systemctl is-active -q indigo-dns-cache"
    return {host for host in NODES if lab.exec(host, ["sh", "-c", ask]).returncode == 0}


def servers(lab):
    """The name servers that the pod on host2 was told."""
    done = lab.kubectl("exec", "asks", "--", "cat", "/etc/resolv.conf", timeout=30)
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("nameserver")]


def start_pod(lab):
    assert lab.kubectl("apply", "-f", "-", stdin=ASKS).returncode == 0
    assert until(lambda: servers(lab), 60, 1)


def end_pod(lab):
    assert lab.kubectl("delete", "pod", "asks", "--now", timeout=60).returncode == 0


#: Reads a page in the pod's network, by a name that the C library asks the pod's servers for. The
#: image's own busybox is linked without what resolves.
FETCH = """
pid=$(pgrep -xf '/bin/sleep 3600')
mount -t tmpfs none /mnt
cat /proc/$pid/root/etc/resolv.conf > /mnt/resolv.conf
mount --bind /mnt/resolv.conf /etc/resolv.conf
exec nsenter -t "$pid" -n python3 -c '
import time, urllib.request
began = time.monotonic()
page = urllib.request.urlopen("http://web", timeout=20).read().decode()
print(page, time.monotonic() - began)
'
"""


def fetch(lab):
    """Seconds until the pod has the page of a service that it knows by name."""
    done = lab.exec("host2", ["unshare", "-m", "sh", "-ec", FETCH], timeout=60)
    assert done.returncode == 0 and "web-" in done.stdout, done.stderr
    return float(done.stdout.split()[-1])


def caches(lab):
    """The DaemonSet of caches, or None."""
    items = kubectl(lab, "get", "daemonsets", "-n", "kube-system")["items"]
    return next((one for one in items if one["metadata"]["name"] == "coredns-cache"), None)


def left(lab):
    """What of this file is still there."""
    found = [f"{host}: {CACHE}" for host in addresses(lab)] + [f"{one}: unit" for one in units(lab)]
    for kind in ("configmaps", "daemonsets", "deployments"):
        names = lab.kubectl("get", kind, "-n", "kube-system", "-o", "name").stdout.split()
        found += [name for name in names if "coredns" in name]
    for host in NODES:
        text = lab.exec(host, ["cat", "/etc/kubernetes/kubelet.yaml"], check=True).stdout
        found += [f"{host}: kubelet"] if CACHE in text else []
        limit = lab.exec(host, ["cat", "/proc/sys/net/ipv4/icmp_ratelimit"], check=True).stdout
        found += [f"{host}: icmp_ratelimit {limit}"] if limit.strip() != "1000" else []
    return found


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    """A cluster with three pods behind a service, which started before there was a cache."""
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring a cache to: {done.told}")
    declared = lab.cluster_file.read_text()
    assert lab.kubectl("apply", "-f", "-", stdin=WEB).returncode == 0
    rollout = ("rollout", "status", "deployment/web", "--timeout=60s")
    assert lab.kubectl(*rollout, timeout=90).returncode == 0
    yield
    lab.kubectl("delete", "pod", "asks", "--now", "--ignore-not-found", timeout=60)
    lab.kubectl("delete", "-f", "-", stdin=WEB, timeout=60)
    put_back(lab, declared, left)


def test_one_key_brings_it_and_a_second_run_changes_nothing(lab):
    declare(lab, node_cache=True)
    assert set(applied(lab)) == set(NODES)
    assert addresses(lab) == units(lab) == set(NODES)
    well_or_told(lab)
    assert applied(lab) == {}


def test_a_pod_asks_the_cache_of_its_node_first(lab):
    start_pod(lab)
    assert servers(lab) == [CACHE, SERVICE]
    if not brought(lab):
        return
    name = "kubernetes.default.svc.cluster.local"
    asked = lab.kubectl("exec", "asks", "--", "nslookup", name, CACHE, timeout=30)
    assert asked.returncode == 0 and "10.96.0.1" in asked.stdout, asked.stdout
    assert fetch(lab) < 5
    read = f"import urllib.request as u; print(u.urlopen('http://{CACHE}:9254/health').read())"
    assert "OK" in lab.exec("host2", ["python3", "-c", read], timeout=30).stdout
    # Only this node's pods have it: at the host's own address nobody listens.
    listening = lab.exec("host2", ["ss", "-Hlnut", "sport", "=", ":53"], check=True).stdout
    assert {line.split()[4] for line in listening.splitlines()} == {f"{CACHE}:53"}


def test_without_its_cache_a_pod_goes_on_to_the_service_at_once(lab):
    """Caches are kept away from all nodes; a pod that waited for one would need five seconds."""
    if not brought(lab):
        # Nobody ever listens there: a connection is refused, not waited for.
        connect = ("nc", "-w", "20", CACHE, "53")
        began = time.monotonic()
        assert lab.kubectl("exec", "asks", "--", *connect, timeout=60).returncode != 0
        assert time.monotonic() - began < 5
        return

    def away(selector):
        patch = {"spec": {"template": {"spec": {"nodeSelector": selector}}}}
        change = ("patch", "daemonset", "-n", "kube-system", "coredns-cache", "-p")
        assert lab.kubectl(*change, json.dumps(patch)).returncode == 0

    away({"nobody": "has-it"})
    try:
        running = ("get", "pods", "-n", "kube-system", "-l", "k8s-app=coredns-cache")
        assert until(lambda: kubectl(lab, *running)["items"] == [], 60, 1)
        name = "kubernetes.default.svc.cluster.local"
        asked = lab.kubectl("exec", "asks", "--", "nslookup", name, CACHE, timeout=60)
        assert asked.returncode != 0, asked.stdout
        slowest = max(fetch(lab) for _ in range(20))
        assert slowest < 5, slowest
    finally:
        away(None)
    assert until(lambda: works(lab) == "", 120, 2), works(lab)
    asked = lab.kubectl("exec", "asks", "--", "nslookup", name, CACHE, timeout=60)
    assert asked.returncode == 0, asked.stdout


def test_names_resolve_while_a_cache_is_killed(lab, figure):
    if not brought(lab):
        assert works(lab) != ""
        return
    # The cache alone is root's.
    lab.exec("host2", ["pkill", "-9", "-u", "0", "coredns"], check=True)
    times = [fetch(lab) for _ in range(20)]
    figure(f"names: a page by name while the node's cache is killed: at most {max(times):.1f} s")
    assert max(times) < 5, times
    assert until(lambda: works(lab) == "", 180, 2), works(lab)


def test_an_address_that_somebody_took_away_is_put_back(lab):
    lab.exec("host3", ["ip", "address", "del", f"{CACHE}/32", "dev", "lo"], check=True)
    found = applied(lab)
    assert set(found) == {"host3"}
    (one,) = found["host3"].values()
    assert one["changes"] == {"restored": CACHE}
    assert addresses(lab) == set(NODES)


def test_it_survives_a_power_cut(lab):
    lab.kill("host3")
    lab.start("host3")
    assert until(lambda: addresses(lab) == set(NODES), 30)
    answering(lab, "host3")
    well_or_told(lab)
    assert until(lambda: applied(lab) == {}, 90, 1)


def test_it_goes_and_leaves_nothing_but_what_a_pod_was_told(lab):
    declare(lab)
    applied(lab)
    assert caches(lab) is None
    # It stays for pods that started meanwhile, of which host3 began one anew after the power cut:
    # without the address each of their questions would wait.
    assert addresses(lab) == units(lab) == {"host2", "host3"}
    assert servers(lab) == [CACHE, SERVICE]
    if brought(lab):
        assert until(lambda: works(lab) == "", 60, 2), works(lab)
        assert fetch(lab) < 5
    assert applied(lab) == {}
    end_pod(lab)
    others = ("delete", "pods", "-l", "app=web", "--timeout=60s")
    assert lab.kubectl(*others, timeout=90).returncode == 0
    # Their sandboxes end a moment later.
    assert until(lambda: applied(lab) and addresses(lab) == set(), 60, 1)
    assert addresses(lab) == units(lab) == set()
    assert applied(lab) == {}
    start_pod(lab)
    assert servers(lab) == [SERVICE]
    end_pod(lab)


def test_it_comes_again(lab):
    declare(lab, node_cache=True)
    applied(lab)
    assert addresses(lab) == units(lab) == set(NODES)
    well_or_told(lab)
    start_pod(lab)
    assert servers(lab) == [CACHE, SERVICE]
    if brought(lab):
        assert fetch(lab) < 5
    end_pod(lab)
    assert applied(lab) == {}
