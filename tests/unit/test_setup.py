"""``salt-run indigo.setup``: reading setup.conf, the file that it writes, and what ssh is told."""

from __future__ import annotations

import base64
import subprocess

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from indigo_model import setup, validate
from support import load

runner = load("_runners", "indigo_setup")

#: The form that the project's first clusters were set up with, with its blank line.
SEED = """\
LB1=192.0.2.11 name=balancer-a
LB2=192.0.2.12 name=balancer-b
VIP=192.0.2.10
ETCD1=192.0.2.21
ETCD2=192.0.2.22
ETCD3=192.0.2.23
MASTER1=192.0.2.31
MASTER2=192.0.2.32
NODE1=192.0.2.41
NODE2=192.0.2.42

"""
MASTER = {"id": "salt", "address": "192.0.2.5"}


def declared(conf, **kwargs):
    said, problems = setup.parse(conf)
    assert problems == []
    return setup.document(said, MASTER, **kwargs)


def test_the_seeds_file_declares_a_cluster() -> None:
    document, problems = declared(SEED, interfaces={"balancer-a": "ens3", "balancer-b": "ens4"})
    assert problems == []
    assert document["hosts"]["salt"] == {"address": "192.0.2.5", "roles": ["ca"]}
    assert document["hosts"]["etcd3"] == {"address": "192.0.2.23", "roles": ["etcd"]}
    assert document["vip"] == {"address": "192.0.2.10", "interface": "ens3"}
    assert document["hosts"]["balancer-b"]["interface"] == "ens4"
    assert "interface" not in document["hosts"]["balancer-a"]


def test_one_address_in_several_lines_is_one_host_with_several_roles() -> None:
    conf = "SALT=10.0.0.1 name=all\nVIP=10.0.0.9 interface=eth1 router_id=7\n" + "".join(
        f"{role}1=10.0.0.1\n" for role in ("LB", "ETCD", "MASTER", "NODE")
    )
    document, problems = declared(conf)
    assert problems == []
    assert document["hosts"] == {
        "all": {"address": "10.0.0.1", "roles": ["ca", "lb", "etcd", "master", "node"]}
    }
    assert document["vip"] == {"address": "10.0.0.9", "interface": "eth1", "router_id": 7}


def test_the_salt_master_may_be_one_of_the_hosts() -> None:
    said, _ = setup.parse(SEED)
    document, problems = setup.document(said, {"id": "other", "address": "192.0.2.41"})
    assert problems == []
    assert document["hosts"]["node1"]["roles"] == ["ca", "node"]
    assert "other" not in document["hosts"]


def test_a_missing_line_means_not_wanted() -> None:
    conf = "".join(line + "\n" for line in SEED.splitlines() if not line.startswith("NODE"))
    document, problems = declared(conf)
    assert problems == []
    assert not any("node" in host["roles"] for host in document["hosts"].values())


WRONG = """\
LB1=192.0.2.11 nmae=lb1
# a comment
LB2=192.0.2.300
VIP=<VIP_IP>
ETCD1=192.0.2.21
ETCD1=192.0.2.22
MASTR1=192.0.2.31
MASTER1=192.0.2.31 name=m
MASTER2=192.0.2.32 name=m
hello
OPENSTACK_URI=http://192.0.2.99:5000
SALT_VERSION=latest
SSH_USER=root; reboot
PODS=10.0.0.1/8
SALT_REPOSITORY=http://192.0.2.2/x $(id)
NODE1=192.0.2.31 name=n
"""


def test_all_wrong_lines_are_told_at_once_by_number() -> None:
    _, problems = setup.parse(WRONG)
    told = {problem.split(":")[0] for problem in problems if problem.startswith("line ")}
    numbers = (1, 3, 4, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16)
    assert told == {f"line {number}" for number in numbers}
    text = "\n".join(problems)
    assert "line 6: ETCD1: found it again; it is on line 5" in text
    assert "did you mean MASTER1?" in text
    assert "line 9: MASTER2: found m at 192.0.2.32; on line 8 it is at 192.0.2.31" in text
    assert "line 11: OPENSTACK_URI: found an unknown key" in text
    assert "did you mean OPENSTACK_URL?" in text
    assert "line 16: NODE1: found name=n for 192.0.2.31; on line 8 it is m" in text


