"""Certificates through a real master: issuing, refusing, renewing, reporting."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import ssl
import stat
import time
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CA = "ca-host"
PEM = serialization.Encoding.PEM


def only(answers):
    """The one state of the one minion that was asked."""
    (steps,) = answers.values()
    (step,) = steps
    return step


def issue(site, minion, **kwargs):
    # Another state may follow: what the host's roles do not want any more goes.
    ((step, *_),) = site.apply(minion, "common.certificates", **kwargs).values()
    return step


def files(site, minion):
    return {
        str(path.relative_to(site.root(minion))): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in site.root(minion).rglob("*")
        if path.is_file()
    }


def certificate(site, minion, name):
    return next(row for row in site.view(minion)["pki"]["certificates"] if row["name"] == name)


def public_key():
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def ask(site, minion, *arg, function="indigo_ca.sign"):
    """What a minion obtains that publishes with arguments of its own making."""
    return site.call(minion, "publish.publish", CA, function, arg=list(arg), timeout=30)


@pytest.fixture(scope="module")
def bare(site):
    """The site as it is before anything was done."""
    assert not any(files(site, minion) for minion in site.minions)
    return site


@pytest.fixture(scope="module")
def authorities(bare, previews):
    """The site with its authorities."""
    step = only(bare.apply(CA, "ca"))
    assert step["result"] is True, step
    assert len(step["changes"]) == 6
    return bare


@pytest.fixture(scope="module")
def previews(bare):
    """What test mode says about bare hosts."""
    answers = bare.apply("*", "common.certificates", test=True)
    answers[f"{CA} authorities"] = bare.apply(CA, "ca", test=True)[CA]
    assert not any(files(bare, minion) for minion in bare.minions)
    return answers


@pytest.fixture(scope="module")
def issued(authorities):
    """The site on which every host has its certificates, all asked for at once."""
    answers = authorities.apply("*", "common.certificates")
    assert set(answers) == set(authorities.minions)
    for minion, (step, *others) in answers.items():
        assert step["result"] is True, f"{minion}: {step['comment']}"
        assert step["changes"]
        assert all(other["result"] is True and not other["changes"] for other in others), minion
    return authorities


def test_bare_hosts_are_previewed(previews):
    assert len(previews) == 4
    for minion, (step, *others) in previews.items():
        assert step["result"] is None, minion
        assert step["changes"] == {}
        assert "ca.crt" in step["comment"]
        assert not any(other["changes"] for other in others), minion


def test_authorities_are_not_made_twice(issued):
    before = files(issued, CA)
    step = only(issued.apply(CA, "ca"))
    assert (step["result"], step["changes"]) == (True, {})
    assert files(issued, CA) == before


def test_a_second_run_changes_nothing(issued):
    before = {minion: files(issued, minion) for minion in issued.minions}
    for minion, steps in issued.apply("*", "common.certificates").items():
        assert all((step["result"], step["changes"]) == (True, {}) for step in steps), minion
    assert {minion: files(issued, minion) for minion in issued.minions} == before


def test_a_second_run_asks_nobody(issued):
    pki = issued.view("Master1")["pki"]
    answer = issued.call(
        "Master1",
        "state.single",
        "indigo_pki.certificates_managed",
        name="no such CA minion",
        ca="no-such-minion",
        authorities=pki["authorities"],
        certificates=pki["certificates"],
    )
    (step,) = answer.values()
    assert (step["result"], step["changes"]) == (True, {})


def test_hosts_hold_what_their_roles_need(issued):
    names = {
        minion: sorted(name for name in files(issued, minion) if "indigo" not in name)
        for minion in issued.minions
    }
    pki = "etc/kubernetes/pki"
    assert names[CA] == [f"{pki}/ca.crt"]
    assert names["node1"] == [f"{pki}/ca.crt", f"{pki}/kubelet.crt", f"{pki}/kubelet.key"]
    assert len(names["Master1"]) == 18
    for minion in issued.minions:
        for path in issued.root(minion).rglob("*.key"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize("name", ["10.99.0.10", "10.96.0.1", "kubernetes.default.svc", "master1"])
def test_clients_accept_the_api_server(issued, name):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    row = certificate(issued, "Master1", "apiserver")
    server.load_cert_chain(row["path"], row["key"])
    client = ssl.create_default_context(
        cafile=str(issued.root("node1") / "etc/kubernetes/pki/ca.crt")
    )
    handshake(client, server, name)


def test_etcd_and_its_client_accept_each_other(issued):
    member = certificate(issued, "Master1", "etcd-member")
    api = certificate(issued, "Master1", "apiserver-etcd-client")
    trust = str(issued.root("Master1") / "etc/etcd/pki/ca.crt")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(member["path"], member["key"])
    server.load_verify_locations(trust)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=trust)
    client.load_cert_chain(api["path"], api["key"])
    handshake(client, server, "10.99.0.31")

    # A client of the kubernetes authority is not one of etcd's.
    other = certificate(issued, "Master1", "apiserver-kubelet-client")
    client = ssl.create_default_context(cafile=trust)
    client.load_cert_chain(other["path"], other["key"])
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        handshake(client, server, "10.99.0.31")


def handshake(client_context, server_context, name):
    """A TLS handshake in memory; raises what the failing side does."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
        if not waiting:
            return
    raise AssertionError("the handshake did not come to an end")


