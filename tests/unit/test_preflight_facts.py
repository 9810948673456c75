"""What hosts say of themselves, against what is declared."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from indigo_model import derive, preflight
from support import load

facts_module = load("_modules", "indigo_preflight")

PLAN = {
    "vip": {"address": "10.0.0.9", "interface": "eth0"},
    "hosts": {
        "lb1": {"address": "10.0.0.1", "roles": ["lb"]},
        "node1": {"address": "10.0.0.2", "roles": ["node"]},
        "salt": {"address": "10.0.0.3", "roles": ["ca"]},
    },
}


def fact(address: str) -> dict[str, Any]:
    return {
        "interfaces": {"lo": ["127.0.0.1/8"], "eth0": [f"{address}/24"]},
        "init": "systemd",
        "arch": "amd64",
        "os": ["Debian", "Debian", "12"],
        "free_mb": {"/opt": 9000, "/var/lib": 9000},
        "time": 1000.0,
    }


FACTS = {id_: fact(host["address"]) for id_, host in PLAN["hosts"].items()}


def problems(**changed: Any) -> list[str]:
    facts = copy.deepcopy(FACTS)
    plan = copy.deepcopy(PLAN)
    for id_, change in changed.items():
        if id_ == "plan":
            change(plan)
        elif change is None:
            del facts[id_]
        else:
            facts[id_].update(change)
    return preflight.host_problems(plan, facts)


def test_hosts_that_fit_have_no_problem():
    assert problems() == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"node1": None}, r"node1 \(10\.0\.0\.2\) does not answer: start salt-minion"),
        (
            {"node1": {"interfaces": {"eth0": ["10.0.0.7/24"]}}},
            r"hosts\.node1\.address: 10\.0\.0\.2 is not on node1, which has 10\.0\.0\.7",
        ),
        (
            {"lb1": {"interfaces": {"ens3": ["10.0.0.1/24"]}}},
            r"vip\.interface: eth0 does not exist on lb1, which has ens3",
        ),
        (
            {"lb1": {"interfaces": {"eth0": ["10.0.0.1/30"]}}},
            r"vip\.address: 10\.0\.0\.9 is outside .* eth0 on lb1 \(10\.0\.0\.0/30\)",
        ),
        ({"node1": {"init": "openrc"}}, "its init is openrc; systemd is expected"),
        ({"node1": {"arch": "s390x"}}, "s390x; amd64 or arm64"),
        ({"node1": {"os": ["Debian", "Debian", "11"]}}, r"Debian 11; supported are Debian 12/13"),
        ({"node1": {"free_mb": {"/opt": 10, "/var/lib": 900}}}, "10 MiB free under /opt.*700 MiB"),
        ({"node1": {"time": 1100.0}}, r"node1: its clock is \+100 s off"),
    ],
)
def test_each_problem_names_the_host_and_the_remedy(changed, expected):
    (found,) = problems(**changed)
    assert re.search(expected, found)


def test_a_host_may_have_an_interface_of_its_own_for_the_vip():
    def own(plan):
        plan["hosts"]["lb1"]["interface"] = "bond0"

    (found,) = problems(plan=own)
    assert found.startswith("hosts.lb1.interface: bond0 does not exist on lb1, which has eth0")
    assert problems(plan=own, lb1={"interfaces": {"bond0": ["10.0.0.1/24"]}}) == []


def test_the_ca_host_may_run_any_system():
    assert problems(salt={"os": ["Arch", "Arch", "None"], "init": "systemd"}) == []


def test_digests_of_minion_and_master_agree(monkeypatch):
    pillar = {"indigo": {"b": 1, "a": ["ü"]}, "x509_signing_policies": {"p": {}}, "other": 1}
    monkeypatch.setattr(facts_module, "__pillar__", pillar, raising=False)
    ours = {key: pillar[key] for key in ("indigo", "x509_signing_policies")}
    assert facts_module.pillar_digest() == derive.digest(ours)


def test_a_program_below_a_link_is_known_by_its_real_path(monkeypatch, tmp_path):
    """The kernel names it so: /usr/sbin is a link to /usr/bin on Fedora."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "sbin").symlink_to("bin")
    port = {"service": "haproxy", "protocol": "tcp", "port": 8443, "address": "10.0.0.9"}
    listener = {"protocol": "tcp", "port": 8443, "address": "10.0.0.9", "inode": "7"}
    monkeypatch.setattr(facts_module, "_listeners", lambda: [listener])

    def found(program: str, declared: str) -> list[str]:
        held = {"7": (42, f"{tmp_path}/{program}")}
        monkeypatch.setattr(facts_module, "_holders", lambda *_: held)
        wanted = [{**port, "program": f"{tmp_path}/{declared}"}]
        return [one["program"] for one in facts_module.taken(wanted)]

    assert found("bin/haproxy", "sbin/haproxy") == found("bin/etcd-3/etcd", "sbin/") == []
    # A folder is a whole one, links or not.
    assert found("binary/etcd", "sbin/") == [f"{tmp_path}/binary/etcd"]


def test_the_code_digest_sees_names_and_contents_of_our_modules_alone(tmp_path):
    folders = [tmp_path / "modules", tmp_path / "states"]
    for folder in folders:
        folder.mkdir()
    empty = facts_module.code_digest(folders)
    (folders[0] / "someone_else.py").write_text("x = 1\n")
    assert facts_module.code_digest(folders) == empty
    (folders[0] / "indigo_a.py").write_text("x = 1\n")
    one = facts_module.code_digest(folders)
    (folders[0] / "indigo_a.py").write_text("x = 2\n")
    two = facts_module.code_digest(folders)
    (folders[0] / "indigo_a.py").rename(folders[1] / "indigo_a.py")
    assert len({empty, one, two, facts_module.code_digest(folders)}) == 4


# The authorities ----------------------------------------------------------------------------------


def with_ca(plan):
    plan["roles"] = {"ca": ["salt"]}


TRUST = {"authorities": {"held": {}, "trusted": {"etcd": ["old", "new"]}}}


@pytest.mark.parametrize("keys", [["old"], ["new", "next"]])
def test_an_authority_that_hosts_trust_may_be_renewed_or_exchanged(keys):
    held = {"authorities": {"held": {"etcd": keys}, "trusted": {}}}
    assert problems(plan=with_ca, node1=TRUST, salt=held) == []


def test_nobody_trusts_an_authority_before_it_is_made():
    nothing = {"authorities": {"held": {"etcd": []}, "trusted": {}}}
    assert problems(plan=with_ca, salt=nothing) == []


@pytest.mark.parametrize("keys", [[], ["stranger"]])
def test_a_lost_authority_is_not_made_anew_over_one_that_hosts_trust(keys):
    held = {"authorities": {"held": {"etcd": keys}, "trusted": {}}}
    (told,) = problems(plan=with_ca, node1=TRUST, salt=held)
    assert "hosts trust (node1)" in told
    assert "Put /etc/indigo/ca from a backup on salt" in told
