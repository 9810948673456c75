"""What SECURITY.md says of a hostile pod and of a lost Salt master, tried."""

from __future__ import annotations

import json

import pytest
from cluster import answering, deployment, kubectl, until, well

#: Asks in a pod's network, as the pod could: the status of each answer, or why there is none.
_ASK = r"""
import json, ssl, sys, urllib.error, urllib.request
context = ssl._create_unverified_context()
def ask(url, token, body):
    headers = {"Authorization": "Bearer " + token} if token else {}
    if body:
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers)
    try:
        return urllib.request.urlopen(request, timeout=5, context=context).status
    except urllib.error.HTTPError as err:
        return err.code
    except OSError as err:
        return f"{type(err).__name__}: {err}"
print(json.dumps([ask(*one) for one in json.load(sys.stdin)]))
"""

#: Puts a command into the network of the pod that has an address.
_ENTER = r"""
address=$1; shift
for net in /run/netns/*; do
    if nsenter --net="$net" ip -4 -o addr | grep -q " $address/"; then
        exec nsenter --net="$net" "$@"
    fi
done
echo "no network has $address" >&2
exit 1
"""

PRIVILEGED = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "takeover"},
    "spec": {"containers": [{"name": "x", "image": "x", "securityContext": {"privileged": True}}]},
}


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    well(lab)


def _ready(lab, name):
    status = kubectl(lab, "get", "deployment", name)["status"]
    return status.get("readyReplicas") == status.get("replicas") == 1


@pytest.fixture(scope="module")
def pod(lab):
    """A pod of somebody's, and what it can ask with: ``ask(*(url, token, body))``, ``token``."""
    done = lab.kubectl("apply", "-f", "-", stdin=deployment("hostile", 1))
    assert done.returncode == 0, done.stderr
    assert until(lambda: _ready(lab, "hostile"), 90)
    (found,) = kubectl(lab, "get", "pods", "-l", "app=hostile")["items"]
    node, uid = found["spec"]["nodeName"], found["metadata"]["uid"]
    path = f"/var/lib/kubelet/pods/{uid}/volumes/*/*/token"
    token = lab.exec(node, ["sh", "-c", f"cat {path}"], check=True).stdout.strip()
    assert token.count(".") == 2

    def ask(*questions):
        enter = ["sh", "-c", _ENTER, "enter", found["status"]["podIP"], "python3", "-c", _ASK]
        done = lab.exec(node, enter, stdin=json.dumps(questions), timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    yield ask, token
    lab.kubectl("delete", "deployment", "hostile", "--wait=false")


def test_a_pod_cannot_have_kubelets_do_anything(lab, pod):
    ask, token = pod
    urls = [
        f"https://{host.address}:10250/{path}"
        for host in lab.with_role("node")
        for path in ("pods", "runningpods/", "logs/", "metrics")
    ]
    assert set(ask(*[(url, "", None) for url in urls])) == {401}
    assert set(ask(*[(url, token, None) for url in urls])) == {403}
    old = [(f"http://{host.address}:10255/pods", "", None) for host in lab.with_role("node")]
    assert all("refused" in str(answer) for answer in ask(*old))


def test_a_pod_gets_nothing_of_the_api_but_its_health(lab, pod):
    ask, token = pod
    service = kubectl(lab, "get", "service", "kubernetes", "-n", "default")["spec"]["clusterIP"]
    for api in ("https://10.77.0.10:8443", f"https://{service}:443"):
        paths = [
            "/api/v1/secrets",
            "/api/v1/nodes",
            "/api/v1/namespaces/kube-system/configmaps",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "/metrics",
        ]
        # Without a credential, and with the token of its service account.
        assert ask(*[(api + path, "", None) for path in paths]) == [403] * len(paths)
        assert ask(*[(api + path, token, None) for path in paths]) == [403] * len(paths)
        pods = f"{api}/api/v1/namespaces/default/pods"
        assert ask((pods, token, PRIVILEGED), (pods, "", PRIVILEGED)) == [403, 403]
        assert ask((f"{api}/readyz", "", None)) == [200]
        assert ask((f"{api}/readyz", "not-a-token", None)) == [401]


def test_a_pod_cannot_reach_the_data_of_etcd_nor_the_controllers(lab, pod):
    ask, token = pod
    stores = [
        (f"https://{host.address}:{port}/{path}", "", None)
        for host in lab.with_role("etcd")
        for port in (2379, 2380)
        for path in ("health", "version")
    ]
    answers = ask(*stores)
    # The connection ends: no certificate of etcd's authority.
    assert not [answer for answer in answers if isinstance(answer, int)], answers
    controllers = [
        (f"https://{host.address}:{port}/metrics", credential, None)
        for host in lab.with_role("master")
        for port in (10257, 10259)
        for credential in ("", token)
    ]
    assert set(ask(*controllers)) <= {401, 403}


def test_without_the_salt_master_the_cluster_serves(lab):
    lab.kill("salt")
    try:
        done = lab.kubectl("create", "configmap", "alone", "--from-literal=a=b")
        assert done.returncode == 0, done.stderr
        done = lab.kubectl("apply", "-f", "-", stdin=deployment("alone", 1))
        assert done.returncode == 0, done.stderr
        assert until(lambda: _ready(lab, "alone"), 90)
    finally:
        lab.start("salt")
    lab.kubectl("delete", "configmap,deployment", "alone", "--wait=false")
    for host in lab.hosts():
        answering(lab, host.name)
    well(lab)