@pytest.mark.parametrize("gone", ["VIP", "LB", "ETCD", "MASTER"])
def test_what_a_cluster_cannot_be_without_is_named(gone) -> None:
    conf = "".join(line + "\n" for line in SEED.splitlines() if not line.startswith(gone))
    _, problems = setup.parse(conf)
    assert len(problems) == 1 and problems[0].startswith(f"no line {gone}")


def test_what_the_model_finds_has_the_line_it_comes_from() -> None:
    _, problems = declared(SEED.replace("VIP=192.0.2.10", "VIP=192.0.2.41"))
    assert any(problem.startswith("line 9: hosts.node1.address") for problem in problems), problems
    _, problems = declared(SEED.replace("ETCD3=192.0.2.23\n", ""))
    assert any("etcd" in problem for problem in problems)


def test_more_keys_come_along_and_setup_conf_wins() -> None:
    more = {"versions": {"kubernetes": "1.30.1"}, "networks": {"hosts": "192.0.2.0/24"}}
    document, problems = declared(SEED, more=more)
    assert problems == []
    assert document["versions"] == {"kubernetes": "1.30.1"}
    assert set(document["networks"]) == {"hosts", "services", "pods"}
    _, problems = declared(SEED, more={"hosts": {}})
    assert problems == ["more: found the key hosts; expected it in setup.conf alone"]


def test_the_file_says_whether_it_was_edited() -> None:
    document, _ = declared(SEED)
    text = setup.text(document, "setup.conf")
    assert yaml.safe_load(text) == document
    assert validate.problems(validate.load(text, "x")) == []
    assert setup.unedited(text)
    assert not setup.unedited(text + "name: mine\n")
    assert not setup.unedited(text.split("\n", 1)[1])


# --- OpenStack -----------------------------------------------------------------------------

#: The lines of the project's first clusters.
CLOUD = """\
OPENSTACK_URL=https://192.0.2.99:5000/v3
OPENSTACK_USER=indigo
OPENSTACK_PASS=pa<ss="w\\ord
OPENSTACK_TENANTID=5a1b
OPENSTACK_REGION=RegionOne
"""
WORD = 'pa<ss="w\\ord'


def test_the_seeds_lines_become_the_addon_and_the_password_goes_another_way() -> None:
    said, problems = setup.parse(SEED + CLOUD)
    assert problems == []
    document, problems = setup.document(said, MASTER)
    assert problems == []
    assert document["addons"] == {
        "openstack": {
            "auth_url": "https://192.0.2.99:5000/v3",
            "region": "RegionOne",
            "user": "indigo",
            "project": "5a1b",
        }
    }
    assert said.password == WORD
    # Nowhere else: not in the file, not in what is shown of the object.
    assert WORD not in setup.text(document, "x")
    assert WORD not in str(said.values) and "pa<ss" not in repr(said)


def test_the_authority_and_the_domain_have_lines_and_more_keys_come_along() -> None:
    lines = (
        "OPENSTACK_CA_URL=salt://openstack/ca.pem\n"
        f"OPENSTACK_CA_SHA256={'0' * 64}\nOPENSTACK_DOMAIN=people\n"
    )
    more = {"addons": {"coredns": {}, "openstack": {"type": "ssd", "region": "Two"}}}
    document, problems = declared(SEED + CLOUD + lines, more=more)
    assert problems == []
    assert document["addons"]["coredns"] == {}
    found = document["addons"]["openstack"]
    assert (found["type"], found["region"], found["domain"]) == ("ssd", "RegionOne", "people")
    assert found["ca"] == "salt://openstack/ca.pem" and found["ca_sha256"] == "0" * 64


def test_a_password_alone_is_that_of_what_is_declared_elsewhere() -> None:
    cloud = {"auth_url": "https://x/v3", "region": "r", "application_credential": "7"}
    word = "OPENSTACK_PASS=secret\n"
    document, problems = declared(SEED + word, more={"addons": {"openstack": cloud}})
    assert problems == [] and document["addons"]["openstack"] == cloud
    _, problems = declared(SEED + word)
    assert problems and all(problem.startswith("line 12: addons.open") for problem in problems)


