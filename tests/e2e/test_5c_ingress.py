"""The way in for services by one key: from the virtual address to Traefik on labelled nodes.

Traefik is the one of PyPI's wheel, of the release that the table pins for this Kubernetes. Clients
are on the host `salt`, which is no load balancer and no node.
"""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from cluster import answering, changes, deploy, kubectl, put_back, status, until, well
from indigo_lab.topology import VIP

PROFILE = "compact"
HOSTS = ("host1", "host2", "host3")
GATES = ("host2", "host3")
CLIENT = "10.77.0.5"
NAME, OWN_NAME = "web.example.org", "own.example.org"
SETTINGS = {"names": ["*.example.org"], "tcp": [{"port": 8090, "node_port": 30081}]}

#: A web server on a host that stays up. Asked for /cgi-bin/who it tells what it was asked with.
SERVICE = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: who}}
spec:
  selector: {{matchLabels: {{app: who}}}}
  template:
    metadata: {{labels: {{app: who}}}}
    spec:
      nodeSelector: {{kubernetes.io/hostname: host2}}
      terminationGracePeriodSeconds: 0
      containers:
      - name: who
        image: indigo.lab/web:1
        imagePullPolicy: Never
        command:
        - /bin/sh
        - -c
        - |
          mkdir -p /www/cgi-bin
          printf '#!/bin/sh\\necho\\nenv\\n' > /www/cgi-bin/who
          chmod +x /www/cgi-bin/who
          exec httpd -f -p 8080 -h /www
---
apiVersion: v1
kind: Service
metadata: {{name: who}}
spec:
  type: NodePort
  selector: {{app: who}}
  ports: [{{port: 80, targetPort: 8080, nodePort: 30081}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: who}}
spec:
  tls: [{{hosts: [{OWN_NAME}], secretName: own}}]
  rules:
  - host: {NAME}
    http: &leads
      paths:
      - path: /
        pathType: Prefix
        backend: {{service: {{name: who, port: {{number: 80}}}}}}
  - host: {OWN_NAME}
    http: *leads
"""

#: Asks once: argv has address, port, name, path, and, for TLS, a file with the authority.
_ASK = """
import http.client, json, socket, ssl, sys
address, port, name, path, authority = sys.argv[1:]
link = http.client.HTTPConnection(address, int(port), timeout=5)
link.sock = socket.create_connection((address, int(port)), 5)
subject = []
if authority:
    context = ssl.create_default_context(cafile=authority)
    link.sock = context.wrap_socket(link.sock, server_hostname=name)
    subject = link.sock.getpeercert()["subjectAltName"]
link.request("GET", path, headers={"Host": name, "X-Forwarded-For": "9.9.9.9"})
answer = link.getresponse()
print(json.dumps([answer.status, answer.read().decode(), subject]))
"""

#: Asks again and again over new connections: argv has address, name and seconds.
_ASKS = """
import http.client, json, sys, time
address, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
began = time.time()
good, tries, failed = [began], 0, []
while time.time() < began + seconds:
    link, tries = http.client.HTTPConnection(address, 80, timeout=1), tries + 1
    try:
        link.request("GET", "/cgi-bin/who", headers={"Host": name})
        answer = link.getresponse()
        answer.read()
        if answer.status == 200:
            good.append(time.time())
        else:
            failed.append(str(answer.status))
    except (OSError, http.client.HTTPException) as err:
        failed.append(repr(err))
    link.close()
    time.sleep(0.05)
gaps = [later - one for one, later in zip(good, good[1:] + [time.time()])]
print(json.dumps({"gap": max(gaps), "tries": tries, "failed": failed}))
"""


def ask(lab, name, path="/cgi-bin/who", *, port=80, authority="", address=VIP):
    """Status, text and names in the certificate of an answer to the host `salt`."""
    command = ["python3", "-c", _ASK, address, str(port), name, path, authority]
    done = lab.exec("salt", command, timeout=30)
    return json.loads(done.stdout) if done.returncode == 0 else [0, done.stderr, []]


def declare(lab, settings, labelled=GATES, firewall="none", **images):
    """Want it with these settings on these nodes, or, with None, not want it."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document.pop("addons", None)
    if settings is not None:
        document["addons"] = {"ingress": settings}
    for id_, host in document["hosts"].items():
        host.pop("labels", None)
        if settings is not None and id_ in labelled:
            host["labels"] = {"role": "loadbalancer"}
    document["images"].update(images)
    document["firewall"] = firewall
    document["networks"]["hosts"] = "10.77.0.0/24"
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt("*", "saltutil.refresh_pillar", "wait=True")


