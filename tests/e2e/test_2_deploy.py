"""Deploy on bare hosts, and see the cluster work through its VIP."""

from __future__ import annotations

import json

import pytest
from cluster import WEB, apply_all, changes, deploy, kubectl, on_all, ready_nodes, status, until


@pytest.mark.foundation
def test_deploys_from_bare_hosts(lab, first_deploy, figure):
    figure(f"deploy on {len(lab.hosts())} bare hosts: {first_deploy.seconds:.1f} s")
    assert first_deploy.code == 0, first_deploy.told
    assert all(step["result"] for step in first_deploy.steps.values()), first_deploy.told
    assert first_deploy.changes
    # Live progress names hosts while the steps run.
    for host in lab.hosts():
        assert f" {host.name} done" in first_deploy.progress


def test_nodes_are_ready(lab):
    assert ready_nodes(lab) == {"node1", "node2", "node3"}


def test_controllers_hold_their_leases(lab):
    for name in ("kube-controller-manager", "kube-scheduler"):
        lease = kubectl(lab, "get", "lease", "-n", "kube-system", name)
        assert lease["spec"]["holderIdentity"].split("_")[0] in ("master1", "master2")


@pytest.fixture(scope="module")
def pods(lab):
    """Three pods on three nodes: name to (address, node)."""
    done = lab.kubectl("apply", "-f", "-", stdin=WEB)
    assert done.returncode == 0, done.stderr

    def running():
        items = kubectl(lab, "get", "pods", "-l", "app=web")["items"]
        ready = {
            pod["metadata"]["name"]: (pod["status"]["podIP"], pod["spec"]["nodeName"])
            for pod in items
            if all(s["ready"] for s in pod["status"].get("containerStatuses", [{"ready": False}]))
        }
        return ready if len(ready) == 3 else None

    found = until(running, 60)
    assert found, lab.kubectl("describe", "pods").stdout
    return found


def test_replicas_spread_over_three_nodes(pods):
    assert {node for _, node in pods.values()} == {"node1", "node2", "node3"}


# Asks every URL and prints what answered, or why nothing did. Python is on every host.
_ASK = """
import json, sys, urllib.request
def ask(url):
    try:
        return urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError as err:
        return f"{type(err).__name__}: {err}"
print(json.dumps({url: ask(url) for url in sys.argv[1:]}))
"""
# busybox's own wget -T crashes where nothing resolves names.
_ASK_IN_POD = 'for url; do echo "$url $(timeout 5 wget -qO- "$url" 2>&1)"; done'


def test_every_node_and_pod_reaches_pods_service_and_node_port(lab, pods):
    service = kubectl(lab, "get", "service", "web")["spec"]["clusterIP"]
    urls = [f"http://{address}:8080/" for address, _ in pods.values()]
    urls += [f"http://{host.address}:30080/" for host in lab.with_role("node")]
    urls.append(f"http://{service}/")
    answers = {}
    for host in lab.with_role("node"):
        done = lab.exec(host.name, ["python3", "-c", _ASK, *urls], timeout=90, check=True)
        answers[host.name] = json.loads(done.stdout)
    for pod in pods:
        done = lab.kubectl("exec", pod, "--", "sh", "-c", _ASK_IN_POD, "ask", *urls, timeout=90)
        assert done.returncode == 0, done.stderr
        answers[pod] = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert all(set(found) == set(urls) for found in answers.values()), answers
    # What answers must be one of our pods, not something else at that address.
    wrong = [
        f"{who} -> {url}: {answer}"
        for who, found in answers.items()
        for url, answer in found.items()
        if answer.strip() not in pods
    ]
    assert not wrong, "\n".join(wrong)
    by_address = {f"http://{address}:8080/": pod for pod, (address, _) in pods.items()}
    for found in answers.values():
        assert {url: found[url].strip() for url in by_address} == by_address


def test_logs_and_exec_go_over_verified_tls(lab, pods):
    for pod in pods:
        done = lab.kubectl("exec", pod, "--", "hostname", timeout=30)
        assert done.stdout.strip() == pod, done.stderr
        done = lab.kubectl("logs", pod, timeout=30)
        assert done.returncode == 0, done.stderr
    # The API server verifies kubelets: the flag is what makes it so, on each master as it runs.
    for host in lab.with_role("master"):
        line = lab.exec(
            host.name, ["sh", "-c", "tr '\\0' '\\n' < /proc/$(pidof kube-apiserver)/cmdline"]
        ).stdout.splitlines()
        assert "--kubelet-certificate-authority=/etc/kubernetes/pki/ca.crt" in line
    # A kubelet answers nobody without a credential, and its certificate verifies.
    probe = (
        "import ssl, urllib.request as u, urllib.error as e\n"
        "c = ssl.create_default_context(cafile='/etc/kubernetes/pki/ca.crt')\n"
        "try:\n  u.urlopen('https://10.77.0.41:10250/pods', context=c); print('open')\n"
        "except e.HTTPError as err: print(err.code)\n"
    )
    assert lab.exec("master1", ["python3", "-c", probe]).stdout.strip() == "401"


def test_status_is_well(lab):
    found = status(lab)
    assert found["problems"] == []
    assert found["exit"] == 0
    assert len(found["vip"]["holders"]) == 1
    assert len(found["etcd"]["members"]) == 3


def _started(lab):
    """When each unit of ours started, by host: nothing restarts without a reason."""
    show = ["systemctl", "show", "--property=Id,ActiveEnterTimestampMonotonic", "*.service"]
    return on_all(
        lab,
        lambda host: {
            block
            for block in lab.exec(host, show, check=True).stdout.split("\n\n")
            if any(name in block for name in ("kube", "etcd", "haproxy", "keepal", "containerd"))
        },
    )


def test_a_second_deploy_changes_nothing(lab, figure):
    before = _started(lab)
    done = deploy(lab)
    figure(f"second deploy on {len(lab.hosts())} hosts: {done.seconds:.1f} s")
    assert done.code == 0, done.told
    assert done.changes == {}
    assert _started(lab) == before


def test_state_apply_on_all_hosts_changes_nothing(lab):
    code, results = apply_all(lab)
    assert set(results) == {host.name for host in lab.hosts()}
    assert {host: changes(result) for host, result in results.items() if changes(result)} == {}
    assert code == 0


def test_a_deploy_mends_what_differs_and_leaves_the_other_hosts_alone(lab):
    lab.exec("lb3", ["systemctl", "stop", "haproxy"], check=True)
    lab.exec("node2", ["sh", "-c", "echo >> /etc/kubernetes/kubelet.yaml"], check=True)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert {host for _, host, _ in done.states()} == {"lb3", "node2"}
    assert done.steps["Every host runs its roles"]["comment"].startswith(
        f"On 2 of {len(lab.hosts())} hosts."
    )
    assert deploy(lab).changes == {}
