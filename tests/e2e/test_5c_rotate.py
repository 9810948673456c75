"""Keys, tokens, certificates and authorities are exchanged under load, and the old ones end.

On the profile compact, whose three hosts have all roles each, two of them the masters'. In every
exchange clients write, read and watch through the VIP; none of their requests may fail twice.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster import deploy, deployment, kubectl, orchestrate, ready_nodes, status, until, well
from indigo_lab.saltenv import VENV
from moments import Run
from traffic import Traffic, noticed_nothing

PROFILE = "compact"
HOSTS = ("host1", "host2", "host3")
MASTERS = ("host1", "host2")
KUBERNETES = "/etc/kubernetes"
SET = f"{KUBERNETES}/tokens.set"
EXCHANGE = "/etc/indigo/ca/exchange.json"
KEEP = "indigo_pki.keep"


@pytest.fixture(scope="module", autouse=True)
def cluster(lab) -> Iterator[None]:
    """The cluster that the file before leaves; deployed here when this file runs alone."""
    done = deploy(lab)
    assert done.code == 0, done.told
    before = lab.cluster_file.read_bytes()
    yield
    lab.cluster_file.write_bytes(before)
    lab.salt("*", "saltutil.refresh_pillar", "wait=True", timeout=60)


def read(lab, host: str, path: str) -> str:
    return lab.exec(host, ["cat", path], check=True).stdout


def answers(lab, target: str, function: str, *arguments: str) -> dict[str, Any]:
    done = lab.salt(target, function, *arguments, "--out", "json", "--static", timeout=300)
    return json.loads(done.stdout)


def rotation(lab, host: str = "host1") -> dict[str, Any] | None:
    return json.loads(read(lab, host, SET)).get("rotation")


def asked(lab, token: str) -> str:
    """Status of a question to the API that is asked with a token."""
    code = (
        "import ssl, sys, urllib.request as u, urllib.error as e\n"
        f"c = ssl.create_default_context(cafile='{KUBERNETES}/pki/ca.crt')\n"
        "r = u.Request('https://10.77.0.10:8443/api/v1/namespaces/default/pods',\n"
        "              headers={'Authorization': 'Bearer ' + sys.stdin.read().strip()})\n"
        "try: print(u.urlopen(r, context=c, timeout=10).status)\n"
        "except e.HTTPError as err: print(err.code)\n"
    )
    done = lab.exec("host1", ["python3", "-c", code], stdin=token, timeout=30)
    return done.stdout.strip() or done.stderr


def nothing_left_to_do(lab) -> None:
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {}), again.told or again.changes
    well(lab)
    assert ready_nodes(lab) == set(HOSTS)


# The encryption key -------------------------------------------------------------------------------


def encryption_keys(lab, host: str) -> dict[str, str]:
    config = yaml.safe_load(read(lab, host, f"{KUBERNETES}/encryption.yaml"))
    providers = config["resources"][0]["providers"]
    return {
        k["name"]: k["secret"] for p in providers for k in p.get("secretbox", {}).get("keys", ())
    }


def secrets_by_key(lab) -> dict[str, int]:
    return answers(lab, "host1", "indigo_rotate.stored")["host1"]


@pytest.mark.slow
def test_the_encryption_key_is_exchanged_also_by_a_run_that_was_killed(lab, figure):
    listed = [
        {"apiVersion": "v1", "kind": "Secret",
         "metadata": {"name": f"old-{n}", "labels": {"made-for": "rotate"}},
         "stringData": {"word": "indigo"}}
        for n in range(200)
    ]  # fmt: skip
    made = lab.kubectl("apply", "-f", "-", stdin=json.dumps(
        {"apiVersion": "v1", "kind": "List", "items": listed}), timeout=120)  # fmt: skip
    assert made.returncode == 0, made.stderr
    before = encryption_keys(lab, "host1")
    ((old_name, old_key),) = before.items()
    assert set(secrets_by_key(lab)) == {f"secretbox:v1:{old_name}"}

    with Traffic(lab, secrets=True) as traffic:
        since = traffic.flows()
        began = time.monotonic()
        run = Run(lab, "indigo.rotate.encryption")
        assert run.wait_for(
            lambda it: it.document("host1", SET).get("rotation", {}).get("phase") == "used"
        ), run.end().told
        run.kill()
        # A plain deploy in between keeps the phase, and the status tells of it.
        middle = deploy(lab)
        assert middle.code == 0, middle.told
        assert rotation(lab)["phase"] == rotation(lab, "host2")["phase"] == "used"
        assert status(lab)["exchange"]["encryption"]["phase"] == "used"
        assert len(encryption_keys(lab, "host2")) == 2
        done = orchestrate(lab, "indigo.rotate.encryption")
        seconds = time.monotonic() - began
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(f"encryption key, killed once, with a deploy in between: {seconds:.0f} s; {report}")
    noticed_nothing(report)

    new = encryption_keys(lab, "host1")
    assert new == encryption_keys(lab, "host2")
    assert not set(new) & set(before)
    ((new_name, _),) = new.items()
    found = secrets_by_key(lab)
    assert set(found) == {f"secretbox:v1:{new_name}"}
    assert found[f"secretbox:v1:{new_name}"] >= 200
    assert kubectl(lab, "get", "secret", "old-7")["data"]["word"] == "aW5kaWdv"
    # The old key is in no file any more.
    for host in MASTERS:
        search = ["grep", "-rlF", "-f", "-", KUBERNETES, "/var/cache/salt", "/var/log/salt"]
        assert lab.exec(host, search, stdin=old_key).stdout == ""
    assert rotation(lab) is None
    lab.kubectl("delete", "secrets", "-l", "made-for=rotate", "--wait=false", timeout=120)
    nothing_left_to_do(lab)


# Certificates -------------------------------------------------------------------------------------


def declare(lab, **certificates: int) -> None:
    """Set the section ``certificates`` in cluster.yaml, and let the minions know."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document["certificates"] = certificates
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    lab.salt("*", "saltutil.refresh_pillar", "wait=True", timeout=60)


