"""Deploy on bare hosts, and see the cluster work through its VIP."""

from __future__ import annotations

import json

import pytest
from cluster import WEB, apply_all, changes, deploy, kubectl, step_changes, told, until


@pytest.mark.foundation
def test_deploys_from_bare_hosts(lab):
    code, steps, progress = deploy(lab)
    assert code == 0, told(steps)
    assert all(step["result"] for step in steps.values()), told(steps)
    # Live progress names hosts while the steps run.
    assert "node3" in progress


def test_nodes_are_ready(lab):
    nodes = kubectl(lab, "get", "nodes")["items"]
    ready = {
        node["metadata"]["name"]
        for node in nodes
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready" and condition["status"] == "True"
    }
    assert ready == {"node1", "node2", "node3"}


def test_controllers_hold_their_leases(lab):
    for name in ("kube-controller-manager", "kube-scheduler"):
        lease = kubectl(lab, "get", "lease", "-n", "kube-system", name)
        assert lease["spec"]["holderIdentity"].split("_")[0] in ("master1", "master2")


@pytest.fixture(scope="module")
def pods(lab):
    """Three pods on three nodes: name to (address, node)."""
    lab.kubectl("apply", "-f", "-", stdin=WEB)

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


def _urls(lab, pods):
    service = kubectl(lab, "get", "service", "web")["spec"]["clusterIP"]
    addresses = {f"http://{address}:8080/" for address, _ in pods.values()}
    ports = {f"http://{host.address}:30080/" for host in lab.with_role("node")}
    return addresses | {f"http://{service}/"} | ports


def test_every_node_and_pod_reaches_pods_service_and_node_port(lab, pods):
    failures = []
    for url in sorted(_urls(lab, pods)):
        for host in lab.with_role("node"):
            # Python is on every host; what answers must be one of our pods.
            script = (
                f"import urllib.request as u; print(u.urlopen({url!r}, timeout=5).read().decode())"
            )
            done = lab.exec(host.name, ["python3", "-c", script], timeout=20)
            if not any(name in done.stdout for name in pods):
                failures.append(f"{host.name} -> {url}: {done.stdout}{done.stderr[-200:]}")
        for pod in pods:
            done = lab.kubectl("exec", pod, "--", "wget", "-T", "5", "-qO-", url, timeout=30)
            if not any(name in done.stdout for name in pods):
                failures.append(f"pod {pod} -> {url}: {done.stdout}{done.stderr}")
    assert not failures, "\n".join(failures)


def test_logs_and_exec_go_over_verified_tls(lab, pods):
    for pod in pods:
        done = lab.kubectl("exec", pod, "--", "hostname", timeout=30)
        assert done.stdout.strip() == pod, done.stderr
        done = lab.kubectl("logs", pod, timeout=30)
        assert done.returncode == 0, done.stderr
    # The API server verifies kubelets: the flag is what makes it so.
    line = lab.exec("master1", ["cat", "/etc/systemd/system/kube-apiserver.service"]).stdout
    assert "--kubelet-certificate-authority=/etc/kubernetes/pki/ca.crt" in line
    # A kubelet answers nobody without a credential.
    probe = (
        "import ssl, urllib.request as u, urllib.error as e\n"
        "c = ssl.create_default_context(cafile='/etc/kubernetes/pki/ca.crt')\n"
        "try:\n  u.urlopen('https://10.77.0.41:10250/pods', context=c); print('open')\n"
        "except e.HTTPError as err: print(err.code)\n"
    )
    assert lab.exec("master1", ["python3", "-c", probe]).stdout.strip() == "401"


def test_status_is_well(lab):
    done = lab.salt_run("indigo.status", "--out", "json")
    data = json.loads(done.stdout)
    assert data["problems"] == []
    assert done.returncode == 0
    assert len(data["vip"]["holders"]) == 1
    assert len(data["etcd"]["members"]) == 3


def test_a_second_deploy_changes_nothing(lab):
    code, steps, _ = deploy(lab)
    assert code == 0, told(steps)
    assert step_changes(steps) == {}


def test_state_apply_on_all_hosts_changes_nothing(lab):
    code, results = apply_all(lab)
    assert set(results) == {host.name for host in lab.hosts()}
    assert {host: changes(result) for host, result in results.items() if changes(result)} == {}
    assert code == 0
