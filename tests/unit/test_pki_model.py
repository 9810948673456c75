"""The table of certificates: what each host gets, and what the CA host will sign for it."""

from __future__ import annotations

import json

import pytest
from indigo_model import pki
from indigo_model.cluster import CERTIFICATES, Cluster, Host, Vip
from support import ROOT

HOSTS = (
    Host("salt", "10.77.0.5", ("ca",)),
    Host("lb1", "10.77.0.11", ("lb",)),
    Host("etcd1", "10.77.0.21", ("etcd",)),
    Host("master1", "10.77.0.31", ("master",)),
    Host("Master2", "10.77.0.32", ("etcd", "master")),
    Host("node1", "10.77.0.41", ("node",)),
    Host("all", "10.77.0.50", ("ca", "lb", "etcd", "master", "node")),
)


def cluster(*hosts: Host, **changes) -> Cluster:
    return Cluster(
        name="lab",
        hosts={host.id: host for host in hosts or HOSTS},
        vip=Vip("10.77.0.10", "eth0"),
        services="10.96.0.0/16",
        pods="10.244.0.0/16",
        **changes,
    )


LAB = cluster()


def view(id_: str, of: Cluster = LAB) -> dict:
    return pki.view(of, of.hosts[id_])["pki"]


def certificate(id_: str, name: str) -> dict:
    return next(row for row in view(id_)["certificates"] if row["name"] == name)


MASTER = [
    "apiserver",
    "apiserver-kubelet-client",
    "apiserver-etcd-client",
    "front-proxy-client",
    "kube-controller-manager",
    "kube-scheduler",
]


@pytest.mark.parametrize(
    ("id_", "names"),
    [
        ("salt", []),
        ("lb1", []),
        ("etcd1", ["etcd-member"]),
        ("master1", MASTER),
        ("Master2", ["etcd-member", *MASTER]),
        ("node1", ["kubelet"]),
        ("all", ["etcd-member", *MASTER, "kubelet"]),
    ],
)
def test_a_host_has_the_certificates_of_all_its_roles(id_, names):
    assert [row["name"] for row in view(id_)["certificates"]] == names


@pytest.mark.parametrize(
    ("id_", "paths"),
    [
        ("salt", {}),
        ("lb1", {"/etc/kubernetes/pki/ca.crt": "kubernetes"}),
        ("etcd1", {"/etc/etcd/pki/ca.crt": "etcd"}),
        (
            "all",
            {
                "/etc/kubernetes/pki/ca.crt": "kubernetes",
                "/etc/etcd/pki/ca.crt": "etcd",
                "/etc/kubernetes/pki/etcd-ca.crt": "etcd",
                "/etc/kubernetes/pki/front-proxy-ca.crt": "front-proxy",
            },
        ),
    ],
)
def test_each_authority_path_comes_once(id_, paths):
    authorities = view(id_)["authorities"]
    assert {row["path"]: row["name"] for row in authorities} == paths
    assert len(authorities) == len(paths)


def test_every_certificate_has_its_authority_on_the_host():
    for host in HOSTS:
        found = view(host.id)
        known = {row["name"] for row in found["authorities"]}
        assert {row["authority"] for row in found["certificates"]} <= known


def test_api_servers_answer_to_every_name_and_address_clients_use():
    assert set(certificate("master1", "apiserver")["sans"]) == {
        "DNS:kubernetes",
        "DNS:kubernetes.default",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default.svc.cluster.local",
        "DNS:localhost",
        "DNS:master1",
        "IP:10.77.0.31",
        "IP:10.77.0.32",
        "IP:10.77.0.50",
        "IP:10.77.0.10",
        "IP:10.96.0.1",
        "IP:127.0.0.1",
    }


def test_no_name_comes_twice():
    for host in HOSTS:
        for row in view(host.id)["certificates"]:
            assert len(row["sans"]) == len(set(row["sans"])), row


def test_names_are_lower_case_and_policies_keep_the_minion_id():
    row = certificate("Master2", "etcd-member")
    assert row["common_name"] == "master2"
    assert row["policy"] == "Master2.etcd-member"
    assert row["sans"] == ["DNS:master2", "IP:10.77.0.32", "DNS:localhost", "IP:127.0.0.1"]