def works(lab):
    """What the check of the add-on says: empty when it works."""
    done = lab.salt("host1", "indigo_addon.works", "--out=json", timeout=60)
    return json.loads(done.stdout)["host1"].get("ingress", "it is not declared")


def haproxy(lab):
    """Main process of haproxy on each load balancer: another one after a restart."""
    show = ["systemctl", "show", "--property=MainPID", "haproxy"]
    return {host: lab.exec(host, show, check=True).stdout for host in HOSTS}


def left(lab):
    """Whatever of it is still there, in the cluster and on hosts."""
    kinds = "namespace,clusterrole,clusterrolebinding,ingressclass,configmap,pod,secret,ingress"
    done = lab.kubectl("get", kinds, "-A", "-o", "name", timeout=60)
    assert done.returncode == 0, done.stderr
    words = ("ingress", "traefik", "indigo-addon")
    found = [name for name in done.stdout.split() if any(word in name for word in words)]
    found += [
        node["metadata"]["name"]
        for node in kubectl(lab, "get", "nodes")["items"]
        if "role" in node["metadata"]["labels"]
    ]
    look = (
        "ls /etc/kubernetes/pki/ingress.* /var/lib/kubelet/indigo-labels.json 2>/dev/null; "
        "grep -o ingress /etc/haproxy/haproxy.cfg; ss -Hlnt | grep -E ':(80|443|8090|1008.|10443) '"
    )
    return found + [
        f"{host}: {line}"
        for host in HOSTS
        for line in lab.exec(host, ["sh", "-c", look]).stdout.splitlines()
    ]


def moved_to(lab, host):
    """Bring the virtual address to the first load balancer."""
    (holder,) = status(lab)["vip"]["holders"]
    if holder != host:
        others = [one for one in HOSTS if one != host]
        for one in others:
            lab.exec(one, ["systemctl", "stop", "keepalived"], check=True)
        assert until(lambda: status(lab)["vip"]["holders"] == [host], 20)
        for one in others:
            lab.exec(one, ["systemctl", "start", "keepalived"], check=True)


def lost(lab, host):
    """What clients notice when a host loses its power."""
    with ThreadPoolExecutor(1) as pool:
        command = ["python3", "-c", _ASKS, VIP, NAME, "10"]
        asking = pool.submit(lab.exec, "salt", command, timeout=60, check=True)
        time.sleep(2)
        lab.kill(host)
        return json.loads(asking.result().stdout)


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring it to: {done.told}")
    before = lab.cluster_file.read_text()
    yield
    lab.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=SERVICE, timeout=60)
    lab.kubectl("delete", "--ignore-not-found", "secret", "own", timeout=60)
    put_back(lab, before, left)


@pytest.mark.foundation
def test_one_key_and_labels_bring_it(lab, figure):
    before = haproxy(lab)
    assert lab.kubectl("apply", "-f", "-", stdin=SERVICE).returncode == 0
    declare(lab, SETTINGS)
    done = deploy(lab)
    assert done.code == 0, done.told
    found = status(lab)
    assert found["addons"] == {"ingress": "ok"}
    assert found["exit"] == 0, found["problems"]
    # haproxy was reloaded, not restarted.
    assert haproxy(lab) == before
    figure(f"ingress, from one key to a request that comes through: {done.seconds:.1f} s")


def test_only_labelled_nodes_carry_it(lab):
    nodes = kubectl(lab, "get", "nodes", "-l", "role=loadbalancer")["items"]
    assert {node["metadata"]["name"] for node in nodes} == set(GATES)
    pods = kubectl(lab, "get", "pods", "-n", "ingress")["items"]
    assert {pod["spec"]["nodeName"] for pod in pods} == set(GATES)


def test_a_label_alone_brings_no_controller(lab):
    assert lab.kubectl("label", "node", "host1", "role=loadbalancer").returncode == 0
    here = ("pods", "-n", "ingress", "--field-selector=spec.nodeName=host1")
    came = until(lambda: kubectl(lab, "get", *here)["items"], 3)
    assert lab.kubectl("label", "node", "host1", "role-").returncode == 0
    assert came == []
    wanted = kubectl(lab, "get", "daemonset", "-n", "ingress", "traefik")
    assert wanted["status"]["desiredNumberScheduled"] == 2