def certificates(lab) -> dict[str, dict[str, Any]]:
    """What each host says of its own certificates, by host and path."""
    return {
        f"{host} {row['path']}": row
        for host, rows in answers(lab, "*", "indigo_pki.status").items()
        for row in rows
        if not row["name"].endswith(("authority", "(held)"))
    }


# Signs what is on the input again as something that has expired, with the authority's key.
_EXPIRE = r"""
import datetime, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
folder = "/etc/indigo/ca/" + sys.argv[1]
key = serialization.load_pem_private_key(open(folder + "/ca.key", "rb").read(), None)
ca = x509.load_pem_x509_certificate(open(folder + "/ca.crt", "rb").read())
old = x509.load_pem_x509_certificate(sys.stdin.buffer.read())
now = datetime.datetime.utcnow()
new = x509.CertificateBuilder(
    issuer_name=ca.subject, subject_name=old.subject, public_key=old.public_key(),
    serial_number=x509.random_serial_number(), not_valid_before=now - datetime.timedelta(2),
    not_valid_after=now - datetime.timedelta(1), extensions=list(old.extensions),
).sign(key, hashes.SHA256())
print(new.public_bytes(serialization.Encoding.PEM).decode())
"""


def expire(lab, host: str, authority: str, path: str) -> None:
    """Put an expired certificate in the place of one that a host has."""
    salts = f"{VENV}/bin/python3"
    made = lab.exec(
        "salt", [salts, "-c", _EXPIRE, authority], stdin=read(lab, host, path), check=True
    )
    lab.exec(host, ["sh", "-c", f"cat > {path}"], stdin=made.stdout, check=True)