# Who may have what


def test_a_minion_cannot_have_anothers_certificate(issued):
    asked = {"policy": "Master1.apiserver-kubelet-client", "public_key": public_key()}
    answer = ask(issued, "node1", [asked])[CA]
    assert answer["certificates"] == {}
    assert answer["errors"] == [
        "minion 'node1' may not use signing policy 'Master1.apiserver-kubelet-client': "
        "it is another minion's"
    ]


@pytest.mark.parametrize(
    "forged",
    [
        "__pub_id=Master1",
        {"__kwarg__": True, "__pub_id": "Master1"},
    ],
)
def test_a_minion_cannot_claim_to_be_another(issued, forged):
    asked = {"policy": "Master1.apiserver-kubelet-client", "public_key": public_key()}
    answer = ask(issued, "node1", [asked], forged)[CA]
    assert answer["certificates"] == {}
    assert "minion 'node1' may not use" in answer["errors"][0]


def test_the_same_request_from_the_right_minion_is_granted(issued):
    """The refusals above are not refusals of everybody."""
    asked = {"policy": "Master1.apiserver-kubelet-client", "public_key": public_key()}
    answer = ask(issued, "Master1", [asked])[CA]
    assert answer["errors"] == []
    assert list(answer["certificates"]) == ["Master1.apiserver-kubelet-client"]


def test_a_request_cannot_add_to_what_the_policy_fixes(issued):
    asked = {
        "policy": "node1.kubelet",
        "public_key": public_key(),
        "CN": "admin",
        "O": "system:masters",
        "subject": "O=system:masters,CN=admin",
        "extendedKeyUsage": "clientAuth",
        "days_valid": 9999,
    }
    answer = ask(issued, "node1", [asked])[CA]
    found = x509.load_pem_x509_certificate(answer["certificates"]["node1.kubelet"].encode())
    assert found.subject.rfc4514_string() == "CN=system:node:node1"
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]
    assert (found.not_valid_after_utc - found.not_valid_before_utc).days == 365


def test_without_a_requester_nothing_is_signed(issued):
    asked = {"policy": "node1.kubelet", "public_key": public_key()}
    answer = issued.call(CA, "indigo_ca.sign", [asked])
    assert "the minion that asks is unknown" in answer


@pytest.mark.parametrize(
    "function", ["x509.sign_remote_certificate", "pillar.items", "indigo_pki.renew"]
)
def test_the_master_passes_on_nothing_else(issued, function):
    assert ask(issued, "node1", function=function) == {}


def test_x509_knows_the_policies_of_this_pillar(issued):
    """Salt 3008 masks pillar values in modules; x509 must see the real ones."""
    policy = issued.call(CA, "x509.get_signing_policy", "node1.kubelet")
    assert policy["CN"] == "system:node:node1"
    assert policy["minions"] == "node1"


# Renewal


def near_expiry(site, minion, name, days):
    """Put a certificate in place as it will be that many days before its end."""
    row = certificate(site, minion, name)
    folder = site.root(CA) / "etc/indigo/ca" / row["authority"]
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    old = x509.load_pem_x509_certificate(Path(row["path"]).read_bytes())
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder(issuer.subject, old.subject, old.public_key(), 4711)
        .not_valid_before(now - datetime.timedelta(days=300))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    Path(row["path"]).write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(PEM))
    return row


def test_a_certificate_is_renewed_before_its_end(issued):
    row = near_expiry(issued, "node1", "kubelet", 59)
    key = Path(row["key"]).read_bytes()
    (report,) = [
        found for found in issued.call("node1", "indigo_pki.status") if found["name"] == "kubelet"
    ]
    assert report["days_left"] == 58
    assert "within 60 days" in report["problem"]

    preview = issue(issued, "node1", test=True)
    assert preview["result"] is None
    assert "within 60 days" in preview["comment"]

    step = issue(issued, "node1")

    assert step["result"] is True, step
    assert list(step["changes"]) == [row["path"]]
    assert step["changes"][row["path"]]["old"].startswith("serial 1267, not after")
    assert Path(row["key"]).read_bytes() == key
    assert issue(issued, "node1")["changes"] == {}