@pytest.mark.parametrize(
    ("gone", "instead", "expected"),
    [
        ("OPENSTACK_REGION=RegionOne", "", "line 12: addons.openstack.region: found no such key"),
        ("OPENSTACK_TENANTID=5a1b", "", "(the line OPENSTACK_TENANTID=…)"),
        ("OPENSTACK_USER=indigo", "", "(the line OPENSTACK_USER=…)"),
        (
            "https://192.0.2.99:5000/v3",
            "keystone",
            "line 12: addons.openstack.auth_url: found 'key",
        ),
        (
            "OPENSTACK_USER=indigo",
            "OPENSTACK_USER=indigo\nOPENSTACK_CA_URL=https://x/ca.pem",
            "line 14: addons.openstack.ca: found 'https://x/ca.pem'; expected a file of the Salt",
        ),
    ],
)
def test_what_is_wrong_with_the_cloud_has_its_line(gone, instead, expected) -> None:
    _, problems = declared(SEED + CLOUD.replace(gone, instead))
    assert any(expected in problem for problem in problems), problems
    assert not any(WORD in problem for problem in problems)


@pytest.mark.parametrize(
    "line", ["OPENSTACK_PASS=", "OPENSTACK_PASS=<OS_PASS>", "OPENSTACK_PASS x"]
)
def test_a_password_that_is_none_is_told_without_it(line) -> None:
    _, problems = setup.parse(SEED + line)
    assert problems == [
        "line 12: OPENSTACK_PASS: found no value; expected OPENSTACK_PASS= and the password, or no "
        "such line"
    ]


def test_a_file_with_a_password_is_its_owners_alone(tmp_path) -> None:
    conf = tmp_path / "setup.conf"
    conf.write_text(SEED + CLOUD)
    conf.chmod(0o640)
    (problem,) = runner._readable(str(conf))
    assert "mode 0640" in problem and f"chmod 0600 {conf}" in problem
    conf.chmod(0o600)
    assert runner._readable(str(conf)) == []