def test_certificates_near_their_end_renew_by_themselves(lab, figure):
    with Traffic(lab) as traffic:
        since = traffic.flows()
        # What there is has 365 days at most, so it is near its end now.
        declare(lab, look=10, days=400, renew_before=370)
        began = time.monotonic()
        found = until(
            lambda: all(row["days_left"] >= 398 for row in certificates(lab).values()), 180, 5
        )
        seconds = time.monotonic() - began
        assert found, certificates(lab)
        well(lab)
        report = traffic.stop(since)
    figure(f"all certificates renew by themselves: {seconds:.0f} s; {report}")
    noticed_nothing(report)


def test_expired_certificates_are_renewed_by_themselves(lab, figure):
    paths = {
        ("host2", "etcd"): "/etc/etcd/pki/member.crt",
        ("host3", "kubernetes"): f"{KUBERNETES}/pki/kubelet.crt",
        ("host1", "kubernetes"): f"{KUBERNETES}/pki/apiserver-kubelet-client.crt",
        ("host2", "kubernetes"): f"{KUBERNETES}/pki/apiserver.crt",
        ("host1", "front-proxy"): f"{KUBERNETES}/pki/front-proxy-client.crt",
    }
    # Nobody looks while they expire: `schedule.disable_job` leaves a job of the pillar as it is.
    declare(lab, look=0)
    assert until(lambda: not any(answers(lab, "*", "saltutil.is_running", KEEP).values()), 60)
    with Traffic(lab) as traffic:
        since = traffic.flows()
        for (host, authority), path in paths.items():
            expire(lab, host, authority, path)
        said = status(lab)["problems"]
        for (host, _), path in paths.items():
            assert any(host in one and path in one and "it expired on" in one for one in said), said
        began = time.monotonic()
        declare(lab, look=10)
        assert until(lambda: not status(lab)["problems"], 180, 5), status(lab)["problems"]
        seconds = time.monotonic() - began
        report = traffic.stop(since)
    figure(f"{len(paths)} expired certificates are renewed: {seconds:.0f} s; {report}")
    noticed_nothing(report)
    declare(lab)
    done = deploy(lab)
    assert done.code == 0, done.told
    nothing_left_to_do(lab)


@pytest.mark.slow
def test_all_certificates_are_exchanged_with_their_keys(lab, figure):
    keys = {
        host: lab.exec(
            host, ["sh", "-c", f"sha256sum /etc/etcd/pki/*.key {KUBERNETES}/pki/[ak]*.key"],
            check=True,
        ).stdout.split()[::2]
        for host in HOSTS
    }  # fmt: skip
    with Traffic(lab) as traffic:
        since = traffic.flows()
        done = orchestrate(lab, "indigo.rotate.certificates", older_than=0)
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(f"all certificates and keys: {done.seconds:.0f} s; {report}")
    noticed_nothing(report)
    for host, before in keys.items():
        names = [name for name in before if name]
        after = lab.exec(
            host, ["sh", "-c", f"sha256sum /etc/etcd/pki/*.key {KUBERNETES}/pki/[ak]*.key"]
        ).stdout
        assert not [one for one in names if one in after], host
    # What was made within the hour is left alone.
    again = orchestrate(lab, "indigo.rotate.certificates")
    assert (again.code, again.changes) == (0, {}), again.told or again.changes
    nothing_left_to_do(lab)


# Tokens -------------------------------------------------------------------------------------------