def test_services_are_found_by_their_names(lab):
    assert until(lambda: ask(lab, NAME)[0] == 200, 20, 1), ask(lab, NAME)
    assert ask(lab, "nobody.example.org")[0] == 404
    (way,) = kubectl(lab, "get", "ingress", "who")["status"]["loadBalancer"]["ingress"]
    assert way == {"ip": VIP}


def test_a_service_learns_its_clients_address_and_believes_nobody_else(lab):
    _, text, _ = ask(lab, NAME)
    assert f"HTTP_X_FORWARDED_FOR={CLIENT}" in text.splitlines(), text
    assert "9.9.9.9" not in text
    # Past the load balancers, with their protocol: who says it is not one of them.
    forged = (
        "import socket; s = socket.create_connection(('10.77.0.33', 10080), 5); s.sendall("
        "b'PROXY TCP4 9.9.9.9 10.77.0.33 999 80\\r\\nGET /cgi-bin/who HTTP/1.0\\r\\n"
        f"Host: {NAME}\\r\\n\\r\\n'); print(s.makefile().read())"
    )
    text = lab.exec("salt", ["python3", "-c", forged], timeout=30).stdout
    assert "9.9.9.9" not in text


def made(folder, name):
    """A self-signed certificate for a name, and its key: text of both."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    make += ["-nodes", "-days", "2", "-subj", f"/CN={name}"]
    make += ["-addext", f"subjectAltName=DNS:{name}"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    return certificate.read_text(), key.read_text()


def put_secret(lab, name, namespace, certificate, key):
    """A Secret with a certificate, as `kubectl create secret tls` makes it."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {"tls.crt": certificate, "tls.key": key},
    }
    assert lab.kubectl("apply", "-f", "-", stdin=json.dumps(secret)).returncode == 0


def test_tls_has_the_certificate_of_our_authority_or_the_services_own(lab, tmp_path):
    authority = lab.exec("host1", ["cat", "/etc/kubernetes/pki/ca.crt"], check=True).stdout
    lab.exec("salt", ["tee", "/tmp/ca.crt"], stdin=authority, check=True)
    code, _, names = ask(lab, NAME, port=443, authority="/tmp/ca.crt")
    assert (code, ["DNS", "*.example.org"] in names) == (200, True), names

    certificate, key = made(tmp_path, OWN_NAME)
    put_secret(lab, "own", "default", certificate, key)
    lab.exec("salt", ["tee", "/tmp/own.crt"], stdin=certificate, check=True)
    wanted = [200, [["DNS", OWN_NAME]]]
    found = until(
        lambda: (a := ask(lab, OWN_NAME, port=443, authority="/tmp/own.crt"))[::2] == wanted and a,
        20,
        1,
    )
    assert found, ask(lab, OWN_NAME, port=443, authority="/tmp/own.crt")


def test_a_declared_port_leads_to_a_node_port(lab):
    assert ask(lab, "whatever", port=8090)[0] == 200
    assert lab.kubectl("scale", "deployment", "who", "--replicas=0").returncode == 0
    told = f"{VIP}:8090 ends each connection at once: node port 30081 has no ready pod"
    assert until(lambda: works(lab) == told, 20, 1), works(lab)
    assert lab.kubectl("scale", "deployment", "who", "--replicas=1").returncode == 0
    assert until(lambda: works(lab) == "", 30, 1), works(lab)


def test_its_page_is_seen_from_its_host_alone(lab):
    ask_page = (
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:10082/api/overview').status)"
    )
    done = lab.exec("host3", ["python3", "-c", ask_page], timeout=30)
    assert done.stdout.strip() == "200", done.stderr
    for path in ("/dashboard/", "/api/overview", "/metrics"):
        assert ask(lab, VIP, path)[0] == 404
    for address in ("10.77.0.33", VIP):
        code, why, _ = ask(lab, VIP, "/api/overview", port=10082, address=address)
        assert (code, "refused" in why) == (0, True), why


@pytest.mark.slow
def test_a_node_that_carries_it_is_lost(lab, figure):
    moved_to(lab, "host1")
    found = lost(lab, "host3")
    lab.start("host3")
    assert found["gap"] < 8, found
    figure(
        f"ingress: a node with a controller powered off: {found['gap']:.2f} s without an answer, "
        f"{len(found['failed'])} of {found['tries']} requests failed"
    )
    answering(lab, "host3")
    well(lab)