class Client:
    """Minions that answer what they are told to; notes what they were asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def cmd(self, host, function, arguments=(), timeout=0):
        self.asked.append((host, function, arguments))
        return {host: self.answer} if function == "indigo_cloud.keep" else {}


def carried(keys, answer, folder="minions"):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    keys(folder, public.decode())
    client = Client(answer)
    model = {"indigo_seal.seal": load("_modules", "indigo_seal").seal}
    found = {"password": WORD, "password_file": "/etc/kubernetes/openstack.secret"}
    return client, lambda: runner._kept(model, client, "a", found)


def test_the_password_travels_sealed_to_one_minion(keys) -> None:
    client, carry = carried(keys, {"changed": True})
    assert carry() is True
    host, function, (envelope,) = client.asked[-1]
    assert (host, function) == ("a", "indigo_cloud.keep")
    assert envelope["header"] == {"recipient": "a", "file": "/etc/kubernetes/openstack.secret"}
    assert WORD not in str(client.asked)


@pytest.mark.parametrize("answer", ["No such function", {}, None])
def test_a_host_that_does_not_take_it_is_named(keys, answer) -> None:
    _, carry = carried(keys, answer)
    with pytest.raises(runner.CommandExecutionError, match="OPENSTACK_PASS: a did not take it"):
        carry()


def test_nothing_is_sealed_for_a_key_that_nobody_accepted(keys) -> None:
    client, carry = carried(keys, {"changed": True}, folder="minions_pre")
    with pytest.raises(runner.CommandExecutionError, match="no accepted key"):
        carry()
    assert client.asked == []


# --- the script ----------------------------------------------------------------------------


def script(**kwargs):
    given = {"repository": "http://192.0.2.2/salt ./", "key": b"\x99key", **kwargs}
    return setup.host_script(
        {"a": "192.0.2.1", "b": "192.0.2.2"}, "192.0.2.5", "aa:bb", "3008.3", **given
    )


def test_the_script_is_shell_and_knows_the_master_before_it_speaks_to_it() -> None:
    text = script()
    assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0
    assert "@" not in text.replace("$@", "").replace("[@", "").replace("@*", "")
    assert text.index("master_finger: 'aa:bb'") < text.index("apt-get -qy install")
    assert '"salt-minion=3008.3*"' in text
    assert "signed-by=" in text and base64.b64encode(b"\x99key").decode() in text
    assert "indigo-salt.asc" in script(key=b"-----BEGIN PGP PUBLIC KEY BLOCK-----")


@pytest.mark.parametrize(("address", "id_"), [("192.0.2.1", "a"), ("192.0.2.2", "b")])
def test_a_host_finds_its_id_by_its_address(tmp_path, address, id_) -> None:
    (tmp_path / "ip").write_text(f"#!/bin/sh\necho '2: eth0 inet {address}/24 scope global eth0'\n")
    (tmp_path / "ip").chmod(0o755)
    text = script()
    finder = text[text.index("\nid=\n") : text.index("\nchanged=\n")] + '\necho "$id"\n'
    done = subprocess.run(
        ["sh"], input="say() { :; }\n" + finder, text=True, capture_output=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.strip() == id_


# --- the runner ----------------------------------------------------------------------------

PEM = "-----BEGIN PUBLIC KEY-----\nMIIB\nAAAA\n-----END PUBLIC KEY-----\n"
SHOWN = "indigo-key " + base64.b64encode(PEM.encode()).decode()


def test_keys_are_taken_from_hosts_that_succeeded() -> None:
    hosts = {"a": "192.0.2.1", "b": "192.0.2.2", "c": "192.0.2.3", "d": "192.0.2.4"}
    answers = {
        "a": {"stdout": f"\n{SHOWN}\n", "stderr": "", "retcode": 0},
        "b": {"stdout": "The host key needs to be accepted", "stderr": "", "retcode": 254},
        "c": {"stdout": SHOWN, "stderr": "E: no salt-minion\n", "retcode": 100},
    }
    shown, problems = runner.judged(hosts, answers)
    assert shown == {"a": PEM}
    assert [problem[:1] for problem in problems] == ["b", "c", "d"]
    assert "ssh 192.0.2.2 true" in problems[0]
    assert "no salt-minion" in problems[1]


class Keys:
    """The Salt master's keys, with one of that id in one folder."""

    def __init__(self, folder, pem):
        self.folder, self.pem, self.accepted = folder, pem, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def list_keys(self):
        return {self.folder: ["a"]}

    def key_str(self, _):
        return {self.folder: {"a": self.pem}}

    def accept(self, match_dict):
        self.accepted.append(match_dict)


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setattr(runner, "__opts__", {"hash_type": "sha256"}, raising=False)

    def use(folder, pem):
        made = Keys(folder, pem)
        monkeypatch.setattr(runner.salt.key, "get_key", lambda _: made)
        return made

    return use


def test_a_waiting_key_is_accepted_when_its_host_has_it(keys) -> None:
    made = keys("minions_pre", PEM.replace("\n", "\r\n"))
    assert ":" in runner._accepted("a", PEM)
    assert made.accepted == [{"minions_pre": ["a"]}]


@pytest.mark.parametrize("folder", ["minions_pre", "minions", "minions_denied"])
def test_another_key_under_that_id_is_never_accepted(keys, folder) -> None:
    made = keys(folder, PEM.replace("AAAA", "BBBB"))
    with pytest.raises(runner.CommandExecutionError, match="another key under that id"):
        runner._accepted("a", PEM)
    assert made.accepted == []


def test_the_file_is_written_in_one_move_and_the_old_one_kept(tmp_path) -> None:
    target = tmp_path / "cluster.yaml"
    assert runner._written(target, "# head\na: 1\n")
    assert not runner._written(target, "# another head\na: 1\n")
    assert runner._written(target, "# head\na: 2\n")
    kept = [path for path in tmp_path.iterdir() if path != target]
    assert target.read_text() == "# head\na: 2\n"
    assert [path.read_text() for path in kept] == ["# head\na: 1\n"]


def test_a_file_by_hand_is_left_alone_without_force(tmp_path) -> None:
    target = tmp_path / "cluster.yaml"
    model = {"indigo_model.setup_unedited": setup.unedited}
    assert runner._refused(model, target, False) == []
    target.write_text("name: mine\n")
    assert "force=True" in runner._refused(model, target, False)[0]
    assert runner._refused(model, target, True) == []
    target.write_text(setup.text({"name": "x"}, "setup.conf"))
    assert runner._refused(model, target, False) == []