CLIENT = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: client}
---
apiVersion: v1
kind: Secret
metadata: {name: client, annotations: {kubernetes.io/service-account.name: client}}
type: kubernetes.io/service-account-token
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: client}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: client, namespace: default}]
"""


def account_token(lab) -> str:
    """A token of a client outside, signed by the service account key."""

    def made() -> str:
        data = kubectl(lab, "get", "secret", "client").get("data", {})
        return base64.b64decode(data.get("token", "")).decode()

    assert lab.kubectl("apply", "-f", "-", stdin=CLIENT, timeout=60).returncode == 0
    found = until(made, 30)
    assert found
    return found


@pytest.mark.slow
def test_tokens_are_exchanged_and_the_old_ones_are_refused(lab, figure):
    own = {host: read(lab, host, f"{KUBERNETES}/tokens/kubelet").strip() for host in HOSTS}
    admin = read(lab, "host1", f"{KUBERNETES}/tokens/admin").strip()
    assert asked(lab, admin) == "200"
    with Traffic(lab, token=account_token(lab)) as traffic:
        since = traffic.flows()
        done = orchestrate(lab, "indigo.rotate.tokens")
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(f"tokens: {done.seconds:.0f} s; {report}")
    noticed_nothing(report)
    for token in (admin, *own.values()):
        assert asked(lab, token) == "401"
    for host in MASTERS:
        text = read(lab, host, f"{KUBERNETES}/tokens.csv") + read(lab, host, SET)
        assert not [token for token in (admin, *own.values()) if token in text]
    for host, old in own.items():
        new = read(lab, host, f"{KUBERNETES}/tokens/kubelet").strip()
        assert new != old
        # What a kubelet may ask is another question.
        assert asked(lab, new) in ("200", "403")
    assert asked(lab, read(lab, "host1", f"{KUBERNETES}/tokens/admin")) == "200"
    assert rotation(lab) is None
    nothing_left_to_do(lab)


# The service account key --------------------------------------------------------------------------

WORKLOAD = deployment("speaks", 2)


def pods(lab) -> set[str]:
    """Names of the workload's running pods."""
    return {
        one["metadata"]["name"]
        for one in kubectl(lab, "get", "pods", "-l", "app=speaks")["items"]
        if one["status"]["phase"] == "Running" and "deletionTimestamp" not in one["metadata"]
    }


@pytest.fixture(scope="module")
def workload(lab) -> Iterator[None]:
    """Pods with a service account, as most have one."""
    assert lab.kubectl("apply", "-f", "-", stdin=WORKLOAD, timeout=60).returncode == 0
    assert until(lambda: len(pods(lab)) == 2, 90)
    yield
    lab.kubectl("delete", "deployment", "speaks", timeout=60)
    lab.kubectl("delete", "clusterrolebinding", "client", timeout=60)
    lab.kubectl("delete", "serviceaccount", "client", timeout=60)


def pods_own_token(lab, namespace: str = "default") -> str:
    """A token that a pod of the namespace would be given."""
    account = kubectl(lab, "get", "serviceaccount", "default", "-n", namespace)
    if "secrets" not in account:  # from 1.24 on pods' tokens are asked for
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
        ask = '{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}'
        made = lab.kubectl("create", "--raw", path, "-f", "-", stdin=ask)
        assert made.returncode == 0, made.stderr
        return json.loads(made.stdout)["status"]["token"]
    (first, *_) = account["secrets"]
    data = kubectl(lab, "get", "secret", "-n", namespace, first["name"])["data"]
    return base64.b64decode(data["token"]).decode()


@pytest.mark.slow
def test_the_service_account_key_is_exchanged(lab, workload, figure):
    outside, inside, before = account_token(lab), pods_own_token(lab), pods(lab)
    public = read(lab, "host1", f"{KUBERNETES}/pki/sa.pub")
    assert asked(lab, outside) == "200"
    assert asked(lab, inside) == "403"
    with Traffic(lab) as traffic:
        since = traffic.flows()
        done = orchestrate(lab, "indigo.rotate.serviceaccount")
        assert done.code == 0, done.told
        report = traffic.stop(since)
    figure(f"service account key: {done.seconds:.0f} s; {report}")
    noticed_nothing(report)
    assert asked(lab, outside) == asked(lab, inside) == "401"
    assert asked(lab, account_token(lab)) == "200"
    assert asked(lab, pods_own_token(lab)) == "403"
    assert len(pods(lab)) == 2
    assert not pods(lab) & before
    for host in MASTERS:
        now = read(lab, host, f"{KUBERNETES}/pki/sa.pub")
        assert now.count("BEGIN") == 1
        assert now != public
    nothing_left_to_do(lab)