def test_renewal_on_request(issued):
    row = certificate(issued, "Master1", "apiserver")
    before = Path(row["path"]).read_bytes()
    assert list(issued.call("Master1", "indigo_pki.renew", "apiserver")) == [row["path"]]
    assert Path(row["path"]).read_bytes() != before
    assert issue(issued, "Master1")["changes"] == {}


def test_a_wrong_mode_is_mended(issued):
    row = certificate(issued, "Master1", "kube-scheduler")
    os.chmod(row["key"], 0o644)
    step = issue(issued, "Master1")
    assert list(step["changes"]) == [row["key"]]
    assert stat.S_IMODE(os.stat(row["key"]).st_mode) == 0o600


def test_a_changed_cluster_needs_no_refresh_of_the_ca_host(issued):
    """A plain state.apply after an edit: the CA minion's own pillar is still the old one."""
    path = issued.workspace / "pillar" / "cluster.yaml"
    before = path.read_text()
    changed = yaml.safe_load(before)
    changed["vip"]["address"] = "10.99.0.11"
    try:
        path.write_text(yaml.safe_dump(changed))
        step = issue(issued, "Master1")
        assert step["result"] is True, step["comment"]
        (changed_path,) = step["changes"]
        assert changed_path.endswith("apiserver.crt")
        assert issue(issued, "Master1")["changes"] == {}
    finally:
        path.write_text(before)
    assert issue(issued, "Master1")["result"] is True


# Failures


def single(site, minion, ca, certificates, timeout=2):
    answer = site.call(
        minion,
        "state.single",
        "indigo_pki.certificates_managed",
        name="trial",
        ca=ca,
        timeout=timeout,
        authorities=site.view(minion)["pki"]["authorities"],
        certificates=certificates,
    )
    (step,) = answer.values()
    return step


@pytest.fixture
def lacking(issued):
    """A declaration of node1 whose certificate is not there."""
    row = certificate(issued, "node1", "kubelet")
    elsewhere = issued.root("node1") / "elsewhere" / "kubelet"
    yield {**row, "path": f"{elsewhere}.crt", "key": f"{elsewhere}.key"}
    assert not elsewhere.parent.exists()


def test_a_ca_minion_that_is_unknown_is_named(issued, lacking):
    step = single(issued, "node1", "stranger", [lacking])
    assert step["result"] is False
    assert "knows no minion stranger" in step["comment"]
    assert step["changes"] == {}


def test_a_ca_minion_that_is_down_is_named(issued, lacking):
    keys = Path(issued.master.config["pki_dir"]) / "minions"
    shutil.copy(keys / "node1", keys / "sleeper")
    try:
        begun = time.monotonic()
        step = single(issued, "node1", "sleeper", [lacking])
        assert time.monotonic() - begun < 20
    finally:
        (keys / "sleeper").unlink()
    assert step["result"] is False
    assert "CA minion sleeper did not answer within 2 s" in step["comment"]


def test_a_host_that_holds_no_authority_says_so(issued, lacking):
    step = single(issued, "node1", "Master1", [lacking], timeout=30)
    assert step["result"] is False
    assert "holds no authority" in step["comment"]


def test_an_undeclared_certificate_is_refused(issued, lacking):
    step = single(issued, "node1", CA, [{**lacking, "policy": "node1.admin"}], timeout=30)
    assert step["result"] is False
    assert "'node1.admin' is not in the pillar of the CA minion" in step["comment"]


def test_authorities_are_not_removed_by_accident(issued):
    before = files(issued, CA)
    step = only(issued.apply(CA, "ca.absent"))
    assert step["result"] is False
    assert "must be the cluster's name" in step["comment"]
    assert files(issued, CA) == before


def test_removal_of_authorities_can_be_asked_for(issued):
    told = {"indigo": {"pki": {"remove_authorities_of": "trial"}}}
    step = only(issued.apply(CA, "ca.absent", test=True, pillar=told))
    assert step["result"] is None, step


def test_no_private_key_leaves_its_host(issued):
    """Not in the job cache, the logs or anything else that master and minions wrote."""
    secrets = [
        "".join(path.read_text().splitlines()[1:-1])[40:80].encode()
        for minion in issued.minions
        for path in issued.root(minion).rglob("*.key")
    ]
    assert len(secrets) == 11
    seen = 0
    for path in (issued.workspace / "f").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            seen += 1
            assert not any(secret in content for secret in secrets), path
    assert seen > 50
    # Proof that the search would find: what the job cache does hold is the public part.
    jobs = Path(issued.master.config["cachedir"]) / "jobs"
    public = Path(certificate(issued, "node1", "kubelet")["path"]).read_text().splitlines()[3]
    assert any(
        public.encode() in path.read_bytes() for path in jobs.rglob("*") if path.is_file()
    ), json.dumps([str(path) for path in jobs.rglob("*")][:20])