def test_a_kubelet_certificate_opens_nothing_at_the_api():
    row = certificate("node1", "kubelet")
    assert row["common_name"] == "system:node:node1"
    assert row["organization"] is None
    assert row["usages"] == ["serverAuth"]


def test_files_of_a_host_do_not_collide():
    found = view("all")
    paths = [row["path"] for row in found["certificates"] + found["authorities"]]
    paths += [row["key"] for row in found["certificates"]]
    assert len(paths) == len(set(paths))


def test_only_the_ca_host_holds_authorities():
    assert [host.id for host in HOSTS if "held" in view(host.id)] == ["salt", "all"]
    assert [row["common_name"] for row in pki.held(LAB)] == [
        "lab kubernetes CA",
        "lab etcd CA",
        "lab front-proxy CA",
    ]
    assert pki.held(LAB)[1]["key"] == "/etc/indigo/ca/etcd/ca.key"


@pytest.mark.parametrize(
    ("days", "authority_days", "renew_before"), [(365, 3650, 730), (365, 400, 200), (30, 3650, 60)]
)
def test_authorities_are_renewed_in_time_for_two_rounds(days, authority_days, renew_before):
    given = {**CERTIFICATES, "days": days, "authority_days": authority_days}
    assert pki.held(cluster(certificates=given))[0]["renew_before"] == renew_before


def test_one_policy_for_each_host_and_certificate():
    declared = {row["policy"] for host in HOSTS for row in view(host.id)["certificates"]}
    assert set(pki.signing_policies(LAB)) == declared


def test_policies_say_what_the_views_expect():
    policies = pki.signing_policies(LAB)
    for host in HOSTS:
        for row in view(host.id)["certificates"]:
            policy = policies[row["policy"]]
            assert policy["minions"] == host.id
            assert policy["CN"] == row["common_name"]
            assert policy.get("O") == row["organization"]
            assert (policy["subjectAltName"] or []) == row["sans"]
            assert policy["extendedKeyUsage"] == ", ".join(row["usages"])
            assert policy["basicConstraints"] == "critical, CA:FALSE"
            assert policy["keyUsage"].startswith("critical")
            assert policy["days_valid"] == row["days"]
            assert policy["signing_cert"] == f"/etc/indigo/ca/{row['authority']}/ca.crt"
            assert policy["signing_private_key"] == f"/etc/indigo/ca/{row['authority']}/ca.key"


@pytest.mark.parametrize("id_", ["*", "node@1", "node?", "node[12]", "!node", "a,b", "a b"])
def test_an_id_that_would_match_other_minions_is_refused(id_):
    bad = cluster(Host(id_, "10.77.0.60", ("node",)))
    with pytest.raises(ValueError, match="would match others"):
        pki.signing_policies(bad)


def test_the_view_of_a_host_does_not_grow_with_the_nodes():
    def size(nodes: int, id_: str) -> int:
        more = (Host(f"n{i}", f"10.77.1.{i}", ("node",)) for i in range(nodes))
        return len(json.dumps(view(id_, cluster(*HOSTS, *more))))

    for host in HOSTS:
        assert size(0, host.id) == size(100, host.id)


def test_the_view_is_plain_json():
    for host in HOSTS:
        assert json.loads(json.dumps(view(host.id))) == view(host.id)


def test_terms_come_from_the_declaration():
    given = {**CERTIFICATES, "days": 90, "renew_before": 30}
    row = view("node1", cluster(certificates=given))["certificates"][0]
    assert (row["days"], row["renew_before"]) == (90, 30)


def test_the_documentation_shows_this_table():
    text = (ROOT / "docs" / "operations" / "certificates.md").read_text()
    documented = [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    uses = {"serverAuth": "server", "clientAuth": "client"}
    assert documented == [
        [
            row.name,
            row.role,
            row.authority,
            row.base,
            row.user,
            ", ".join(uses[usage] for usage in row.usages),
            ", ".join(row.services),
        ]
        for row in pki.CERTIFICATES
    ]