# The authorities ----------------------------------------------------------------------------------

TRUSTED = {
    f"{KUBERNETES}/pki/ca.crt": HOSTS,
    "/etc/etcd/pki/ca.crt": HOSTS,
    f"{KUBERNETES}/pki/front-proxy-ca.crt": MASTERS,
}


def trusted(lab) -> dict[str, str]:
    return {
        f"{host} {path}": read(lab, host, path) for path, hosts in TRUSTED.items() for host in hosts
    }


def pods_authorities(lab) -> str:
    """What pods are told to trust."""
    return kubectl(lab, "get", "configmap", "kube-root-ca.crt")["data"]["ca.crt"]


def shakes_hands(lab, authority: str) -> bool:
    """Whether a client that trusts one authority alone speaks to the API server at the VIP."""
    code = (
        "import socket, ssl, sys\n"
        "c = ssl.create_default_context(cadata=sys.stdin.read())\n"
        "with socket.create_connection(('10.77.0.10', 8443), 5) as s:\n"
        "    try: c.wrap_socket(s, server_hostname='10.77.0.10'); print('yes')\n"
        "    except ssl.SSLCertVerificationError: print('no')\n"
    )
    return lab.exec("salt", ["python3", "-c", code], stdin=authority, check=True).stdout == "yes\n"


@pytest.mark.slow
def test_the_authorities_are_exchanged_while_both_are_trusted(lab, workload, figure):
    before, old = trusted(lab), read(lab, "host1", f"{KUBERNETES}/pki/ca.crt")
    ran = pods(lab)
    assert shakes_hands(lab, old)
    began = time.monotonic()
    # Clients outside that trust the old one alone, until they are given both.
    with Traffic(lab) as traffic:
        since = traffic.flows()
        run = Run(lab, "indigo.rotate.ca")
        assert run.wait_for(
            lambda it: (
                it.has("salt", EXCHANGE)
                and "pods"
                in json.loads((it._roots["salt"] / EXCHANGE.lstrip("/")).read_text() or "{}")
            )
        ), run.end().told
        run.kill()
        first = traffic.stop(since)
    noticed_nothing(first)
    assert {text.count("BEGIN") for text in trusted(lab).values()} == {2}
    assert status(lab)["exchange"]["ca"]["phase"] == "trusted"
    assert pods_authorities(lab).count("BEGIN") == 2
    assert shakes_hands(lab, old)
    with Traffic(lab) as traffic:
        since = traffic.flows()
        middle = deploy(lab)
        assert middle.code == 0, middle.told
        done = orchestrate(lab, "indigo.rotate.ca")
        assert done.code == 0, done.told
        second = traffic.stop(since)
    figure(f"authorities, killed once, with a deploy in between: {time.monotonic() - began:.0f} s")
    figure(f"until all trust both: {first}; then: {second}")
    noticed_nothing(second)

    after = trusted(lab)
    assert {text.count("BEGIN") for text in after.values()} == {1}
    assert not [where for where, text in after.items() if text == before[where]]
    assert pods_authorities(lab) == read(lab, "host1", f"{KUBERNETES}/pki/ca.crt")
    assert not shakes_hands(lab, old)
    assert shakes_hands(lab, read(lab, "host1", f"{KUBERNETES}/pki/ca.crt"))
    assert not pods(lab) & ran
    assert lab.exec("salt", ["sh", "-c", "ls -d /etc/indigo/ca/exchange* /etc/indigo/ca/*/exchange"]
                    ).stdout == ""  # fmt: skip
    # kubelets are reached with certificates of the new one, by API servers that trust it alone.
    (name, *_) = pods(lab)
    assert lab.kubectl("logs", name, timeout=60).returncode == 0
    nothing_left_to_do(lab)