def test_the_load_balancer_with_the_address_is_lost(lab, figure):
    moved_to(lab, "host1")
    found = lost(lab, "host1")
    lab.start("host1")
    assert found["gap"] < 8, found
    figure(
        f"ingress: the holder of the virtual address powered off: {found['gap']:.2f} s without an "
        f"answer, {len(found['failed'])} of {found['tries']} requests failed"
    )
    answering(lab, "host1")
    well(lab)


@pytest.mark.slow
def test_an_update_of_the_controllers_fails_no_request(lab, figure):
    """One after the other, each told apart from one that broke: haproxy sees that it is going."""
    with ThreadPoolExecutor(1) as pool:
        command = ["python3", "-c", _ASKS, VIP, NAME, "30"]
        asking = pool.submit(lab.exec, "salt", command, timeout=90, check=True)
        declare(lab, SETTINGS | {"memory": "300Mi"})
        done = lab.salt("host1", "state.apply", "addons", "--out=json", timeout=300)
        found = changes(json.loads(done.stdout)["host1"])
        assert "DaemonSet ingress/traefik" in str(found), found
        noticed = json.loads(asking.result().stdout)
    assert until(lambda: works(lab) == "", 60, 1), works(lab)
    figure(f"ingress: update of both controllers: {len(noticed['failed'])} of {noticed['tries']} "
           f"requests failed, longest gap {noticed['gap']:.2f} s")  # fmt: skip
    assert noticed["failed"] == []


@pytest.mark.slow
def test_behind_the_firewall_it_works_and_only_load_balancers_come_to_controllers(lab):
    declare(lab, SETTINGS, firewall="nftables")
    done = deploy(lab)
    assert done.code == 0, done.told
    assert ask(lab, NAME)[0] == ask(lab, NAME, port=8090)[0] == 200
    for port in (10080, 10443):
        code, why, _ = ask(lab, NAME, port=port, address="10.77.0.33")
        assert (code, "timed out" in why) == (0, True), why
    declare(lab, SETTINGS)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert ask(lab, NAME, port=10080, address="10.77.0.33")[0] == 200


@pytest.mark.slow
def test_a_certificate_of_the_site_takes_the_place_of_ours_and_is_exchanged(lab, tmp_path):
    def shows(name):
        # To who asks for no name that an Ingress has a certificate for.
        ask_for = (
            f"echo | openssl s_client -connect {VIP}:443 2>/dev/null | openssl x509 -noout -subject"
        )
        return name in lab.exec("salt", ["sh", "-c", ask_for], timeout=30).stdout

    put_secret(lab, "site", "ingress", *made(tmp_path, "site.example.org"))
    declare(lab, SETTINGS | {"certificate": "site"})
    done = deploy(lab)
    assert done.code == 0, done.told
    assert until(lambda: shows("site.example.org"), 30, 1)
    assert lab.exec("host1", ["ls", "/etc/kubernetes/pki/ingress.key"]).returncode != 0
    before = kubectl(lab, "get", "pods", "-n", "ingress")["items"]
    put_secret(lab, "site", "ingress", *made(tmp_path, "later.example.org"))
    # From both of them.
    assert until(lambda: all(shows("later.example.org") for _ in range(4)), 150, 2)
    after = kubectl(lab, "get", "pods", "-n", "ingress")["items"]
    assert {pod["metadata"]["uid"] for pod in before} == {pod["metadata"]["uid"] for pod in after}


@pytest.mark.slow
def test_a_broken_image_fails_it_alone_with_the_reason_of_kubernetes(lab):
    good = yaml.safe_load(lab.cluster_file.read_text())["images"]["use"]
    declare(lab, SETTINGS, use=good | {"traefik": "indigo.lab/broken:1"})
    lab.salt("host1", "state.apply", "addons", "--out=json", timeout=300)
    told = until(lambda: (found := works(lab)) and "ImagePull" in found and found, 120, 2)
    assert told and told.startswith("DaemonSet ingress/traefik: "), works(lab)
    # One at a time: the other one serves on.
    assert ask(lab, NAME)[0] == 200
    declare(lab, SETTINGS, use=good)
    lab.salt("host1", "state.apply", "addons", "--out=json", timeout=300)
    assert until(lambda: works(lab) == "", 120, 2), works(lab)


def test_it_goes_whole_and_a_last_run_changes_nothing(lab):
    assert lab.kubectl("delete", "-f", "-", stdin=SERVICE, timeout=60).returncode == 0
    declare(lab, None)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert left(lab) == []
    done = deploy(lab)
    assert (done.code, done.changes) == (0, {}), done.told
